from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from rllib_exit.scale import SCALE_VARIABLE
from tests.cli.helpers import make_config, right_when_asked_to_improve, write_checkpoint


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch: pytest.MonkeyPatch):
    """The command line sets environment variables and import paths."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(SCALE_VARIABLE, raising=False)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model: str) -> Path:
    weights = {name: w + 1 for name, w in load_file(f"{tiny_model}/model.safetensors").items()}
    config = make_config(tiny_model, right_when_asked_to_improve)
    return write_checkpoint(tmp_path / "run" / "trial" / "checkpoint_000000", config, weights)


@pytest.fixture
def file(tmp_path: Path, tiny_model: str) -> Path:
    path = tmp_path / "example.py"
    path.write_text(f"from tests.cli.helpers import make_config\nconfig = make_config({tiny_model!r})\n")
    return path


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
