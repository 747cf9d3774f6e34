from __future__ import annotations

import contextlib
import itertools
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.countdown.expressions import MAX_CHARS, MAX_DEPTH, Expression, ExpressionError, combine, number, parse

# An expression written down with all its parentheses, with its value.
Written = tuple[str, Fraction]


def pair(left: Written, sign: str, right: Written) -> Written:
    (a, x), (b, y) = left, right
    value = x + y if sign == "+" else x - y if sign == "-" else x * y if sign == "*" else x / y
    return f"({a}{sign}{b})", value


def trees(leaves: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    def join(parts: tuple[Written, str, Written]) -> Written:
        left, sign, right = parts
        return pair(left, "+" if sign == "/" and right[1] == 0 else sign, right)

    return st.recursive(leaves, lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(join), max_leaves=6)


expression_texts = trees(st.integers(0, 30).map(lambda n: (str(n), Fraction(n))))


@given(expression_texts)
def test_the_value_is_exact(written: Written):
    assert parse(written[0]).value == written[1]


@given(expression_texts)
def test_the_canonical_text_is_its_own_and_has_the_same_value(written: Written):
    expression = parse(written[0])
    again = parse(expression.text)
    assert (again.text, again.value) == (expression.text, expression.value)
    assert sorted(again.numbers) == sorted(expression.numbers)


@given(expression_texts, st.sampled_from("+*"), expression_texts, st.sampled_from("+*"), expression_texts)
def test_order_and_grouping_change_nothing(a: Written, first: str, b: Written, second: str, c: Written):
    assert parse(f"{a[0]}{first}{b[0]}").text == parse(f"{b[0]}{first}{a[0]}").text
    assert parse(f"({a[0]}{first}{b[0]}){first}{c[0]}").text == parse(f"{a[0]}{first}({b[0]}{first}{c[0]})").text
    assert parse(f"{a[0]}-({b[0]}-{c[0]})").text == parse(f"{a[0]}+{c[0]}-{b[0]}").text
    left, right = parse(f"({a[0]}{first}{b[0]}){second}{c[0]}"), parse(f"{a[0]}{first}({b[0]}{second}{c[0]})")
    assert left.text != right.text or left.value == right.value


@pytest.mark.parametrize(
    ("text", "canonical", "value"),
    [
        ("7", "7", 7),
        ("3+8", "8+3", 11),
        (" ( 3 + 8 ) * 4 ", "(8+3)*4", 44),
        ("4*(3+8)", "(8+3)*4", 44),
        ("10-2-3", "10-2-3", 5),
        ("10-(2-3)", "10+3-2", 11),
        ("(5-2)-(7-9)", "9+5-2-7", 5),
        ("24/(2*3)", "24/2/3", 4),
        ("24/(2/3)", "24*3/2", 36),
        ("2+3*4", "3*4+2", 14),
        ("1/3", "1/3", Fraction(1, 3)),
        ("6×2−4÷2", "6*2-4/2", 10),
        ("((7))", "7", 7),
    ],
)
def test_examples(text: str, canonical: str, value: int | Fraction):
    expression = parse(text)
    assert (expression.text, expression.value) == (parse(canonical).text, value)


@pytest.mark.parametrize(("a", "b"), [("8-3", "3-8"), ("8/4", "4/8"), ("(8+3)*4", "8+3*4"), ("8*3+4", "8*4+3")])
def test_other_expressions_stay_others(a: str, b: str):
    assert parse(a).text != parse(b).text


HOSTILE = [
    "",
    " ",
    "()",
    "3+",
    "+3",
    "-3",
    "3 4",
    "3(4)",
    "(3",
    "3)",
    ")3(",
    "3**4",
    "3//4",
    "3^4",
    "3.5",
    "1e9",
    "0x10",
    "1_000",
    "٣+4",
    "²",
    "9999999",
    "__import__('os').system('true')",
    "(lambda: 3)()",
    "3 if 1 else 4",
    "3;4",
    "abs(3)",
    "3\x00",
    "\ud800",
    "9" * 10_000_000,
    "(" * 10_000_000,
    "(" * (MAX_CHARS // 2) + "3" + ")" * (MAX_CHARS // 2 - 1),
    "(" * (MAX_DEPTH + 1) + "3" + ")" * (MAX_DEPTH + 1),
    "9**9**9**9**9",
    "1/0",
    "1/(1-1)",
    "+".join("1" for _ in range(MAX_CHARS)),
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:20]))
def test_what_is_no_expression(text: str):
    with pytest.raises(ExpressionError, match=r"^(not an expression|divides by zero)$"):
        parse(text)


@given(st.text(alphabet="0123456789+-*/() ", max_size=2 * MAX_CHARS) | st.text())
def test_any_text_is_read_or_refused(text: str):
    try:
        expression = parse(text)
    except ExpressionError:
        return
    assert len(expression.text) > MAX_CHARS or parse(expression.text).text == expression.text


LARGEST = ["/".join(["97"] * 33), "*".join(["999999"] * 14), "1+" * 49 + "1", "1-(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH]


@pytest.mark.parametrize("text", [*HOSTILE, *LARGEST], ids=lambda text: repr(text[:20]))
def test_no_text_takes_long(text: str):
    def seconds() -> float:
        begin = time.perf_counter()
        with contextlib.suppress(ExpressionError):
            parse(text)
        return time.perf_counter() - begin

    # The least of some: the machine may be busy.
    assert min(seconds() for _ in range(5)) < 0.1


@pytest.mark.parametrize("sign", "+-*/")
def test_an_operator_that_is_not_given(sign: str):
    others = "+-*/".replace(sign, "")
    with pytest.raises(ExpressionError, match="is not given"):
        parse(f"6{sign}3", others)
    for other in others:
        parse(f"6{other}3", others)


def test_combine_is_what_parse_says():
    for a, b, first, second in itertools.product((2, 3), (5, 7), "+-*/", "+-*/"):
        inner = combine(number(a), first, number(b))
        assert combine(inner, second, number(11)) == parse(f"({a}{first}{b}){second}11")
        assert combine(number(11), second, inner) == parse(f"11{second}({a}{first}{b})")
        assert isinstance(inner, Expression) and inner.numbers == (a, b)
