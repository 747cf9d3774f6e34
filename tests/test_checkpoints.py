from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from rllib_exit.checkpoints import (
    MANIFEST,
    Checkpoint,
    CheckpointError,
    Place,
    begin,
    finish,
    newest,
    newest_at,
    verify,
)


def write_at(place: Place, content: str = "state") -> Place:
    begin(place)
    finish(place, {"deep/file": place.write("deep/file", content.encode())})
    return place


def write(path: Path, content: str = "state") -> Path:
    write_at(Place.of(path), content)
    return path


def test_a_written_directory_is_whole(tmp_path: Path) -> None:
    verify(write(tmp_path / "a"))
    assert (tmp_path / "a" / "deep" / "file").read_text() == "state"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["deep", MANIFEST]


def test_it_may_replace_an_empty_directory_but_no_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a")
    with pytest.raises(OSError, match="not empty"):
        write(tmp_path / "a", "other")
    assert (tmp_path / "a" / "deep" / "file").read_text() == "state"


def test_what_has_no_manifest_yet_is_no_checkpoint(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "run" / "2")
    begin(place)
    sums = {"file": place.write("file", b"state")}
    with pytest.raises(CheckpointError, match=f"no complete checkpoint: it has no {MANIFEST}"):
        verify(place)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        newest(tmp_path)
    whole = write(tmp_path / "run" / "1")
    assert newest(tmp_path) == whole
    finish(place, sums)
    assert newest(tmp_path) == Path(place.path)


def test_files_that_are_not_to_be_seen_from_here_are_an_error(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "a")
    begin(place)
    with pytest.raises(CheckpointError, match="on other machines alone, such as elsewhere: use a directory or bucket"):
        finish(place, {"elsewhere": "5"})
    assert MANIFEST not in place.files()


def test_a_bucket_holds_checkpoints_as_a_disk_does() -> None:
    filesystem = PyFileSystem(FSSpecHandler(MemoryFileSystem()))
    with pytest.raises(CheckpointError, match="does not exist"):
        newest_at(Place.of("bucket/none", filesystem))
    place = write_at(Place.of("bucket/run/checkpoint/", filesystem))
    verify(place)
    assert Checkpoint(place).read("deep/file") == b"state"
    assert newest_at(place.parent).path.strip("/") == place.path == "bucket/run/checkpoint"
    place.write("deep/file", b"statf")
    with pytest.raises(CheckpointError, match="deep/file was changed"):
        Checkpoint(place).read("deep/file")
    place.clear()
    assert not place.files()


def test_a_place_is_named_by_a_path_a_uri_or_a_checkpoint_of_rays(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place.of(tmp_path / "a")
    for name in ("a", f"file://{tmp_path}/a", SimpleNamespace(filesystem=place.filesystem, path=place.path), place):
        assert Place.of(name) == place


@pytest.mark.parametrize("damage", ["missing", "changed", "no manifest"])
def test_damage_is_found_and_named(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "a")
    if damage == "missing":
        (path / "deep" / "file").unlink()
    elif damage == "changed":
        (path / "deep" / "file").write_text("statf")
    else:
        (path / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=MANIFEST if damage == "no manifest" else f"deep/file (is|was) {damage}"):
        verify(path)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("", "cut off"),
        ('{"written_by": "rllib-exit", "files": {"deep/file": "5', "cut off"),
        ("[" * 100_000, "cut off"),
        ("[]", "does not say that rllib-exit wrote it"),
        ("{}", "does not say that rllib-exit wrote it"),
        ('{"deep/file": "5"}', "does not say that rllib-exit wrote it"),
        ('{"written_by": "another", "files": {"deep/file": "5"}}', "does not say that rllib-exit wrote it"),
        ('{"written_by": "rllib-exit"}', "lists no files"),
        ('{"written_by": "rllib-exit", "files": {}}', "lists no files"),
        ('{"written_by": "rllib-exit", "files": {"../a": "5", "deep/file": "5"}}', r"\.\./a is missing"),
        ('{"written_by": "rllib-exit", "files": {"deep/file": 5}}', "was changed"),
    ],
)
def test_a_manifest_that_says_too_little_is_refused(tmp_path: Path, manifest: str, said: str) -> None:
    path = write(tmp_path / "a")
    (path / MANIFEST).write_text(manifest)
    with pytest.raises(CheckpointError, match=said):
        verify(path)


def test_a_file_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    (path / ".metadata.json").touch()  # Ray's
    verify(path)
    (path / "deep" / "00001.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"not its own: deep/00001\.safetensors; remove it"):
        verify(path)


def test_newest_passes_over_damaged_ones(tmp_path: Path) -> None:
    old, new = write(tmp_path / "run" / "1"), write(tmp_path / "run" / "2")
    os.utime(old / MANIFEST, (1, 1))
    assert newest(tmp_path) == new and newest(old) == old
    (new / "deep" / "file").write_text("damaged")
    assert newest(tmp_path) == old
    (old / "deep" / "file").unlink()
    with pytest.raises(CheckpointError, match="2 are damaged"):
        newest(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        newest(tmp_path / "nowhere")


def test_a_killed_writer_leaves_no_checkpoint_that_is_not_whole(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom rllib_exit.checkpoints import Place, begin, finish\n"
        "for i in range(10**6):\n"
        "    place = Place.of(Path(sys.argv[1]) / str(i))\n"
        "    begin(place)\n"
        "    finish(place, {str(j): place.write(str(j), bytes(100_000)) for j in range(5)})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    while not (tmp_path / "3").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = [path for path in tmp_path.iterdir() if (path / MANIFEST).exists()]
    assert len(written) >= 3
    for path in written:
        verify(path)
    assert newest(tmp_path) in written
