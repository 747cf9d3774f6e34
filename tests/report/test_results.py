from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rllib_exit.report.results import find
from tests.report.runs_on_disk import train


def test_a_resumed_run_is_one_run(tmp_path: Path):
    train(tmp_path, "exit", 0, trial="first", iterations=6, trial_id="1a2b3_00000")
    train(tmp_path, "exit", 0, trial="resumed", iterations=4, first=5, trial_id="4c5d6_00000")
    found = find([tmp_path])
    (of_both,) = found.runs
    assert list(found.iterations.iteration) == list(range(1, 9))
    assert of_both.log is not None and list(of_both.log.files) == list(range(1, 9))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr_decay_steps", (None, 100)),
        ("adam_betas", ([0.9, 0.999], [0.9, 0.95])),
        ("lora_alpha", (16.0, 32.0)),
        ("chat_template_kwargs", ({}, {"enable_thinking": False})),
    ],
)
def test_trials_that_differ_in_a_setting_are_runs_of_their_own(tmp_path: Path, name: str, values: Any):
    for number, value in enumerate(values):
        train(tmp_path, "grpo", 0, trial=f"{number}", iterations=1, log=False, params={name: value})
    assert len(find([tmp_path]).runs) == 2


@pytest.mark.parametrize("ids", [("1a2b3_00000", "1a2b3_00001"), ("0a1b2c3d", "4e5f6a7b")])
def test_repeats_within_a_sweep_are_runs_of_their_own(tmp_path: Path, ids: tuple[str, str]):
    for trial_id in ids:
        train(tmp_path, "grpo", 0, trial=trial_id, iterations=1, log=False, trial_id=trial_id)
    assert len(find([tmp_path]).runs) == 2


def test_a_damaged_result_is_named_and_left_out(tmp_path: Path):
    train(tmp_path, "grpo", 0, iterations=1, log=False)
    file = train(tmp_path, "grpo", 1, iterations=2, log=False) / "result.json"
    file.write_text(file.read_text().replace("{", "", 1))
    found = find([tmp_path])
    assert [run.params["seed"] for run in found.runs] == [0]
    (problem,) = found.problems
    assert problem.startswith(f"{file}: line 1 is damaged")


def test_settings_tell_groups_apart(tmp_path: Path):
    for lr in (1e-5, 1e-6):
        train(tmp_path, "exit", 0, trial=f"lr{lr}", iterations=1, params={"lr": lr})
    (domain,) = find([tmp_path]).domains()
    assert sorted(domain.methods) == [
        "+ diversity (ExIt) (lr 1e-05)",
        "+ diversity (ExIt) (lr 1e-06)",
    ]
    assert len({run.style for run in domain.runs}) == 2


def test_what_cannot_be_read_is_named(tmp_path: Path):
    trial = train(tmp_path / "runs", "grpo", 0, iterations=1)
    (tmp_path / "runs" / "old").mkdir()
    (tmp_path / "runs" / "old" / "evaluation.json").write_text('{"results": {}}')
    (tmp_path / "runs" / "begun").mkdir()
    shutil.copy(trial / "params.json", tmp_path / "runs" / "begun")
    (tmp_path / "runs" / "begun" / "result.json").write_text('{"training_iteration": 1')
    old, begun = sorted(find([tmp_path]).problems, reverse=True)
    assert "is no evaluation of this version" in old and "no iteration has ended yet" in begun
