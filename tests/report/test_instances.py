from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from envs.bfcl.env import BFCLEnv
from envs.mle_bench.env import MLEBenchEnv
from rllib_exit.report.instances import Instances, chains, distances, mean_distances, one_task, sample, umap_map
from rllib_exit.report.page import GapError
from rllib_exit.report.results import find
from rllib_exit.report.training import distinct_instances
from tests.report.runs_on_disk import train

BFCL = {"split": "train", "classes": ["TradingBot"]}


def test_a_chain_of_several_turns_shows_the_turn_that_was_gone_on_from(tmp_path: Path):
    train(tmp_path / "runs", "exit", 0, env=BFCLEnv, env_config=BFCL, iterations=20, task_ids=["a", "b", "c"])
    (domain,) = find([tmp_path / "runs"]).domains()
    (run,) = domain.runs
    assert run.log is not None
    rows = chains(Instances(domain, None)).rows.to_dict("records")
    steps = [(before, row) for before, row in pairwise(rows) if before["chain"] == row["chain"]]
    assert any(before["turn"] > before["starting_turn"] for before, _ in steps)
    for before, row in steps:
        group, _, g = row["rollout"].rpartition("/")
        whole = run.log.rollout(group, int(g))
        begun_from = whole["iterate"] or whole["turns"][row["starting_turn"] - 1]
        assert begun_from["response"] == before["response"]


def test_distinct_instances_are_compared_at_an_iteration_that_all_runs_have(tmp_path: Path):
    train(tmp_path, "grpo", 0, iterations=3, log=False)
    train(tmp_path, "exit", 0, iterations=3, first=3, log=False)
    (domain,) = find([tmp_path]).domains()
    assert set(distinct_instances(domain).rows.iteration) == {3}
    train(tmp_path, "improve", 0, iterations=3, first=9, log=False)
    (domain,) = find([tmp_path]).domains()
    with pytest.raises(GapError, match="no iteration in common"):
        distinct_instances(domain)


def test_a_seed_without_a_log_is_left_out_of_one_task_alone(tmp_path: Path):
    for names in (["a"], ["a", "b"]):
        for seed in (0, 1):
            config = {"competitions": [f"/nowhere/{name}" for name in names]}
            train(
                tmp_path / f"{len(names)}", "grpo", seed, env=MLEBenchEnv, env_config=config, task_ids=names,
                iterations=2, log=seed == 1,
            )  # fmt: skip
    (domain,) = find([tmp_path]).domains()
    piece = one_task(Instances(domain, None))
    assert set(piece.rows.method) == {"GRPO, alone", "GRPO, 2 tasks"}


def test_the_tasks_of_every_run_are_embedded_by_their_own_prompts(tmp_path: Path):
    embedded: list[str] = []

    class Embedder:
        model = "a model"

        def embed(self, texts: list[str]) -> np.ndarray:
            embedded.extend(texts)
            return np.random.default_rng(0).random((len(texts), 4))

    for strategy, level in (("grpo", "add1"), ("exit", "mul1")):
        train(tmp_path, strategy, 0, iterations=1, env_config={"tasks": "arithmetic", "levels": [level]})
    (domain,) = find([tmp_path]).domains()
    embedder: Any = Embedder()
    distances(Instances(domain, embedder), new=False)
    assert embedded
    ids = {row["task_id"] for run in domain.runs if run.log for row in run.log.read(columns=["task_id"])}
    assert not ids & {text.rsplit("\n\n", 1)[-1] for text in embedded}


def test_mean_distances():
    cosine, l2 = mean_distances(np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]))
    assert cosine == pytest.approx(2 / 3) and l2 == pytest.approx(2 * np.sqrt(2) / 3)
    with pytest.raises(ValueError, match="two embeddings"):
        mean_distances(np.ones((1, 2)))


def test_sample_keeps_the_order():
    chosen = sample(pd.DataFrame({"number": range(100)}), 10).number
    assert len(chosen) == 10 and chosen.is_monotonic_increasing


@pytest.mark.slow  # umap-learn compiles its code when it is first used
def test_umap_puts_likes_together(tmp_path: Path):
    class Embedder:
        """Two far corners: one for base tasks, one for instances with an iterate."""

        model = "a model"

        def embed(self, texts: list[str]) -> np.ndarray:
            noise = np.random.default_rng(0).random((len(texts), 8)) / 10
            return np.array([np.eye(8)[int("\n\n" in text)] for text in texts]) + noise

    train(tmp_path, "exit", 0, iterations=12)
    (domain,) = find([tmp_path]).domains()
    embedder: Any = Embedder()
    points = umap_map(Instances(domain, embedder)).rows
    assert np.isfinite(points[["x", "y"]].to_numpy()).all() and points.method.nunique() == 2
    of = {method: own[["x", "y"]].to_numpy() for method, own in points.groupby("method")}
    base, new = of["base tasks"], of["+ diversity (ExIt)"]
    between = np.linalg.norm(base.mean(axis=0) - new.mean(axis=0))
    assert between > 2 * max(np.linalg.norm(own - own.mean(axis=0), axis=1).mean() for own in (base, new))
