from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from rllib_exit.cli.runs import init_ray
from tests.cli.helpers import message, run, write_files


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_checkpoint_is_needed(command: str, tmp_path: Path, tiny_model: str):
    rest = [tmp_path / "model"] if command == "export" else []
    (tmp_path / "empty").mkdir()
    assert "no whole checkpoint" in message(run(command, tmp_path / "empty", *rest))
    assert "a model alone" in message(run(command, "org/name", *rest))
    assert "a model alone" in message(run(command, tiny_model, *rest))


def test_another_programs_checkpoint_is_refused(tmp_path: Path):
    write_files(tmp_path / "other", {"file": b"x"})
    assert "no checkpoint of a training run" in message(run("evaluate", tmp_path / "other"))


@pytest.mark.parametrize("cluster", [False, True])
def test_variables_of_nccl_and_vllm_reach_the_workers_of_all_nodes(
    cluster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def init(**arguments: Any) -> SimpleNamespace:
        given.update(arguments)
        return SimpleNamespace(dashboard_url=None)

    monkeypatch.setattr(ray, "init", init)
    for name in [name for name in os.environ if name.startswith(("NCCL_", "TORCH_NCCL_", "GLOO_", "VLLM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth1")
    if cluster:
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    init_ray()
    # What Ray starts here inherits the command's environment.
    assert given["runtime_env"] == ({"env_vars": {"NCCL_SOCKET_IFNAME": "eth1"}} if cluster else None)
