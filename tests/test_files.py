from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rllib_exit.files import atomic_directory, make_once, new_directory


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_get_the_modes_that_the_umask_allows(tmp_path: Path, umask: int):
    with atomic_directory(tmp_path / "made") as staging:
        (staging / "below").mkdir()
        for name in ("private", "below/private"):
            os.close(os.open(staging / name, os.O_CREAT, 0o600))  # as safetensors writes
        (staging / "program").touch(0o700)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        "made": 0o777 & ~umask,
        "made/below": 0o777 & ~umask,
        "made/private": 0o666 & ~umask,
        "made/below/private": 0o666 & ~umask,
        "made/program": 0o700 | 0o666 & ~umask,
    }


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path):
    def write(fails: bool) -> None:
        with atomic_directory(tmp_path / "a" / "made") as staging:
            (staging / "file").write_text("x")
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(fails=True)  # what was written so far is gone
    assert list((tmp_path / "a").iterdir()) == []
    write(fails=False)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["made"]
    with pytest.raises(OSError, match="not empty"):
        write(fails=False)


def test_a_directory_is_made_once(tmp_path: Path):
    made: list[Path] = []

    def make(directory: Path) -> None:
        made.append(directory)
        (directory / "file").write_text("x")

    (tmp_path / ".made.tmp-left-by-a-crash").mkdir()
    threads = [threading.Thread(target=make_once, args=(tmp_path / "made", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and (tmp_path / "made" / "file").read_text() == "x"
    assert not list(tmp_path.glob(".made.tmp-*"))


def test_a_directory_with_something_in_it_is_not_new(tmp_path: Path):
    assert new_directory(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is not empty: name a new directory"):
        new_directory(tmp_path)
