from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from rllib_exit.cli.runs import cast, load_weights
from tests.cli.helpers import make_config, run, write_checkpoint
from tests.fakes import ScriptedGenerator


def test_evaluate_compares_with_the_baseline(checkpoint: Path):
    result = run("evaluate", checkpoint.parent.parent, "--baseline", "--steps", "1", "--limit", "3", "--seeds", "2")
    assert result.exit_code == 0, result.output
    output = checkpoint.parent / "evaluation" / checkpoint.name
    assert (output / "self_improvement.png").is_file()
    data = json.loads((output / "evaluation.json").read_text())
    assert data["iteration"] == 3
    assert list(data["results"]) == ["baseline", "trained"]
    trained = data["results"]["trained"]
    assert trained["accuracy"] == [0, 1]
    assert trained["net_corrections"] == [0, 3]
    assert trained["accuracy_standard_error"] == [0, 0]
    assert trained["qualities_by_seed"] == [{"t0": [0, 1], "t1": [0, 1], "t2": [0, 1]}] * 2
    assert "100.0" in result.output and "+3" in result.output


def test_evaluate_uses_the_evaluation_config(tmp_path: Path, tiny_model: str):
    config = make_config(tiny_model).evaluation(evaluation_config={"env_config": {"num_tasks": 9}, "temperature": 0.0})
    weights = load_file(f"{tiny_model}/model.safetensors")
    path = write_checkpoint(tmp_path / "checkpoint", config, weights)
    result = run("evaluate", path, "--output", tmp_path / "report")
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert len(data["results"]["trained"]["qualities_by_seed"][0]) == 9
    assert data["config"]["temperature"] == 0.0


def test_evaluate_loads_the_trained_weights_in_the_engines_dtype(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    updates = []

    async def update_weights(self: Any, weights: np.ndarray) -> None:
        updates.append(weights)

    monkeypatch.setattr(ScriptedGenerator, "update_weights", update_weights)
    assert run("evaluate", checkpoint).exit_code == 0
    (update,) = updates
    assert update.dtype == np.uint8
    assert update.tobytes() == load_weights(checkpoint).tobytes()
    half = cast(update, "bfloat16")
    assert 0.4 < len(half) / len(update) < 0.6
