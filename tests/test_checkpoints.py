from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rllib_exit.checkpoints import MANIFEST, CheckpointError, atomic_checkpoint, newest, verify


def write(path: Path, content: str = "state") -> Path:
    with atomic_checkpoint(path) as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "file").write_text(content)
    return path


def test_a_written_directory_is_whole(tmp_path: Path) -> None:
    verify(write(tmp_path / "a"))
    assert (tmp_path / "a" / "deep" / "file").read_text() == "state"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_it_may_replace_an_empty_directory_but_no_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a")
    with pytest.raises(OSError):
        write(tmp_path / "a", "other")
    assert (tmp_path / "a" / "deep" / "file").read_text() == "state"


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_checkpoint(tmp_path / "a") as staging:
        (staging / "file").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


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
        "import sys\nfrom pathlib import Path\nfrom rllib_exit.checkpoints import atomic_checkpoint\n"
        "for i in range(10**6):\n"
        "    with atomic_checkpoint(Path(sys.argv[1]) / str(i)) as staging:\n"
        "        for j in range(5):\n"
        "            (staging / str(j)).write_bytes(bytes(100_000))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    while not (tmp_path / "3").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert len(written) >= 4
    for path in written:
        verify(path)
