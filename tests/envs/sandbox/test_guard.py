from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.sandbox import guard
from envs.sandbox.sandbox import Limits


def usage(directory: Path, limit: int = 1 << 40) -> int:
    fd = os.open(directory, os.O_RDONLY)
    try:
        return guard._disk_usage(fd, limit)
    finally:
        os.close(fd)


def test_disk_usage_counts_blocks_and_entries(tmp_path: Path):
    assert usage(tmp_path) == 0
    (tmp_path / "large").write_bytes(b"x" * (1 << 20))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "small").write_bytes(b"x")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 30)
    assert usage(tmp_path) == (1 << 20) + 3 * guard._MIN_FILE_BYTES


def test_disk_usage_does_not_follow_links(tmp_path: Path):
    os.symlink("/", tmp_path / "root")
    assert usage(tmp_path) == guard._MIN_FILE_BYTES


def test_disk_usage_stops_above_the_limit(tmp_path: Path):
    for number in range(10):
        (tmp_path / str(number)).touch()
    assert usage(tmp_path, limit=3 * guard._MIN_FILE_BYTES) == 4 * guard._MIN_FILE_BYTES


def test_a_full_disk_is_no_failure_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job: Any = SimpleNamespace(limits=Limits(), cpu_s=300.0)
    watch = guard._Watch(job, str(tmp_path))
    assert watch.look_at_disk() is None
    monkeypatch.setattr(guard, "_DISK_RESERVE_BYTES", 1 << 62)
    with pytest.raises(guard._InfrastructureError, match="almost full"):
        watch.look_at_disk()


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError])
def test_a_process_that_ends_while_it_is_looked_at_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError]
):
    child = os.fork()
    if child == 0:
        os.execlp("sleep", "sleep", "60")
    listdir = os.listdir

    def ended(path: str) -> list[str]:
        if path == f"/proc/{child}/task":
            raise error(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", ended)
    try:
        assert child in guard._descendants()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_regular_files_are_opened(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"12345")
    os.symlink("sub", tmp_path / "link")
    os.symlink("sub/file", tmp_path / "file-link")
    os.mkfifo(tmp_path / "fifo")
    opened = guard._open_regular(str(tmp_path), "sub/file", 5)
    assert os.read(opened, 10) == b"12345"
    os.close(opened)
    before = os.listdir("/proc/self/fd")
    for name, limit in (("sub/file", 4), ("sub", 5), ("link/file", 5), ("file-link", 5), ("fifo", 5), ("none/x", 5)):
        assert guard._open_regular(str(tmp_path), name, limit) == -1
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
    guard._remove(str(top))
    assert os.listdir(tmp_path) == ["outside"] and os.listdir(outside) == ["kept"]
    guard._remove(str(top))


@given(chunks=st.lists(st.binary(max_size=20)), limit=st.integers(1, 30))
def test_the_end_of_the_output_is_kept(chunks: list[bytes], limit: int):
    source, sink = os.pipe()
    os.set_blocking(source, False)
    kept = bytearray()
    for chunk in chunks:
        os.write(sink, chunk)
        assert guard._read(source, kept, limit) == bool(chunk)
    os.close(sink)
    assert not guard._read(source, kept, limit)
    os.close(source)
    assert bytes(kept) == b"".join(chunks)[-limit:]
