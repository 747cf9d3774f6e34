"""Checks of a config's fields."""

from __future__ import annotations

import difflib
import math
from typing import Any

import numpy as np


def check_field(config: Any, name: str, good: bool, mend: str) -> None:
    """Raises a ValueError that names the field, its value and the mend, unless the value is good."""
    if not good:
        raise ValueError(f"{name} is {getattr(config, name)!r}: {mend}")


def close_fields(config: Any, name: str) -> list[str]:
    """The config's fields that may be meant by a name that is none, the closest first."""
    fields = [field for field in vars(config) if not field.startswith("_")]
    return difflib.get_close_matches(name, fields, n=3) or [field for field in fields if name in field][:3]


def is_int(value: Any, low: int, high: float = math.inf) -> bool:
    """Whether it is an integer from ``low`` to ``high``, NumPy's too; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(low <= value <= high)


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether it is a finite number from ``low`` to ``high``, NumPy's too; True and False are none."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and bool(math.isfinite(value) and low <= value <= high)
