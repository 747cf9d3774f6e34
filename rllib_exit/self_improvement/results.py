"""What ``rllib evaluate`` leaves: ``evaluation.json`` with the numbers, ``evaluation.parquet`` with every step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from envs.base import Task
from rllib_exit.chat import replace_surrogates
from rllib_exit.files import write_whole
from rllib_exit.self_improvement.chain import Chain
from rllib_exit.self_improvement.curves import Curve

JSON, PARQUET, FIGURE = "evaluation.json", "evaluation.parquet", "self_improvement.png"
OFFICIAL = "official"
# The policies that are compared: the model before training, and the checkpoint.
BASELINE, TRAINED = "baseline", "trained"
# The name of the tasks of all the splits of an evaluation together.
ALL = "all"

SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("policy", pa.string()),
        ("seed", pa.int32()),
        ("task_id", pa.string()),
        ("step", pa.int32()),
        ("quality", pa.float64()),
        # Of every turn the last iterate, which was executed.
        ("responses", pa.list_(pa.string())),
        ("metrics", pa.map_(pa.string(), pa.float64())),
    ]
)

# By policy, the chains of every seed; None for a task that does not fit the context.
Chains = Mapping[str, Sequence[Sequence[Chain | None]]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One checkpoint's evaluation.

    Attributes:
        checkpoint: Where the checkpoint lay.
        iteration: How many iterations it was trained.
        run: What was trained: ``strategy``, ``seed``, ``model``, ``env`` and ``env_config``.
        settings: What the numbers depend on besides, the sampling for one.
        env_configs: By split, the environment's options.
        curves: By split and policy.
        versions: The versions that made it.
    """

    checkpoint: str
    iteration: int
    run: Mapping[str, Any]
    settings: Mapping[str, Any]
    env_configs: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, Mapping[str, Curve]]
    versions: Mapping[str, str]

    def pooled(self) -> dict[str, Curve]:
        """By policy, the curve of the tasks of all splits together."""
        policies = next(iter(self.curves.values()))
        return {policy: Curve.pooled([split[policy] for split in self.curves.values()]) for policy in policies}

    def same_work(self, other: Evaluation) -> bool:
        """Whether the other one measures the same thing."""
        names = ("checkpoint", "iteration", "run", "settings", "env_configs")
        return all(_plain(getattr(self, name)) == _plain(getattr(other, name)) for name in names)


def fitting(chains_by_seed: Sequence[Sequence[Chain | None]]) -> list[list[Chain]]:
    """The chains of the tasks that fit the context."""
    return [[chain for chain in chains if chain is not None] for chains in chains_by_seed]


def write(directory: Path, evaluation: Evaluation, chains: Mapping[str, Chains]) -> None:
    """Writes both files; the JSON one last, so that it stands for a whole evaluation.

    Args:
        directory: Made if need be.
        evaluation: The numbers.
        chains: By split.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "split": split,
            "policy": policy,
            "seed": seed,
            "task_id": replace_surrogates(chain.task_id),
            "step": k,
            "quality": quality,
            "responses": [replace_surrogates(turn.response) for turn in chain.turns[k]] if chain.turns else [],
            "metrics": list(chain.metrics[k].items()) if chain.metrics else [],
        }
        for split, policies in chains.items()
        for policy, chains_by_seed in policies.items()
        for seed, of_seed in enumerate(fitting(chains_by_seed))
        for chain in of_seed
        for k, quality in enumerate(chain.qualities)
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), directory / PARQUET, compression="zstd")
    data = {
        # Relative to the file, so that both can be moved together.
        "checkpoint": os.path.relpath(evaluation.checkpoint, directory),
        "iteration": evaluation.iteration,
        "run": evaluation.run,
        "settings": evaluation.settings,
        "versions": evaluation.versions,
        "splits": {
            split: {
                "env_config": evaluation.env_configs[split],
                "results": {policy: curve.to_json() for policy, curve in policies.items()},
            }
            for split, policies in evaluation.curves.items()
        },
    }
    write_whole(directory / JSON, (json.dumps(data, indent=1, default=str) + "\n").encode())


def read(file: Path) -> Evaluation:
    """Reads an ``evaluation.json``.

    Raises:
        ValueError: If it is none.
    """
    try:
        data = json.loads(file.read_text())
        return Evaluation(
            checkpoint=os.path.normpath(file.absolute().parent / data["checkpoint"]),
            iteration=data["iteration"],
            run=data["run"],
            settings=data["settings"],
            env_configs={split: of_split["env_config"] for split, of_split in data["splits"].items()},
            curves={
                split: {policy: Curve.from_json(curve) for policy, curve in of_split["results"].items()}
                for split, of_split in data["splits"].items()
            },
            versions=data["versions"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{file} is no evaluation of this version of rllib-exit ({type(error).__name__}: {error}): evaluate again"
        ) from error


@runtime_checkable
class HasOfficialFormat(Protocol):
    """An environment of a benchmark with tools of its own, which read the policy's episodes from files.

    It reports their verdict as the metric ``official_accuracy``.

    Attributes:
        tasks: By id.
    """

    tasks: Mapping[str, Task]

    def official_result(self, task: Task, responses: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
        """Where an episode belongs, a path relative to a directory of results, and its row in that JSONL file.

        Raises:
            ValueError: If the benchmark does not know such episodes.
        """
        ...


def write_official(directory: Path, envs: Mapping[str, HasOfficialFormat]) -> list[Path]:
    """Writes the first answers of an evaluation, and those after K steps, for the benchmark's own tools.

    Args:
        directory: Where :func:`write` wrote.
        envs: By split.

    Returns:
        The directories of results, one for each split, policy, seed and step: ``official/SPLIT/POLICY/seed_S/step_K``.
    """
    rows = pq.read_table(directory / PARQUET).to_pylist()
    last = max(row["step"] for row in rows)
    places: dict[Path, None] = {}  # in order
    files: dict[Path, list[str]] = {}
    for row in rows:
        if row["step"] in (0, last):
            place = directory / OFFICIAL / row["split"] / row["policy"] / f"seed_{row['seed']}" / f"step_{row['step']}"
            env = envs[row["split"]]
            name, result = env.official_result(env.tasks[row["task_id"]], row["responses"])
            places[place] = None
            files.setdefault(place / name, []).append(json.dumps(result) + "\n")
    for file, lines in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, "".join(lines).encode())
    return list(places)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
