"""What the queue makes of groups, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from envs.base import TaskInstance
from rllib_exit.grpo import waiting
from rllib_exit.grpo.rollout_queue import MAX_UNJUDGED, RolloutQueue
from rllib_exit.grpo.waiting import RolloutError
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup

JUDGED = (Rollout((), (), 0.0, 0.0), Rollout((), (), 1.0, 1.0))


class FakeDispatcher:
    """Answers each request at once with the next group's rollouts and number of dropped episodes."""

    num_lost = 0

    def __init__(self, outcomes: Iterator[tuple[tuple[Rollout, ...], int]], requests: list[RolloutRequest]) -> None:
        self.outcomes, self.requests, self.cancelled = outcomes, iter(requests), 0

    def submit(self, call: Any, *, size: int) -> Future[RolloutGroup]:
        future: Future[RolloutGroup] = Future()
        rollouts, dropped = next(self.outcomes)
        future.set_result(RolloutGroup(next(self.requests), rollouts, num_dropped=dropped))
        return future

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.fixture(autouse=True)
def nobody_asks_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "stop_requested", lambda: False)


def run(iterations: list[list[tuple[tuple[Rollout, ...], int]]]) -> list[int]:
    """Collects iterations; how many groups of each can be trained on."""
    requests = [
        [RolloutRequest(f"{i}.{j}", TaskInstance("t")) for j in range(len(of))] for i, of in enumerate(iterations)
    ]
    flat = [request for of in requests for request in of]
    dispatcher: Any = FakeDispatcher(iter([outcome for of in iterations for outcome in of]), flat)
    queue = RolloutQueue(dispatcher, group_size=4, max_policy_lag=0, meanwhile=lambda: None)
    trained = []
    for of in requests:
        selected = queue.select(lambda of=of: of)
        rolled_out = queue.collect(selected, lambda group: ScoredGroup(group, np.zeros(len(group.rollouts))))
        trained.append(len(rolled_out.trainable))
        queue.trained()
    return trained


def test_groups_that_cannot_be_judged_are_left_out() -> None:
    assert run([[(JUDGED, 2), ((), 4), (JUDGED[:1], 3)], [(JUDGED, 0)]]) == [1, 1]


def test_training_ends_if_most_groups_of_several_iterations_cannot_be_judged() -> None:
    broken: list[Any] = [((), 4), ((), 4), (JUDGED, 0)]
    fine: list[Any] = [((), 4), (JUDGED, 0)]
    assert run([broken] * (MAX_UNJUDGED - 1) + [fine] + [broken] * (MAX_UNJUDGED - 1)) == [1] * (2 * MAX_UNJUDGED - 1)
    with pytest.raises(RolloutError, match="could not be judged, 2 of 3 in the last one"):
        run([broken] * MAX_UNJUDGED)


def test_an_iteration_whose_prompts_all_do_not_fit_ends_training() -> None:
    assert run([[((), 0), (JUDGED, 0)]]) == [1]
    with pytest.raises(RolloutError, match="raise max_model_len, or lower max_response_tokens"):
        run([[((), 0), ((), 0)]])
