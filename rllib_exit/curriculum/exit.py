"""Exploratory Iteration (paper section 4): a curriculum over the policy's own partial histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt, WithJsonSchema, model_validator

from envs.base import TaskInstance
from rllib_exit.curriculum.learnability import SCORES, LearnabilityOf, group_score, learnability
from rllib_exit.curriculum.task_buffer import TaskBuffer
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest
from rllib_exit.settings import Fraction
from rllib_exit.settings_group import Settings, check


class CurriculumConfig(Settings):
    """The hyper-parameters of section 4, by default those of the paper's math runs (Table 4)."""

    strategy: Literal["grpo", "curriculum", "improve", "diverge", "exit"] = "exit"
    """A row of Table 1. ``.curriculum(strategy)`` and ``--set strategy=`` set other fields to the row's values."""
    self_iteration_prob: Fraction = 0.5
    """The probability that a prompt is selected from the task buffer. 0 keeps no buffer."""
    divergence_prob: Fraction = 0.2
    """The probability that a self-iteration step becomes a divergence step."""
    buffer_size: PositiveInt = 512
    """The most instances that the task buffer holds."""
    min_buffer_size: PositiveInt = 128
    """Nothing is selected while the task buffer holds fewer instances."""
    inverse_temperature: Annotated[float, Field(ge=0, allow_inf_nan=True)] = 1.0
    """α: an instance with score S is selected with a probability in proportion to S to the power of α. Infinity selects
    one of the highest score."""
    expansions_per_group: PositiveInt = 1
    """How many rollouts of a group enter the buffer."""
    self_iteration: bool = True
    """Whether a selected instance is iterated on. If not, its partial history is replayed and its turn answered
    afresh."""
    diversity_bonus: bool = True
    """Whether advantages are scaled by the diversity of the solutions (Eq. 6)."""
    learnability: Annotated[str, WithJsonSchema({"enum": [*SCORES]})] = "variance"
    """The score of an instance, by which it is kept and selected. The paper's is ``variance``; see
    :mod:`rllib_exit.curriculum.learnability`."""
    learnability_of: LearnabilityOf = "quality"
    """Whether that is the score of the rollouts' qualities or of their returns. In MLE-bench the return of an
    improvement is its gain; see :func:`rllib_exit.curriculum.learnability.group_score`."""
    staleness_coeff: Fraction = 0.0
    """The share of selections that is drawn by how long ago an instance was selected. The paper has none."""
    exploration_coeff: NonNegativeFloat = 0.0
    """c of a bonus for instances that were seldom selected; see :func:`rllib_exit.curriculum.learnability.puct`. The
    paper has none."""

    @model_validator(mode="after")
    def _can_select(self) -> Self:
        check(self, "learnability", self.learnability in SCORES, f"use one of {', '.join(SCORES)}")
        check(
            self,
            "learnability_of",
            self.learnability_of == "quality" or self.learnability != "expected_improvement",
            "learnability='expected_improvement' compares with the iterate's quality; use 'quality'",
        )
        check(
            self,
            "buffer_size",
            self.buffer_size >= self.min_buffer_size,
            f"nothing would ever be selected; use min_buffer_size ({self.min_buffer_size}) or more, or lower that",
        )
        return self


# The rows of Table 1.
STRATEGIES: Mapping[str, CurriculumConfig] = MappingProxyType(
    {
        row.strategy: row
        for row in (
            CurriculumConfig(
                strategy="grpo",
                self_iteration_prob=0.0,
                divergence_prob=0.0,
                self_iteration=False,
                diversity_bonus=False,
            ),
            CurriculumConfig(strategy="curriculum", divergence_prob=0.0, self_iteration=False, diversity_bonus=False),
            CurriculumConfig(strategy="improve", divergence_prob=0.0, diversity_bonus=False),
            CurriculumConfig(strategy="diverge", diversity_bonus=False),
            CurriculumConfig(strategy="exit"),
        )
    }
)


class ExIt:
    """Selects the task instances to train on, and grows the task space from their rollouts.

    Args:
        config: The hyper-parameters.
        task_ids: The base tasks.
        rng: All randomness comes from it; its state is part of the state.

    Raises:
        ValueError: If there is no task.
    """

    def __init__(self, config: CurriculumConfig, task_ids: Sequence[str], rng: np.random.Generator) -> None:
        if not task_ids:
            raise ValueError("task_ids is empty: give at least one base task")
        self.config = config
        self.buffer = TaskBuffer(
            config.buffer_size, config.inverse_temperature, config.staleness_coeff, config.exploration_coeff
        )
        self._task_ids = tuple(task_ids)
        self._rng = rng
        self._epoch, self._position = np.empty(0, dtype=np.int64), 0
        self._num_requests = 0
        self._seen_tasks: set[str] = set()
        self._seen_instances: set[str] = set()

    def select(self, num_prompts: int) -> list[RolloutRequest]:
        """The iteration's prompts, each from the task buffer or from the base tasks."""
        return [self._request() for _ in range(num_prompts)]

    def update(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Scores the instances that were rolled out, and expands the task buffer with the new histories.

        Returns:
            What the groups were, averaged over them, what the buffer holds now, and the totals of the run.
            ``depth_mean`` and ``starting_turn_mean`` count a base task as 0. A group whose prompt did not fit the
            context counts in ``skipped_fraction``, and one of which fewer than two rollouts could be judged in
            ``unjudged_fraction``. Neither has a variance.
        """
        variances: list[float] = []
        # The order of the requests, not of arrival: a resumed run takes the same decisions.
        for group in sorted(groups, key=lambda group: group.request.group_id):
            source = group.request.source
            self._seen_tasks.add(group.request.instance.task_id)
            self._seen_instances.add(group.request.instance.digest)
            if group.skipped and source:  # its prompt does not fit the context, and never will
                self.buffer.remove(source)
            if not group.trainable:
                continue
            score = group_score(group, self.config.learnability, self.config.learnability_of)
            variances.append(learnability(group.qualities_G))
            if source:
                self.buffer.update(source, score)
            if self.config.self_iteration_prob > 0:
                self._expand(group, score)
        return self._metrics(groups, variances)

    def _request(self) -> RolloutRequest:
        source = None
        if self._rng.random() < self.config.self_iteration_prob and len(self.buffer) >= self.config.min_buffer_size:
            source = self.buffer.sample(self._rng)
            instance = self._self_iteration(source)
        else:
            instance = TaskInstance(self._next_base_task())
        group_id, seed = f"{self._num_requests:08d}", int(self._rng.integers(2**31))
        self._num_requests += 1
        return RolloutRequest(group_id, instance, source, seed)

    def _self_iteration(self, source: TaskInstance) -> TaskInstance:
        if not self.config.self_iteration:
            return source
        kind = "diverge" if self._rng.random() < self.config.divergence_prob else "improve"
        return replace(source, kind=kind)

    def _next_base_task(self) -> str:
        """Draws without replacement, and reshuffles every epoch; an epoch may end within a batch."""
        if self._position == len(self._epoch):
            self._epoch, self._position = self._rng.permutation(len(self._task_ids)), 0
        self._position += 1
        return self._task_ids[self._epoch[self._position - 1]]

    def _expand(self, group: RolloutGroup, score: float) -> None:
        """Inserts every prefix of some rollouts' histories; children inherit the score of their parent."""
        eligible = [rollout for rollout in group.rollouts if rollout.valid and not rollout.truncated]
        num = min(self.config.expansions_per_group, len(eligible))
        for i in self._rng.choice(len(eligible), size=num, replace=False) if num else ():
            self.buffer.insert(*self._prefixes(group.request.instance.task_id, eligible[i]), score=score)

    def _prefixes(self, task_id: str, rollout: Rollout) -> list[TaskInstance]:
        """For every turn, the instance that ends in its last iterate; without self-iteration, in the history before."""
        turns = rollout.turns
        if not self.config.self_iteration:
            return [TaskInstance(task_id, turns[:t]) for t in range(len(turns))]
        return [TaskInstance(task_id, turns[:t], turn, "improve") for t, turn in enumerate(turns)]

    def _metrics(self, groups: Sequence[RolloutGroup], variances: Sequence[float]) -> dict[str, float]:
        requests = [group.request for group in groups]
        instances = [request.instance for request in requests]
        buffer_scores = self.buffer.scores if len(self.buffer) else np.zeros(1)
        return {
            "buffer_size": float(len(self.buffer)),
            "buffer_score_min": float(buffer_scores.min()),
            "buffer_score_mean": float(buffer_scores.mean()),
            "buffer_score_max": float(buffer_scores.max()),
            "selected_fraction": _mean([request.source is not None for request in requests]),
            "improve_fraction": _mean([instance.kind == "improve" for instance in instances]),
            "diverge_fraction": _mean([instance.kind == "diverge" for instance in instances]),
            "depth_mean": _mean([instance.depth for instance in instances]),
            "starting_turn_mean": _mean([instance.starting_turn for instance in instances]),
            "distinct_tasks_total": float(len(self._seen_tasks)),
            "distinct_instances_total": float(len(self._seen_instances)),
            "group_variance_mean": _mean(variances),
            "zero_variance_fraction": _mean([variance == 0 for variance in variances]),
            "skipped_fraction": _mean([group.skipped for group in groups]),
            "unjudged_fraction": _mean([not group.trainable and not group.skipped for group in groups]),
        }

    def get_state(self) -> dict[str, Any]:
        """Everything that later selections and updates depend on."""
        return {
            "task_ids": self._task_ids,
            "buffer": self.buffer.get_state(),
            "rng": self._rng.bit_generator.state,
            "epoch": self._epoch.copy(),
            "position": self._position,
            "num_requests": self._num_requests,
            "seen_tasks": sorted(self._seen_tasks),
            "seen_instances": sorted(self._seen_instances),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores a state of ``get_state``.

        Raises:
            ValueError: If it was saved with other base tasks, or does not fit the buffer.
        """
        if state["task_ids"] != self._task_ids:
            raise ValueError("the saved curriculum has other base tasks, or another order: give task_ids as before")
        self.buffer.set_state(state["buffer"])
        self._rng.bit_generator.state = state["rng"]
        self._epoch, self._position = state["epoch"].copy(), state["position"]
        self._num_requests = state["num_requests"]
        self._seen_tasks, self._seen_instances = set(state["seen_tasks"]), set(state["seen_instances"])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
