from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest

from envs.countdown.expressions import parse
from envs.countdown.tasks import countdown_tasks, expressions, solutions, split_of


def brute_force(values: list[tuple[Fraction, str]], operators: str) -> Iterator[tuple[Fraction, str]]:
    """Every way to join values two at a time, with the text written down in full."""
    if len(values) == 1:
        yield values[0]
        return
    for i, j in itertools.permutations(range(len(values)), 2):
        (x, a), (y, b) = values[i], values[j]
        rest = [value for k, value in enumerate(values) if k not in (i, j)]
        for sign in operators:
            if sign == "/" and y == 0:
                continue
            joined = x + y if sign == "+" else x - y if sign == "-" else x * y if sign == "*" else x / y
            yield from brute_force([*rest, (joined, f"({a}{sign}{b})")], operators)


@pytest.mark.parametrize("operators", ["+-*", "+-*/", "+", "-/"])
@pytest.mark.parametrize("numbers", [(3, 5), (2, 2, 7), (4, 6, 13), (1, 2, 3, 4), (2, 5, 5, 9)])
def test_the_solutions_are_those_of_brute_force(numbers: tuple[int, ...], operators: str):
    expected: dict[int, set[str]] = {}
    for value, text in brute_force([(Fraction(n), str(n)) for n in numbers], operators):
        if value.denominator == 1 and 1 <= value <= 99:
            expected.setdefault(int(value), set()).add(parse(text).text)
    found = solutions(numbers, operators, range(1, 100))
    assert {target: set(texts) for target, texts in found.items()} == expected
    assert all(len(texts) == len(set(texts)) for texts in found.values())


@pytest.mark.parametrize(("numbers", "count"), [((7, 11), 6), ((7, 11, 13), 68), ((7, 11, 13, 17), 1260)])
def test_how_many_expressions_there_are(numbers: tuple[int, ...], count: int):
    assert len(expressions(numbers, "+-*/")) == count


def keys(split: Any, **options: Any) -> set[tuple[tuple[int, ...], int]]:
    return {(task.data["numbers"], task.data["target"]) for task in countdown_tasks(split, **options)}


def test_the_splits_are_disjoint_and_complete():
    train, validation, test = map(keys, ("train", "validation", "test"))
    assert not train & validation and not train & test and not validation & test
    solvable = {
        (numbers, target)
        for numbers in itertools.combinations_with_replacement(range(1, 17), 3)
        for target in solutions(numbers, "+-*", range(1, 100))
    }
    assert train | validation | test == solvable
    assert len(train) > 6000 and min(len(validation), len(test)) > 700


def test_a_task_stays_in_its_split_whatever_the_options():
    assert split_of((3, 1, 2), 7) == split_of([1, 2, 3], 7)
    others = keys("train", number_range=(1, 20), target_range=(10, 50), operators="+-*/", limit=500, seed=3)
    assert not others & (keys("validation") | keys("test"))


def test_there_are_a_hundred_thousand_tasks():
    # All of four numbers take a while to find: a sample of the numbers says how many there are.
    every = list(itertools.combinations_with_replacement(range(1, 17), 4))
    sample = every[:: len(every) // 100]
    targets = sum(len(solutions(numbers, "+-*", range(1, 100))) for numbers in sample)
    assert targets / len(sample) * len(every) > 1e5


@pytest.mark.parametrize("options", [{}, {"counts": (4,), "limit": 50}, {"operators": "+-*/", "limit": 300}])
def test_a_task_says_what_it_is(options: dict[str, Any]):
    for task in countdown_tasks("validation", **options):
        numbers, target = task.data["numbers"], task.data["target"]
        assert task.prompt == f"{' '.join(map(str, numbers))} make {target}"
        assert task.id == f"countdown/{','.join(map(str, numbers))}/{target}"
        solution = parse(task.data["solution"])
        assert solution.value == target and Counter(solution.numbers) == Counter(numbers)
        texts = solutions(numbers, options.get("operators", "+-*"), range(target, target + 1))[target]
        assert task.data["metrics"] == {"numbers": len(numbers), "solutions": len(texts)}


def test_tasks_are_drawn_by_seed():
    def ids(**options: Any) -> list[str]:
        return [task.id for task in countdown_tasks(**options)]

    assert ids(limit=100, seed=1) == ids(limit=100, seed=1)
    assert ids(limit=100, seed=1) != ids(limit=100, seed=2)
    assert set(ids(limit=3000)) < set(ids()) and len(ids(limit=3000)) == 3000
    assert ids(limit=10**6) == sorted(ids(limit=10**6), key=ids(limit=10**6).index)  # no more than there are
    assert len(ids(limit=10**6)) == len(ids())
    assert len({task.data["numbers"] for task in countdown_tasks(limit=300)}) == 300
    counts = Counter(len(task.data["numbers"]) for task in countdown_tasks(counts=(2, 3), limit=200))
    assert counts.keys() == {2, 3}
