from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from envs.sandbox import view

ROOT = Path(__file__).resolve().parents[3]
HOME = str(Path.home())


def test_the_interpreter_is_shown_with_its_packages():
    python = view.interpreter(sys.executable)
    assert python.path == sys.executable
    for library in (os.path.dirname(os.__file__), os.path.dirname(pytest.__file__)):
        assert any(library == path or library.startswith(f"{path}/") for path in python.directories)
    assert not {"/", "/usr", HOME, str(ROOT)} & set(python.directories)


@pytest.mark.parametrize("landlock", [False, True])
def test_nothing_above_home_or_project_is_readable(landlock: bool):
    paths = view.readable(view.interpreter(sys.executable), landlock=landlock)
    for hidden in (HOME, str(ROOT), "/etc", "/tmp", "/var", "/usr/src", "/usr"):
        assert not any(hidden == path or hidden.startswith(f"{path}/") for path in paths)
    assert not any(one.startswith(f"{other}/") for one in paths for other in paths)
    assert any(path.startswith("/proc") for path in paths) is landlock


def options(paths: list[str], **changes: object) -> str:
    arguments = {"hidden": "/none", "work": "/tmp/w", "data": None, "uid": -1, "read_all": False, **changes}
    return " ".join(view.bubblewrap_options(paths, **arguments))  # pyright: ignore[reportArgumentType]


def test_bubblewrap_options(tmp_path: Path):
    library = tmp_path / "lib" / "python"
    library.mkdir(parents=True)
    text = options([str(library)], hidden=f"{library}/envs", data="/data", uid=1000, read_all=True)
    assert f"--perms 0755 --dir {tmp_path}/lib --ro-bind {library} {library}" in text
    assert f"--tmpfs {library}/envs --remount-ro {library}/envs" in text
    assert "--cap-drop ALL --cap-add CAP_SETUID --cap-add CAP_SETGID --cap-add CAP_DAC_READ_SEARCH" in text
    assert "--ro-bind /data /sandbox/data" in text and "--unshare-user" not in text
    text = options([str(library)])
    assert "--unshare-user" in text and "--cap-add" not in text and "data" not in text and "--tmpfs" not in text


def test_bubblewrap_keeps_links_of_the_system(tmp_path: Path):
    (tmp_path / "usr").mkdir()
    (tmp_path / "lib").symlink_to("usr")
    assert f"--symlink usr {tmp_path}/lib" in options([f"{tmp_path}/lib"])


def test_nothing_of_the_environment_is_passed_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environment = view.environment(view.interpreter(sys.executable), "/sandbox", 2)
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert environment["HOME"] == "/sandbox" and environment["TMPDIR"] == "/sandbox/tmp"
    assert environment["OMP_NUM_THREADS"] == "2"
