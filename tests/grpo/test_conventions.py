from __future__ import annotations

import numpy as np
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from envs.base import TaskInstance, Turn
from rllib_exit.grpo.conventions import log_by_rllibs_names
from rllib_exit.objective.scoring import score, to_train_on
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup

TURN = Turn("1")


def group(returns: list[float], turns: int, start: int = 0) -> ScoredGroup:
    instance = TaskInstance("t", history=(TURN,) * start)
    rollouts = tuple(Rollout((), (TURN,) * (start + turns), value, 0.5) for value in returns)
    return ScoredGroup(RolloutGroup(RolloutRequest("g", instance), rollouts), np.zeros(len(returns)))


def test_an_iteration_is_reported_by_rllibs_names() -> None:
    metrics = MetricsLogger(root=True)
    results = []
    for groups in ([group([0, 1], turns=2), group([0.5], turns=3, start=1)], [group([1, 1], turns=1)]):
        metrics.log_value(("learner", "loss"), 0.25 + len(results), reduce="mean", window=1)
        log_by_rllibs_names(metrics, groups, to_train_on(groups, 0))
        results.append(metrics.compile())
    first, second = results
    of = first["env_runners"]
    assert (of["episode_return_mean"], of["episode_return_min"], of["episode_return_max"]) == (0.5, 0, 1)
    assert (of["num_episodes"], of["num_env_steps_sampled"], of["episode_len_mean"]) == (3, 7, 7 / 3)
    of = second["env_runners"]
    assert (of["num_episodes"], of["num_episodes_lifetime"]) == (2, 5)
    assert (of["num_env_steps_sampled"], of["num_env_steps_sampled_lifetime"]) == (2, 9)
    learners = second["learners"]
    assert learners["default_policy"]["total_loss"] == 1.25 and "entropy" not in learners["default_policy"]
    assert learners["__all_modules__"]["num_env_steps_trained_lifetime"] == 6  # a group of one trains nothing


def test_with_refill_only_what_was_trained_on_counts_as_trained() -> None:
    metrics = MetricsLogger(root=True)
    groups = [score(group(returns, turns=1).group, None) for returns in ([0.0, 1.0], [1.0, 1.0])]
    log_by_rllibs_names(metrics, groups, to_train_on(groups, 1))
    result = metrics.compile()
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 4
    assert result["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"] == 2


def test_an_iteration_without_rollouts_has_no_return() -> None:
    metrics = MetricsLogger(root=True)
    metrics.log_value(("learner", "loss"), 0.25, reduce="mean", window=1)
    log_by_rllibs_names(metrics, [group([1], turns=1)], [])
    metrics.compile()
    log_by_rllibs_names(metrics, [group([], turns=1)], [])
    result = metrics.compile()
    of = result["env_runners"]
    assert of["num_episodes"] == 0 and of["num_episodes_lifetime"] == 1
    assert np.isnan(of.get("episode_return_mean", np.nan))
    assert np.isnan(result["learners"]["default_policy"].get("total_loss", np.nan))
