"""Grades a response: the value of its expression, or what is wrong with it, in few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from envs.countdown.expressions import Expression, ExpressionError, Value, parse

OPEN, CLOSE = "<answer>", "</answer>"
# A graded answer's quality halves with every so much by which its value misses the target.
HALF_QUALITY_DISTANCE = 10


class Verdict(NamedTuple):
    """What is found of a response.

    Attributes:
        feedback: The same in words.
        expression: What it says, None if that is no expression.
        distance: How far its value is from the target; None if it does not use each number exactly once.
    """

    feedback: str
    expression: Expression | None = None
    distance: Value | None = None


def answer(response: str) -> str:
    """The text of the expression: between the last answer tags, if there are any, and before an equals sign."""
    _, tag, after = response.rpartition(OPEN)
    text = after.partition(CLOSE)[0] if tag else response
    return text.partition("=")[0].strip()


def grade(response: str, numbers: Sequence[int], target: int, operators: str, hidden: bool = False) -> Verdict:
    """Grades a response.

    Args:
        response: The policy's text.
        numbers: What the expression must use, each exactly once.
        target: The value that it must have.
        operators: What it may use.
        hidden: Say how far off the value is, not what the value and the target are.
    """
    try:
        expression = parse(answer(response), operators)
    except ExpressionError as error:
        return Verdict(str(error))
    used, given = Counter(expression.numbers), Counter(numbers)
    for number in sorted(used | given):
        if used[number] > given[number]:
            times = "twice" if used[number] == 2 else "too often"
            return Verdict(f"uses {number} {times}" if given[number] else f"{number} is not given", expression)
        if used[number] < given[number]:
            return Verdict(f"lacks {number}", expression)
    value = expression.value
    distance = abs(value - target)
    if hidden:
        feedback = f"guess is {distance} too {'low' if value < target else 'high'}" if distance else "guess is right"
    else:
        sign = "<" if value < target else ">" if value > target else "="
        feedback = f"value is {value} {sign} {target}" + ("" if distance else " right")
    return Verdict(feedback, expression, distance)


def quality(distance: Value | None, graded: bool) -> float:
    """1 for the target; else 0 or, if graded, less the further off the value is. 0 if there is no value."""
    if distance is None:
        return 0.0
    return 0.5 ** float(distance / HALF_QUALITY_DISTANCE) if graded else float(distance == 0)
