from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem

from envs.base import TaskInstance, Turn
from rllib_exit.cli.trackers import LONGEST_TEXT, described, make_trackers, samples, self_improvement
from rllib_exit.rollout_log import RolloutLog
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup
from tests.cli.helpers import DigitEnv, message, run


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_before_anything_starts(name: str, file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, name, None)
    said = message(run("train", "file", file, f"--{name}", "mine", "--scale", "cpu"))
    assert f"--{name} needs {name}, which is missing: run `pip install 'rllib-exit[{name}]'`" in said


@pytest.mark.usefixtures("no_ray")
def test_what_a_tracker_lacks_is_told_before_anything_starts(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "--wandb mine: No WandB API key found" in message(run("train", "file", file, "--wandb", "mine"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    assert "--mlflow mine: " in message(run("train", "file", file, "--mlflow", "mine"))


def test_of_a_config_numbers_and_short_texts_are_logged():
    config = {"lr": 1e-5, "env": DigitEnv, "env_config": {"data": ["row"] * 500, "limit": None}, "stop": ("</tool>",)}
    found = described(config)
    assert found.pop("env_config/data").startswith("['row', 'row'") and len(repr(config)) > LONGEST_TEXT
    assert found == {"lr": 1e-5, "env": "DigitEnv", "env_config/limit": None, "stop": "('</tool>',)"}


def write_rollouts(directory: Path) -> None:
    log = RolloutLog(directory / "rollouts")
    groups = []
    for group_id in "abcdef":
        rollouts = tuple(Rollout((), (Turn(f"{group_id} {value}"),), value, value) for value in (0.5, 0.0, 1.0))
        group = RolloutGroup(RolloutRequest(group_id, TaskInstance("t")), rollouts)
        groups.append(ScoredGroup(group, np.array([0.0, -1.0, 1.0])))
    log.write(1, groups)


def fake_trial(directory: Path) -> Any:
    return SimpleNamespace(storage=SimpleNamespace(trial_fs_path=str(directory), storage_filesystem=LocalFileSystem()))


def test_the_best_and_the_worst_rollout_of_some_groups_are_samples(tmp_path: Path):
    write_rollouts(tmp_path)
    rows = samples(fake_trial(tmp_path), 1)
    assert [row["response"] for row in rows] == [f"{group} {value}" for group in "abcd" for value in (1.0, 0.0)]
    assert rows[0]["advantage"] == 1 and rows[0]["task_id"] == "t" and rows[0]["kind"] == "base"
    assert samples(fake_trial(tmp_path), 2) == []


def evaluation(*accuracies: float) -> dict[str, Any]:
    by_step = {f"step_{k}": value for k, value in enumerate(accuracies)}
    return {"accuracy": by_step, "net_corrections": {name: 2.0 for name in by_step}}


def test_the_table_compares_the_first_and_the_last_whole_evaluation():
    table = self_improvement(
        [(2, evaluation(0.1)), (4, evaluation(0.2, 0.3)), (6, evaluation(0.5, 0.7)), (8, evaluation(0.6))]
    )
    assert table == [
        {"step": 0, "accuracy, iteration 4": 0.2, "accuracy at the end, iteration 6": 0.5, "net corrections": 2.0},
        {"step": 1, "accuracy, iteration 4": 0.3, "accuracy at the end, iteration 6": 0.7, "net corrections": 2.0},
    ]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_both_trackers_log_config_curves_samples_and_the_final_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mlflow.tracking import MlflowClient
    from ray import tune

    class Trained(tune.Trainable):
        """Reports what GRPO does."""

        def step(self) -> dict[str, Any]:
            accuracy = evaluation(0.25, 0.5 + 0.125 * self.iteration)
            return {"rollouts": {"return_mean": 0.5 * self.iteration}, "evaluation": accuracy, "warning": "text"}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

    def make_directory(trial: Any) -> str:
        write_rollouts(tmp_path / "run" / "trial")
        return "trial"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    tune.run(
        Trained,
        name="run",
        storage_path=str(tmp_path),
        trial_dirname_creator=make_directory,
        config={"lr": 1e-5, "env": DigitEnv, "env_config": {"data": ["row"] * 9999}},
        stop={"training_iteration": 2},
        verbose=0,
        callbacks=make_trackers(wandb="mine", mlflow="mine"),
    )

    client: Any = MlflowClient(store)
    [tracked] = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert tracked.info.status == "FINISHED" and tracked.data.params["lr"] == "1e-05"
    assert tracked.data.params["env"] == "DigitEnv" and len(tracked.data.params["env_config/data"]) <= LONGEST_TEXT + 1
    curve = client.get_metric_history(tracked.info.run_id, "rollouts/return_mean")
    assert [(point.step, point.value) for point in curve] == [(1, 0.0), (2, 0.5)]
    assert not any(name.startswith("config") for name in tracked.data.metrics)
    tables = {
        file.path: client.download_artifacts(tracked.info.run_id, file.path)
        for file in client.list_artifacts(tracked.info.run_id)
    }
    assert set(tables) == {"rollouts-000001.json", "self_improvement-000002.json"}
    assert "a 1.0" in Path(tables["rollouts-000001.json"]).read_text()
    assert json.loads(Path(tables["self_improvement-000002.json"]).read_text())["data"][1][1:3] == [0.5, 0.625]

    [offline] = (tmp_path / "run" / "trial" / "wandb").glob("offline-run-*")
    tables = {file.name.split("_")[0]: json.loads(file.read_text()) for file in offline.rglob("*.table.json")}
    assert set(tables) == {"rollouts", "self"}
    assert "a 1.0" in tables["rollouts"]["data"][0]
    assert tables["self"]["data"][1][1:3] == [0.5, 0.625]
    [records] = offline.glob("*.wandb")
    written = records.read_bytes()
    assert b"rollouts/return_mean" in written and b"DigitEnv" in written
