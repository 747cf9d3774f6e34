"""Control groups, on directories that look like a mounted cgroup v2: few machines let tests make real ones."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from envs.sandbox import cgroup
from envs.sandbox.job import Limits
from envs.sandbox.sandbox import Status, run_script


def group(path: Path, controllers: str = "cpu memory pids") -> Path:
    path.mkdir(parents=True)
    (path / "cgroup.subtree_control").write_text(f"{controllers}\n")
    (path / "cgroup.procs").touch()
    return path


def test_the_nearest_group_that_hands_controllers_down_is_found(tmp_path: Path):
    root = group(tmp_path / "root")
    user = group(root / "user.slice")
    group(user / "app.slice", "cpu pids")
    group(user / "app.slice" / "run.scope", "")
    assert cgroup.parent(str(root), "/user.slice/app.slice/run.scope") == str(user)
    assert cgroup.parent(str(root), "/user.slice") == str(user)
    assert cgroup.parent(str(root), "/") == str(root)
    (user / "cgroup.subtree_control").write_text("")
    (root / "cgroup.subtree_control").write_text("cpu")
    assert cgroup.parent(str(root), "/user.slice/app.slice/run.scope") == ""
    assert cgroup.parent(str(tmp_path / "nowhere"), "/user.slice") == ""


def test_only_one_that_may_be_written_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = group(tmp_path / "root")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("cgroup.procs"))
    assert cgroup.parent(str(root), "/") == ""


def test_bounds_are_written_and_usage_is_read(tmp_path: Path):
    made = str(tmp_path / "run")
    cgroup.make(made, Limits(memory_bytes=1000), 7)
    read = {file.name: file.read_text() for file in Path(made).iterdir()}
    assert read == {"memory.max": "1000", "memory.oom.group": "1", "pids.max": "7"}
    assert cgroup.usage(made) == {"cpu_s": 0.0, "memory_bytes": 0.0, "processes": 0.0}
    assert not cgroup.out_of_memory(made)
    for name, content in {
        "cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
        "memory.peak": "900\n",
        "pids.current": "3\n",
        "memory.events": "low 0\noom 2\noom_kill 1\n",
    }.items():
        (Path(made) / name).write_text(content)
    assert cgroup.usage(made) == {"cpu_s": 1.5, "memory_bytes": 900.0, "processes": 3.0}
    assert cgroup.out_of_memory(made)


def test_a_group_that_is_gone_needs_no_removal(tmp_path: Path):
    cgroup.remove(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    cgroup.remove(str(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()


@pytest.mark.slow
def test_a_real_group_bounds_a_run():
    """Memory that no process shows is refused by the kernel, and counted."""
    if not cgroup.parent():
        pytest.xfail("this process may make no control group with bounds")
    script = """
import mmap
kept = []
for _ in range(10):
    m = mmap.mmap(-1, 40 << 20)
    for _ in range(40): m.write(b"x" * (1 << 20))
    m.madvise(mmap.MADV_DONTNEED)
    kept.append(m)
"""
    run = run_script(script, limits=Limits(memory_bytes=200 << 20))
    assert run.status is Status.OUT_OF_MEMORY and run.bounds["memory_bytes"] == run.bounds["cpu_s"] == "hard"
    assert 150 << 20 < run.peaks["memory_bytes"] <= 200 << 20
    left = subprocess.run(["find", cgroup.parent(), "-maxdepth", "1", "-name", "sandbox-*"], capture_output=True)
    assert not left.stdout
