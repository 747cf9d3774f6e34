"""The learnability of a task instance (paper section 4.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def learnability(qualities_G: ArrayLike) -> float:
    """The variance of the quality over a group's rollouts: S = Var_g[q_g], between 0 and 0.25.

    Args:
        qualities_G: (G,) the final quality of each rollout, in [0, 1].

    Raises:
        ValueError: If there is no quality, or one is outside [0, 1].
    """
    qualities_G = np.asarray(qualities_G, dtype=np.float64)
    if qualities_G.ndim != 1 or not len(qualities_G):
        raise ValueError(f"qualities have shape {qualities_G.shape}: give one per rollout of the group")
    low, high = qualities_G.min(), qualities_G.max()
    if not (low >= 0.0 and high <= 1.0):  # NaN too
        raise ValueError(f"qualities lie in [{low}, {high}]: rescale them to [0, 1]")
    # Equal qualities have a variance of exactly 0, whatever their mean is rounded to.
    return float(np.var(qualities_G)) if high > low else 0.0
