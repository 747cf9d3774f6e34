from __future__ import annotations

import numpy as np

from envs.base import Task, TaskInstance
from rllib_exit.grpo.rollout_metrics import rollout_metrics
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
