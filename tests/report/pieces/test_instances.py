from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from envs.bfcl.env import BFCLEnv
from envs.mle_bench.env import MLEBenchEnv
from rllib_exit.report.groups import domains
from rllib_exit.report.page import Sources
from rllib_exit.report.pieces.instances import chains, distances, distinct_instances, learnability
from rllib_exit.report.pieces.material import Material
from rllib_exit.report.runs import find
from tests.report.runs_on_disk import train

BFCL = {"split": "train", "classes": ["TradingBot"]}


def test_a_chain_of_several_turns_shows_the_turn_that_was_gone_on_from(tmp_path: Path):
    train(tmp_path / "runs", "exit", 0, env=BFCLEnv, env_config=BFCL, iterations=20, task_ids=["a", "b", "c"])
    (domain,) = domains(find([tmp_path / "runs"]))
    (run,) = domain.runs
    assert run.log is not None
    rows = chains(domain, Material(Sources(tmp_path), None)).rows
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
    (domain,) = domains(find([tmp_path]))
    material = Material(Sources(tmp_path / "report"), None)
    assert {row["iteration"] for row in distinct_instances(domain, material).rows} == {3}
    train(tmp_path, "improve", 0, iterations=3, first=9, log=False)
    (domain,) = domains(find([tmp_path]))
    assert "no iteration in common" in distinct_instances(domain, material).gap


def test_a_seed_without_a_log_is_left_out_of_one_task_alone(tmp_path: Path):
    for names in (["a"], ["a", "b"]):
        for seed in (0, 1):
            config = {"competitions": [f"/nowhere/{name}" for name in names]}
            train(
                tmp_path / f"{len(names)}", "grpo", seed, env=MLEBenchEnv, env_config=config, task_ids=names,
                iterations=2, log=seed == 1,
            )  # fmt: skip
    (domain,) = domains(find([tmp_path]))
    piece = learnability(domain, Material(Sources(tmp_path / "report"), None))
    assert {row["method"] for row in piece.rows} == {"GRPO, alone", "GRPO, 2 tasks"}


def test_the_tasks_of_every_run_are_embedded_by_their_own_prompts(tmp_path: Path):
    embedded: list[str] = []

    class Embedder:
        model = "a model"

        def embed(self, texts: list[str]) -> np.ndarray:
            embedded.extend(texts)
            return np.random.default_rng(0).random((len(texts), 4))

    for strategy, level in (("grpo", "add1"), ("exit", "mul1")):
        train(tmp_path, strategy, 0, iterations=1, env_config={"tasks": "arithmetic", "levels": [level]})
    (domain,) = domains(find([tmp_path]))
    embedder: Any = Embedder()
    distances(domain, Material(Sources(tmp_path / "report"), embedder))
    assert embedded
    ids = {row["task_id"] for run in domain.runs if run.log for row in run.log.read(columns=["task_id"])}
    assert not ids & {text.rsplit("\n\n", 1)[-1] for text in embedded}
