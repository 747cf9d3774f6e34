"""From a group's returns to its advantages: Eq. 3, and Eq. 6 where the strategy has the diversity bonus."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.base import SelfImprovementEnv
from rllib_exit.embeddings import Embedder
from rllib_exit.objective.advantages import group_advantages
from rllib_exit.objective.diversity import diversity_coefficients, edit_diversity_coefficients
from rllib_exit.rollouts import Rollout, RolloutGroup, ScoredGroup


@dataclass(frozen=True, slots=True)
class Scorer:
    """Computes advantages, a whole group at a time, before anything is divided among learners.

    Attributes:
        env: Says what of a response is the solution.
        normalize_std: Whether advantages are divided by the group's standard deviation (Eq. 3).
        diversity: Turns the G solutions of a group into (G,) coefficients D_i (Eq. 6); None without the bonus.
    """

    env: SelfImprovementEnv
    normalize_std: bool
    diversity: Callable[[Sequence[str]], np.ndarray] | None

    def __call__(self, group: RolloutGroup) -> ScoredGroup:
        """Scores a group. A group that was skipped has no advantages."""
        start = time.perf_counter()
        if group.skipped:
            return ScoredGroup(group, np.empty(0))
        advantages_G = group_advantages(group.returns_G, normalize_std=self.normalize_std)
        # Where every advantage is 0 there is nothing to scale, and nothing is embedded.
        if self.diversity is not None and advantages_G.any():
            advantages_G = advantages_G * self.diversity([self._solution(group, r) for r in group.rollouts])
        return ScoredGroup(group, advantages_G, time.perf_counter() - start)

    def _solution(self, group: RolloutGroup, rollout: Rollout) -> str:
        """What the policy wrote in this rollout, without the history that the rollout started from."""
        new_turns = rollout.turns[group.request.instance.starting_turn :]
        return "\n".join(self.env.solution(turn.response) for turn in new_turns)


def make_scorer(env: SelfImprovementEnv, config: Any) -> Scorer:
    """The scorer that a config asks for; an embedding model is loaded with the first group."""
    if not config.diversity_bonus:
        return Scorer(env, config.normalize_std, diversity=None)
    if config.diversity_metric == "edit_distance":
        return Scorer(env, config.normalize_std, edit_diversity_coefficients)
    embedder = Embedder(config.embedding_model)
    return Scorer(env, config.normalize_std, lambda solutions: diversity_coefficients(embedder.embed(solutions)))
