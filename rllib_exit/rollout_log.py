"""A log of every rollout: Parquet files per iteration, which say what came from what.

``iteration-*`` has a row for each rollout, with its texts; ``tokens-*``, if asked for, one for each of its segments;
``buffer-*`` one for each instance of the task buffer after the iteration.

A turn's id is the digest of the instance that ends in it, and an instance's id is its digest (see
:attr:`envs.base.TaskInstance.digest`). So a rollout descends from the one that wrote the turn with its instance's id:
the log holds the lineage, and nothing else has to remember it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, LocalFileSystem

from envs.base import SelfImprovementEnv, Turn, prefix_digests
from rllib_exit.chat import replace_surrogates
from rllib_exit.curriculum.exit import CurriculumConfig, ExIt
from rllib_exit.curriculum.learnability import group_score
from rllib_exit.rollouts import ScoredGroup, SegmentKey
from rllib_exit.settings import ReportingSettings

Row = dict[str, Any]
_TEXTS = ("prompt", "gold", "iterate", "turns", "metrics")
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
        ("prompt", pa.string()),
        ("gold", pa.string()),
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
        ("plain_advantage", pa.float64()),
        ("diversity", pa.float64()),
        ("learnability", pa.float64()),
        ("group_size", pa.int32()),
        ("group_dropped", pa.int32()),
        ("group_return_mean", pa.float64()),
        ("group_return_std", pa.float64()),
        ("group_quality_mean", pa.float64()),
        ("valid", pa.bool_()),
        ("truncated", pa.bool_()),
        ("response_tokens", pa.int32()),
        ("metrics", pa.map_(pa.string(), pa.float64())),
    ]
)
TOKENS_SCHEMA = pa.schema(
    [
        ("group_id", pa.string()),
        ("g", pa.int32()),
        ("segment", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("logprobs", pa.list_(pa.float32())),
        ("learner_logprobs", pa.list_(pa.float32())),
    ]
)
BUFFER_SCHEMA = pa.schema(
    [
        ("iteration", pa.int32()),
        ("instance_id", pa.string()),
        ("task_id", pa.string()),
        ("starting_turn", pa.int32()),
        ("depth", pa.int32()),
        ("score", pa.float64()),
        ("measured", pa.bool_()),
        ("draws", pa.int64()),
    ]
)
TOKENIZER = "tokenizer.json"
# So few that a reader gets one rollout's texts or tokens without those of many others, and so many that it gets the
# numbers of a whole log soon: each group of rows costs it time.
_ROW_GROUPS = {"iteration": 256, "tokens": 64}


class RolloutLog:
    """Writes the log.

    Args:
        directory: Where the files go. It is made if it is missing.
        filesystem: The file system that holds the directory; by default this machine's.
        env: Has the tasks' prompts and gold answers; None leaves these columns empty.
        tokenizer: The directory of the model, whose tokenizer makes texts of the tokens; None logs no tokens.
    """

    def __init__(
        self,
        directory: str | Path,
        filesystem: FileSystem | None = None,
        *,
        env: SelfImprovementEnv | None = None,
        tokenizer: Path | None = None,
    ) -> None:
        self._directory = Path(directory).as_posix()
        self._filesystem = filesystem or LocalFileSystem()
        self._env = env
        self._with_tokens = tokenizer is not None
        self._filesystem.create_dir(self._directory)
        if tokenizer is not None and (file := tokenizer / TOKENIZER).is_file():
            with self._filesystem.open_output_stream(f"{self._directory}/{TOKENIZER}") as stream:
                stream.write(file.read_bytes())

    @classmethod
    def of_trial(cls, config: Any, logdir: str, storage: Any, env: SelfImprovementEnv) -> RolloutLog | None:
        """The log in a trial's directory; None if the settings ask for none.

        Args:
            config: The run's config.
            logdir: The directory, where there is no storage.
            storage: Tune's StorageContext, which may be a bucket; None without Tune.
            env: The environment.
        """
        settings = ReportingSettings.of(config)
        if not settings.log_rollouts:
            return None
        directory, filesystem = Path(logdir), None
        if storage is not None:
            directory, filesystem = Path(storage.trial_fs_path), storage.storage_filesystem
        tokenizer = Path(config.model_path) if settings.log_tokens else None
        return cls(directory / "rollouts", filesystem, env=env, tokenizer=tokenizer)

    def write(
        self,
        iteration: int,
        groups: Sequence[ScoredGroup],
        curriculum: ExIt | None = None,
        logprobs: Mapping[SegmentKey, np.ndarray] = MappingProxyType({}),
    ) -> None:
        """Writes an iteration's files, each whole or not at all; files of that iteration are replaced.

        Args:
            iteration: Its number, counted from 1.
            groups: The iteration's groups.
            curriculum: Has the task buffer, and says what learnability is measured by: by default the variance.
            logprobs: The learners', by segment: (T,), NaN where they computed none. Not all segments need to be there.
        """
        if self._with_tokens:
            self._write(f"tokens-{iteration:06d}", _tokens(groups, logprobs), _ROW_GROUPS["tokens"])
        if curriculum is not None:
            self._write(f"buffer-{iteration:06d}", _buffer(iteration, curriculum))
        config = curriculum.config if curriculum is not None else CurriculumConfig()
        rows = [row for scored in groups for row in self._rows(iteration, scored, config)]
        self._write(f"iteration-{iteration:06d}", pa.Table.from_pylist(rows, SCHEMA), _ROW_GROUPS["iteration"])

    def _write(self, name: str, table: pa.Table, row_group_size: int | None = None) -> None:
        staging = f"{self._directory}/.{name}.tmp"
        with self._filesystem.open_output_stream(staging) as stream:
            pq.write_table(table, stream, compression="zstd", row_group_size=row_group_size)
        self._filesystem.move(staging, f"{self._directory}/{name}.parquet")

    def _rows(self, iteration: int, scored: ScoredGroup, config: CurriculumConfig) -> list[Row]:
        group, instance = scored.group, scored.group.request.instance
        prompt, gold = None, None
        if self._env is not None:
            task = self._env.tasks[instance.task_id]
            prompt, gold = replace_surrogates(task.prompt), _text(self._env.gold(task))
        of_group = {
            "iteration": iteration,
            "policy_version": group.policy_version,
            "group_id": group.request.group_id,
            "task_id": replace_surrogates(instance.task_id),
            "prompt": prompt,
            "gold": gold,
            "kind": instance.kind,
            "starting_turn": instance.starting_turn,
            "depth": instance.depth,
            "instance_id": instance.digest,
            "iterate": _turn(instance.iterate) if instance.iterate else None,
            "learnability": group_score(group, config.learnability, config.learnability_of),
            "group_size": len(group.rollouts),
            "group_dropped": group.num_dropped,
            "group_return_mean": group.returns_G.mean(),
            "group_return_std": group.returns_G.std(),
            "group_quality_mean": group.qualities_G.mean(),
        }
        return [
            {
                **of_group,
                "g": g,
                "turns": [_turn(turn) for turn in rollout.turns],
                "turn_ids": prefix_digests(instance.task_id, rollout.turns)[1:],
                "return": rollout.return_,
                "quality": rollout.quality,
                "advantage": float(advantage),
                "plain_advantage": float(plain),
                "diversity": None if scored.diversity_G is None else float(scored.diversity_G[g]),
                "valid": rollout.valid,
                "truncated": rollout.truncated,
                "response_tokens": rollout.num_response_tokens,
                "metrics": [(replace_surrogates(name), float(value)) for name, value in rollout.metrics.items()],
            }
            for g, (rollout, advantage, plain) in enumerate(
                zip(group.rollouts, scored.advantages_G, scored.plain_advantages_G, strict=True)
            )
        ]


def _tokens(groups: Sequence[ScoredGroup], logprobs: Mapping[SegmentKey, np.ndarray]) -> pa.Table:
    segments = {
        (scored.group.request.group_id, g, s): segment
        for scored in groups
        for g, rollout in enumerate(scored.group.rollouts)
        for s, segment in enumerate(rollout.segments)
    }
    keys = list(segments)
    ends = np.cumsum([0, *(len(segment.token_ids) for segment in segments.values())])

    def lists(values: Sequence[np.ndarray], kind: pa.DataType, missing: np.ndarray | None = None) -> pa.Array:
        flat = np.concatenate(values) if values else np.empty(0)
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat, kind, mask=missing))

    masks = [segment.loss_mask for segment in segments.values()]
    outside = ~np.concatenate(masks) if masks else np.empty(0, bool)
    of_learner = [logprobs.get(key, np.full(len(mask), np.nan)) for key, mask in zip(keys, masks, strict=True)]
    unknown = np.isnan(np.concatenate(of_learner)) if masks else outside
    columns = [
        pa.array([key[0] for key in keys], pa.string()),
        pa.array([key[1] for key in keys], pa.int32()),
        pa.array([key[2] for key in keys], pa.int32()),
        lists([segment.token_ids for segment in segments.values()], pa.int32()),
        lists(masks, pa.bool_()),
        lists([segment.logprobs for segment in segments.values()], pa.float32(), outside),
        lists(of_learner, pa.float32(), unknown),
    ]
    return pa.Table.from_arrays(columns, schema=TOKENS_SCHEMA)


def _buffer(iteration: int, curriculum: ExIt) -> pa.Table:
    state = curriculum.buffer.get_state()
    rows = [
        {
            "iteration": iteration,
            "instance_id": instance.digest,
            "task_id": replace_surrogates(instance.task_id),
            "starting_turn": instance.starting_turn,
            "depth": instance.depth,
            "score": score,
            "measured": measured,
            "draws": draws,
        }
        for instance, score, measured, draws in zip(
            state["instances"], *(state[name].tolist() for name in ("scores", "measured", "draws")), strict=True
        )
    ]
    return pa.Table.from_pylist(rows, BUFFER_SCHEMA)


def _text(text: str | None) -> str | None:
    return None if text is None else replace_surrogates(text)


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "response": replace_surrogates(turn.response),
        "feedback": _text(turn.feedback),
        "quality": turn.quality,
        "depth": turn.depth,
    }


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
        """The prompts of the base tasks that were rolled out, by id; empty if the log has none."""
        rows = self.read((ds.field("g") == 0) & ds.field("prompt").is_valid(), columns=["task_id", "prompt"])
        return {row["task_id"]: row["prompt"] for row in rows}

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

        Returns:
            The parent, its parent and so on, as far as the log goes; and the children. Both without texts.
        """
        rows, parents = self.family(rollout["task_id"])
        ancestors, row = [], rollout
        while row := parents.get(row["group_id"]):
            ancestors.append(row)
        name = rollout["group_id"], rollout["g"]
        parent_names = {group: (parent["group_id"], parent["g"]) for group, parent in parents.items()}
        return ancestors, [row for row in rows if parent_names.get(row["group_id"]) == name]

    def family(self, task_id: str) -> tuple[list[Row], dict[str, Row]]:
        """The rollouts of a task, and what came from what.

        Where several rollouts wrote the same iterate, the first of them counts.

        Returns:
            The rollouts, without texts; and by group the rollout that wrote what the group starts from, as far as the
            log goes. A group of the base task has none.
        """
        columns = [name for name in SCHEMA.names if name not in _TEXTS]
        rows = self.read(ds.field("task_id") == task_id, columns=columns)
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

        groups = {row["group_id"]: row for row in rows}
        return rows, {name: found for name, row in groups.items() if (found := parent(row))}


def _last_written(log: dict[int, Path]) -> int:
    return max(file.stat().st_mtime_ns for file in log.values())
