"""The task buffer: the K task instances of the highest learnability score (paper section 4.1)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from envs.base import TaskInstance, Turn

Identity = tuple[str, tuple[Turn, ...], Turn | None]


def identity(instance: TaskInstance) -> Identity:
    """What makes two instances the same one: the kind says how it is used, not what it is."""
    return instance.task_id, instance.history, instance.iterate


class TaskBuffer:
    """A bounded set of task instances, drawn with P(i) = (1 - ρ) S_i^α / Σ_j S_j^α + ρ C_i / Σ_j C_j.

    C_i counts the draws since instance i was last drawn, or inserted (Prioritized Level Replay, Jiang et al. 2021b);
    in the paper, ρ is 0.

    Instances lie in slots 0..n-1. Over the slots stand two complete binary trees in arrays (root at 1, the
    children of node i at 2i and 2i+1): one of sums of S^α to draw from, one whose nodes name the slot of the
    lowest score below. A change recomputes the parents from their children, so that no rounding error
    accumulates; every operation but a draw by staleness takes O(log n).

    Args:
        capacity: The most instances kept.
        inverse_temperature: α; 0 draws uniformly.
        staleness_coeff: ρ.

    Raises:
        ValueError: If the capacity is not positive, α not finite and non-negative, or ρ not in [0, 1].
    """

    def __init__(self, capacity: int, inverse_temperature: float = 1.0, staleness_coeff: float = 0.0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it must be at least 1")
        if not (math.isfinite(inverse_temperature) and inverse_temperature >= 0):
            raise ValueError(f"inverse_temperature is {inverse_temperature}: it must be finite and at least 0")
        if not 0 <= staleness_coeff <= 1:
            raise ValueError(f"staleness_coeff is {staleness_coeff}: it must be in [0, 1]")
        self.capacity = capacity
        self.inverse_temperature = inverse_temperature
        self.staleness_coeff = staleness_coeff
        self._leaves = 1 << (capacity - 1).bit_length()
        none = np.empty(0, dtype=np.int64)
        self._restore([], np.empty(0), none, next_age=0, drawn_at=none, num_draws=0)

    def __len__(self) -> int:
        return len(self._instances)

    def __contains__(self, instance: TaskInstance) -> bool:
        return identity(instance) in self._slots

    @property
    def instances(self) -> tuple[TaskInstance, ...]:
        """The instances, in the order of their slots."""
        return tuple(self._instances)

    @property
    def scores(self) -> np.ndarray:
        """(n,) float64, the instances' scores, in the order of their slots."""
        return self._scores[: len(self)].copy()

    def insert(self, instance: TaskInstance, score: float) -> bool:
        """Inserts an instance, or updates the score of one that is there already.

        A full buffer takes it only if its score is at least the lowest, in the place of the lowest; of the
        oldest, if several are lowest. An instance with an iterate is kept as ``improve``; whoever draws it
        decides on its kind.

        Returns:
            Whether the buffer holds the instance now.
        """
        if self.update(instance, score):
            return True
        if instance.kind == "diverge":
            instance = replace(instance, kind="improve")
        slot = len(self)
        if slot < self.capacity:
            self._instances.append(instance)
        else:
            slot = int(self._lowest[1])
            if score < self._scores[slot]:
                return False
            del self._slots[identity(self._instances[slot])]
            self._instances[slot] = instance
        self._slots[identity(instance)] = slot
        self._ages[slot] = self._next_age
        self._next_age += 1
        self._drawn_at[slot] = self._num_draws
        self._set_score(slot, score)
        return True

    def update(self, instance: TaskInstance, score: float) -> bool:
        """Sets the score of an instance; False if it is gone.

        Raises:
            ValueError: If the score is negative or not finite.
        """
        if not (math.isfinite(score) and score >= 0):
            raise ValueError(f"score is {score}: it must be finite and at least 0")
        slot = self._slots.get(identity(instance))
        if slot is not None:
            self._set_score(slot, score)
        return slot is not None

    def remove(self, instance: TaskInstance) -> bool:
        """Removes an instance; False if it is gone. The last slot's instance moves to its place."""
        slot = self._slots.pop(identity(instance), None)
        if slot is None:
            return False
        last, last_instance = len(self) - 1, self._instances.pop()
        if slot != last:
            self._instances[slot] = last_instance
            self._slots[identity(last_instance)] = slot
            self._ages[slot], self._drawn_at[slot] = self._ages[last], self._drawn_at[last]
            self._set_score(slot, self._scores[last])
        self._set_score(last, None)
        return True

    def sample(self, rng: np.random.Generator) -> TaskInstance:
        """Draws an instance; of scores (or staleness) that are all 0, uniformly.

        Raises:
            IndexError: If the buffer is empty.
        """
        if not self._instances:
            raise IndexError("the task buffer is empty")
        by_staleness = self.staleness_coeff > 0 and rng.random() < self.staleness_coeff
        slot = self._draw_stale(rng) if by_staleness else self._draw_by_score(rng)
        self._num_draws += 1
        self._drawn_at[slot] = self._num_draws
        return self._instances[slot]

    def _draw_stale(self, rng: np.random.Generator) -> int:
        staleness = np.cumsum(self._num_draws - self._drawn_at[: len(self)])
        if staleness[-1] == 0:
            return int(rng.integers(len(self)))
        return int(np.searchsorted(staleness, rng.integers(staleness[-1]), side="right"))

    def _draw_by_score(self, rng: np.random.Generator) -> int:
        sums = self._sums
        if sums[1] == 0:
            return int(rng.integers(len(self)))
        mass = rng.random() * float(sums[1])
        node = 1
        while node < self._leaves:
            node *= 2
            left = float(sums[node])
            # Rounding may leave a mass beyond the last positive leaf: never walk into an empty subtree.
            if mass >= left and sums[node + 1] > 0:
                mass -= left
                node += 1
        return node - self._leaves

    def get_state(self) -> dict[str, Any]:
        """Everything that later draws and insertions depend on."""
        return {
            "instances": list(self._instances),
            "scores": self.scores,
            "ages": self._ages[: len(self)].copy(),
            "next_age": self._next_age,
            "drawn_at": self._drawn_at[: len(self)].copy(),
            "num_draws": self._num_draws,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state of ``get_state``.

        Raises:
            ValueError: If it holds more instances than the capacity.
        """
        n = len(state["instances"])
        if n > self.capacity:
            raise ValueError(
                f"the saved task buffer holds {n} instances: capacity {self.capacity} must be at least {n}"
            )
        self._restore(**state)

    def _restore(
        self,
        instances: list[TaskInstance],
        scores: np.ndarray,
        ages: np.ndarray,
        next_age: int,
        drawn_at: np.ndarray,
        num_draws: int,
    ) -> None:
        n, leaves = len(instances), self._leaves
        self._instances = list(instances)
        self._slots: dict[Identity, int] = {identity(instance): slot for slot, instance in enumerate(instances)}
        self._scores = np.full(leaves, np.inf)  # a free slot is never the lowest
        self._scores[:n] = scores
        self._ages = np.zeros(leaves, dtype=np.int64)
        self._ages[:n] = ages
        self._next_age = next_age
        self._drawn_at = np.zeros(leaves, dtype=np.int64)
        self._drawn_at[:n] = drawn_at
        self._num_draws = num_draws
        self._sums = np.zeros(2 * leaves)
        self._sums[leaves : leaves + n] = [self._weight(score) for score in scores.tolist()]
        self._lowest = np.zeros(2 * leaves, dtype=np.int32)
        self._lowest[leaves:] = np.arange(leaves)
        level = leaves // 2
        while level:  # level by level, from the leaves' parents to the root
            children = slice(2 * level, 4 * level)
            self._sums[level : 2 * level] = self._sums[children].reshape(-1, 2).sum(axis=1)
            left, right = self._lowest[children].reshape(-1, 2).T
            left_scores, right_scores = self._scores[left], self._scores[right]
            older = (right_scores == left_scores) & (self._ages[right] < self._ages[left])
            self._lowest[level : 2 * level] = np.where((right_scores < left_scores) | older, right, left)
            level //= 2

    def _weight(self, score: float) -> float:
        return score**self.inverse_temperature

    def _set_score(self, slot: int, score: float | None) -> None:
        """Sets a slot's score, None to free it, and recomputes the path to the root."""
        scores, ages, sums, lowest = self._scores, self._ages, self._sums, self._lowest
        scores[slot] = np.inf if score is None else score
        node = slot + self._leaves
        sums[node] = 0.0 if score is None else self._weight(float(score))
        while node > 1:
            node //= 2
            left, right = 2 * node, 2 * node + 1
            sums[node] = sums[left] + sums[right]
            a, b = lowest[left], lowest[right]
            score_a, score_b = scores[a], scores[b]
            lowest[node] = b if score_b < score_a or (score_b == score_a and ages[b] < ages[a]) else a
