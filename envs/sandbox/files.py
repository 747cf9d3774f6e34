"""The files that a script leaves in its work directory.

While the script runs, it may change any of them between two calls, and it may give them any name, kind and mode. Links
are never followed, and what cannot be looked at is passed over.
"""

from __future__ import annotations

import os
import stat

# A file or directory counts at least this much, which bounds their number. A deeper tree counts as too large.
MIN_FILE_BYTES, _MAX_DEPTH = 16 << 10, 64


def _open_directory(name: str, parent: int) -> int:
    """Opens a directory and makes it our own to enter, also one that its owner has closed to everyone."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        mode = os.fstat(fd).st_mode
        if mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{fd}", mode & 0o777 | 0o700)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def disk_usage(directory: int, limit: int, depth: int = 0) -> int:
    """The bytes that the files of a directory take; more than the limit as soon as that is passed."""
    used = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                info = entry.stat(follow_symlinks=False)
                used += max(info.st_blocks * 512, MIN_FILE_BYTES)
                if stat.S_ISDIR(info.st_mode) and used <= limit:
                    if depth == _MAX_DEPTH:
                        return limit + 1
                    fd = _open_directory(entry.name, directory)
                    try:
                        used += disk_usage(fd, limit - used, depth + 1)
                    finally:
                        os.close(fd)
            except OSError:
                continue  # gone, replaced, or closed again
            if used > limit:
                break
    return used


def open_regular(work: str, name: str, limit: int) -> int:
    """Opens a file of the work directory; -1 if it is no regular file of at most ``limit`` bytes, holes included."""
    *directories, last = name.split("/")
    fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for flags, part in [*((os.O_DIRECTORY, part) for part in directories), (os.O_NONBLOCK | os.O_NOCTTY, last)]:
            parent = fd
            try:
                fd = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=parent)
            finally:
                os.close(parent)
    except (OSError, ValueError):  # ValueError: a name with a null byte
        return -1
    info = os.fstat(fd)
    if stat.S_ISREG(info.st_mode) and info.st_size <= limit:
        return fd
    os.close(fd)
    return -1


def remove(path: str) -> None:
    """Removes a tree of any depth, as :func:`shutil.rmtree` cannot: each directory is emptied at the top."""
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    moved = 0
    while names := os.listdir(top):
        for name in names:
            fd = _open_directory(name, top)
            for entry in os.listdir(fd):
                try:
                    os.unlink(entry, dir_fd=fd)
                except IsADirectoryError:
                    os.chmod(entry, 0o700, dir_fd=fd)  # to be moved, a directory must be writable
                    os.rename(entry, f"{moved}", src_dir_fd=fd, dst_dir_fd=top)
                    moved += 1
            os.close(fd)
            os.rmdir(name, dir_fd=top)
    os.close(top)
    os.rmdir(path)
