import time
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.competition_math.grading import MAX_ANSWER_CHARS, Verdict, grade, last_boxed, workers
from envs.competition_math.restatement import without_expressions
from tests.envs.competition_math.answers import CASES, Case

FOR_EVER = "$9^{9^{9^9}}$"


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}-{i}" for i, case in enumerate(CASES)])
def test_the_table_of_answers(case: Case):
    verdict = grade(case.gold, case.response, problem=case.problem, literal=case.literal)
    assert verdict is (Verdict.CORRECT if case.right else Verdict.WRONG), case.reason


def test_the_table_is_large_and_has_no_case_twice():
    assert len(CASES) >= 200
    assert len({(case.problem, case.literal, case.response, case.gold) for case in CASES}) == len(CASES)
    assert min(Counter(case.right for case in CASES).values()) >= 100


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
    assert time.monotonic() - start < 60  # it has 0.5 s of CPU time
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
        assert min(cpu_s(lambda: last_boxed(worst)) for _ in range(3)) < 5  # noqa: B023
    assert min(cpu_s(lambda: without_expressions("What is 7 + 5 - 2?", text, "10")) for _ in range(3)) < 5


LATEX = [*"12x+-=,()^{}|<", r"\frac", r"\sqrt", r"\%", r"\{", r"\}", r"\pi"]


@given(st.lists(st.sampled_from(LATEX), max_size=12).map("".join))
def test_an_expression_of_the_problem_gets_a_verdict(text: str):
    for gold in (text, "12"):
        assert grade(gold, f"\\boxed{{{text}}}", 1.0, problem=f"Simplify ${text}$.") in Verdict


@given(st.text(max_size=200))
def test_any_text_gets_a_verdict(response: str):
    assert grade(r"\sqrt{123456789}", response) in (Verdict.WRONG, Verdict.TIMED_OUT)
