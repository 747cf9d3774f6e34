"""The reasoning-gym example loads, and its environments can be made."""

from __future__ import annotations

import pytest

from tests.tuned_examples.examples import load_config

pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_the_example_loads(scale: str, monkeypatch: pytest.MonkeyPatch):
    config = load_config("reasoning_gym", "exit", scale, monkeypatch)
    assert config.diversity_bonus
    split = config.splits["test"]
    for env_config in (config.env_config, split):
        env = config.env({**env_config, "size": 8})
        assert {task.split("/")[0] for task in env.tasks} <= {"chain_sum", "countdown"}
    assert env_config["seed"] != config.env_config["seed"]
