"""Where a curve levels off: how the paper's tool-use sweeps rank curricula (appendix A.5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# The fit tries this many knots at most: more would cost time and change nothing that can be seen.
MAX_KNOTS = 256


def plateau(values_T: ArrayLike) -> float:
    """The level at which a curve plateaus.

    The curve is fitted, by least squares, by a straight line that turns into a constant at a knot:
    y(t) = c + b · min(t − knot, 0), over b, c and the knot. The plateau is c. A curve that still rises has its knot
    at the end, so that c is where the fit stands now; a curve that falls to a plateau has the lower level as its c.

    Args:
        values_T: (T,) the curve, one value per iteration.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    y_T = np.asarray(values_T, dtype=np.float64)
    if y_T.ndim != 1 or not len(y_T) or not np.isfinite(y_T).all():
        raise ValueError(f"a curve needs one or more finite values: it is {y_T}")
    t_T = np.arange(len(y_T), dtype=np.float64)
    # At the knot 0 there is no line: it fits no better than a flat line at any other knot.
    knots_K = np.unique(np.linspace(1, len(y_T) - 1, MAX_KNOTS).astype(int))
    x_KT = np.minimum(t_T - knots_K[:, None], 0.0)
    mean_K = x_KT.mean(axis=1)
    x_KT -= mean_K[:, None]
    covariance_K, variance_K = x_KT @ y_T, (x_KT**2).sum(axis=1)
    slope_K = covariance_K / np.maximum(variance_K, np.finfo(np.float64).tiny)  # of one value, no line has a variance
    best = int(np.argmax(slope_K * covariance_K))  # what the line takes from the squared error
    return float(y_T.mean() - slope_K[best] * mean_K[best])
