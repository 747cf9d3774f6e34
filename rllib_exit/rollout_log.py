"""A log of every rollout: one Parquet file per iteration, which says what came from what.

A turn's id is a digest of the task and of the responses up to that turn. An instance's id is that of the last
response that it starts from. So a rollout descends from the one that wrote the turn with its instance's id: the
log holds the lineage, and nothing else has to remember it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, LocalFileSystem

from envs.base import TaskInstance, Turn
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


class RolloutLog:
    """Writes the log.

    Args:
        directory: Where the files go; made if need be.
        filesystem: That of the directory; by default this machine's.
    """

    def __init__(self, directory: str | Path, filesystem: FileSystem | None = None) -> None:
        self._directory = Path(directory).as_posix()
        self._filesystem = filesystem or LocalFileSystem()
        self._filesystem.create_dir(self._directory)

    def write(self, iteration: int, groups: Sequence[ScoredGroup]) -> None:
        """Writes an iteration's file, whole or not at all; one that is there is replaced.

        Args:
            iteration: Counted from 1.
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
        "instance_id": _instance_id(instance),
        "iterate": _turn(instance.iterate) if instance.iterate else None,
        "turns": [_turn(turn) for turn in rollout.turns],
        "turn_ids": _prefix_ids(instance.task_id, rollout.turns)[1:],
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


def _instance_id(instance: TaskInstance) -> str:
    turns = (*instance.history, *([instance.iterate] if instance.iterate else []))
    return _prefix_ids(instance.task_id, turns)[-1]


def _prefix_ids(task_id: str, turns: Iterable[Turn]) -> list[str]:
    """Of the task alone, then up to each turn: 64 bits in hexadecimal that are the same for the same content."""
    # JSON escapes lone surrogates, and its quotes tell two texts from one.
    digest = hashlib.blake2b(json.dumps(task_id).encode(), digest_size=8)
    ids = [digest.hexdigest()]
    for turn in turns:
        digest.update(json.dumps(turn.response).encode())
        ids.append(digest.hexdigest())
    return ids


Row = dict[str, Any]


class LoggedRollouts:
    """Reads the log of a run.

    Of several logs under the directories the last written one counts; the iterations before its first are taken from
    the one before, as where a run was resumed.

    Args:
        directories: A log's, or some above logs of one run.

    Attributes:
        files: By iteration, in order.

    Raises:
        FileNotFoundError: If there is no log.
    """

    def __init__(self, *directories: Path) -> None:
        logs: dict[Path, list[Path]] = defaultdict(list)
        for directory in directories:
            for file in directory.rglob("iteration-*.parquet"):
                logs[file.parent].append(file)
        if not logs:
            raise FileNotFoundError(
                f"{', '.join(map(str, directories))} has no log of rollouts: train with --log-rollouts, and name the "
                "run's directory"
            )
        files: dict[int, Path] = {}
        for log in sorted(logs.values(), key=lambda log: max(file.stat().st_mtime_ns for file in log), reverse=True):
            first = min(files, default=math.inf)
            files.update((i, file) for file in log if (i := int(file.stem.removeprefix("iteration-"))) < first)
        self.files = dict(sorted(files.items()))

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
            iteration: Look into this iteration alone.
            columns: What to read of them; by default everything.

        Raises:
            ValueError: If the log has no such iteration, or a file is damaged.
        """
        if iteration is not None and iteration not in self.files:
            raise ValueError(f"the log has no iteration {iteration}: it has {min(self.files)} to {max(self.files)}")
        files = list(self.files.values()) if iteration is None else [self.files[iteration]]
        dataset = ds.dataset([str(file) for file in files], SCHEMA, format="parquet")
        return dataset.to_table(columns and list(columns), filter=where).to_pylist()

    def rollout(self, group_id: str, g: int, *, iteration: int | None = None) -> Row:
        """One rollout; found sooner if its iteration is known.

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
        texts = ("iterate", "turns", "metrics")
        columns = [name for name in SCHEMA.names if name not in texts]
        rows = self.read(ds.field("task_id") == rollout["task_id"], columns=columns)
        writers: dict[str, list[tuple[int, Row]]] = defaultdict(list)
        for row in rows:
            if row["valid"] and not row["truncated"]:  # the others do not enter the task buffer
                for t in range(row["starting_turn"], len(row["turn_ids"])):
                    writers[row["turn_ids"][t]].append((t, row))

        def parent(child: Row) -> Row | None:
            for t, row in writers[child["instance_id"]]:
                iterated = t == row["starting_turn"] and row["kind"] != "base"
                depth = row["depth"] + 1 if iterated else 0
                if row["iteration"] < child["iteration"] and (child["kind"] == "base" or child["depth"] == depth):
                    return row
            return None

        ancestors: list[Row] = []
        row = parent(rollout)
        while row is not None:
            ancestors.append(row)
            row = parent(row)
        name = rollout["group_id"], rollout["g"]
        written = set(rollout["turn_ids"][rollout["starting_turn"] :])
        children = [
            row
            for row in rows
            if row["instance_id"] in written and (p := parent(row)) and (p["group_id"], p["g"]) == name
        ]
        return ancestors, children
