"""Answers that use the expressions of their problem: see :mod:`envs.competition_math.grading` for the rules."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
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


# A search looks at a number once, from its first digit on and without giving digits back: long ones cost no more.
_NUMBER = r"\d++(?:\.\d++)?+"
_ARITHMETIC = re.compile(rf"(?<!\d){_NUMBER}(?:\s*+[-+*/^×÷]\s*+{_NUMBER})++")
# More and longer expressions of a problem are not looked for.
_MAX_EXPRESSIONS, _MAX_EXPRESSION_CHARS = 100, 200
# math-verify finds a number only after a space.
_QUOTES = str.maketrans('"`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}', " " * 4)
_OPERATORS = {"*": r"(?:[*×·x]|\\times|\\cdot)", "/": r"[/÷]", "-": "[-–]"}


def without_expressions(problem: str, response: str, answer: str) -> str:
    """The response without quotation marks, and with ``x`` for each arithmetic expression of the problem.

    Fractions stay, and what is written as the gold answer is.
    """
    response = response.translate(_QUOTES)
    for expression in _expressions(problem):
        tokens = re.findall(rf"{_NUMBER}|\S", expression)
        if set(tokens[1::2]) == {"/"} or "".join(tokens) == re.sub(r"[\s{}]", "", answer):
            continue
        pattern = r"\s*".join(_OPERATORS.get(token) or re.escape(token) for token in tokens)
        response = re.sub(rf"(?<![\d.]){pattern}(?!\.?\d)", "x", response)
    return response


def _expressions(problem: str) -> set[str]:
    short = (found[0] for found in _ARITHMETIC.finditer(problem) if len(found[0]) <= _MAX_EXPRESSION_CHARS)
    return set(itertools.islice(short, _MAX_EXPRESSIONS))


def restates(problem: str, found: list[Any], boxed: str | None, gold: list[Any], answer: str) -> bool:
    """Whether an answer that equals the gold answer is an expression of the problem, in another form than the gold.

    Args:
        problem: The text of the problem.
        found: The answer, as math-verify parsed it.
        boxed: The answer as it was written in a box, if it was.
        gold: The gold answer, as math-verify parsed it.
        answer: The gold answer as it was written.
    """
    from math_verify import verify
    from math_verify.grader import is_equation

    expression, gold_expression = found[0], gold[0]
    if isinstance(expression, str) or isinstance(gold_expression, str):
        return False  # math-verify did not understand them and compared the texts
    right_side = is_equation(expression) and not is_equation(gold_expression)  # then math-verify compares that side
    answers = found[-1:] if boxed is None else [boxed, found[-1]]
    texts = {compact(text.rpartition("=")[2] if right_side else text) for text in answers}
    gold_texts = {compact(answer), compact(gold[-1])}
    if texts & gold_texts or any(_is_value(text, gold_texts) for text in texts):
        return False
    if not any(_contains(compact(problem), text) for text in texts) and not any(
        verify(gold, parse_boxed(formula), timeout_seconds=None)
        for formula in _formulas(problem)
        if not _is_value(compact(formula), gold_texts) and any(_contains(text, compact(formula)) for text in texts)
    ):
        return False
    forms = [_form(leaf) for leaf in _leaves(expression, right_side)]
    # math-verify works out fractions and binomial coefficients: of a number there is no form to compare.
    if len(forms) == 1 and getattr(forms[0], "is_Number", False):
        return True
    golds = [_form(leaf) for leaf in _leaves(gold_expression)]
    return any(isinstance(form, tuple) and form not in golds for form in forms)


_FORMULA = re.compile(r"\$\$?([^$]+)\$|\\\[((?:(?!\\\[).)+?)\\\]|\\\(((?:(?!\\\().)+?)\\\)", re.DOTALL)
_EQUALS = re.compile(r"(?<![\\<>!])=")


def _formulas(problem: str) -> Iterator[str]:
    """The formulas of a problem, the sides of its equations, and its arithmetic expressions."""
    yield from _expressions(problem)
    for match in _FORMULA.finditer(problem):
        formula = match[match.lastindex or 0]
        for part in {formula, *_EQUALS.split(formula)}:
            if part := part.strip(" \n.,;"):
                yield part


# What LaTeX writes in several ways.
_NOTATIONS = [
    (re.compile(r"\\(?:left|right|displaystyle|q?quad|text|mathrm|mbox)(?![a-zA-Z])|\\[,!;: ]|[\s$~]"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:cdot|times)(?![a-zA-Z])|[×·⋅]"), "*"),
    (re.compile(r"\\([lg])eq(?![a-zA-Z])"), r"\\\1e"),
    (re.compile(r"\{([^{}\\])\}|\\(%)"), r"\1\2"),
]
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:%|\^\\circ|\^\{\\circ\})?")
_NAME = re.compile(r"\{?[a-zA-Z]+\}?")
_FRACTION = re.compile(r"[-+]?\d*\\frac(?:(\d)|\{-?(\d{1,99})\})(?:(\d)|\{(\d{1,99})\})|[-+]?(\d{1,99})/(\d{1,99})")


def compact(text: str) -> str:
    """A LaTeX text in one of the ways in which it can be written, without spaces."""
    for pattern, replacement in _NOTATIONS:
        text = pattern.sub(replacement, text)
    return text.rstrip(".,")


def _is_value(text: str, golds: set[str]) -> bool:
    """Whether there is nothing left to work out in a text: it is a number, a name, or a fraction in lowest terms.

    A fraction has something to work out if the gold answer is a number without a fraction.
    """
    text = text.strip("()[]").removeprefix(r"\{").removesuffix(r"\}")
    if fraction := _FRACTION.fullmatch(text):
        top, bottom = (int(group) for group in fraction.groups() if group)
        return bottom > 1 and math.gcd(top, bottom) == 1 and not any(map(_PLAIN_NUMBER.fullmatch, golds))
    return bool(_PLAIN_NUMBER.fullmatch(text) or _NAME.fullmatch(text))


def _contains(problem: str, text: str) -> bool:
    """Whether a compact problem has the text, not as a part of a longer number."""
    # What stands before the text is looked at last: a pattern that begins with plain text is searched in linear time.
    before = rf"(?<![\d.].{{{len(text)}}})" if text[:1].isdigit() else ""
    after = r"(?!\.?\d)" if text[-1:].isdigit() else ""
    return bool(text) and re.search(re.escape(text) + after + before, problem, re.DOTALL) is not None


def _leaves(expression: Any, right_side: bool = False) -> Iterator[Any]:
    """The members of sets, tuples and matrices, and the sides of relations; of ``x = 5`` the right one."""
    import sympy
    from sympy.core.function import AppliedUndef

    members = getattr(expression, "args", ())
    if isinstance(expression, sympy.MatrixBase):
        members = expression.flat()
    elif isinstance(expression, sympy.Eq) and (right_side or isinstance(expression.lhs, sympy.Symbol | AppliedUndef)):
        members = expression.args[1:]
    elif not isinstance(expression, sympy.Set | sympy.Tuple | sympy.And | sympy.core.relational.Relational):
        yield expression
        return
    for member in members:
        yield from _leaves(member, right_side)


def _form(expression: Any) -> Any:
    """How an expression is written, whatever the order of its sums and products: a tuple, or an atom."""
    import sympy

    if not getattr(expression, "args", ()):
        return expression
    name, parts = type(expression).__name__, []
    if name == "Pow" and expression.exp == -1 and expression.base.is_Integer and expression.base > 1:
        return sympy.Rational(1, expression.base)
    if name not in ("Add", "Mul"):
        return (name, *map(_form, expression.args))
    for part in map(_form, expression.args):
        parts.extend(part[1:] if isinstance(part, tuple) and part[0] == name else [part])
    if name == "Mul":
        # Signs, a numerator and a denominator make one number, if they are in lowest terms.
        numbers = [part for part in parts if getattr(part, "is_Rational", False)]
        product: Any = sympy.Mul(*numbers)
        tops, bottoms = [abs(number.p) for number in numbers], [number.q for number in numbers]
        if max(tops, default=1) == abs(product.p) and max(bottoms, default=1) == product.q:
            parts = [part for part in parts if part not in numbers] + ([product] if product != 1 else [])
    if len(parts) == 1:
        return parts[0]
    return (name, *sorted(parts, key=str))
