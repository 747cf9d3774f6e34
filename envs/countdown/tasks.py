"""Countdown tasks: every target that given numbers can make, in disjoint splits."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from envs.base import Task
from envs.countdown.expressions import Expression, ExpressionError, combine, number

Split = Literal["train", "validation", "test"]


def split_of(numbers: Sequence[int], target: int) -> Split:
    """Which split a task is in: train (80 %), validation or test (10 % each), by a hash of numbers and target."""
    text = f"{','.join(map(str, sorted(numbers)))}/{target}"
    tenth = hashlib.sha256(text.encode()).digest()[0] % 10
    return "validation" if tenth == 8 else "test" if tenth == 9 else "train"


@functools.lru_cache(maxsize=256)
def expressions(numbers: tuple[int, ...], operators: str) -> tuple[Expression, ...]:
    """The distinct expressions that use each of the sorted numbers exactly once.

    With all four operators there are at most 6 of two numbers, 68 of three and 1,260 of four.
    """
    if len(numbers) == 1:
        return (number(numbers[0]),)
    found: dict[str, Expression] = {}
    everything = range(len(numbers))
    for size in range(1, len(numbers) // 2 + 1):
        for chosen in itertools.combinations(everything, size):
            some = tuple(numbers[i] for i in chosen)
            others = tuple(numbers[i] for i in everything if i not in chosen)
            for a, b in itertools.product(expressions(some, operators), expressions(others, operators)):
                for sign in operators:
                    for left, right in ((a, b), (b, a))[: 1 if sign in "+*" else 2]:
                        try:
                            expression = combine(left, sign, right)
                        except ExpressionError:
                            continue
                        found.setdefault(expression.text, expression)
    return tuple(found.values())


def solutions(numbers: tuple[int, ...], operators: str, targets: range) -> dict[int, list[str]]:
    """The targets that the sorted numbers can make, each with all its distinct solutions."""
    made: dict[int, list[str]] = {}
    for expression in expressions(numbers, operators):
        if isinstance(expression.value, int) and expression.value in targets:
            made.setdefault(expression.value, []).append(expression.text)
    return made


@functools.lru_cache
def countdown_tasks(
    split: Split = "train",
    counts: tuple[int, ...] = (3,),
    number_range: tuple[int, int] = (1, 16),
    target_range: tuple[int, int] = (1, 99),
    operators: str = "+-*",
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Task, ...]:
    """The solvable tasks of a split. The result is cached: environments share it.

    Args:
        split: ``train``, ``validation`` or ``test``. They are disjoint whatever the other arguments are.
        counts: How many numbers a task has; one of these.
        number_range: The least and the greatest number.
        target_range: The least and the greatest target.
        operators: Some of ``+-*/``.
        limit: How many tasks are drawn, each of other numbers where there are enough; None for all. All of four
            numbers up to 16 are 150,000 in three splits and take 20 seconds to find.
        seed: Seeds the draw.
    """
    targets = range(target_range[0], target_range[1] + 1)
    values = range(number_range[0], number_range[1] + 1)
    every = [
        numbers for count in sorted(set(counts)) for numbers in itertools.combinations_with_replacement(values, count)
    ]
    rng = np.random.default_rng(seed)
    if limit is not None:
        every = [every[i] for i in rng.permutation(len(every))]
    tasks: list[Task] = []
    once = limit is not None and limit <= len(every) // 2  # then a task of other numbers each time is soon found
    for numbers in every:
        found = solutions(numbers, operators, targets)
        mine = [target for target in sorted(found) if split_of(numbers, target) == split]
        if once and mine:
            mine = [mine[rng.integers(len(mine))]]
        tasks += [_task(numbers, target, found[target]) for target in mine]
        if once and len(tasks) == limit:
            break
    if limit is not None and len(tasks) > limit:
        tasks = [tasks[i] for i in rng.permutation(len(tasks))[:limit]]
    return tuple(tasks)


def _task(numbers: tuple[int, ...], target: int, found: list[str]) -> Task:
    return Task(
        id=f"countdown/{','.join(map(str, numbers))}/{target}",
        prompt=f"{' '.join(map(str, numbers))} make {target}",
        data={
            "numbers": numbers,
            "target": target,
            "solution": min(found, key=lambda text: (len(text), text)),
            "metrics": {"numbers": len(numbers), "solutions": len(found)},
        },
    )
