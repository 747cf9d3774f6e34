import itertools
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.scripts import load_benchmark


@pytest.fixture(scope="module")
def results() -> ModuleType:
    return load_benchmark("countdown_results")


def chains(answers_NK: list[str], right: str = "r") -> pd.DataFrame:
    """One letter is one answer of a chain; that letter is right."""
    rows = [
        {"task_id": f"t{n}", "step": k, "seed": 0, "quality": float(answer == right), "responses": [f"{answer} "]}
        for n, chain in enumerate(answers_NK)
        for k, answer in enumerate(chain)
    ]
    return pd.DataFrame(rows).sample(frac=1.0, random_state=0)  # in any order


def test_rates_by_step(results: ModuleType) -> None:
    numbers = results.of_chains(chains(["arr", "abr", "rrb", "rrr"]), str.strip)
    assert numbers == {
        "accuracy": [0.5, 0.75, 0.75],
        "wrong_to_right": [0.5, 1.0],
        "right_kept": [1.0, 2 / 3],
        "distinct_answers": [1.0, 1.5, 2.0],
    }


def test_every_sampling_seed_has_chains_of_its_own(results: ModuleType) -> None:
    both = pd.concat([chains(["ar"]), chains(["aa"]).assign(seed=1)])
    assert results.of_chains(both, str.strip)["accuracy"] == [0.0, 0.5]


def test_a_rate_without_cases_is_none(results: ModuleType) -> None:
    assert results.of_chains(chains(["rr", "rr"]), str.strip)["wrong_to_right"] == [None]


def test_samples(results: ModuleType) -> None:
    answers = ["raabr", "rrrrr", "abcde"]
    rows = pd.DataFrame(
        [
            {"task_id": f"t{n}", "step": 0, "seed": s, "quality": float(a == "r"), "responses": [a]}
            for n, of_task in enumerate(answers)
            for s, a in enumerate(of_task)
        ]
    )
    numbers = results.of_samples(rows, str.strip)
    # Of all subsets of k samples, those with a right one.
    expected = [
        np.mean([np.mean(["r" in subset for subset in itertools.combinations(of_task, k)]) for of_task in answers])
        for k in range(1, 6)
    ]
    assert numbers["pass_at"] == pytest.approx(expected)
    # "raabr": r, then the earlier of r and a, then a, a, and last the earlier of two pairs.
    assert numbers["majority_at"] == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3, 2 / 3])


def test_the_interval_is_students(results: ModuleType) -> None:
    mean, half = results.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3 and half == pytest.approx(2.776445 * math.sqrt(2.5) / math.sqrt(5), rel=1e-5)
    assert math.isnan(results.interval([1.0])[1])


def entry(strategy: str, seed: int, accuracy: list[float]) -> dict[str, Any]:
    steps = len(accuracy) - 1
    return {
        "strategy": strategy,
        "seed": seed,
        "accuracy": accuracy,
        "greedy_accuracy": accuracy,
        "wrong_to_right": [0.5] * steps,
        "right_kept": [None] * steps,
        "distinct_answers": [1.0] * (steps + 1),
        "pass_at": accuracy,
        "majority_at": accuracy,
        "entropy": None,
    }


def test_the_table_and_the_figure(results: ModuleType, tmp_path: Path) -> None:
    entries = [entry("grpo", 0, [0.5, 0.5]), entry("exit", 0, [0.5, 0.7]), entry("exit", 1, [0.5, 0.9])]
    lines = [line.split() for line in results.table(entries).splitlines()]
    assert lines[0] == ["grpo", "exit"] and lines[1] == ["training", "seeds", "1", "2"]
    assert lines[2] == ["first", "answer", "%", "50.0", "50.0", "±", "0.0"]
    assert lines[4] == ["gain", "points", "0.0", "30.0", "±", "127.1"]  # of 20 and 40 points
    results.draw(entries, tmp_path / "figure.png", "A title")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
