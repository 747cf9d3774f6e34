from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from envs.mle_bench.env import MLEBenchEnv
from rllib_exit.report import report
from rllib_exit.report.page import GapError, Piece
from rllib_exit.report.results import Results, find
from rllib_exit.report.scores import conclusion, evaluated, per_split, search, search_each, self_improvement, table_1
from tests.report.runs_on_disk import evaluate, train
from tests.report.runs_on_disk import search as write_search


def only_domain(root: Path) -> Results:
    (domain,) = find([root]).domains()
    return domain


def table(root: Path) -> Piece:
    return table_1([only_domain(root)])


def write_evaluations(root: Path, **splits: Sequence[str]) -> None:
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
    write_evaluations(tmp_path, grpo=["a", "b", "c"], exit=["b", "a"], improve=["a", "b", "d"])
    piece = table(tmp_path)
    assert set(piece.rows.tasks) == {40} and len(piece.rows) == 4
    assert (
        "the splits a and b together (40 tasks)" in piece.caption
        and "every run was evaluated on it: c, d" in piece.caption
    )


def test_the_conclusion_names_the_best_method_what_steps_add_and_how_sure_it_is(tmp_path: Path):
    write_evaluations(tmp_path, grpo=["a"], improve=["a"], exit=["a"])
    finals, gains = [5.0, 20.0, 60.0, 40.0], [-5.0, 10.0, 50.0, 30.0]
    numbers = table(tmp_path).rows.assign(initial=10.0, final=finals, gain=gains)
    assert list(numbers.method) == ["Base model", "GRPO", "+ improve", "+ diversity (ExIt)"]
    best, added, sure = conclusion(numbers)
    assert "accuracy of + improve goes from 10.0 to 60.0 %" in best
    assert best.endswith("here; Base model: 10.0 → 5.0 %; GRPO: 10.0 → 20.0 %.")
    assert added == "The steps add most to + improve (Arithmetic), +50.0 points, and least to GRPO (Arithmetic), +10.0."
    assert sure.startswith("A score is the mean over 1 training run, 2 sampling seeds, with a standard error of up to")
    best, *_ = conclusion(numbers.assign(final=[5.0, 70.0, 60.0, 40.0]))
    assert "GRPO goes from 10.0 to 70.0 %" in best and best.count("GRPO") == 1
    *_, sure = conclusion(numbers.assign(standard_error=np.nan, final_standard_error=np.nan))
    assert sure.endswith("without a standard error: a difference may be chance.")


def test_the_mean_of_graded_qualities_is_not_called_accuracy(tmp_path: Path):
    write_evaluations(tmp_path, grpo=["a"])
    (file,) = tmp_path.rglob("evaluation.json")
    assert only_domain(tmp_path).score == "accuracy"
    written = json.loads(file.read_text())
    accuracy = written["splits"]["a"]["results"]["trained"]["accuracy"]
    accuracy["by_seed"][0][0] += 0.51 / 20  # of one of the 20 tasks
    file.write_text(json.dumps(written))
    domain = only_domain(tmp_path)
    shown = table_1([domain])
    assert domain.score == "mean quality" and set(shown.rows.score) == {"mean quality"}
    assert "accuracy" not in shown.caption and "accuracy" not in " ".join(conclusion(shown.rows))


def test_table_1_has_every_method_if_one_has_a_single_split(tmp_path: Path):
    write_evaluations(tmp_path, grpo=["a", "b"], exit=["b"])
    assert list(table(tmp_path).rows[["method", "split", "tasks"]].itertuples(index=False, name=None)) == [
        ("Base model", "b", 20), ("GRPO", "b", 20), ("+ diversity (ExIt)", "b", 20)
    ]  # fmt: skip


def test_table_1_says_where_there_is_nothing_to_compare(tmp_path: Path):
    write_evaluations(tmp_path, grpo=["a"], exit=["b"])
    domain = only_domain(tmp_path)
    together, each = evaluated(domain)
    assert together is None and [comparison.of for comparison in each] == [("a",), ("b",)]
    with pytest.raises(GapError, match="no split in common; they have a, b"):
        table(tmp_path)
    with pytest.raises(GapError, match="no split in common"):
        self_improvement(domain)
    assert set(per_split(domain).rows.split) == {"a", "b"}


def test_a_split_of_fewer_tasks_is_another_split(tmp_path: Path):
    write_evaluations(tmp_path, grpo=["a", "b"], exit=["a", "b"])
    (file,) = tmp_path.glob("exit/**/evaluation.json")
    data = json.loads(file.read_text())
    for of_policy in data["splits"]["a"]["results"].values():
        of_policy["num_tasks"] = 7
    file.write_text(json.dumps(data))
    together, each = evaluated(only_domain(tmp_path))
    assert together is not None and together.of == ("b",)
    assert [comparison.of for comparison in each] == [("a of 20 tasks",), ("a of 7 tasks",)]


def test_searches_are_compared_on_the_competitions_that_all_have(tmp_path: Path):
    grpo, exit_ = mle(tmp_path, "grpo", 0), mle(tmp_path, "exit", 0)
    for name in ("w", "x", "y", "z"):
        write_search(grpo / "search" / name, name, trial=grpo)
    write_search(exit_ / "search" / "w", "w", trial=exit_)
    piece = table(tmp_path)
    assert set(piece.rows.split) == {"w"} and set(piece.rows.tasks) == {1}
    assert "every run was searched on it: x, y, z" in piece.caption
    domain = only_domain(tmp_path)
    together = search(domain)
    assert set(together.rows.panel) == {"Held out"} and "x, y, z" in together.caption
    assert search_each(domain).rows.panel.nunique() == 4


def test_sampling_seeds_are_averaged_within_a_run(tmp_path: Path):
    finals = []
    for seed in (0, 1):
        trial = mle(tmp_path, "exit", seed)
        for sampling in (0, 1, 2):
            write_search(trial / "search" / f"{sampling}", "other", trial=trial, seed=seed + 7 * sampling)
        finals.append(np.mean([best(trial, f"{sampling}", 1) for sampling in (0, 1, 2)]))
    (row,) = table(tmp_path).rows.to_dict("records")
    assert row["over"] == "2 training runs"
    assert row["initial"] == pytest.approx(np.mean(finals))
    assert row["standard_error"] == pytest.approx(np.std(finals, ddof=1) / np.sqrt(2))


def test_searches_of_an_older_checkpoint_or_other_sampling_do_not_count(tmp_path: Path):
    trial = mle(tmp_path, "exit", 0)
    write_search(trial / "search" / "new", "other", trial=trial, checkpoint="checkpoint_000004")
    write_search(trial / "search" / "old", "other", trial=trial, seed=1)
    write_search(
        trial / "search" / "hot", "other", trial=trial, checkpoint="checkpoint_000004", seed=2, temperature=1.5
    )
    write_search(tmp_path / "base", "other")
    domain = only_domain(tmp_path)
    searches = domain.searches.groupby("method").file.nunique()
    assert searches.to_dict() == {"Base model": 1, "+ diversity (ExIt)": 1}
    assert any("later checkpoint" in text for text in domain.problems)
    assert any("1.5" in text for text in domain.problems)
    (row,) = table(tmp_path).rows.query("method != 'Base model'").to_dict("records")
    assert row["initial"] == pytest.approx(best(trial, "new", 1))


def test_a_competition_that_a_run_was_trained_on_is_never_held_out(tmp_path: Path):
    mle(tmp_path, "grpo", 0, ["one"])
    for name in ("one", "other"):
        write_search(tmp_path / "base" / name, name)
    assert set(table(tmp_path).rows.split) == {"other"}
    together = search(only_domain(tmp_path))
    assert set(together.rows.panel) == {"Training", "Held out"}


def test_shorter_searches_are_named(tmp_path: Path):
    write_search(tmp_path / "base" / "one", "one", steps=8)
    write_search(tmp_path / "base" / "two", "two", steps=3)
    assert "The searches have 2 to 7 steps" in table(tmp_path).caption


def test_evaluations_without_their_runs_are_reported(tmp_path: Path):
    trial = train(tmp_path / "runs", "improve", 3, iterations=1)
    evaluate(trial, output=tmp_path / "evaluation")
    shutil.rmtree(tmp_path / "runs")
    assert list(table(tmp_path).rows.method) == ["Base model", "+ improve"]
    report.write_report([tmp_path], tmp_path / "report")
