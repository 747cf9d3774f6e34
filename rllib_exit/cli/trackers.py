"""``--wandb`` and ``--mlflow``: Ray's own trackers, which also get samples of the rollouts and the K-step table.

Imports Ray.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from ray.tune.logger import LoggerCallback
from ray.tune.utils import flatten_dict

# Samples are logged of the first iteration and of every so many: the best and the worst of so many groups.
SAMPLE_EVERY, SAMPLED_GROUPS = 10, 4
# A setting's longest text: a config may hold a whole data set, which is not the tracker's.
LONGEST_TEXT = 500

Table = list[dict[str, Any]]


def make_trackers(*, wandb: str | None = None, mlflow: str | None = None) -> list[LoggerCallback]:
    """The trackers of a run, ready for it.

    Args:
        wandb: The project, if Weights & Biases is to track it.
        mlflow: The experiment, if MLflow is to track it.

    Raises:
        ValueError: If one cannot be reached, or has no credentials.
    """
    made: list[LoggerCallback] = []
    for name, project in {"wandb": wandb, "mlflow": mlflow}.items():
        if project is None:
            continue
        try:
            tracker = _wandb_tracker(project) if name == "wandb" else _mlflow_tracker(project)
            tracker.setup()
        except Exception as error:
            raise ValueError(f"--{name} {project}: {error}") from error
        made.append(tracker)
    return made


def _wandb_tracker(project: str) -> LoggerCallback:
    import wandb
    from ray.air.integrations.wandb import WandbLoggerCallback

    class WandbTracker(_Tracker, WandbLoggerCallback):
        def log_trial_start(self, trial: Any) -> None:
            directory = Path(trial.path)  # Ray's own would be a temporary one, which Tune copies before the end
            directory.mkdir(parents=True, exist_ok=True)
            self.kwargs["dir"] = str(directory)
            super().log_trial_start(trial)

        def log_table(self, trial: Any, name: str, rows: Table, iteration: int) -> None:
            columns: list[Any] = list(rows[0])
            table: Any = wandb.Table(columns=columns, data=[[row[column] for column in columns] for row in rows])
            WandbLoggerCallback.log_trial_result(self, 0, trial, {name: table, "training_iteration": iteration})

    # It runs in a worker, whose environment is that of the start of Ray.
    return WandbTracker(project=project, mode=os.environ.get("WANDB_MODE"))


def _mlflow_tracker(experiment: str) -> LoggerCallback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class MLflowTracker(_Tracker, MLflowLoggerCallback):
        def log_table(self, trial: Any, name: str, rows: Table, iteration: int) -> None:
            columns = {column: [row[column] for row in rows] for column in rows[0]}
            client: Any = self.mlflow_util._get_client()
            client.log_table(self._trial_runs[trial], columns, f"{name}-{iteration:06d}.json")

    return MLflowTracker(experiment_name=experiment)


if TYPE_CHECKING:
    _Base = LoggerCallback
else:
    _Base = object


class _Tracker(_Base):
    """Goes before one of Ray's trackers in a class's bases, and gives it what it does not log by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._evaluations: dict[Any, list[tuple[int, dict[str, Any]]]] = {}  # by trial: iterations and results

    def log_table(self, trial: Any, name: str, rows: Table, iteration: int) -> None:
        """Logs rows with the same keys."""
        raise NotImplementedError

    def log_trial_start(self, trial: Any) -> None:
        super().log_trial_start(_Described(trial))  # type: ignore[arg-type]

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        # The config is logged once. What is not a number, Ray's trackers leave out.
        super().log_trial_result(iteration, trial, {k: v for k, v in result.items() if k != "config"})
        done = result["training_iteration"]
        if (done == 1 or done % SAMPLE_EVERY == 0) and (rows := samples(trial, done)):
            self.log_table(trial, "rollouts", rows, done)
        if "accuracy" in result.get("evaluation", {}):
            self._evaluations.setdefault(trial, []).append((done, result["evaluation"]))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        if evaluations := self._evaluations.pop(trial, None):
            self.log_table(trial, "self_improvement", self_improvement(evaluations), evaluations[-1][0])
        super().log_trial_end(trial, failed)


class _Described:
    """A trial whose config has numbers and short texts alone."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial
        self.config = described(trial.config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def __str__(self) -> str:
        return str(self._trial)

    def __hash__(self) -> int:
        return hash(self._trial)

    def __eq__(self, other: object) -> bool:
        return self._trial == other


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as trackers can hold it: nested keys joined by slashes, and all but numbers as texts, cut if long."""
    described = {}
    for key, value in flatten_dict(dict(config)).items():
        text = value if isinstance(value, str) else value.__name__ if isinstance(value, type) else repr(value)
        cut = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
        described[str(key)] = value if isinstance(value, int | float | None) else cut
    return described


def samples(trial: Any, iteration: int) -> Table:
    """Of some of an iteration's groups the best and the worst rollout; empty if rollouts are not logged."""
    storage: Any = trial.storage
    directory = Path(storage.trial_fs_path) / "rollouts"
    try:
        file = (directory / f"iteration-{iteration:06d}.parquet").as_posix()
        rollouts = pq.read_table(file, filesystem=storage.storage_filesystem).to_pylist()
    except FileNotFoundError:
        return []
    groups: dict[str, list[dict[str, Any]]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout["group_id"], []).append(rollout)
    rows = []
    for group in list(groups.values())[:SAMPLED_GROUPS]:
        by_return = sorted(group, key=lambda rollout: rollout["return"])
        for rollout in (by_return[-1], by_return[0]):
            response = "\n".join(turn["response"] for turn in rollout["turns"][rollout["starting_turn"] :])
            columns = ("iteration", "task_id", "kind", "depth", "return", "quality", "advantage", "truncated")
            rows.append({**{column: rollout[column] for column in columns}, "response": response})
    return rows


def self_improvement(evaluations: Sequence[tuple[int, Mapping[str, Any]]]) -> Table:
    """By step of self-improvement the accuracy in the first and in the last evaluation that took the most steps."""
    most = max(len(evaluation["accuracy"]) for _, evaluation in evaluations)
    whole = [(iteration, evaluation) for iteration, evaluation in evaluations if len(evaluation["accuracy"]) == most]
    (first, before), (last, after) = whole[0], whole[-1]
    return [
        {
            "step": k,
            f"accuracy, iteration {first}": before["accuracy"][f"step_{k}"],
            f"accuracy at the end, iteration {last}": after["accuracy"][f"step_{k}"],
            "net corrections": after["net_corrections"][f"step_{k}"],
        }
        for k in range(most)
    ]
