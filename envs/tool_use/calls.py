"""Parses responses of the policy into calls of functions. Model text is never evaluated."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

TOOL, END_TOOL = "<tool>", "</tool>"
TASK_FINISHED, TASK_ERROR = "<TASK_FINISHED>", "<TASK_ERROR>"
# A generation ends with one of these, and includes it.
STOP = (END_TOOL, TASK_FINISHED, TASK_ERROR)

CALLS_FORMAT = '[{"name": "...", "args": {...}}, ...]'
NO_ENDING = (
    f"the response has no ending: end it with {TOOL}{CALLS_FORMAT}{END_TOOL} to call functions, with {TASK_FINISHED} "
    f"if the current request is fulfilled, or with {TASK_ERROR} if it cannot be"
)

MAX_CALLS = 32
MAX_DEPTH = 32

_ENDING = re.compile("|".join(map(re.escape, STOP)))


class ActionKind(Enum):
    """What a response asks for."""

    CALLS = "calls"
    MALFORMED = "malformed"
    FINISHED = "finished"
    ERROR = "error"
    UNENDED = "unended"


@dataclass(frozen=True, slots=True)
class Call:
    """A function call with named arguments, which are JSON values."""

    name: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Action:
    """A parsed response.

    Attributes:
        kind: What it asks for.
        calls: The calls, if the kind is ``CALLS``.
        problem: What the policy is told about a ``MALFORMED`` or ``UNENDED`` response.
    """

    kind: ActionKind
    calls: tuple[Call, ...] = field(default=())
    problem: str = ""


def parse_response(text: str) -> Action:
    """Parses a response: free text, then one ending.

    The first ending in the text decides, whatever follows it: ``</tool>``, with the calls since the first
    ``<tool>``, ``<TASK_FINISHED>`` or ``<TASK_ERROR>``. The last two are no ending within ``<tool>``, where
    they can only be part of an argument that they cut short: such a response is malformed. A response
    without any of the three is unended.
    """
    ending = _ENDING.search(text)
    if ending is None:
        return Action(ActionKind.UNENDED, problem=NO_ENDING)
    _, opened, content = text[: ending.start()].partition(TOOL)
    if ending[0] != END_TOOL:
        if opened:
            return Action(ActionKind.MALFORMED, problem=f"{TOOL} was not closed by {END_TOOL} before {ending[0]}")
        return Action(ActionKind.FINISHED if ending[0] == TASK_FINISHED else ActionKind.ERROR)
    if not opened:
        return Action(ActionKind.MALFORMED, problem=f"{END_TOOL} without {TOOL}")
    try:
        return Action(ActionKind.CALLS, _parse_calls(content))
    except ValueError as error:
        return Action(ActionKind.MALFORMED, problem=str(error))


def _parse_calls(text: str) -> tuple[Call, ...]:
    try:
        calls = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"not valid JSON: nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(calls, list) or not calls:
        raise ValueError(f"not a JSON list of calls: use {CALLS_FORMAT}")
    if len(calls) > MAX_CALLS:
        raise ValueError(f"{len(calls)} calls: make at most {MAX_CALLS} at once")
    for number, call in enumerate(calls, start=1):
        if not isinstance(call, dict) or call.keys() != {"name", "args"}:
            raise ValueError(f'call {number} is not an object with the keys "name" and "args"')
        if not isinstance(call["name"], str) or not isinstance(call["args"], dict):
            raise ValueError(f'call {number}: "name" must be a string and "args" an object')
        if _deeper(call["args"], MAX_DEPTH):
            raise ValueError(f"call {number}: arguments nested deeper than {MAX_DEPTH}")
    return tuple(Call(call["name"], call["args"]) for call in calls)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is too large a number")
    return value


def _deeper(value: Any, depth: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_deeper(child, depth - 1) for child in children)


def format_calls(*calls: Call) -> str:
    """The response that makes these calls."""
    listed = [{"name": call.name, "args": call.args} for call in calls]
    return f"{TOOL}{json.dumps(listed, ensure_ascii=False)}{END_TOOL}"
