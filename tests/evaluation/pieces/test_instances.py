from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from envs.bfcl.env import BFCLEnv
from rllib_exit.evaluation.groups import domains
from rllib_exit.evaluation.page import Sources
from rllib_exit.evaluation.pieces.instances import chains
from rllib_exit.evaluation.pieces.material import Material
from rllib_exit.evaluation.runs import find
from tests.evaluation.runs_on_disk import train

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
