"""The ML engineering examples hold the values of the paper's Table 6, and their CPU scale stands on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envs.mle_bench.env import MLEBenchEnv
from tests.tuned_examples.examples import check_curriculum, load_config

# Total buffer size, min. buffer size, self-iteration prob., divergence prob.
TABLE_6 = {
    "grpo": (None, None, 0.0, 0.0),
    "curriculum": (3, 3, 0.5, 0.0),
    "improve": (24, 8, 0.5, 0.0),
    "diverge": (32, 8, 0.5, 0.2),
    "exit": (24, 3, 0.5, 0.5),
}


def load(strategy: str, scale: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    config = load_config("mle", strategy, scale, monkeypatch)
    assert issubclass(config.env, MLEBenchEnv)
    return config


@pytest.mark.parametrize("strategy", TABLE_6)
def test_the_values_are_those_of_table_6(strategy: str, monkeypatch: pytest.MonkeyPatch):
    config = load(strategy, "paper", monkeypatch)
    assert (config.lr, config.prompts_per_batch, config.rollouts_per_prompt, config.num_epochs) == (1e-6, 4, 8, 1)
    assert (config.kl_coeff, config.ref_update_interval, config.ref_update_rate) == (0.001, 100, 0.5)
    assert config.clip_param == 0.2 and config.normalize_std
    check_curriculum(config, *TABLE_6[strategy])
    assert config.diversity_bonus == (strategy == "exit")
    trained_on = [Path(path).name for path in config.env_config["competitions"]]
    held_out = config.get_evaluation_config_object().env_config["competitions"]
    assert len(trained_on) == len(held_out) == 3 and not set(trained_on) & {Path(path).name for path in held_out}


@pytest.mark.parametrize("strategy", TABLE_6)
def test_the_cpu_scale_brings_its_competitions(strategy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RLLIB_EXIT_CACHE", str(tmp_path))
    config = load(strategy, "cpu", monkeypatch)
    env = MLEBenchEnv(config.env_config)
    assert list(env.tasks) == ["courier-delivery-times", "urgent-support-messages"]
    assert all(env.demonstration(task) for task in env.tasks.values())
    assert MLEBenchEnv(config.get_evaluation_config_object().env_config).tasks.keys() == env.tasks.keys()
