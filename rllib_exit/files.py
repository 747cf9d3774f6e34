"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def staging_prefix(path: Path) -> str:
    """How the names of a directory's unfinished versions begin, beside it."""
    return f".{path.name}.tmp-"


def new_directory(path: str | Path) -> Path:
    """The absolute path of a directory that a command is to write. Call it before the command's work begins.

    Raises:
        FileExistsError: If there is something at ``path``, other than an empty directory.
    """
    path = Path(path).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is not empty: name a new directory")
    return path


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A directory to write into; it is synced and appears at ``path`` when the context ends without error.

    Whoever the umask allows it can read and write its files, even those that a library made private.

    Raises:
        OSError: If there is a non-empty directory at ``path``.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(staging_prefix(path) + secrets.token_hex(4))
    staging.mkdir()
    allowed = staging.stat().st_mode & 0o666
    try:
        yield staging
        for written in (*staging.rglob("*"), staging):
            if written.is_file():
                written.chmod(written.stat().st_mode | allowed)
            _fsync(written)
        os.rename(staging, path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def make_once(path: Path, make: Callable[[Path], object]) -> None:
    """Makes a directory with ``make(temporary directory)``, unless it is there.

    It appears whole, and only one process makes it.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):  # if this process dies, the system frees the lock
        if path.is_dir():
            return
        for left_by_crash in path.parent.glob(
            f"{staging_prefix(path)}*"
        ):  # nobody writes it: this process holds the lock
            shutil.rmtree(left_by_crash)
        with atomic_directory(path) as staging:
            make(staging)


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    staging = file.with_name(f".{file.name}.tmp")
    staging.write_bytes(content)
    os.replace(staging, file)


def whole_lines(file: Path) -> list[str]:
    """The lines of a file, without a last one that is cut off or still being written; none if there is no file."""
    return file.read_text().split("\n")[:-1] if file.is_file() else []


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
