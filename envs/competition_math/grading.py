r"""Grades answers with math-verify, in processes that a hard limit of CPU time can kill.

An answer such as ``9^{9^{9^9}}`` keeps SymPy busy for ever, inside single calls that neither a signal handler nor a
thread can interrupt; math-verify's own time limit therefore does not hold, and works in a main thread only.

**Which text is the answer.** The last ``\boxed{}`` or ``\fbox{}`` of a response counts, as in MATH, Minerva and
DeepScaleR, so that a response may correct itself. Empty boxes are passed over: they quote the instruction. If the last
box is not closed, there is no answer. A response without a box is searched by math-verify: what follows "final answer
is" comes before what follows "answer", which comes before any other formula or number; of equals the last counts. In
such a response an arithmetic expression of the problem, such as the quoted one in ``"8 - 4" is actually 5``, is never
the answer.

**Which answers are right.** An answer is right if math-verify accepts it and it does not restate the problem. Its
conventions hold: ``75\%`` answers both 3/4 and 75 (Minerva compares text, DeepScaleR drops the sign: there it answers
75 only), and ``1, 2`` answers the point or open interval (1, 2), in this order (in DeepScaleR it does not).

**What restates the problem.** An answer does, and is wrong, if all of this holds: it is a part of the problem, or a
formula of the problem that equals the gold answer is a part of it; something is left to work out in it; and the gold
answer has another form. Nothing is left to work out in a number, a name or a fraction in lowest terms; but a fraction
does not answer a problem whose gold answer is a decimal or an integer. So ``7 + 5`` or ``(\sqrt{18})`` does not answer
a problem that has this formula, unless it is the gold answer. An expression that the problem does not have, such as
``2^{10}`` for 1024, is right. Of an equation the right side counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

from envs.competition_math.restatement import parse, parse_boxed, restates, without_expressions
from envs.workers import Workers

Request = tuple[str, str, str, bool]

# A longer text in a box is no answer. The longest gold answers of the paper's data sets have 200 characters.
MAX_ANSWER_CHARS = 2000
# Of a longer response without a box only the end is searched.
MAX_SEARCHED_CHARS = 50_000


class Verdict(Enum):
    """What grading says of an answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    TIMED_OUT = "timed_out"


def grade(answer: str, response: str, timeout_s: float = 5.0, *, problem: str = "", literal: bool = False) -> Verdict:
    r"""Compares the answer found in a response with the gold answer. Safe to call from many threads.

    The module's description has the rules.

    Args:
        answer: The gold answer in LaTeX, without ``\boxed{}``.
        response: The policy's text.
        timeout_s: The CPU time that grading may take.
        problem: The text of the problem, which an answer must not just restate.
        literal: Whether the response must spell the answer out as a number. Without this, ``6 + 6`` is a correct
            answer to "What is 7 + 5?".

    Raises:
        WorkerError: If grading itself failed: the answer was not judged.
    """
    answers, in_time = workers.ask((answer, response, problem, literal), timeout_s)
    if not in_time:
        return Verdict.TIMED_OUT
    return Verdict.CORRECT if answers[0] else Verdict.WRONG


_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(?!\s*\})")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{}`` or ``\fbox{}`` that is not empty.

    Returns:
        The content, which is empty if the box is not closed within ``MAX_ANSWER_CHARS``; None if there is no box.
    """
    start = None
    for box in _BOX.finditer(text):
        start = box.end()
    if start is None:
        return None
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_ANSWER_CHARS):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()].strip()
    return ""


workers = Workers("envs.competition_math.grading:start")


def start(_: None) -> Callable[[Request], list[bool]]:
    """Warms up a grading process."""
    import logging

    logging.disable(logging.CRITICAL)
    _is_correct(r"\frac{1}{2}", "The answer is $0.5$.", "", literal=False)
    return lambda request: [_is_correct(*request)]


# What follows runs in the grading process.
_LATEX = str.maketrans({"\N{MINUS SIGN}": "-", "\N{DEGREE SIGN}": r"^\circ"})


def _is_correct(answer: str, response: str, problem: str, literal: bool) -> bool:
    from math_verify import verify

    response = response.translate(_LATEX)
    boxed = last_boxed(response)
    if boxed is None:
        found = parse(without_expressions(problem, response[-MAX_SEARCHED_CHARS:], answer))
    else:
        found = parse_boxed(boxed)
    if literal:
        sides = [getattr(value, "rhs", value) for value in found]  # the 12 in 7 + 5 = 12
        found = [side for side in sides if getattr(side, "is_Number", False)]
    gold = parse_boxed(answer)
    if not verify(gold, found, timeout_seconds=None):
        return False
    return literal or not restates(problem, found, boxed, gold, answer)
