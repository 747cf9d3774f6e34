r"""Grades answers with math-verify, in processes that a hard limit of CPU time can kill.

An answer such as ``9^{9^{9^9}}`` keeps SymPy busy for ever, inside single calls that neither a signal handler nor a
thread can interrupt; math-verify's own time limit therefore does not hold, and works in a main thread only.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from envs.workers import Workers

Request = tuple[str, str, bool]


class Verdict(Enum):
    """What grading says of an answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    TIMED_OUT = "timed_out"


def grade(answer: str, response: str, timeout_s: float = 5.0, *, literal: bool = False) -> Verdict:
    r"""Compares the answer found in a response with the gold answer. Safe to call from many threads.

    Args:
        answer: The gold answer in LaTeX, without ``\boxed{}``.
        response: The policy's text; the answer is what math-verify extracts by default.
        timeout_s: The CPU time that grading may take.
        literal: Whether the response must spell the answer out as a number. Without this, ``7 + 5`` is a correct
            answer to "What is 7 + 5?".

    Raises:
        WorkerError: If grading itself failed: the answer was not judged.
    """
    answers, in_time = workers.ask((answer, response, literal), timeout_s)
    if not in_time:
        return Verdict.TIMED_OUT
    return Verdict.CORRECT if answers[0] else Verdict.WRONG


workers = Workers("envs.competition_math.grading:start")


def start(_: None) -> Callable[[Request], list[bool]]:
    """Warms up a grading process."""
    import logging

    logging.disable(logging.CRITICAL)
    _is_correct(r"\frac{1}{2}", "The answer is $0.5$.", literal=False)
    return lambda request: [_is_correct(*request)]


def _is_correct(answer: str, response: str, literal: bool) -> bool:
    from math_verify import parse, verify

    # Gold answers without a box often fail to parse. The process that asked keeps the time.
    gold = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)  # type: ignore[arg-type]
    found = parse(response, parsing_timeout=None)  # type: ignore[arg-type]
    if literal:
        sides = [getattr(value, "rhs", value) for value in found]  # the 12 in 7 + 5 = 12
        found = [side for side in sides if getattr(side, "is_Number", False)]
    return verify(gold, found, timeout_seconds=None)
