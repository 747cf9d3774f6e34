"""Arithmetic expressions out of model text: never run as code, exact, and in a canonical form."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Value = int | Fraction

# A text beyond these is no expression, so that hostile text costs little.
MAX_CHARS = 100
MAX_DEPTH = 16

_TOKEN = re.compile(r"\d{1,6}(?!\d)|[-+*/()]|\s+|.", re.ASCII | re.DOTALL)
_SIGNS = str.maketrans("−–×·÷", "--**/")

_OPERATIONS: dict[str, Callable[[Any, Any], Value]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": Fraction,
}


class ExpressionError(ValueError):
    """The text is no expression, or one without a value; the message is what the policy is told."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A number, a sum or a product, in canonical form.

    A difference is a sum with subtracted terms, a quotient is a product with dividing factors. Terms and factors have
    one order, and those of a sum in a sum or of a product in a product are its own: ``3+8``, ``8+3`` and ``(8)+3`` are
    one expression, as are ``8-(3-5)`` and ``5+8-3``.

    Attributes:
        text: The canonical text; two expressions are the same if their texts are.
        value: The exact value.
        numbers: The numbers in it, in no order.
        kind: ``"+"`` for a sum, ``"*"`` for a product, ``""`` for a number.
        parts: The terms or factors, each with whether it is subtracted or divided by.
    """

    text: str
    value: Value
    numbers: tuple[int, ...]
    kind: str = ""
    parts: tuple[tuple[bool, Expression], ...] = ()


def number(value: int) -> Expression:
    """A number as an expression."""
    return Expression(str(value), value, (value,))


def combine(left: Expression, sign: str, right: Expression) -> Expression:
    """The expression ``left sign right``; the sign is one of ``+ - * /``.

    Raises:
        ExpressionError: If it divides by zero.
    """
    kind, inverse = ("+", "-") if sign in "+-" else ("*", "/")
    try:
        value = _OPERATIONS[sign](left.value, right.value)
    except ZeroDivisionError:
        raise ExpressionError("divides by zero") from None
    if isinstance(value, Fraction) and value.denominator == 1:
        value = int(value)
    parts = left.parts if left.kind == kind else ((False, left),)
    inverted = sign == inverse
    parts += tuple(
        (part[0] != inverted, part[1]) for part in (right.parts if right.kind == kind else ((False, right),))
    )
    # What is added or multiplied by comes first, and of these the largest.
    parts = tuple(sorted(parts, key=lambda part: (part[0], -part[1].value, part[1].text)))
    text = "".join(
        (inverse if inverted else kind) + (f"({part.text})" if kind == "*" and part.kind == "+" else part.text)
        for inverted, part in parts
    )
    return Expression(text[1:], value, left.numbers + right.numbers, kind, parts)


def parse(text: str, operators: str = "+-*/") -> Expression:
    """Reads an expression of whole numbers, operators and parentheses.

    Raises:
        ExpressionError: If the text is none, has an operator that is not among ``operators``, divides by zero, or is
            too long or nested too deeply.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError("not an expression")
    tokens = [token for token in _TOKEN.findall(text.translate(_SIGNS)) if not token.isspace()]
    for sign in "+-*/":
        if sign in tokens and sign not in operators:
            raise ExpressionError(f"{sign} is not given")
    return _Parser(tokens).parse()


class _Parser:
    """Reads tokens by recursive descent."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens[::-1]  # the next one is the last
        self._depth = 0

    def parse(self) -> Expression:
        expression = self._sum()
        if self._tokens:
            raise ExpressionError("not an expression")
        return expression

    def _next_is(self, signs: str) -> bool:
        return bool(self._tokens) and self._tokens[-1] in signs

    def _sum(self) -> Expression:
        expression = self._product()
        while self._next_is("+-"):
            expression = combine(expression, self._tokens.pop(), self._product())
        return expression

    def _product(self) -> Expression:
        expression = self._factor()
        while self._next_is("*/"):
            expression = combine(expression, self._tokens.pop(), self._factor())
        return expression

    def _factor(self) -> Expression:
        token = self._tokens.pop() if self._tokens else ""
        if token.isascii() and token.isdigit():
            return number(int(token))
        self._depth += 1
        if token != "(" or self._depth > MAX_DEPTH:
            raise ExpressionError("not an expression")
        expression = self._sum()
        if not self._next_is(")"):
            raise ExpressionError("not an expression")
        self._tokens.pop()
        self._depth -= 1
        return expression
