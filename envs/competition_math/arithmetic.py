"""Arithmetic problems of graded difficulty: a task space that a small model can learn in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import product
from typing import Literal, NamedTuple

from envs.base import Task
from envs.sampling import stable_hash, subset

TEST_FRACTION = 0.25


class Problem(NamedTuple):
    """A problem: its text, a text that it shares with the same problem in another order, and its answer."""

    text: str
    canonical: str
    answer: int


def _sums(first: range, second: range) -> Iterator[Problem]:
    for a, b in product(first, second):
        yield Problem(f"{a} + {b}", f"{min(a, b)} + {max(a, b)}", a + b)


def _differences() -> Iterator[Problem]:
    for a, b in product(range(21), repeat=2):
        if b <= a:
            yield Problem(f"{a} - {b}", f"{a} - {b}", a - b)


def _products() -> Iterator[Problem]:
    for a, b in product(range(10), repeat=2):
        yield Problem(f"{a} * {b}", f"{min(a, b)} * {max(a, b)}", a * b)


def _expressions() -> Iterator[Problem]:
    for a, b, c in product(range(1, 10), repeat=3):
        canonical = f"{a} + {min(b, c)} * {max(b, c)}"
        yield Problem(f"{a} + {b} * {c}", canonical, a + b * c)
        yield Problem(f"{b} * {c} + {a}", canonical, b * c + a)
        if a + b >= c:
            yield Problem(f"{a} + {b} - {c}", f"{min(a, b)} + {max(a, b)} - {c}", a + b - c)


# The levels, from easy to hard. The number of a level is its place, from 1.
LEVELS: dict[str, Callable[[], Iterator[Problem]]] = {
    "add1": lambda: _sums(range(10), range(10)),
    "add21": lambda: _sums(range(10, 100), range(1, 10)),
    "sub": _differences,
    "mul1": _products,
    "add2": lambda: _sums(range(10, 100), range(10, 100)),
    "expr": _expressions,
}


@functools.lru_cache
def arithmetic_tasks(
    levels: tuple[str, ...] | None = None,
    split: Literal["train", "test"] = "train",
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Task, ...]:
    """The arithmetic tasks of some levels.

    A hash decides whether a problem is for training or for testing. Problems that differ in the order of their operands
    alone are on the same side.

    Args:
        levels: Names in ``LEVELS``; None for all.
        split: ``train`` (75 %) or ``test`` (25 %).
        limit: How many tasks are drawn; None for all.
        seed: The seed of that draw.

    Raises:
        ValueError: If a level or the split is unknown.
    """
    levels = tuple(LEVELS) if levels is None else levels
    if unknown := [level for level in levels if level not in LEVELS]:
        raise ValueError(f"levels has {', '.join(map(repr, unknown))}: use {', '.join(LEVELS)}")
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}: use 'train' or 'test'")
    tasks = tuple(
        _task(level, problem)
        for level in levels
        for problem in LEVELS[level]()
        if _is_test(problem) == (split == "test")
    )
    return subset(tasks, limit, seed)


def _is_test(problem: Problem) -> bool:
    return stable_hash(problem.canonical) / 2**64 < TEST_FRACTION


def _task(level: str, problem: Problem) -> Task:
    operations = sum(problem.text.count(f" {operator} ") for operator in "+-*")
    number = list(LEVELS).index(level) + 1
    return Task(
        id=f"arithmetic/{level}/{problem.text.replace(' ', '')}",
        prompt=f"What is {problem.text}? Answer with just the number.",
        data={
            "answer": str(problem.answer),
            "level": level,
            "metrics": {"level": number, "solution_steps": operations},
        },
    )
