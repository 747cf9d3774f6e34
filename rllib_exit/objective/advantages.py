"""Group-relative advantages (paper section 2.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def group_advantages(returns_G: ArrayLike, *, normalize_std: bool = True) -> np.ndarray:
    """Eq. 3: A_i = (r_i - mean r) / (std r + 1e-4), one value for every token of rollout i.

    Args:
        returns_G: (G,) the returns of one group.
        normalize_std: False leaves the division out (Dr. GRPO).

    Returns:
        (G,) float64; exactly 0 where the returns are equal up to rounding.

    Raises:
        ValueError: If there is no return, or one is not finite.
    """
    returns_G = np.asarray(returns_G, dtype=np.float64)
    if returns_G.ndim != 1 or not len(returns_G):
        raise ValueError(f"returns have shape {returns_G.shape}: give one per rollout of the group")
    if not np.isfinite(returns_G).all():
        raise ValueError(f"returns {returns_G.tolist()} are not all finite: mend the reward, or drop the rollout")
    if np.ptp(returns_G) <= 1e-12 * max(1.0, np.abs(returns_G).max()):
        return np.zeros_like(returns_G)
    centred_G = returns_G - returns_G.mean()
    return centred_G / (returns_G.std() + 1e-4) if normalize_std else centred_G
