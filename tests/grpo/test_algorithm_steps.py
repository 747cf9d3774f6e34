"""What the steps of an iteration pass on, with fakes for all that would need Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from rllib_exit.curriculum.exit import CurriculumConfig, ExIt
from rllib_exit.grpo.algorithm import GRPO
from rllib_exit.grpo.checkpointing import CheckpointedAlgorithm
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.grpo.rollout_queue import RolledOut
from rllib_exit.objective.diversity import edit_diversity_coefficients
from rllib_exit.rollouts import ScoredGroup
from tests.fakes import CounterEnv
from tests.learner.helpers import make_groups

ORDER = ("select", "collect", "_update", "_sync_weights", "trained")


def test_an_iteration_trains_on_the_batch_and_shows_all_groups_to_the_curriculum() -> None:
    groups = make_groups(np.random.default_rng(0))
    scored = tuple(ScoredGroup(group, np.ones(4)) for group in groups)
    rolled_out = RolledOut(scored, scored[1:], seconds=1.0, num_lost=0)
    replay, rollouts, algo = MagicMock(), MagicMock(), MagicMock(iteration=1)
    algo.replay, algo.rollouts = replay, rollouts
    rollouts.collect.return_value = rolled_out
    GRPO.training_step(algo)
    rollouts.select.assert_called_once_with(replay.select)
    rollouts.collect.assert_called_once_with(rollouts.select.return_value, algo._score, replay.select)
    algo._update.assert_called_once_with(rolled_out.batch)
    replay.assert_called_once_with(batch=groups, metrics=algo.metrics)
    algo._report.assert_called_once_with(rolled_out, algo._update.return_value)
    steps = [name for name, *_ in algo.mock_calls if name.split(".")[-1] in ORDER or name == "replay"]
    assert steps == ["rollouts.select", "rollouts.collect", "_update", "_sync_weights", "replay", "rollouts.trained"]


def test_an_algorithm_is_set_up_with_the_curriculum_and_the_bonus_of_its_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class ReadyError(Exception):
        """What needs Ray would come next."""

    def setup(*args: Any) -> None:
        raise ReadyError

    monkeypatch.setattr(CheckpointedAlgorithm, "setup", setup)
    algo: Any = GRPO.__new__(GRPO)
    algo.config = GRPOConfig().environment(CounterEnv, env_config={"tasks": 3}).debugging(seed=5)
    algo.config.curriculum("exit", diversity_metric="edit_distance", min_buffer_size=7)
    with pytest.raises(ReadyError):
        algo.setup(algo.config)
    assert algo.diversity is edit_diversity_coefficients
    curriculum = algo.replay.curriculum
    assert curriculum.config == CurriculumConfig.of(algo.config) and curriculum.config.min_buffer_size == 7
    expected = ExIt(curriculum.config, ["count/1", "count/2", "count/3"], np.random.default_rng(5))
    assert curriculum.select(9) == expected.select(9)


@pytest.mark.parametrize("normalize_std", [True, False])
def test_groups_are_scored_as_the_settings_say(normalize_std: bool) -> None:
    [group] = make_groups(np.random.default_rng(0), num_groups=1)
    config = GRPOConfig().training(normalize_std=normalize_std)
    algo: Any = SimpleNamespace(config=config, diversity=lambda solutions: np.arange(len(solutions)))
    algo._policy_update = SimpleNamespace(add=lambda scored: None)
    centred_G = group.returns_G - group.returns_G.mean()
    expected_G = centred_G / (group.returns_G.std() + 1e-4) if normalize_std else centred_G
    np.testing.assert_allclose(GRPO._score(algo, group).advantages_G, expected_G * np.arange(4))
