"""A request is fulfilled if its ground-truth calls are contained in those that were made.

The order of calls, further calls and failed calls do not count by themselves, only through the final state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any

from envs.tool_use.calls import Call


def contained(ground_truth: Iterable[Call], made: Iterable[Call]) -> bool:
    """Whether the ground-truth calls are a multiset subset of the calls made.

    Both come with every argument (see :func:`envs.bfcl.calls.bind`). Nothing is contained in anything.
    """
    return Counter(map(canonical, ground_truth)) <= Counter(map(canonical, made))


def canonical(value: Any) -> Hashable:
    """A hashable form: equal for what is the same argument, lists like tuples and 1 like 1.0, but not like True."""
    match value:
        case Call():
            return value.name, canonical(value.args)
        case bool():
            return "bool", value
        case list() | tuple():
            return "list", tuple(map(canonical, value))
        case dict():
            return "dict", frozenset((key, canonical(item)) for key, item in value.items())
    return value
