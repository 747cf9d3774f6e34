"""Answers that use the expressions of their problem: see :mod:`envs.competition_math.grading` for the rules."""

from __future__ import annotations

import re
from typing import Any

_DOLLAR = re.compile(r"(?<!\\)\$")


def parse_boxed(answer: str) -> list[Any]:
    """What math-verify makes of an answer."""
    # Answers without a box often fail to parse, and dollar signs would end the formula that the box makes.
    return parse(r"\boxed{" + _DOLLAR.sub("", answer) + "}")


def parse(text: str) -> list[Any]:
    """What math-verify finds: at most an expression and its text, or a text alone if that does not parse."""
    import math_verify

    return math_verify.parse(text, parsing_timeout=None)  # type: ignore[arg-type]  # the process that asked keeps the time


_NUMBER = r"\d+(?:\.\d+)?"
_ARITHMETIC = re.compile(rf"{_NUMBER}(?:\s*[-+*/^×÷]\s*{_NUMBER})+")
# math-verify finds a number only after a space.
_QUOTES = str.maketrans('"`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}', " " * 4)
_OPERATORS = {"*": r"(?:[*×·x]|\\times|\\cdot)", "/": r"[/÷]", "-": "[-–]"}


def without_expressions(problem: str, response: str, answer: str) -> str:
    """The response without quotation marks, and with ``x`` for each arithmetic expression of the problem.

    Fractions stay, and what is written as the gold answer is.
    """
    response = response.translate(_QUOTES)
    for expression in set(_ARITHMETIC.findall(problem)):
        tokens = re.findall(rf"{_NUMBER}|\S", expression)
        if set(tokens[1::2]) == {"/"} or "".join(tokens) == re.sub(r"[\s{}]", "", answer):
            continue
        pattern = r"\s*".join(_OPERATORS.get(token) or re.escape(token) for token in tokens)
        response = re.sub(rf"(?<![\d.]){pattern}(?!\.?\d)", "x", response)
    return response
