"""The update: whole, or in parts while others are rolled out."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.grpo.update import Update
from rllib_exit.learner.batch import TrainBatch
from rllib_exit.learner.learner_group import LearnerError, LearnersTimeoutError
from rllib_exit.rollouts import ScoredGroup
from tests.learner.helpers import make_groups


class FakeLearners:
    """Notes how many rows of which groups came, in parts and with the update."""

    is_local = True

    def __init__(self) -> None:
        self.parts: list[TrainBatch] = []
        self.updates: list[TrainBatch] = []
        self.forgotten = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.error: Exception | None = None

    def accumulate(self, parts: list[TrainBatch]) -> None:
        self.may_go_on.wait(10)
        if self.error:
            raise self.error
        self.parts += parts

    def update(self, training_data: Any) -> dict[str, float]:
        self.updates.append(training_data.batch)
        return {"loss": 1.0}

    def forget(self) -> None:
        self.forgotten += 1
        self.parts.clear()


def rows(batches: list[TrainBatch]) -> int:
    return sum(len(minibatch) for batch in batches for minibatch in batch.minibatches)


def make(learners: Any, **settings: Any) -> Update:
    config = GRPOConfig().language_model("any", max_model_len=64)
    config.training(**{"streamed_update": True, "max_tokens_per_micro_batch": 8, "kl_coeff": 0.1, **settings})
    return Update(learners, config, max_turns=1)


@pytest.fixture
def learners() -> FakeLearners:
    return FakeLearners()


@pytest.fixture
def scored() -> list[ScoredGroup]:
    groups = make_groups(np.random.default_rng(0), num_groups=6)
    return [ScoredGroup(group, group.returns_G - group.returns_G.mean()) for group in groups]


def test_what_is_in_goes_to_idle_learners_and_the_rest_with_the_update(
    learners: FakeLearners, scored: list[ScoredGroup]
) -> None:
    update = make(learners)
    update.serve()
    assert update._under_way is None  # nothing is in
    learners.may_go_on.clear()
    update.add(scored[0])
    update.serve()
    update.add(scored[1])
    update.add(scored[2])
    update.serve()
    assert update._under_way is not None and not update._under_way.done()  # with the first group
    learners.may_go_on.set()
    update._under_way.result(10)
    update.serve()
    update._wait()
    assert [rows([part]) for part in learners.parts] == [4, 8]
    update.add(scored[3])
    assert update(scored) == {"loss": 1.0}
    assert rows(learners.parts) + rows(learners.updates) == 24 and rows(learners.updates) == 12
    # Each part's weights wait for the divisor of the whole.
    assert sum(batch.divisor or 0 for batch in [*learners.parts, *learners.updates]) == 24
    # The next iteration begins anew.
    update(scored[:2])
    assert rows(learners.updates[1:]) == 8


def test_a_part_has_tokens_enough_for_all_learners(learners: FakeLearners, scored: list[ScoredGroup]) -> None:
    segments = [s for rollout in scored[0].group.rollouts for s in rollout.segments]
    generated = [int(s.loss_mask.sum()) for s in segments]
    prompt = max(len(s.token_ids) - n for s, n in zip(segments, generated, strict=True))
    assert prompt > 0
    update = make(learners, max_tokens_per_micro_batch=sum(generated) + prompt)
    update.add(scored[0])
    update.serve()
    update._wait()
    assert rows(learners.parts) == 4
    learners.parts.clear()
    update = make(learners, max_tokens_per_micro_batch=sum(generated) + prompt + 1)
    update.add(scored[0])
    update.serve()
    assert update._under_way is None
    update.add(scored[1])
    update.serve()
    update._wait()
    assert rows(learners.parts) == 8


def test_what_is_not_trained_on_is_in_no_part(learners: FakeLearners, scored: list[ScoredGroup]) -> None:
    flat = ScoredGroup(scored[0].group, np.zeros(4))
    lone = ScoredGroup(replace(scored[1].group, rollouts=scored[1].group.rollouts[:1]), np.zeros(1))
    for refill, expected in ((0, [4, 4]), (1, [4])):
        learners.parts.clear()
        update = make(learners, refill_zero_variance=refill)
        for of in (flat, lone, scored[2]):
            update.add(of)
            update.serve()
            update._wait()
        assert [rows([part]) for part in learners.parts] == expected


def test_without_it_nothing_is_sent_ahead(learners: FakeLearners, scored: list[ScoredGroup]) -> None:
    update = make(learners, streamed_update=False)
    for of in scored:
        update.add(of)
        update.serve()
    update(scored)
    assert not learners.parts and not learners.forgotten
    assert rows(learners.updates) == 24 and learners.updates[0].divisor is None


def test_a_failed_iteration_is_forgotten(learners: FakeLearners, scored: list[ScoredGroup]) -> None:
    update = make(learners)
    update.add(scored[0])
    update.serve()
    update.add(scored[1])
    # It is rolled out anew, and some groups of the first time were scored late.
    again = [ScoredGroup(of.group, of.plain_advantages_G) for of in scored]
    update.add(again[0])
    update.serve()
    update(again)
    assert learners.forgotten == 1 and not learners.parts
    assert rows(learners.updates) == 24
    update.add(again[0])
    update.serve()
    update(again)
    assert learners.forgotten == 1 and rows(learners.parts) == 4 and rows(learners.updates[1:]) == 20


def test_a_learner_that_fails_on_a_part_ends_the_iteration(learners: FakeLearners, scored: list[ScoredGroup]) -> None:
    learners.error = LearnersTimeoutError("1 learners did not answer within 5 s")
    update = make(learners)
    update.add(scored[0])
    update.serve()
    with pytest.raises(LearnerError, match="did not answer"):
        update(scored)


@pytest.mark.parametrize(("max_turns", "budget"), [(1, 100), (3, 300), (None, 4096)])
def test_dr_grpo_divides_by_what_an_episode_can_have(
    learners: Any, scored: list[ScoredGroup], max_turns: int | None, budget: int
) -> None:
    config = GRPOConfig().language_model("any", max_model_len=4096).generation(max_response_tokens=100)
    config.training(loss_aggregation="constant", kl_coeff=0.1)
    Update(learners, config, max_turns)(scored)
    [[minibatch]] = [batch.minibatches for batch in learners.updates]
    assert {row.loss_weight for row in minibatch} == {1 / (24 * budget)}


@pytest.mark.parametrize(
    ("fields", "mend"),
    [
        ({"num_epochs": 2}, "num_epochs=1"),
        ({"minibatch_size": 8}, "minibatch_size=None"),
        ({"sharding": "deepspeed"}, "fsdp2"),
    ],
)
def test_where_it_cannot_be_the_same_update_it_is_refused(fields: dict[str, Any], mend: str) -> None:
    config = GRPOConfig().language_model("any").training(streamed_update=True)
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=f"streamed_update is True: .*{mend}"):
        config._validate_learners()
