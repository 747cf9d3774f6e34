"""A log of every rollout: one Parquet file per iteration, which says what came from what.

A turn's id is the digest of the instance that ends in it, and an instance's id is its digest (see
:attr:`envs.base.TaskInstance.digest`). So a rollout descends from the one that wrote the turn with its instance's id:
the log holds the lineage, and nothing else has to remember it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, LocalFileSystem

from envs.base import Task, Turn, prefix_digests
from rllib_exit.chat import replace_surrogates
from rllib_exit.rollouts import RolloutGroup, ScoredGroup

_TURN = pa.struct(
    [("response", pa.string()), ("feedback", pa.string()), ("quality", pa.float64()), ("depth", pa.int32())]
)
SCHEMA = pa.schema(
    [
        ("iteration", pa.int32()),
        ("policy_version", pa.int64()),
        ("group_id", pa.string()),
        ("g", pa.int32()),
        ("task_id", pa.string()),
        ("kind", pa.string()),
        ("starting_turn", pa.int32()),
        ("depth", pa.int32()),
        ("instance_id", pa.string()),
        ("iterate", _TURN),
        ("turns", pa.list_(_TURN)),
        ("turn_ids", pa.list_(pa.string())),
        ("return", pa.float64()),
        ("quality", pa.float64()),
        ("advantage", pa.float64()),
        ("valid", pa.bool_()),
        ("truncated", pa.bool_()),
        ("response_tokens", pa.int32()),
        ("metrics", pa.map_(pa.string(), pa.float64())),
    ]
)


# The prompts of the base tasks by id, as JSON beside the iterations' files.
TASKS = "tasks.json"


class RolloutLog:
    """Writes the log.

    Args:
        directory: Where the files go. It is made if it is missing.
        filesystem: The file system that holds the directory; by default this machine's.
    """

    def __init__(self, directory: str | Path, filesystem: FileSystem | None = None) -> None:
        self._directory = Path(directory).as_posix()
        self._filesystem = filesystem or LocalFileSystem()
        self._filesystem.create_dir(self._directory)

    @classmethod
    def of_trial(cls, logdir: str, storage: Any, tasks: Iterable[Task]) -> RolloutLog:
        """The log in a trial's directory, with the prompts of its tasks.

        Args:
            logdir: The directory, where there is no storage.
            storage: Tune's StorageContext, which may be a bucket; None without Tune.
            tasks: The base tasks.
        """
        if storage is None:
            log = cls(Path(logdir) / "rollouts")
        else:
            log = cls(Path(storage.trial_fs_path) / "rollouts", storage.storage_filesystem)
        log.write_tasks({task.id: task.prompt for task in tasks})
        return log

    def write_tasks(self, prompts: Mapping[str, str]) -> None:
        """Writes the prompts of the base tasks, by task id."""
        text = json.dumps({replace_surrogates(name): replace_surrogates(text) for name, text in prompts.items()})
        with self._filesystem.open_output_stream(f"{self._directory}/{TASKS}") as stream:
            stream.write(text.encode())

    def write(self, iteration: int, groups: Sequence[ScoredGroup]) -> None:
        """Writes an iteration's file, whole or not at all; a file of that iteration is replaced.

        Args:
            iteration: Its number, counted from 1.
            groups: The iteration's groups.
        """
        rows = [
            _row(iteration, scored.group, g, float(advantage))
            for scored in groups
            for g, advantage in zip(range(len(scored.group.rollouts)), scored.advantages_G, strict=True)
        ]
        name = f"iteration-{iteration:06d}.parquet"
        staging = f"{self._directory}/.{name}.tmp"
        with self._filesystem.open_output_stream(staging) as stream:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), stream, compression="zstd")
        self._filesystem.move(staging, f"{self._directory}/{name}")


def _row(iteration: int, group: RolloutGroup, g: int, advantage: float) -> dict[str, Any]:
    instance, rollout = group.request.instance, group.rollouts[g]
    return {
        "iteration": iteration,
        "policy_version": group.policy_version,
        "group_id": group.request.group_id,
        "g": g,
        "task_id": replace_surrogates(instance.task_id),
        "kind": instance.kind,
        "starting_turn": instance.starting_turn,
        "depth": instance.depth,
        "instance_id": instance.digest,
        "iterate": _turn(instance.iterate) if instance.iterate else None,
        "turns": [_turn(turn) for turn in rollout.turns],
        "turn_ids": prefix_digests(instance.task_id, rollout.turns)[1:],
        "return": rollout.return_,
        "quality": rollout.quality,
        "advantage": advantage,
        "valid": rollout.valid,
        "truncated": rollout.truncated,
        "response_tokens": rollout.num_response_tokens,
        "metrics": [(replace_surrogates(name), float(value)) for name, value in rollout.metrics.items()],
    }


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "response": replace_surrogates(turn.response),
        "feedback": None if turn.feedback is None else replace_surrogates(turn.feedback),
        "quality": turn.quality,
        "depth": turn.depth,
    }


Row = dict[str, Any]


class LoggedRollouts:
    """Reads the log of a run.

    Where there are several logs under the directories, as after a resumed run, an iteration is taken from the last
    written log that begins before or with it.

    Args:
        directories: Directories of logs, or above logs, of one run.

    Attributes:
        files: The files by iteration, in order.

    Raises:
        FileNotFoundError: If there is no log.
    """

    def __init__(self, *directories: Path) -> None:
        logs: dict[Path, dict[int, Path]] = defaultdict(dict)
        for directory in directories:
            for file in directory.rglob("iteration-*.parquet"):
                if (number := file.stem.removeprefix("iteration-")).isdecimal():
                    logs[file.parent][int(number)] = file
        if not logs:
            raise FileNotFoundError(
                f"{', '.join(map(str, directories))} has no log of rollouts: train with --log-rollouts, and name the "
                "run's directory"
            )
        files: dict[int, Path] = {}
        for log in sorted(logs.values(), key=_last_written, reverse=True):
            first = min(files, default=math.inf)
            files |= {iteration: file for iteration, file in log.items() if iteration < first}
        self.files = dict(sorted(files.items()))

    def prompts(self) -> dict[str, str]:
        """The prompts of the base tasks by id, as the newest log has them; empty if none has.

        Raises:
            ValueError: If the file is damaged.
        """
        for directory in dict.fromkeys(file.parent for file in reversed(self.files.values())):
            if (directory / TASKS).is_file():
                prompts = json.loads((directory / TASKS).read_text())
                if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
                    raise ValueError(f"{directory / TASKS} is damaged: it must be an object of texts")
                return prompts
        return {}

    def read(
        self,
        where: ds.Expression | None = None,
        *,
        iteration: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> list[Row]:
        """The rollouts for which a condition holds, in the order in which they were written.

        Args:
            where: The condition, over :data:`SCHEMA`'s columns.
            iteration: The only iteration to look into; by default all of them.
            columns: The columns to read; by default all of them.

        Raises:
            ValueError: If the log has no such iteration, or a file is damaged.
        """
        if iteration is not None and iteration not in self.files:
            raise ValueError(f"the log has no iteration {iteration}: it has {min(self.files)} to {max(self.files)}")
        files = list(self.files.values()) if iteration is None else [self.files[iteration]]
        dataset = ds.dataset([str(file) for file in files], SCHEMA, format="parquet")
        return dataset.to_table(columns and list(columns), filter=where).to_pylist()

    def rollout(self, group_id: str, g: int, *, iteration: int | None = None) -> Row:
        """One rollout, which is found sooner if its iteration is known.

        Raises:
            ValueError: If the log does not have it.
        """
        rows = self.read((ds.field("group_id") == group_id) & (ds.field("g") == g), iteration=iteration)
        if not rows:
            raise ValueError(f"the log has no rollout {group_id}/{g}")
        return rows[0]

    def lineage(self, rollout: Row) -> tuple[list[Row], list[Row]]:
        """Where a rollout comes from and what came of it.

        Where several rollouts wrote the same iterate, the first of them counts.

        Returns:
            The parent, its parent and so on, as far as the log goes; and the children. Both without texts.
        """
        columns = [name for name in SCHEMA.names if name not in ("iterate", "turns", "metrics")]
        rows = self.read(ds.field("task_id") == rollout["task_id"], columns=columns)
        writers: dict[str, list[tuple[int, Row]]] = defaultdict(list)  # by turn id: the depth there, and the rollout
        for row in rows:
            if row["valid"] and not row["truncated"]:  # no other rollout enters the task buffer
                first = row["depth"] + 1 if row["kind"] != "base" else 0
                for i, turn_id in enumerate(row["turn_ids"][row["starting_turn"] :]):
                    writers[turn_id].append((first if i == 0 else 0, row))

        def parent(child: Row) -> Row | None:
            for depth, row in writers[child["instance_id"]]:
                if row["iteration"] < child["iteration"] and (child["kind"] == "base" or child["depth"] == depth):
                    return row
            return None

        ancestors, row = [], rollout
        while row := parent(row):
            ancestors.append(row)
        written, name = rollout["turn_ids"][rollout["starting_turn"] :], (rollout["group_id"], rollout["g"])
        children = [
            child
            for child in rows
            if child["instance_id"] in written and (p := parent(child)) and (p["group_id"], p["g"]) == name
        ]
        return ancestors, children


def _last_written(log: dict[int, Path]) -> int:
    return max(file.stat().st_mtime_ns for file in log.values())
