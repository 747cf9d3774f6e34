from __future__ import annotations

import os
from pathlib import Path

from envs.sandbox import files


def usage(directory: Path, limit: int = 1 << 40) -> int:
    fd = os.open(directory, os.O_RDONLY)
    try:
        return files.disk_usage(fd, limit)
    finally:
        os.close(fd)


def test_disk_usage_counts_blocks_and_entries(tmp_path: Path):
    assert usage(tmp_path) == 0
    (tmp_path / "large").write_bytes(b"x" * (1 << 20))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "small").write_bytes(b"x")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 30)
    assert usage(tmp_path) == (1 << 20) + 3 * files.MIN_FILE_BYTES


def test_disk_usage_does_not_follow_links(tmp_path: Path):
    os.symlink("/", tmp_path / "root")
    assert usage(tmp_path) == files.MIN_FILE_BYTES


def test_disk_usage_stops_above_the_limit(tmp_path: Path):
    for number in range(10):
        (tmp_path / str(number)).touch()
    assert usage(tmp_path, limit=3 * files.MIN_FILE_BYTES) == 4 * files.MIN_FILE_BYTES


def test_regular_files_are_opened(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"12345")
    os.symlink("sub", tmp_path / "link")
    os.symlink("sub/file", tmp_path / "file-link")
    os.mkfifo(tmp_path / "fifo")
    opened = files.open_regular(str(tmp_path), "sub/file", 5)
    assert os.read(opened, 10) == b"12345"
    os.close(opened)
    before = os.listdir("/proc/self/fd")
    for name, limit in (("sub/file", 4), ("sub", 5), ("link/file", 5), ("file-link", 5), ("fifo", 5), ("none/x", 5)):
        assert files.open_regular(str(tmp_path), name, limit) == -1
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_any_tree_is_removed(tmp_path: Path):
    top = tmp_path / "top"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    os.makedirs(top / "work" / "0" / "1")
    os.symlink(outside, top / "work" / "link")
    (top / "work" / "0" / "file").touch()
    (top / "work" / "0").chmod(0)
    here = os.open(".", os.O_RDONLY)
    os.chdir(top / "work")
    for _ in range(2000):  # more than a path can name, or a recursion bear
        os.mkdir("deep-directory")
        os.chdir("deep-directory")
    os.fchdir(here)
    os.close(here)
    files.remove(str(top))
    assert os.listdir(tmp_path) == ["outside"] and os.listdir(outside) == ["kept"]
    files.remove(str(top))
