import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.competition_math.grading import MAX_ANSWER_CHARS, Verdict, grade, last_boxed, workers
from envs.competition_math.restatement import without_expressions

FOR_EVER = "$9^{9^{9^9}}$"


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        (r"\frac{1}{2}", r"So it is $\boxed{0.5}$."),
        (r"\frac{1}{2}", "The answer is 1/2"),
        ("12", "7 + 5 = 12."),
        (r"3\sqrt{2}", r"\boxed{\sqrt{18}}"),
        ("2, 3", r"$\boxed{3, 2}$"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}"),
        (r"x^2-3x-10", r"\boxed{(x+2)(x-5)}"),
        ("12", "\ud800 12"),
    ],
)
def test_correct(answer: str, response: str):
    assert grade(answer, response) is Verdict.CORRECT


@pytest.mark.parametrize("response", ["13", "", "I do not know.", r"\boxed{}", "twelve", "(" * 300, "12\n13"])
def test_wrong(response: str):
    assert grade("12", response) is Verdict.WRONG


@pytest.mark.parametrize("response", ["7 + 5", "$7 + 5$", r"\boxed{7+5}", "$7+5=7+5$", "24/2"])
def test_a_literal_answer_is_no_expression(response: str):
    assert grade("12", response) is Verdict.CORRECT
    assert grade("12", response, literal=True) is Verdict.WRONG


@pytest.mark.parametrize(
    "response", ["12", "12.", "7 + 5 = 12", "$7 + 5 = 12$", r"\boxed{12}", "**12**", "It is $12$."]
)
def test_a_literal_answer_may_come_with_words(response: str):
    assert grade("12", response, literal=True) is Verdict.CORRECT


def test_the_last_box_counts():
    response = r"\boxed{1}, but the answer is \boxed{2}"
    assert [grade(gold, response) is Verdict.CORRECT for gold in ("1", "2", "1, 2")] == [False, True, False]


def test_the_expression_of_the_problem_is_no_answer():
    response = 'the answer to the problem of "8 - 4" is actually 5'
    assert grade("4", response, problem="What is 8 - 4?", literal=True) is Verdict.WRONG


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"First \boxed{1}, then $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1} \fbox{ 2 }", "2"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\boxed{1} \boxed{ }", "1"),
        (r"\boxed{}", None),
        (r"\boxed{1} \boxed{2", ""),
        ("no box", None),
        (r"\boxed{" + "1" * (MAX_ANSWER_CHARS - 1) + "}", "1" * (MAX_ANSWER_CHARS - 1)),
        (r"\boxed{" + "1" * MAX_ANSWER_CHARS + "}", ""),
    ],
)
def test_last_boxed(text: str, expected: str | None):
    assert last_boxed(text) == expected


def test_the_deadline_is_hard():
    grade("1", "1")
    start = time.monotonic()
    assert grade("12", FOR_EVER, timeout_s=0.5) is Verdict.TIMED_OUT
    assert time.monotonic() - start < 20  # it has 0.5 s of CPU time
    assert grade("12", "12") is Verdict.CORRECT


def test_warming_up_does_not_count():
    workers.close()
    assert grade("12", "12", timeout_s=0.2) is Verdict.CORRECT


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_equal_themselves_only(gold: int, other: int):
    assert grade(str(gold), f"The answer is ${gold}$.", literal=True) is Verdict.CORRECT
    if other != gold:
        assert grade(str(gold), f"\\boxed{{{other}}}", literal=True) is Verdict.WRONG


MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    "unit",
    [
        *(
            r"\boxed{",
            r"\boxed{1}",
            r"\boxed{}",
            r"\boxed{ ",
            r"\boxed ",
            r"\boxed" + " " * 1000,
            r"\boxed{" + " " * 1000,
        ),
        *("\\", "{", "}", " ", "7", "7 ", "7 + ", "7" + " " * 1000, "7 + 5 - ", "7 + 5 - 1 ", "7 + 5 - 2 "),
    ],
)
def test_the_search_for_an_answer_is_linear(unit: str):
    def cpu_s(search: Callable[[], object]) -> float:
        start = time.process_time()
        search()
        return time.process_time() - start

    text = (unit * (MEBIBYTE // len(unit) + 1))[:MEBIBYTE]
    for worst in (text, r"\boxed" + text, r"\boxed{" + text):
        assert min(cpu_s(lambda: last_boxed(worst)) for _ in range(3)) < 0.1  # noqa: B023
    assert min(cpu_s(lambda: without_expressions("What is 7 + 5 - 2?", text, "10")) for _ in range(3)) < 0.1


@given(st.text(max_size=200))
def test_any_text_gets_a_verdict(response: str):
    assert grade(r"\sqrt{123456789}", response) in (Verdict.WRONG, Verdict.TIMED_OUT)
