"""From a group's returns to its advantages: Eq. 3, and Eq. 6 where the strategy has the diversity bonus."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from rllib_exit.objective.advantages import group_advantages
from rllib_exit.rollouts import RolloutGroup, ScoredGroup

# Takes the solutions of a group's G rollouts, returns their (G,) coefficients D_i of Eq. 6.
Diversity = Callable[[Sequence[str]], np.ndarray]


def score(group: RolloutGroup, diversity: Diversity | None, *, normalize_std: bool = True) -> ScoredGroup:
    """Gives each rollout its advantage: A_i of Eq. 3, or D_i · A_i with the diversity bonus (section 4.2).

    Args:
        group: The G rollouts of one instance. Where there are no two to be compared, advantages are 0.
        diversity: The diversity bonus; None for none.
        normalize_std: Whether Eq. 3 divides by the standard deviation.
    """
    start = time.perf_counter()
    if not group.trainable:
        return ScoredGroup(group, np.zeros(len(group.rollouts)))
    advantages_G = group_advantages(group.returns_G, normalize_std=normalize_std)
    # Where every advantage is 0 there is nothing to scale.
    if diversity is not None and advantages_G.any():
        # Only what the policy wrote in this rollout is compared, without the history that the rollout started from.
        t = group.request.instance.starting_turn
        solutions = ["\n".join(turn.solution for turn in rollout.turns[t:]) for rollout in group.rollouts]
        advantages_G = advantages_G * diversity(solutions)
    return ScoredGroup(group, advantages_G, time.perf_counter() - start)
