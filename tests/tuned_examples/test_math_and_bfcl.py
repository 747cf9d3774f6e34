"""The competition-math and tool-use examples hold the values of the paper's Tables 4 and 5."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tuned_examples.examples import check_curriculum, load_config

# Total buffer size, min. buffer size, self-iteration prob., divergence prob.
TABLE_4 = {
    "grpo": (None, None, 0.0, 0.0),
    "curriculum": (512, 128, 0.5, 0.0),
    "improve": (512, 128, 0.5, 0.0),
    "diverge": (512, 128, 0.5, 0.2),
    "exit": (512, 128, 0.5, 0.2),
}
# Learning rate, and the same.
TABLE_5 = {
    "grpo": (1e-6, None, None, 0.0, 0.0),
    "curriculum": (5e-7, 320, 320, 0.2, 0.0),
    "improve": (5e-7, 640, 320, 0.5, 0.0),
    "diverge": (5e-7, 640, 320, 0.5, 0.2),
    "exit": (1e-6, 640, 320, 0.5, 0.5),
}


def load(domain: str, strategy: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    config = load_config(domain, strategy, "paper", monkeypatch)
    assert config.diversity_bonus == (strategy == "exit")
    assert (config.clip_param, config.kl_coeff) == (0.2, 0.001)
    assert (config.ref_update_interval, config.ref_update_rate) == (100, 1.0)
    return config


@pytest.mark.parametrize("strategy", TABLE_4)
def test_the_values_are_those_of_table_4(strategy: str, monkeypatch: pytest.MonkeyPatch):
    config = load("math", strategy, monkeypatch)
    assert (config.lr, config.prompts_per_batch, config.rollouts_per_prompt, config.num_epochs) == (1e-6, 128, 8, 1)
    assert config.normalize_std
    check_curriculum(config, *TABLE_4[strategy])


@pytest.mark.parametrize("strategy", TABLE_5)
def test_the_values_are_those_of_table_5(strategy: str, monkeypatch: pytest.MonkeyPatch):
    config, (lr, *curriculum) = load("bfcl", strategy, monkeypatch), TABLE_5[strategy]
    assert (config.lr, config.prompts_per_batch, config.rollouts_per_prompt, config.num_epochs) == (lr, 16, 8, 2)
    assert not config.normalize_std and config.overlong_filtering
    check_curriculum(config, *curriculum)


def test_tool_use_warms_up_at_cpu_scale_alone(monkeypatch: pytest.MonkeyPatch):
    assert load_config("bfcl", "exit", "cpu", monkeypatch).warm_start_epochs > 0
    assert load_config("bfcl", "exit", "paper", monkeypatch).warm_start_epochs == 0
