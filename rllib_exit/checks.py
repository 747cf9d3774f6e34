"""Checks of a config's fields."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def check_field(config: Any, name: str, good: bool, mend: str) -> None:
    """Raises a ValueError that names the field, its value and the mend, unless the value is good."""
    if not good:
        raise ValueError(f"{name} is {getattr(config, name)!r}: {mend}")


def is_int(value: Any, low: int) -> bool:
    """Whether it is an integer of at least ``low``, NumPy's too; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= low)


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether it is a finite number from ``low`` to ``high``, NumPy's too; True and False are none."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and bool(math.isfinite(value) and low <= value <= high)
