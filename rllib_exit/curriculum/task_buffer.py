"""The task buffer: the K task instances of the highest learnability score (paper section 4.1)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from envs.base import TaskInstance, Turn
from rllib_exit.curriculum.learnability import puct

Identity = tuple[str, tuple[Turn, ...], Turn | None]


def identity(instance: TaskInstance) -> Identity:
    """What makes two instances the same one: the kind says how it is used, not what it is."""
    return instance.task_id, instance.history, instance.iterate


class TaskBuffer:
    """A bounded set of task instances, drawn with P(i) = (1 - ρ) S_i^α / Σ_j S_j^α + ρ C_i / Σ_j C_j.

    C_i counts the draws since instance i was last drawn, or inserted (Prioritized Level Replay, Jiang et al. 2021b);
    in the paper, ρ is 0. With an ``exploration_coeff``, :func:`rllib_exit.curriculum.learnability.puct` of the scores
    stands in place of S for drawing, but not for keeping; the paper has none.

    A score is *inherited* until a group was rolled out from the instance itself; from then on it is *measured*. Section
    4.1 of the paper defines the score by the instance's own group, so an inherited score never replaces a measured one.

    What many draws share, the cumulative weights, is computed once after a change. Every operation takes O(n): for the
    thousands of instances that a buffer holds, microseconds.

    Args:
        capacity: The most instances kept.
        inverse_temperature: α; 0 draws uniformly, infinity draws one of the highest score.
        staleness_coeff: ρ.
        exploration_coeff: c of PUCT; 0 leaves the scores as they are.

    Raises:
        ValueError: If the capacity is not positive, α or c not a number of 0 or more, or ρ not in [0, 1].
    """

    def __init__(
        self,
        capacity: int,
        inverse_temperature: float = 1.0,
        staleness_coeff: float = 0.0,
        exploration_coeff: float = 0.0,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it must be at least 1")
        if not inverse_temperature >= 0:  # NaN too
            raise ValueError(f"inverse_temperature is {inverse_temperature}: it must be at least 0")
        if not 0 <= staleness_coeff <= 1:
            raise ValueError(f"staleness_coeff is {staleness_coeff}: it must be in [0, 1]")
        if not 0 <= exploration_coeff < math.inf:
            raise ValueError(f"exploration_coeff is {exploration_coeff}: it must be finite and at least 0")
        self.capacity = capacity
        self.inverse_temperature = inverse_temperature
        self.staleness_coeff = staleness_coeff
        self.exploration_coeff = exploration_coeff
        self._instances: list[TaskInstance] = []
        self._slots: dict[Identity, int] = {}
        self._scores = np.zeros(capacity)
        self._measured = np.zeros(capacity, dtype=bool)
        self._ages = np.zeros(capacity, dtype=np.int64)
        self._drawn_at = np.zeros(capacity, dtype=np.int64)
        self._draws = np.zeros(capacity, dtype=np.int64)
        self._next_age = 0
        self._num_draws = 0
        self._cumulative_weights: np.ndarray | None = None  # until the next draw after a change

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

    def insert(self, *instances: TaskInstance, score: float) -> None:
        """Inserts instances of one episode with the score that they inherit.

        If an instance is there already, it takes the score, unless its own was measured. A full buffer takes an
        instance only if its score is at least the lowest, in the place of the lowest; of the oldest, if several are
        lowest. But instances of one episode do not displace each other. An instance with an iterate is kept as
        ``improve``; whoever draws it decides on its kind.

        Raises:
            ValueError: If the score is negative or not finite.
        """
        _check(score)
        self._cumulative_weights = None
        first_age = self._next_age
        for instance in instances:
            slot = self._slots.get(identity(instance))
            if slot is not None:
                if not self._measured[slot]:
                    self._scores[slot] = score
                continue
            slot = len(self)
            if slot == self.capacity:
                slot = self._lowest()
                if score < self._scores[slot] or self._ages[slot] >= first_age:
                    continue
                del self._slots[identity(self._instances.pop(slot))]
            if instance.kind == "diverge":
                instance = replace(instance, kind="improve")
            self._instances.insert(slot, instance)
            self._slots[identity(instance)] = slot
            self._scores[slot], self._measured[slot] = score, False
            self._ages[slot], self._drawn_at[slot], self._draws[slot] = self._next_age, self._num_draws, 0
            self._next_age += 1

    def _lowest(self) -> int:
        """The slot of the lowest score, of the oldest if several are lowest."""
        scores = self._scores[: len(self)]
        lowest = np.flatnonzero(scores == scores.min())
        return int(lowest[self._ages[lowest].argmin()])

    def update(self, instance: TaskInstance, score: float) -> bool:
        """Sets the measured score of an instance; False if it is gone.

        Raises:
            ValueError: If the score is negative or not finite.
        """
        _check(score)
        self._cumulative_weights = None
        slot = self._slots.get(identity(instance))
        if slot is not None:
            self._scores[slot], self._measured[slot] = score, True
        return slot is not None

    def remove(self, instance: TaskInstance) -> bool:
        """Removes an instance; False if it is gone. The last slot's instance moves to its place."""
        slot = self._slots.pop(identity(instance), None)
        if slot is None:
            return False
        self._cumulative_weights = None
        last, last_instance = len(self) - 1, self._instances.pop()
        if slot != last:
            self._instances[slot] = last_instance
            self._slots[identity(last_instance)] = slot
            for values in (self._scores, self._measured, self._ages, self._drawn_at, self._draws):
                values[slot] = values[last]
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
        self._draws[slot] += 1
        return self._instances[slot]

    def _draw_stale(self, rng: np.random.Generator) -> int:
        staleness = np.cumsum(self._num_draws - self._drawn_at[: len(self)])
        if staleness[-1] == 0:
            return int(rng.integers(len(self)))
        return int(np.searchsorted(staleness, rng.integers(staleness[-1]), side="right"))

    def _draw_by_score(self, rng: np.random.Generator) -> int:
        if self._cumulative_weights is None or self.exploration_coeff:  # a draw changes the bonus of all
            scores = self._scores[: len(self)]
            if self.exploration_coeff:
                scores = puct(scores, self._draws[: len(self)], self._num_draws, self.exploration_coeff)
            # Relative to the highest score no α underflows as a whole: the highest has the weight 1, whatever α is.
            relative = scores / scores.max() if scores.any() else np.ones_like(scores)
            self._cumulative_weights = np.cumsum(relative**self.inverse_temperature)
        cumulative = self._cumulative_weights
        total = cumulative[-1]
        # Rounding may give the total itself, which lies behind the last instance that has a weight.
        mass = min(rng.random() * total, np.nextafter(total, 0))
        return int(np.searchsorted(cumulative, mass, side="right"))

    def get_state(self) -> dict[str, Any]:
        """Everything that later draws and insertions depend on."""
        n = len(self)
        return {
            "instances": list(self._instances),
            "scores": self.scores,
            "measured": self._measured[:n].copy(),
            "ages": self._ages[:n].copy(),
            "next_age": self._next_age,
            "drawn_at": self._drawn_at[:n].copy(),
            "draws": self._draws[:n].copy(),
            "num_draws": self._num_draws,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state of ``get_state``.

        Raises:
            ValueError: If it holds more instances than the capacity.
        """
        self._cumulative_weights = None
        n = len(state["instances"])
        if n > self.capacity:
            raise ValueError(
                f"the saved task buffer holds {n} instances: capacity {self.capacity} must be at least {n}"
            )
        self._instances = list(state["instances"])
        self._slots = {identity(instance): slot for slot, instance in enumerate(self._instances)}
        self._scores[:n], self._measured[:n] = state["scores"], state["measured"]
        self._ages[:n], self._drawn_at[:n], self._draws[:n] = state["ages"], state["drawn_at"], state["draws"]
        self._next_age, self._num_draws = state["next_age"], state["num_draws"]


def _check(score: float) -> None:
    if not (math.isfinite(score) and score >= 0):
        raise ValueError(f"score is {score}: it must be finite and at least 0")
