"""What the queue makes of groups, without Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.base import TaskInstance
from rllib_exit.grpo import waiting
from rllib_exit.grpo.rollout_queue import MAX_UNJUDGED, RolledOut, RolloutQueue
from rllib_exit.grpo.waiting import RolloutError
from rllib_exit.objective.scoring import score
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup
from rllib_exit.settings import TrainingSettings

Outcome = tuple[tuple[Rollout, ...], int]
JUDGED = (Rollout((), (), 0.0, 0.0), Rollout((), (), 1.0, 1.0))
SIGNAL, EQUAL, SKIPPED = (JUDGED, 0), (JUDGED[:1] * 4, 0), ((), 0)


class FakeDispatcher:
    """Answers the n-th request at once with ``outcomes[n]``: its rollouts and the number of dropped episodes."""

    num_lost = 0

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes, self.cancelled = outcomes, 0
        self.first: list[int] = []  # the requests that came before those that waited

    def submit(self, call: Any, *, size: int, first: bool) -> Future[RolloutGroup]:
        async def echo(request: RolloutRequest) -> RolloutRequest:
            return request

        request: RolloutRequest = asyncio.run(call(SimpleNamespace(roll_out=SimpleNamespace(remote=echo))))
        assert size == 4
        if first:
            self.first.append(int(request.group_id))
        future: Future[RolloutGroup] = Future()
        if int(request.group_id) < len(self.outcomes):
            rollouts, dropped = self.outcomes[int(request.group_id)]
            future.set_result(RolloutGroup(request, rollouts, num_dropped=dropped))
        else:
            future.set_exception(ZeroDivisionError("in the reward"))
        return future

    def cancel(self) -> None:
        self.cancelled += 1


class Selections:
    """Selects numbered requests, and records how many at a time."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, number: int) -> list[RolloutRequest]:
        start = sum(self.numbers)
        self.numbers.append(number)
        return [RolloutRequest(f"{i:08d}", TaskInstance("t")) for i in range(start, start + number)]


@pytest.fixture(autouse=True)
def nobody_asks_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "stop_requested", lambda: False)


def make_queue(
    outcomes: Sequence[Outcome], *, lag: int = 0, scorers: int = 1, **options: Any
) -> tuple[RolloutQueue, FakeDispatcher]:
    dispatcher = FakeDispatcher(outcomes)
    settings = TrainingSettings(rollouts_per_prompt=4, **options)
    fake: Any = dispatcher
    queue = RolloutQueue(fake, settings, max_policy_lag=lag, meanwhile=lambda: None, num_scorers=scorers)
    return queue, dispatcher


def score_group(group: RolloutGroup) -> ScoredGroup:
    return score(group, None)


def ids(groups: Sequence[ScoredGroup]) -> list[int]:
    return [int(scored.group.request.group_id) for scored in groups]


def run(iterations: list[list[Outcome]]) -> list[int]:
    """Collects iterations without refill; how many groups of each can be trained on."""
    trained = []
    queue, _ = make_queue([outcome for of in iterations for outcome in of])
    selections = Selections()
    for of in iterations:
        queue._settings = queue._settings.replace(prompts_per_batch=len(of))
        rolled_out = queue.collect(queue.select(selections), score_group, selections)
        assert len(rolled_out.groups) == len(of) and rolled_out.batch == rolled_out.trainable
        trained.append(len(rolled_out.batch))
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


def refill(outcomes: Sequence[Outcome], num_prompts: int, bound: int) -> tuple[RolledOut, list[int]]:
    """One iteration, and how many requests were selected at a time."""
    queue, _ = make_queue(outcomes, prompts_per_batch=num_prompts, refill_zero_variance=bound)
    selections = Selections()
    return queue.collect(queue.select(selections), score_group, selections), selections.numbers


def test_groups_without_a_signal_are_replaced_until_the_batch_is_full() -> None:
    outcomes = [SIGNAL, EQUAL, SKIPPED, ((), 4), EQUAL, SIGNAL, SIGNAL, SIGNAL, EQUAL]
    rolled_out, numbers = refill(outcomes, num_prompts=4, bound=2)
    assert numbers == [4, 3, 1] and ids(rolled_out.groups) == list(range(8))
    assert ids(rolled_out.batch) == [0, 5, 6, 7]
    # Those that were left out are still logged, and seen by the curriculum.
    assert ids(rolled_out.trainable) == [0, 1, 4, 5, 6, 7]


def test_at_the_bound_the_batch_stays_smaller() -> None:
    rolled_out, numbers = refill([SIGNAL, EQUAL, EQUAL, EQUAL, EQUAL, EQUAL, SIGNAL], num_prompts=3, bound=1)
    assert numbers == [3, 2, 1] and ids(rolled_out.batch) == [0] and len(rolled_out.groups) == 6


def test_without_refill_groups_of_equal_returns_stay_in_the_batch() -> None:
    rolled_out, numbers = refill([EQUAL, SIGNAL, SKIPPED, SIGNAL], num_prompts=3, bound=0)
    assert numbers == [3] and ids(rolled_out.batch) == [0, 1]


@given(st.lists(st.booleans(), min_size=40, max_size=40), st.integers(1, 9), st.integers(1, 3))
def test_the_batch_is_as_full_as_the_bound_allows_and_no_fuller(
    signals: list[bool], num_prompts: int, bound: int
) -> None:
    rolled_out, numbers = refill([SIGNAL if signal else EQUAL for signal in signals], num_prompts, bound)
    selected = signals[: sum(numbers)]
    assert ids(rolled_out.groups) == list(range(len(selected)))
    assert ids(rolled_out.batch) == [i for i, signal in enumerate(selected) if signal]
    assert len(selected) <= (1 + bound) * num_prompts
    if len(selected) < (1 + bound) * num_prompts:
        assert sum(selected) == num_prompts
    # No group more than was needed.
    assert sum(selected) <= num_prompts and sum(selected[: -numbers[-1]]) < num_prompts


def test_replacements_come_before_what_was_selected_ahead_and_are_trained_on_with_their_iteration() -> None:
    outcomes = [SIGNAL, EQUAL, EQUAL, SIGNAL, EQUAL, SIGNAL, SIGNAL, SIGNAL, SIGNAL]
    queue, dispatcher = make_queue(outcomes, lag=1, prompts_per_batch=2, refill_zero_variance=1)
    selections, seen = Selections(), []
    for _ in range(2):
        rolled_out = queue.collect(queue.select(selections), score_group, selections)
        seen.append((ids(rolled_out.groups), ids(rolled_out.batch)))
        queue.trained()
    # 2 and 3 were selected ahead for the second iteration, 6 and 7 for the third.
    assert selections.numbers == [2, 2, 1, 1, 2, 1] and dispatcher.first == [4, 5, 8]
    assert seen == [([0, 1, 4, 5], [0, 5]), ([2, 3, 8], [3, 8])]


def test_a_run_that_was_interrupted_within_a_refill_ends_the_iteration_as_it_would_have() -> None:
    outcomes = [SIGNAL, EQUAL, EQUAL, EQUAL, SIGNAL, SIGNAL]
    whole, _ = refill(outcomes, num_prompts=3, bound=1)
    queue, dispatcher = make_queue(outcomes[:5], prompts_per_batch=3, refill_zero_variance=1)
    selections = Selections()
    with pytest.raises(RolloutError, match="in the reward"):
        queue.collect(queue.select(selections), score_group, selections)
    assert dispatcher.cancelled == 1 and selections.numbers == [3, 2, 1]
    resumed, _ = make_queue(outcomes, prompts_per_batch=3, refill_zero_variance=1)
    resumed.restore(queue.selected)
    rolled_out = resumed.collect(resumed.select(selections), score_group, selections)
    assert selections.numbers == [3, 2, 1]  # nothing is selected twice
    assert ids(rolled_out.groups) == ids(whole.groups) == list(range(6))
    assert ids(rolled_out.batch) == ids(whole.batch) == [0, 4, 5]


def test_groups_are_scored_beside_each_other_and_stay_in_order():
    queue, _ = make_queue([SIGNAL] * 3, scorers=3, prompts_per_batch=3)
    together = threading.Barrier(3, timeout=30)

    def score_group(group: RolloutGroup) -> ScoredGroup:
        together.wait()  # ends only if all three are here at once
        return score(group, None)

    selections = Selections()
    rolled_out = queue.collect(queue.select(selections), score_group, selections)
    assert [scored.group.request.group_id for scored in rolled_out.groups] == ["00000000", "00000001", "00000002"]


def test_a_score_that_fails_ends_the_iteration_and_cancels_the_rollouts():
    queue, dispatcher = make_queue([SIGNAL], prompts_per_batch=1)

    def score_group(group: RolloutGroup) -> ScoredGroup:
        raise ZeroDivisionError("in the embedder")

    selections = Selections()
    with pytest.raises(ZeroDivisionError):
        queue.collect(queue.select(selections), score_group, selections)
    assert dispatcher.cancelled == 1 and len(queue.selected) == 1
