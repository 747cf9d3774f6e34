from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from envs.mle_bench.env import MLEBenchEnv
from rllib_exit.report.groups import Domain, domains, improvements
from rllib_exit.report.page import Piece, Sources
from rllib_exit.report.pieces.material import Material
from rllib_exit.report.pieces.scores import greedy_search, self_improvement, table_1
from rllib_exit.report.runs import find
from tests.report.runs_on_disk import evaluate, search, train


def only_domain(root: Path) -> Domain:
    (domain,) = domains(find([root]))
    return domain


def table(root: Path) -> Piece:
    return table_1([only_domain(root)], Material(Sources(root / "report"), None))


def evaluated(root: Path, **splits: Sequence[str]) -> None:
    for strategy, of_run in splits.items():
        evaluate(train(root / strategy, strategy, 0, iterations=1, log=False), splits=of_run)


def best(trial: Path, of: str, step: int) -> float:
    lines = (trial / "search" / of / "search.jsonl").read_text().splitlines()
    return 100 * max(json.loads(line)["quality"] for line in lines[1 : step + 1])


def mle(root: Path, strategy: str, seed: int, competitions: Sequence[str] = ("one",)) -> Path:
    config = {"competitions": [f"/nowhere/{name}" for name in competitions]}
    return train(
        root / f"{strategy}-{seed}", strategy, seed, env=MLEBenchEnv, env_config=config, task_ids=["one"],
        iterations=1, log=False,
    )  # fmt: skip


def test_table_1_compares_on_the_splits_that_all_have(tmp_path: Path):
    evaluated(tmp_path, grpo=["a", "b", "c"], exit=["b", "a"], improve=["a", "b", "d"])
    piece = table(tmp_path)
    assert {row["tasks"] for row in piece.rows} == {40} and len(piece.rows) == 4
    assert (
        "the splits a and b together (40 tasks)" in piece.caption
        and "every run was evaluated on it: c, d" in piece.caption
    )


def test_table_1_has_every_method_if_one_has_a_single_split(tmp_path: Path):
    evaluated(tmp_path, grpo=["a", "b"], exit=["b"])
    assert [(row["method"], row["split"], row["tasks"]) for row in table(tmp_path).rows] == [
        ("Base model", "b", 20), ("GRPO", "b", 20), ("+ diversity (ExIt)", "b", 20)
    ]  # fmt: skip


def test_table_1_says_where_there_is_nothing_to_compare(tmp_path: Path):
    evaluated(tmp_path, grpo=["a"], exit=["b"])
    domain = only_domain(tmp_path)
    assert list(improvements(domain)) == ["all", "a", "b"]
    assert "no split in common; they have a, b" in table(tmp_path).gap
    together, per_split = self_improvement(domain, Material(Sources(tmp_path / "report"), None))
    assert "no split in common" in together.gap and {row["split"] for row in per_split.rows} == {"a", "b"}


def test_a_split_of_fewer_tasks_is_another_split(tmp_path: Path):
    evaluated(tmp_path, grpo=["a", "b"], exit=["a", "b"])
    (file,) = tmp_path.glob("exit/**/evaluation.json")
    data = json.loads(file.read_text())
    for of_policy in data["splits"]["a"]["results"].values():
        of_policy["num_tasks"] = 7
    file.write_text(json.dumps(data))
    assert list(improvements(only_domain(tmp_path))) == ["b", "a of 20 tasks", "a of 7 tasks"]


def test_searches_are_compared_on_the_competitions_that_all_have(tmp_path: Path):
    grpo, exit_ = mle(tmp_path, "grpo", 0), mle(tmp_path, "exit", 0)
    for name in ("w", "x", "y", "z"):
        search(grpo / "search" / name, name, trial=grpo)
    search(exit_ / "search" / "w", "w", trial=exit_)
    piece = table(tmp_path)
    assert {row["split"] for row in piece.rows} == {"w"} and {row["tasks"] for row in piece.rows} == {1}
    assert "every run was searched on it: x, y, z" in piece.caption
    together, each = greedy_search(only_domain(tmp_path), Material(Sources(tmp_path / "report"), None))
    assert {row["panel"] for row in together.rows} == {"Held out"} and "x, y, z" in together.caption
    assert len({row["panel"] for row in each.rows}) == 4


def test_sampling_seeds_are_averaged_within_a_run(tmp_path: Path):
    finals = []
    for seed in (0, 1):
        trial = mle(tmp_path, "exit", seed)
        for sampling in (0, 1, 2):
            search(trial / "search" / f"{sampling}", "other", trial=trial, seed=seed + 7 * sampling)
        finals.append(np.mean([best(trial, f"{sampling}", 1) for sampling in (0, 1, 2)]))
    (row,) = table(tmp_path).rows
    assert row["over"] == "2 training runs"
    assert row["initial"] == pytest.approx(np.mean(finals))
    assert row["standard_error"] == pytest.approx(np.std(finals, ddof=1) / np.sqrt(2))


def test_searches_of_an_older_checkpoint_or_other_sampling_do_not_count(tmp_path: Path):
    trial = mle(tmp_path, "exit", 0)
    search(trial / "search" / "new", "other", trial=trial, checkpoint="checkpoint_000004")
    search(trial / "search" / "old", "other", trial=trial, seed=1)
    search(trial / "search" / "hot", "other", trial=trial, checkpoint="checkpoint_000004", seed=2, temperature=1.5)
    search(tmp_path / "base", "other")
    domain = only_domain(tmp_path)
    assert {label: len(of_group) for label, of_group in domain.searches.items()} == {
        "Base model": 1, "+ diversity (ExIt)": 1
    }  # fmt: skip
    assert any("later checkpoint" in text for text in domain.left_out)
    assert any("1.5" in text for text in domain.left_out)
    (row,) = [row for row in table(tmp_path).rows if row["method"] == "+ diversity (ExIt)"]
    assert row["initial"] == pytest.approx(best(trial, "new", 1))


def test_a_competition_that_a_run_was_trained_on_is_never_held_out(tmp_path: Path):
    mle(tmp_path, "grpo", 0, ["one"])
    for name in ("one", "other"):
        search(tmp_path / "base" / name, name)
    assert {row["split"] for row in table(tmp_path).rows} == {"other"}
    together, _ = greedy_search(only_domain(tmp_path), Material(Sources(tmp_path / "report"), None))
    assert {row["panel"] for row in together.rows} == {"Training", "Held out"}


def test_shorter_searches_are_named(tmp_path: Path):
    search(tmp_path / "base" / "one", "one", steps=8)
    search(tmp_path / "base" / "two", "two", steps=3)
    assert "The searches have 2 to 7 steps" in table(tmp_path).caption
