from __future__ import annotations

from pathlib import Path

import pytest

from rllib_exit.cli.dataset import dataset_config
from rllib_exit.env_runners.environments import make_env
from rllib_exit.scale import SCALE_VARIABLE


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_a_table_a_reward_and_a_model_make_a_config(
    scale: str, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SCALE_VARIABLE, scale)
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("q,a\n" + "".join(f"What is {i}?,{i}\n" for i in range(100)))
    config, stop, _ = dataset_config("rows.csv", "q", "a", ["exact_match", "math"], tiny_model, "diverge")
    config.validate()
    assert config.strategy == "diverge" and config.model_name == tiny_model and stop
    monkeypatch.chdir("/")
    env = make_env(config.env, config.env_config)
    env.reset()
    assert env.step(env.demonstration(env.task)[0])[1] == 1
    assert config.num_gpus_per_env_runner == (scale == "paper")
