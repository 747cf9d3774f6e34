"""What the processes that run calls have in common: one call after the other, and their results as JSON text."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.tool_use.calls import Call

# A longer result of one call is cut.
MAX_RESULT_CHARS = 4000


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a call.

    Attributes:
        ok: Whether the call succeeded. A function answers a failure with an ``error`` or raises.
        text: What the call returned as JSON, or ``{"error": ...}``.
        finished: False if its time ran out. The call then left no trace in the state.
    """

    ok: bool
    text: str
    finished: bool = True


def results(answers: Sequence[tuple[bool, str]], calls: Sequence[Call], timeout_s: float) -> list[Result]:
    """The results of calls up to the first that failed.

    Args:
        answers: Those of :func:`run_calls` to them. If they end before a failure, the next call ran out of time.
        calls: The calls.
        timeout_s: The time that each had.
    """
    found = [Result(ok, text) for ok, text in answers]
    if len(found) < len(calls) and all(result.ok for result in found):
        error = f"stopped after {timeout_s:g} s: this takes too long"
        found.append(Result(False, json.dumps({"error": error}), finished=False))
    return found


def run_calls(
    run: Callable[[Call], tuple[bool, str]], replayed: Sequence[Call], calls: Sequence[Call]
) -> Iterator[tuple[bool, str] | None]:
    """Runs the calls made before, then the new ones, up to the first that fails.

    With every answer the time for the next call begins: None is that of a call made before.
    """
    for call in replayed:
        run(call)
        yield None
    for call in calls:
        ok, text = run(call)
        yield ok, text
        if not ok:
            return


def as_made(call: Call, ok: bool, text: str) -> dict[str, Any]:
    """What a check sees of a call: ``name``, ``args``, ``ok`` and ``result``."""
    return {"name": call.name, "args": dict(call.args), "ok": ok, "result": json.loads(text)}


def call_method(
    method: Callable[..., Any], args: Mapping[str, Any], max_chars: int = MAX_RESULT_CHARS
) -> tuple[bool, str]:
    """Whether a call succeeded, and its result as JSON text, cut to about so many characters."""
    try:
        result = method(**copy.deepcopy(dict(args)))
        text = as_json(result, max_chars)
    except Exception as error:  # whatever the function raises for these arguments
        return False, as_json({"error": f"{type(error).__name__}: {error}"[:MAX_RESULT_CHARS]})
    return not _is_error(result), text


def as_json(value: Any, max_chars: int | None = None) -> str:
    """As JSON, cut if need be; lone surrogates, which no file takes, become question marks."""
    text = json.dumps(value, ensure_ascii=False, default=str).encode(errors="replace").decode()
    if max_chars is not None and len(text) > max_chars:
        return as_json(f"{text[:max_chars]}… (cut, {len(text)} characters)")
    return text


def _is_error(result: Any) -> bool:
    first = result[0] if isinstance(result, list) and result else result
    return (isinstance(first, dict) and "error" in first) or (isinstance(first, str) and first.startswith("Error:"))
