"""The learnability of a task instance (paper section 4.1), and other scores of what it has to teach."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from rllib_exit.rollouts import RolloutGroup

LearnabilityOf = Literal["quality", "return"]


def learnability(qualities_G: ArrayLike) -> float:
    """The variance of the quality over a group's rollouts: S = Var_g[q_g], between 0 and 0.25.

    Args:
        qualities_G: (G,) the final quality of each rollout, in [0, 1].

    Raises:
        ValueError: If there is no quality, or one is outside [0, 1].
    """
    qualities_G = _checked(qualities_G)
    # Equal qualities have a variance of exactly 0, whatever their mean is rounded to.
    return float(np.var(qualities_G)) if np.ptp(qualities_G) > 0 else 0.0


def expected_improvement(qualities_G: ArrayLike, previous: float | None = None) -> float:
    """What a rollout is expected to gain: S = E_g[max(q_g - q_0, 0)], between 0 and 1.

    As in Bayesian optimisation. q_0 is the quality of the iterate that the group improved on or diverged from; of an
    instance without one, the group's mean, where S of right and wrong answers is their variance.

    Args:
        qualities_G: (G,) the final quality of each rollout, in [0, 1].
        previous: The iterate's quality.

    Raises:
        ValueError: If there is no quality, or one is outside [0, 1].
    """
    qualities_G = _checked(qualities_G)
    if previous is None:
        if np.ptp(qualities_G) == 0:
            return 0.0
        previous = float(qualities_G.mean())
    return float(np.maximum(qualities_G - previous, 0.0).mean())


def regret(qualities_G: ArrayLike) -> float:
    """How far the policy falls short of its best: S = max_g q_g - E_g[q_g], between 0 and 1.

    The MaxMC regret of Jiang et al. (2021a), with the group in place of the history. Highest for what succeeds rarely.

    Args:
        qualities_G: (G,) the final quality of each rollout, in [0, 1].

    Raises:
        ValueError: If there is no quality, or one is outside [0, 1].
    """
    qualities_G = _checked(qualities_G)
    return float(qualities_G.max() - qualities_G.mean()) if np.ptp(qualities_G) > 0 else 0.0


def maximum(qualities_G: ArrayLike) -> float:
    """The best that the policy reached: S = max_g q_g, between 0 and 1.

    It looks for the best solution of a task, as discovery does, rather than for what can be learned: an instance that
    every rollout solves scores highest. See :func:`puct` for what draws others too.

    Args:
        qualities_G: (G,) the final quality of each rollout, in [0, 1].

    Raises:
        ValueError: If there is no quality, or one is outside [0, 1].
    """
    return float(_checked(qualities_G).max())


def top_quantile(qualities_G: ArrayLike) -> float:
    """The mean quality of the group's best quarter, rounded up: S = E[q_g | q_g in the best G/4], between 0 and 1.

    As :func:`maximum`, but a single lucky rollout counts less in a large group. Of up to four rollouts they are equal.

    Args:
        qualities_G: (G,) the final quality of each rollout, in [0, 1].

    Raises:
        ValueError: If there is no quality, or one is outside [0, 1].
    """
    qualities_G = _checked(qualities_G)
    return float(np.sort(qualities_G)[-math.ceil(len(qualities_G) / 4) :].mean())


# What the task buffer can keep instances by: functions of a group's outcomes and of its iterate's quality, if any.
SCORES: Mapping[str, Callable[[np.ndarray, float | None], float]] = MappingProxyType(
    {
        "variance": lambda outcomes_G, _: learnability(outcomes_G),
        "expected_improvement": expected_improvement,
        "regret": lambda outcomes_G, _: regret(outcomes_G),
        "maximum": lambda outcomes_G, _: maximum(outcomes_G),
        "top_quantile": lambda outcomes_G, _: top_quantile(outcomes_G),
    }
)


def group_score(group: RolloutGroup, name: str = "variance", of: LearnabilityOf = "quality") -> float:
    """A score of a group's instance.

    Section 4.1 takes the variance of "the final quality measure (e.g. total return)", rescaled to [0, 1]. The two
    differ where an environment rewards ``improve`` steps by their gain, as MLE-bench does; section 4 says that the gain
    is normalised so that variances remain comparable. A return lies in [-1, 1] there, and r is rescaled to (1 + r) / 2,
    for every instance alike.

    Args:
        group: The rollouts.
        name: One of ``SCORES``.
        of: Whether the score is that of the qualities or of the returns.

    Raises:
        ValueError: If there is no rollout, or an outcome is outside its range.
    """
    iterate = group.request.instance.iterate
    outcomes_G = group.qualities_G
    if of == "return":
        outcomes_G = (1 + group.returns_G) / 2
        if not ((outcomes_G >= 0) & (outcomes_G <= 1)).all():  # NaN too
            raise ValueError(
                f"returns are {group.returns_G.tolist()}: learnability_of='return' needs them in [-1, 1]; rescale the "
                "environment's reward, or use 'quality'"
            )
    return SCORES[name](outcomes_G, iterate.quality if iterate else None)


def puct(scores_N: ArrayLike, num_draws_N: ArrayLike, total_draws: int, coeff: float) -> np.ndarray:
    """The scores of N instances, raised for those that were seldom drawn.

    S_i + c · (max S - min S) · P_i · √(1 + T) / (1 + n_i): n_i counts the draws of instance i, T those of all. P_i is
    the prior, in proportion to the rank of S_i from below; equal scores share the mean of their ranks.

    This is the PUCT rule of "Learning to Discover at Test Time" (Yuksekgonul et al., 2026), where the value of a state
    is the best reward that was reached from it, as with ``learnability="maximum"``. A mean would hide what a state can
    lead to; the rank, unlike the value itself, makes a prior whose scale is the same for every task; and the range of
    the scores brings the bonus to their scale. Three things differ. The value is that of the instance's last group, not
    the best of all its groups, as the policy has changed since. n_i counts draws of the instance itself: those of its
    descendants have counts of their own. And it counts at the draw, so that the draws of one iteration differ, where
    the authors forbid relatives.

    Args:
        scores_N: (N,) the instances' scores S, N > 0.
        num_draws_N: (N,) how often each was drawn.
        total_draws: T, those of instances that are gone included.
        coeff: c. 0 leaves the scores as they are.

    Returns:
        (N,) float64.
    """
    scores_N = np.asarray(scores_N, dtype=np.float64)
    _, index_N, counts_K = np.unique(scores_N, return_inverse=True, return_counts=True)
    ranks_N = (np.cumsum(counts_K) - (counts_K - 1) / 2)[index_N]
    prior_N = ranks_N / ranks_N.sum()
    return scores_N + coeff * np.ptp(scores_N) * prior_N * math.sqrt(1 + total_draws) / (1 + np.asarray(num_draws_N))


def _checked(qualities_G: ArrayLike) -> np.ndarray:
    qualities_G = np.asarray(qualities_G, dtype=np.float64)
    if qualities_G.ndim != 1 or not len(qualities_G):
        raise ValueError(f"qualities have shape {qualities_G.shape}: give one per rollout of the group")
    low, high = qualities_G.min(), qualities_G.max()
    if not (low >= 0.0 and high <= 1.0):  # NaN too
        raise ValueError(f"qualities lie in [{low}, {high}]: rescale them to [0, 1]")
    return qualities_G
