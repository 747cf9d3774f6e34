"""The learnability of a task instance (paper section 4.1), and other scores of what it has to teach."""

from __future__ import annotations

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


# What the task buffer can keep instances by: functions of a group's outcomes and of its iterate's quality, if any.
SCORES: Mapping[str, Callable[[np.ndarray, float | None], float]] = MappingProxyType(
    {
        "variance": lambda outcomes_G, _: learnability(outcomes_G),
        "expected_improvement": expected_improvement,
        "regret": lambda outcomes_G, _: regret(outcomes_G),
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


def _checked(qualities_G: ArrayLike) -> np.ndarray:
    qualities_G = np.asarray(qualities_G, dtype=np.float64)
    if qualities_G.ndim != 1 or not len(qualities_G):
        raise ValueError(f"qualities have shape {qualities_G.shape}: give one per rollout of the group")
    low, high = qualities_G.min(), qualities_G.max()
    if not (low >= 0.0 and high <= 1.0):  # NaN too
        raise ValueError(f"qualities lie in [{low}, {high}]: rescale them to [0, 1]")
    return qualities_G
