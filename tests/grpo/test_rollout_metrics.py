from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from envs.base import Task, TaskInstance
from rllib_exit.grpo.rollout_metrics import engine_metrics, rollout_metrics
from rllib_exit.grpo.rollout_queue import RolledOut
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup


def test_the_lag_is_that_of_the_oldest_rollouts() -> None:
    rollouts = (Rollout((), (), 0.0, 0.0), Rollout((), (), 1.0, 1.0))
    groups = [RolloutGroup(RolloutRequest(str(v), TaskInstance("t")), rollouts, v) for v in (7, 5, 6)]
    scored = tuple(ScoredGroup(group, np.zeros(2)) for group in groups)
    rolled_out = RolledOut(scored, scored[1:], seconds=1.0, num_lost=0)
    # The update made version 8 of version 7.
    metrics = rollout_metrics(rolled_out, {"t": Task("t", "")}, policy_version=8)
    assert (metrics["policy_version",], metrics["policy_lag_max",]) == (8, 2)
    assert metrics["rollouts", "dropped_groups"] == 1


def test_a_domains_number_is_reported_and_replaces_none_of_the_general_ones() -> None:
    rollout = Rollout((), (), 1.0, 1.0, metrics={"calls": 3.0, "return_mean": 7.0})
    scored = ScoredGroup(RolloutGroup(RolloutRequest("r", TaskInstance("t")), (rollout,), 0), np.zeros(1))
    metrics = rollout_metrics(
        RolledOut((scored,), (scored,), seconds=1.0, num_lost=0), {"t": Task("t", "")}, policy_version=1
    )
    assert (metrics["rollouts", "calls"], metrics["rollouts", "return_mean"]) == (3.0, 1.0)


def test_an_engine_has_the_number_of_its_env_runner() -> None:
    """Two of three env runners are there, and the engine of one of them counts nothing."""
    env_runners: Any = SimpleNamespace(call_all=lambda call: [(1, {}), (3, {"bubble_s": 2.0, "preemptions": 1})])
    assert engine_metrics(env_runners) == {
        ("engine", "bubble_s", "engine_3"): 2.0,
        ("engine", "preemptions", "engine_3"): 1,
    }
