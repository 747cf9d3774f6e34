"""Parses responses of the policy into calls of functions. Model text is never evaluated."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

TOOL, END_TOOL = "<tool>", "</tool>"
TASK_FINISHED, TASK_ERROR = "<TASK_FINISHED>", "<TASK_ERROR>"
# A generation ends with one of these, and includes it.
STOP = (END_TOOL, TASK_FINISHED, TASK_ERROR)

# What the calls of chat templates have.
TOOL_CALL, END_TOOL_CALL, PYTHON_TAG = "<tool_call>", "</tool_call>", "<|python_tag|>"
NATIVE_KEYS = ("arguments", "parameters")

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


def parse_native(text: str) -> Action:
    """Parses a response in the call syntax of chat templates; without a call it ends the request.

    The syntax is that of Qwen and Hermes, ``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` once or several
    times, where the last one need not be closed, or that of Llama 3, a response which is
    ``{"name": …, "parameters": {…}}``, or several of these with semicolons between them. An empty response is unended.
    """
    _, *blocks = text.split(TOOL_CALL)
    try:
        if blocks:
            return Action(ActionKind.CALLS, _calls([_loads(block.partition(END_TOOL_CALL)[0]) for block in blocks]))
        if END_TOOL_CALL in text:
            raise ValueError(f"{END_TOOL_CALL} without {TOOL_CALL}")
        if (objects := text.strip().removeprefix(PYTHON_TAG).strip()).startswith("{"):
            return Action(ActionKind.CALLS, _calls(_objects(objects)))
    except ValueError as error:
        return Action(ActionKind.MALFORMED, problem=str(error))
    if not text.strip():
        return Action(ActionKind.UNENDED, problem="the response is empty: call a function, or say what the result is")
    return Action(ActionKind.FINISHED)


def _parse_calls(text: str) -> tuple[Call, ...]:
    calls = _loads(text)
    if not isinstance(calls, list) or not calls:
        raise ValueError(f"not a JSON list of calls: use {CALLS_FORMAT}")
    return _calls(calls, ("args",), exact=True)


def _calls(objects: Sequence[Any], keys: Sequence[str] = NATIVE_KEYS, exact: bool = False) -> tuple[Call, ...]:
    """The calls that JSON objects stand for.

    Args:
        objects: JSON values.
        keys: The key of a call's arguments is one of these.
        exact: Whether a call has no other keys.

    Raises:
        ValueError: If one of them is no call.
    """
    if len(objects) > MAX_CALLS:
        raise ValueError(f"{len(objects)} calls: make at most {MAX_CALLS} at once")
    calls = []
    for number, call in enumerate(objects, start=1):
        key = next((key for key in keys if isinstance(call, dict) and key in call), None)
        if key is None or "name" not in call or (exact and len(call) > 2):
            raise ValueError(f'call {number} is not an object with the keys "name" and "{keys[0]}"')
        if not isinstance(call["name"], str) or not isinstance(call[key], dict):
            raise ValueError(f'call {number}: "name" must be a string and "{key}" an object')
        if _deeper(call[key], MAX_DEPTH):
            raise ValueError(f"call {number}: arguments nested deeper than {MAX_DEPTH}")
        calls.append(Call(call["name"], call[key]))
    return tuple(calls)


def _loads(text: str) -> Any:
    with _json_errors():
        return _DECODER.decode(text)


def _objects(text: str) -> list[Any]:
    """JSON values that stand one after the other, with semicolons between them."""
    found, position = [], 0
    while position < len(text) and len(found) <= MAX_CALLS:
        with _json_errors():
            value, position = _DECODER.raw_decode(text, position)
        found.append(value)
        while position < len(text) and text[position] in "; \n":
            position += 1
    return found


@contextlib.contextmanager
def _json_errors() -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise ValueError(f"not valid JSON: nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is too large a number")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _deeper(value: Any, depth: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_deeper(child, depth - 1) for child in children)


def format_calls(*calls: Call) -> str:
    """The response that makes these calls."""
    listed = [{"name": call.name, "args": call.args} for call in calls]
    return f"{TOOL}{json.dumps(listed, ensure_ascii=False)}{END_TOOL}"


def format_native(*calls: Call) -> str:
    """As :func:`format_calls`, in the syntax of Qwen and Hermes."""
    objects = [json.dumps({"name": call.name, "arguments": call.args}, ensure_ascii=False) for call in calls]
    # An argument that spells a marker must not be one.
    escaped = [text.replace("tool_call>", "tool_call\\u003e") for text in objects]
    return "\n".join(f"{TOOL_CALL}\n{text}\n{END_TOOL_CALL}" for text in escaped)


@dataclass(frozen=True, slots=True)
class Format:
    """How responses are written.

    Attributes:
        parse: Parses a response.
        calls: The response that makes calls.
        finished: The response that ends a request that is fulfilled.
        error: The response that ends a request that cannot be.
        markers: What in a response that makes calls are control tokens, for models that have them.
    """

    parse: Callable[[str], Action]
    calls: Callable[..., str]
    finished: str
    error: str
    markers: tuple[str, ...] = ()


FORMATS: Mapping[str, Format] = {
    "tags": Format(parse_response, format_calls, TASK_FINISHED, TASK_ERROR),
    "native": Format(parse_native, format_native, "Done.", "This cannot be done.", (TOOL_CALL, END_TOOL_CALL)),
}
