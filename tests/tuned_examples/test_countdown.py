"""The countdown examples differ in the strategy alone, and hold out what they evaluate on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envs.countdown.env import CountdownEnv
from rllib_exit.cli.config import load_file
from rllib_exit.cli.sweeps import search_spaces
from rllib_exit.scale import SCALE_VARIABLE
from tests.tuned_examples.examples import EXAMPLES, load_config

# Self-iteration prob., divergence prob.
STRATEGIES = {
    "grpo": (0.0, 0.0),
    "curriculum": (0.5, 0.0),
    "improve": (0.5, 0.0),
    "diverge": (0.5, 0.2),
    "exit": (0.5, 0.2),
}
OF_THE_STRATEGY = {"strategy", "self_iteration_prob", "divergence_prob", "self_iteration", "diversity_bonus"}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_only_the_strategy_differs(strategy: str, scale: str, monkeypatch: pytest.MonkeyPatch):
    config = load_config("countdown", strategy, scale, monkeypatch)
    assert (config.self_iteration_prob, config.divergence_prob) == STRATEGIES[strategy]
    assert config.diversity_bonus == (strategy == "exit")
    mine, other = (c.to_dict() for c in (config, load_config("countdown", "improve", scale, monkeypatch)))
    different = {name for name in mine if mine[name] != other[name] and not callable(mine[name])}
    assert different <= OF_THE_STRATEGY


def test_what_is_evaluated_on_is_held_out(monkeypatch: pytest.MonkeyPatch):
    config: Any = load_config("countdown", "exit", "cpu", monkeypatch)
    tasks, evaluation = config.env_config, config.get_evaluation_config_object().env_config
    sets = [CountdownEnv(options).tasks.keys() for options in (tasks, evaluation, tasks | config.splits["test"])]
    assert [len(ids) for ids in sets] == [280, 33, 39]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_the_sweep(scale: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(SCALE_VARIABLE, scale)
    config, _, tune_config = load_file(Path(EXAMPLES) / "countdown_sweep.py")
    assert {name: len(space.categories) for name, space in search_spaces(config).items()} == {
        "lr": 3,
        "self_iteration_prob": 3,
        "divergence_prob": 3,
    }
    assert tune_config is not None and tune_config.metric == f"evaluation/accuracy/step_{config.self_improvement_steps}"
