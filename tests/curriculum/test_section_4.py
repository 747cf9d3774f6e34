"""The curriculum against a brute-force model, written from the text of the paper's section 4."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scipy.stats import chisquare

from envs.base import TaskInstance, Turn
from rllib_exit.curriculum.exit import CurriculumConfig, ExIt
from rllib_exit.curriculum.task_buffer import TaskBuffer
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest

# A task, the solutions of its history, and that of its iterate, if any.
Identity = tuple[str, tuple[str, ...], str | None]


def identity(instance: TaskInstance) -> Identity:
    iterate = instance.iterate and instance.iterate.solution
    return instance.task_id, tuple(turn.solution for turn in instance.history), iterate


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5, 40.0, np.inf])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 5))])
def test_instances_are_drawn_in_proportion_to_the_powers_of_their_scores(seed: int, alpha: float) -> None:
    rng = np.random.default_rng([seed, 4])
    buffer = TaskBuffer(int(rng.integers(3, 30)), alpha)
    for i in range(60):  # some are displaced, some are measured anew, some are removed
        instance = TaskInstance(f"t{i}", (), Turn("y"), "improve")
        buffer.insert(instance, score=float(rng.choice([0.0, rng.random() / 4])))
        old = TaskInstance(f"t{rng.integers(i + 1)}", (), Turn("y"), "improve")
        buffer.update(old, float(rng.random() / 4))
        if rng.random() < 0.1:
            buffer.remove(old)
    # An instance by its object, which is quick.
    scores = dict(zip(map(id, buffer.instances), buffer.scores, strict=True))
    best = max(scores.values())
    weights = {i: (float(s == best) if alpha == np.inf else (s / best) ** alpha) for i, s in scores.items()}

    draws = 100_000
    counts = dict.fromkeys(scores, 0)
    for _ in range(draws):
        counts[id(buffer.sample(rng))] += 1
    assert all(counts[i] == 0 for i, weight in weights.items() if weight == 0)
    expected = {i: draws * weight / sum(weights.values()) for i, weight in weights.items()}
    # The test needs a few expected draws in each class: those of fewer are one class.
    classes = [(n, counts[i]) for i, n in expected.items() if n >= 5]
    rare = [(n, counts[i]) for i, n in expected.items() if 0 < n < 5]
    if rare:
        classes.append((sum(n for n, _ in rare), sum(count for _, count in rare)))
    f_exp, f_obs = np.array(classes).T
    assert f_obs.sum() == draws
    assert len(classes) == 1 or chisquare(f_obs, f_exp).pvalue > 1e-4


@dataclass(frozen=True)
class Held:
    """An instance of the model's buffer. The buffer is a tuple, the oldest first."""

    identity: Identity
    score: float
    measured: bool = False


class Section4(RuleBasedStateMachine):
    """Selects, rolls out, updates and resumes at will.

    Which rollouts are expanded is random: the model has all the buffers that section 4 allows, and the curriculum's
    must be one of them.
    """

    @initialize(
        capacity=st.integers(1, 7),
        minimum=st.integers(1, 7),
        probability=st.sampled_from([0.5, 1.0]),
        self_iteration=st.booleans(),
        expansions=st.integers(1, 3),
        num_tasks=st.integers(1, 3),
        seed=st.integers(0, 2**32),
    )
    def start(
        self,
        capacity: int,
        minimum: int,
        probability: float,
        self_iteration: bool,
        expansions: int,
        num_tasks: int,
        seed: int,
    ) -> None:
        self.config = CurriculumConfig(
            buffer_size=capacity,
            min_buffer_size=min(minimum, capacity),
            self_iteration_prob=probability,
            divergence_prob=0.5,
            self_iteration=self_iteration,
            expansions_per_group=expansions,
        )
        self.tasks = [f"t{i}" for i in range(num_tasks)]
        self.curriculum = ExIt(self.config, self.tasks, np.random.default_rng(seed))
        self.model: tuple[Held, ...] = ()
        self.pending: list[RolloutRequest] = []
        self.epoch: list[str] = []
        self.num_turns = 0

    @rule(num=st.integers(1, 5))
    def select(self, num: int) -> None:
        held = {h.identity: h.score for h in self.model}
        for request in self.curriculum.select(num):
            instance, source = request.instance, request.source
            if source is None:
                if self.config.self_iteration_prob == 1:
                    assert len(held) < self.config.min_buffer_size
                assert instance == TaskInstance(instance.task_id)
                # Base tasks come without replacement.
                self.epoch = [*(self.epoch if len(self.epoch) < len(self.tasks) else []), instance.task_id]
                assert len(set(self.epoch)) == len(self.epoch) and set(self.epoch) <= set(self.tasks)
            else:
                assert len(held) >= self.config.min_buffer_size and identity(source) in held
                assert held[identity(source)] > 0 or not any(held.values())
                assert identity(instance) == identity(source)
                assert (instance.kind == "base") == (not self.config.self_iteration)
            self.pending.append(request)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        """Some of the pending requests come back, in any order."""
        requests = data.draw(st.lists(st.sampled_from(self.pending), min_size=1, max_size=2, unique_by=id))
        groups = [data.draw(self.groups(request)) for request in requests]
        self.pending = [request for request in self.pending if not any(request is other for other in requests)]
        self.curriculum.update(groups)
        allowed = {self.model}
        for group in sorted(groups, key=lambda group: group.request.group_id):
            allowed = {after for before in allowed for after in self.after(before, group)}
        assert self.actual() in allowed
        self.model = self.actual()

    @rule()
    def resume(self) -> None:
        state = pickle.loads(pickle.dumps(self.curriculum.get_state()))
        self.curriculum = ExIt(self.config, self.tasks, np.random.default_rng())
        self.curriculum.set_state(state)

    @invariant()
    def the_buffer_is_the_models(self) -> None:
        assert self.actual() == self.model and len(self.model) <= self.config.buffer_size
        assert len({held.identity for held in self.model}) == len(self.model)

    def actual(self) -> tuple[Held, ...]:
        state = self.curriculum.buffer.get_state()
        rows = zip(state["instances"], state["scores"].tolist(), state["measured"].tolist(), strict=True)
        held = [Held(identity(instance), score, measured) for instance, score, measured in rows]
        return tuple(held[i] for i in np.argsort(state["ages"]))

    def groups(self, request: RolloutRequest) -> st.SearchStrategy[RolloutGroup]:
        """Of 0, 1, 2 or 4 rollouts, whose qualities have exact variances. Few solutions: the same ones come again."""

        def rollout(new: list[str], quality: float, ended: tuple[bool, bool]) -> Rollout:
            start = request.instance
            depth = start.depth + 1 if start.iterate else 0
            turns = tuple(Turn(solution, depth=depth if t == 0 else 0) for t, solution in enumerate(new))
            return Rollout((), start.history + turns, quality, quality, valid=ended[0], truncated=ended[1])

        new = st.lists(st.sampled_from("ab"), min_size=1, max_size=3)
        ended = st.sampled_from([(True, False), (True, False), (False, False), (True, True)])
        one = st.builds(rollout, new, st.sampled_from([0.0, 0.5, 1.0]), ended)
        many = st.sampled_from([2, 2, 4, 4, 1, 0]).flatmap(lambda n: st.lists(one, min_size=n, max_size=n))
        return st.builds(
            lambda rollouts, dropped: RolloutGroup(request, tuple(rollouts), num_dropped=dropped),
            many,
            st.integers(0, 1),
        )

    # The model.

    def after(self, buffer: tuple[Held, ...], group: RolloutGroup) -> Iterator[tuple[Held, ...]]:
        """The buffers that may follow from one group."""
        source = group.request.source and identity(group.request.source)
        if not group.rollouts and not group.num_dropped:
            yield tuple(held for held in buffer if held.identity != source)
            return
        if len(group.rollouts) < 2:
            yield buffer
            return
        qualities = [rollout.quality for rollout in group.rollouts]
        mean = sum(qualities) / len(qualities)
        score = sum((q - mean) ** 2 for q in qualities) / len(qualities)
        buffer = tuple(replace(h, score=score, measured=True) if h.identity == source else h for h in buffer)
        valid = [rollout for rollout in group.rollouts if rollout.valid and not rollout.truncated]
        num = min(self.config.expansions_per_group, len(valid))
        for chosen in itertools.permutations(valid, num):
            after = buffer
            for rollout in chosen:
                after = self.expanded(after, group.request.instance.task_id, rollout, score)
            yield after

    def expanded(self, buffer: tuple[Held, ...], task: str, rollout: Rollout, score: float) -> tuple[Held, ...]:
        """Inserts all partial histories of one rollout, with the score of the instance that it started from."""
        solutions = tuple(turn.solution for turn in rollout.turns)
        own: set[Identity] = set()
        for t, solution in enumerate(solutions):
            new = (task, solutions[:t], solution if self.config.self_iteration else None)
            if any(held.identity == new for held in buffer):
                buffer = tuple(
                    replace(held, score=score) if held.identity == new and not held.measured else held
                    for held in buffer
                )
                continue
            if len(buffer) == self.config.buffer_size:
                lowest = min(held.score for held in buffer)
                displaced = next(held for held in buffer if held.score == lowest)
                if score < lowest or displaced.identity in own:
                    continue
                buffer = tuple(held for held in buffer if held is not displaced)
            buffer += (Held(new, score),)
            own.add(new)
        return buffer


TestSection4: Any = Section4.TestCase
