from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from envs.base import Outcome, Task
from rllib_exit.cli.runs import cast, find_checkpoints, load_weights
from rllib_exit.self_improvement.results import read
from tests.cli.helpers import (
    DigitEnv,
    OfficialDigitEnv,
    make_config,
    message,
    right_when_asked_to_improve,
    run,
    write_checkpoint,
)
from tests.fakes import ScriptedGenerator


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The engines that were made."""
    made: list[Any] = []
    init = ScriptedGenerator.__init__
    monkeypatch.setattr(
        ScriptedGenerator, "__init__", lambda self, *a, **k: (made.append(self), init(self, *a, **k))[1]
    )
    return made


def test_evaluate_compares_with_the_baseline(checkpoint: Path):
    result = run("evaluate", checkpoint.parent.parent, "--baseline", "--steps", "1", "--limit", "3", "--seeds", "2")
    assert result.exit_code == 0, result.output
    output = checkpoint.parent / "evaluation" / checkpoint.name
    assert (output / "self_improvement.png").is_file()
    data = json.loads((output / "evaluation.json").read_text())
    assert data["iteration"] == 3
    assert data["run"]["strategy"] == "exit" and data["settings"]["seeds"] == 2
    policies = data["splits"]["evaluation"]["results"]
    assert list(policies) == ["baseline", "trained"]
    trained = policies["trained"]
    assert trained["accuracy"] == {"mean": [0, 1], "standard_error": [0, 0], "by_seed": [[0, 1], [0, 1]]}
    assert trained["net_corrections"]["mean"] == [0, 3]
    rows = pq.read_table(output / "evaluation.parquet").to_pylist()
    assert len(rows) == 2 * 2 * 3 * 2
    assert rows[-1] == {
        "split": "evaluation", "policy": "trained", "seed": 1, "task_id": "t2", "step": 1, "quality": 1.0,
        "responses": ["2"], "metrics": [("invalid_fraction", 0.0), ("truncated_fraction", 0.0)],
    }  # fmt: skip
    assert "100.0" in result.output and "+3" in result.output
    # One chain in words, and the numbers in one line at the end.
    assert re.search(r"for example, t0: .*\n +step 0: \d+ \(wrong\)\n +step 1: 0 \(right\)\n", result.output)
    last = result.output.splitlines()[-1]
    assert re.fullmatch(r"K-step accuracy: untrained [\d.]+ → [\d.]+ %, trained 0.0 → 100.0 % \(K = 1\)", last)


def test_answers_are_written_for_the_benchmarks_own_tools(checkpoint: Path, tmp_path: Path, tiny_model: str) -> None:
    refused = message(run("evaluate", checkpoint, "--official"))
    assert "--official: DigitEnv has no official format" in refused

    config = make_config(tiny_model, right_when_asked_to_improve).environment(OfficialDigitEnv)
    path = write_checkpoint(tmp_path / "official" / "checkpoint", config, load_file(f"{tiny_model}/model.safetensors"))
    result = run("evaluate", path, "--official", "--limit", "2")
    assert result.exit_code == 0, result.output
    assert "official accuracy, evaluation, trained: 0.0 → 100.0 %" in result.output
    directory = path.parent / "evaluation" / path.name / "official/evaluation/trained/seed_0"
    written = {
        str(file.relative_to(directory)): [json.loads(line)["result"] for line in file.read_text().splitlines()]
        for file in directory.rglob("*.json")
    }
    assert written == {"step_0/model/digits.json": [["7"], ["7"]], "step_2/model/digits.json": [["0"], ["1"]]}


def test_evaluate_uses_the_evaluation_config(tmp_path: Path, tiny_model: str):
    config = make_config(tiny_model).evaluation(evaluation_config={"env_config": {"num_tasks": 9}, "temperature": 0.0})
    weights = load_file(f"{tiny_model}/model.safetensors")
    path = write_checkpoint(tmp_path / "checkpoint", config, weights)
    result = run("evaluate", path, "--output", tmp_path / "report")
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert data["splits"]["evaluation"]["results"]["trained"]["num_tasks"] == 9
    assert data["settings"]["temperature"] == 0.0


def test_splits_are_evaluated_together(tmp_path: Path, tiny_model: str):
    config = make_config(tiny_model, right_when_asked_to_improve)
    config.self_improvement(steps=1, splits={"small": {"num_tasks": 2}, "large": {"num_tasks": 8}})
    path = write_checkpoint(tmp_path / "checkpoint", config, load_file(f"{tiny_model}/model.safetensors"))
    result = run("evaluate", path, "--split", "all", "--split", "own={num_tasks: 5}", "--set", "temperature=0.5")
    assert result.exit_code == 0, result.output
    evaluation = read(tmp_path / "evaluation" / "checkpoint" / "evaluation.json")
    curves = {split: policies["trained"] for split, policies in evaluation.curves.items()}
    assert {split: curve.num_tasks for split, curve in curves.items()} == {"small": 2, "large": 8, "own": 5}
    assert evaluation.settings["temperature"] == 0.5
    # Task t7 is right at once.
    assert curves["small"].accuracy[0] == 0 and curves["large"].accuracy[0] == 1 / 8
    pooled = evaluation.pooled()["trained"]
    assert pooled.num_tasks == 15
    np.testing.assert_allclose(pooled.accuracy, [1 / 15, 1])
    np.testing.assert_allclose(pooled.net_corrections, [0, 14])
    assert re.search(r"all *│ *trained *│ *15 *│ *6\.7 *│ *100\.0 *│ *\+93\.3 *│ *\+14", result.output)


def test_an_unknown_split_is_refused(checkpoint: Path):
    assert "names no splits" in message(run("evaluate", checkpoint, "--split", "aime24"))
    assert "write the options as" in message(run("evaluate", checkpoint, "--split", "aime24=5"))


def test_a_bad_setting_is_refused(checkpoint: Path, engines: list[Any]):
    said = message(run("evaluate", checkpoint, "--set", "temperature=warm"))
    assert "temperature is 'warm': use a number of 0 or more" in said
    assert not engines


def test_several_runs_share_an_engine_and_the_baseline(tmp_path: Path, tiny_model: str, engines: list[Any]):
    config = make_config(tiny_model, right_when_asked_to_improve)
    weights = load_file(f"{tiny_model}/model.safetensors")
    for seed in (0, 1):
        config.debugging(seed=seed)
        for number in (1, 2):
            write_checkpoint(tmp_path / "results" / f"exit-seed{seed}" / "trial" / f"c{number}", config, weights)
    result = run("evaluate", tmp_path / "results", "--baseline", "--limit", "2", "--steps", "1")
    assert result.exit_code == 0, result.output
    assert len(engines) == 1
    files = sorted((tmp_path / "results").rglob("evaluation.json"))
    assert [file.parent.name for file in files] == ["c2", "c2"]
    assert [read(file).run["seed"] for file in files] == [0, 1]
    assert result.output.count("baseline, seed 1 of 1") == 1
    assert "exit, seed 0" in result.output and "exit, seed 1" in result.output

    again = run("evaluate", tmp_path / "results", "--baseline", "--limit", "2", "--steps", "1")
    assert again.output.count("evaluated before") == 2 and len(engines) == 1
    assert run("evaluate", tmp_path / "results", "--limit", "2", "--steps", "1").exit_code == 0
    assert len(engines) == 2  # other options


@pytest.mark.parametrize(
    "setting", ["compact_history_chars=9", "chat_template_kwargs={enable_thinking: false}", "engine_args={seed: 1}"]
)
def test_what_changes_the_numbers_is_evaluated_again(checkpoint: Path, engines: list[Any], setting: str):
    for settings in ([], ["--set", setting], ["--set", setting]):
        result = run("evaluate", checkpoint, "--limit", "1", "--steps", "0", *settings)
        assert result.exit_code == 0, result.output
    assert len(engines) == 2


def test_results_can_be_moved(tmp_path: Path, tiny_model: str, engines: list[Any]):
    weights = load_file(f"{tiny_model}/model.safetensors")
    write_checkpoint(tmp_path / "here" / "trial" / "checkpoint", make_config(tiny_model), weights)
    assert run("evaluate", tmp_path / "here", "--limit", "1", "--steps", "0").exit_code == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert "evaluated before" in run("evaluate", tmp_path / "there", "--limit", "1", "--steps", "0").output
    assert len(engines) == 1
    [file] = tmp_path.rglob("evaluation.json")
    assert str(tmp_path) not in file.read_text()
    assert read(file).checkpoint == str(tmp_path / "there" / "trial" / "checkpoint")


@pytest.mark.ray
def test_several_engines_share_the_work(checkpoint: Path, tmp_path: Path):
    """In processes of their own, with the same numbers as one engine in this process."""
    options = ["evaluate", str(checkpoint), "--baseline", "--steps", "1", "--limit", "3", "--seeds", "2"]
    script = "import sys\nfrom rllib_exit.cli.main import app\napp(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def with_many(env_runners: int) -> subprocess.CompletedProcess[str]:
        more = ["--output", str(tmp_path / "many"), "--env-runners", f"{env_runners}"]
        command = [sys.executable, "-c", script, *options, *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    too_many = with_many(1000)
    assert too_many.returncode == 1 and "1000 env runners need 1000 CPU and Ray has" in too_many.stderr
    many = with_many(2)
    assert many.returncode == 0, many.stderr
    assert run(*options, "--output", tmp_path / "one").exit_code == 0
    one, both = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "many"))
    assert one["splits"] == both["splits"]
    one, both = (pq.read_table(tmp_path / name / "evaluation.parquet").to_pylist() for name in ("one", "many"))
    assert one == both


class HangingEnv(DigitEnv):
    def respond(self, task: Task, response: str) -> Outcome:
        time.sleep(600)
        raise AssertionError


def test_an_environment_that_hangs_ends_the_evaluation(tmp_path: Path, tiny_model: str):
    config = make_config(tiny_model).environment(HangingEnv)
    path = write_checkpoint(tmp_path / "checkpoint", config, load_file(f"{tiny_model}/model.safetensors"))
    result = run("evaluate", path, "--limit", "1", "--set", "env_timeout_s=0.2")
    assert "'t0' failed twice" in message(result) and "did not answer within env_timeout_s" in message(result)


class SecondFailsEnv(HangingEnv):
    def respond(self, task: Task, response: str) -> Outcome:
        if task.id == "t1":
            raise ZeroDivisionError("a bug")
        return super().respond(task, response)


def test_the_first_failure_ends_the_evaluation_whichever_task_it_is_of(tmp_path: Path, tiny_model: str):
    config = make_config(tiny_model).environment(SecondFailsEnv)
    path = write_checkpoint(tmp_path / "checkpoint", config, load_file(f"{tiny_model}/model.safetensors"))
    assert "'t1' failed twice: ZeroDivisionError" in message(run("evaluate", path, "--limit", "2"))


def test_trials_of_one_run_count_once(tmp_path: Path, tiny_model: str):
    config = make_config(tiny_model)
    weights = load_file(f"{tiny_model}/model.safetensors")
    params = {"strategy": "exit", "seed": 0, "lr": 1e-5}
    for trial, lr in (("first", 1e-5), ("resumed", 1e-5), ("other", 1e-6)):
        write_checkpoint(tmp_path / "experiment" / trial / "checkpoint", config, weights)
        (tmp_path / "experiment" / trial / "params.json").write_text(json.dumps(params | {"lr": lr}))
    assert [path.parent.name for path in find_checkpoints(tmp_path)] == ["other", "resumed"]


def test_evaluate_loads_the_trained_weights_in_the_engines_dtype(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    updates = []

    async def update_weights(self: Any, files: list[list[np.ndarray]]) -> float:
        updates.append(files)
        return 0.0

    monkeypatch.setattr(ScriptedGenerator, "update_weights", update_weights)
    assert run("evaluate", checkpoint).exit_code == 0
    [[[update]]] = updates
    assert update.dtype == np.uint8
    assert update.tobytes() == load_weights(checkpoint).tobytes()
    [[half]] = cast(update, "bfloat16")
    assert 0.4 < len(half) / len(update) < 0.6
