import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.competition_math.arithmetic import LEVELS, arithmetic_tasks

ALL = (*arithmetic_tasks(split="train"), *arithmetic_tasks(split="test"))


def expression(prompt: str) -> str:
    return prompt.removeprefix("What is ").removesuffix("? Answer with just the number.")


def test_a_task():
    task = next(task for task in ALL if task.id == "arithmetic/add1/7+5")
    assert task.prompt == "What is 7 + 5? Answer with just the number."
    assert task.data == {"answer": "12", "level": "add1", "metrics": {"level": 1, "solution_steps": 1}}


def test_every_answer_is_right():
    for task in ALL:
        assert task.data["answer"] == str(eval(expression(task.prompt)))
        assert int(task.data["answer"]) >= 0


def test_ids_and_prompts_are_unique():
    assert len({task.id for task in ALL}) == len({task.prompt for task in ALL}) == len(ALL)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_has_both_splits(level: str):
    train, test = arithmetic_tasks((level,), "train"), arithmetic_tasks((level,), "test")
    assert 0.15 < len(test) / (len(train) + len(test)) < 0.35
    number = list(LEVELS).index(level) + 1
    for task in (*train, *test):
        assert task.id.startswith(f"arithmetic/{level}/")
        assert task.data["metrics"] == {"level": number, "solution_steps": 2 if level == "expr" else 1}


def test_the_sizes_of_the_levels():
    sizes = {level: sum(task.data["level"] == level for task in ALL) for level in LEVELS}
    assert sizes == {"add1": 100, "add21": 810, "sub": 231, "mul1": 100, "add2": 8100, "expr": 2103}


def test_the_splits_are_disjoint_up_to_the_order_of_operands():
    def key(prompt: str) -> tuple[str, ...]:
        # The same numbers and operators make the same problem, whatever their order. That is coarser for
        # differences, so they are left out.
        return tuple(sorted(expression(prompt).split()))

    train = {key(task.prompt) for task in arithmetic_tasks(("add1", "add21", "mul1", "add2"), "train")}
    test = {key(task.prompt) for task in arithmetic_tasks(("add1", "add21", "mul1", "add2"), "test")}
    assert train and test and not train & test


def test_expressions_that_differ_in_order_are_on_one_side():
    test = {expression(task.prompt) for task in arithmetic_tasks(("expr",), "test")}
    for text in test:
        a, first, b, second, c = text.split()
        if (first, second) == ("+", "*"):
            assert {f"{a} + {c} * {b}", f"{b} * {c} + {a}", f"{c} * {b} + {a}"} <= test
        elif (first, second) == ("+", "-"):
            assert f"{b} + {a} - {c}" in test


@given(st.integers(1, 50), st.integers(0, 100))
def test_a_limited_draw_is_part_of_the_whole(limit: int, seed: int):
    drawn = arithmetic_tasks(("add1", "sub"), "train", limit, seed)
    assert len(drawn) == limit
    assert set(task.id for task in drawn) <= {task.id for task in arithmetic_tasks(("add1", "sub"))}
    assert drawn is arithmetic_tasks(("add1", "sub"), "train", limit, seed)


def test_draws_are_the_same_in_every_process():
    code = (
        "from envs.competition_math.arithmetic import arithmetic_tasks as a\n"
        "print(','.join(t.id for t in a(None, 'test', 20, 3)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ",".join(task.id for task in arithmetic_tasks(None, "test", 20, 3))


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match=r"'add9'.*add1, add21"):
        arithmetic_tasks(("add1", "add9"))
    with pytest.raises(ValueError, match=r"'dev'.*'train' or 'test'"):
        arithmetic_tasks(split="dev")  # type: ignore[arg-type]
