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
    diversity_G = None
    if diversity is not None and advantages_G.any():
        # Only what the policy wrote in this rollout is compared, without the history that the rollout started from.
        t = group.request.instance.starting_turn
        solutions = ["\n".join(turn.solution for turn in rollout.turns[t:]) for rollout in group.rollouts]
        diversity_G = diversity(solutions)
    return ScoredGroup(group, advantages_G, time.perf_counter() - start, diversity_G)


def num_to_refill(groups: Sequence[ScoredGroup], num_prompts: int, refill_zero_variance: int) -> int:
    """How many further prompts an iteration selects, now that these groups are in.

    This is the dynamic sampling of DAPO (Yu et al., 2025, section 3.2): groups whose rollouts all have the same return
    leave the batch, and as many prompts are selected in their place, again and again until the batch is full. As with
    verl's ``max_num_gen_batches`` the bound is in batches, but counts those beyond the first. Where it is reached, the
    batch stays smaller, which verl takes for an error. Groups whose prompt does not fit the context, or of which fewer
    than two rollouts could be judged, are replaced too.

    Args:
        groups: All groups of the iteration so far.
        num_prompts: P.
        refill_zero_variance: The most prompts beyond the first P, as a multiple of P.
    """
    missing = num_prompts - sum(scored.has_signal for scored in groups)
    left = (1 + refill_zero_variance) * num_prompts - len(groups)
    return max(0, min(missing, left))


def to_train_on(groups: Sequence[ScoredGroup], refill_zero_variance: int) -> list[ScoredGroup]:
    """Those of an iteration's groups whose rollouts can be compared; with refill, only those with a signal."""
    return [scored for scored in groups if (scored.has_signal if refill_zero_variance else scored.group.trainable)]
