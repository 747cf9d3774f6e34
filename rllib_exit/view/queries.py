"""What the viewer asks of a log of rollouts, as values for JSON. It reads what training leaves, and writes nothing."""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from rllib_exit.rollout_log import SCHEMA, TOKENIZER, LoggedRollouts, Row

# What the list is filtered and sorted by stays in memory: a hundred bytes or so of each rollout, and none of its texts.
_HEAVY = ("prompt", "gold", "iterate", "turns", "turn_ids", "metrics")
LIGHT = [name for name in SCHEMA.names if name not in _HEAVY]
_SNIPPET = 240  # characters of a text in a list
_MAX_GROUPS = 2000  # of a task's lineage
_MAX_INSTANCES = 500  # of the task buffer, those of the highest score
_DEPTHS = 5  # depth 4 stands for all above


class Query(BaseModel):
    """Which rollouts, in which order, and which page of them."""

    model_config = ConfigDict(extra="forbid")

    first: int | None = Field(default=None, description="The first iteration.")
    last: int | None = Field(default=None, description="The last iteration.")
    task: str = Field(default="", description="A part of the task's id.")
    kind: Literal["", "base", "improve", "diverge"] = ""
    ending: Literal["", "valid", "invalid", "truncated"] = ""
    min_return: float | None = None
    max_return: float | None = None
    min_quality: float | None = None
    max_quality: float | None = None
    text: str = Field(default="", description="A part of a prompt, response or feedback, whatever its case.")
    sort: str = Field(default="iteration", description="A column of :data:`LIGHT`.")
    descending: bool = True
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=50, ge=1, le=500)

    def condition(self) -> ds.Expression:
        """All but the text, as a filter."""
        asked = [
            *(("iteration", ">=", self.first), ("iteration", "<=", self.last), ("kind", "==", self.kind or None)),
            *(("return", ">=", self.min_return), ("return", "<=", self.max_return)),
            *(("quality", ">=", self.min_quality), ("quality", "<=", self.max_quality)),
            ("valid", "==", {"valid": True, "invalid": False}.get(self.ending)),
            ("truncated", "==", {"valid": False, "truncated": True}.get(self.ending)),
        ]
        conditions = [pq.filters_to_expression([of]) for of in asked if of[2] is not None]
        if self.task:
            conditions.append(pc.match_substring(pc.field("task_id"), self.task))  # pyright: ignore[reportAttributeAccessIssue]
        return reduce(and_, conditions, pc.scalar(True))


class RunView:
    """A run's log as it is now; thread-safe.

    Args:
        directory: The run's, as :class:`LoggedRollouts` takes it.

    Raises:
        FileNotFoundError: If there is no log.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.RLock()
        self._stamps: dict[Path, int] = {}
        self._tables: dict[int, pa.Table] = {}
        self._buffers: dict[tuple[Path, int], dict[str, Any]] = {}
        self._found: OrderedDict[tuple[Path, int, str], pa.Array] = OrderedDict()
        self._table = pa.Table.from_pylist([], _light_schema())
        self.refresh()

    def refresh(self) -> Self:
        """Reads what has been written since, and forgets what is gone."""
        with self._lock:
            self.log = LoggedRollouts(self._directory)
            stamps = {file: file.stat().st_mtime_ns for file in self.log.files.values()}
            if stamps != self._stamps:
                changed = {i: file for i, file in self.log.files.items() if stamps[file] != self._stamps.get(file)}
                new = ds.dataset([str(file) for file in changed.values()], SCHEMA, format="parquet").to_table(LIGHT)
                # Files of one call stand one after the other, each with rows in its own order.
                sizes = [pq.read_metadata(file).num_rows for file in changed.values()]
                place = 0
                for (iteration, _), size in zip(changed.items(), sizes, strict=True):
                    numbers = pa.array(range(size), pa.int32())
                    self._tables[iteration] = new.slice(place, size).append_column("row", numbers)
                    place += size
                self._tables = {i: self._tables[i] for i in self.log.files}
                self._table = pa.concat_tables(self._tables.values()).combine_chunks()
                self._stamps = stamps
        return self

    # What the endpoints answer.

    def summary(self) -> dict[str, Any]:
        """The run, and a stamp that changes when its log does."""
        table, files = self._table, self.log.files
        directory = files[max(files)].parent
        return {
            "name": str(self._directory.name or self._directory.absolute()),
            "first": min(files),
            "last": max(files),
            "rollouts": len(table),
            "tasks": pc.count_distinct(table["task_id"]).as_py(),  # type: ignore[attr-defined]
            "stamp": f"{len(files)}-{max(self._stamps.values())}",
            "tokens": self._beside(max(files), "tokens").is_file(),
            "buffer": self._beside(max(files), "buffer").is_file(),
            "log": str(directory),
        }

    def rollouts(self, query: Query) -> dict[str, Any]:
        """A page of rollouts, each with the beginning of what it wrote first.

        Raises:
            ValueError: If there is no such column to sort by.
        """
        if query.sort not in LIGHT:
            raise ValueError(f"sort is {query.sort!r}: use one of {', '.join(LIGHT)}")
        table = self._table.filter(query.condition())
        if query.text:
            table = self._with_text(table, query.text)
        order = "descending" if query.descending else "ascending"
        keys = [(query.sort, order), *((name, "ascending") for name in ("iteration", "group_id", "g"))]
        keys = keys[:1] + [key for key in keys[1:] if key[0] != query.sort]
        indices = pc.sort_indices(table, keys)  # pyright: ignore[reportAttributeAccessIssue]
        page = table.take(indices.slice(query.offset, query.limit))
        rows = page.to_pylist()
        texts = self._texts(rows)
        shown = [
            {**row, "snippet": _snippet(texts[row["iteration"], row["row"]]["turns"][row["starting_turn"]]["response"])}
            for row in rows
        ]
        return {"total": len(table), "offset": query.offset, "rows": shown}

    def group(self, iteration: int, group_id: str) -> dict[str, Any]:
        """A group's rollouts with everything but their tokens.

        Raises:
            ValueError: If the log does not have it.
        """
        rows = self.log.read(ds.field("group_id") == group_id, iteration=iteration)
        if not rows:
            raise ValueError(f"iteration {iteration} has no group {group_id}")
        return {"rollouts": [{**row, "metrics": dict(row["metrics"] or [])} for row in rows]}

    def tokens(self, iteration: int, group_id: str) -> dict[str, Any]:
        """The segments of a group's rollouts: pieces of text, and for trained tokens what engine and learner say.

        A context, which is not trained on, is one piece; its probabilities are None.
        """
        file = self._beside(iteration, "tokens")
        if not file.is_file() or not (file.parent / TOKENIZER).is_file():
            return {"segments": None}
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file.parent / TOKENIZER))
        segments = ds.dataset(str(file), format="parquet").to_table(filter=ds.field("group_id") == group_id).to_pylist()
        return {
            "segments": [{"g": of["g"], "segment": of["segment"], "pieces": _pieces(tokenizer, of)} for of in segments]
        }

    def lineage(self, task_id: str) -> dict[str, Any]:
        """The groups of a task, each with the rollout that it descends from.

        Raises:
            ValueError: If the log has no such task.
        """
        rows, parents = self.log.family(task_id)
        if not rows:
            raise ValueError(f"the log has no task {task_id}")
        starts = self.log.read(
            (ds.field("task_id") == task_id) & (ds.field("g") == 0), columns=["group_id", "prompt", "gold", "iterate"]
        )
        texts = {row["group_id"]: row for row in starts}
        groups: dict[str, dict[str, Any]] = {}
        for row in rows:
            name = row["group_id"]
            if name not in groups:
                start, parent = texts.get(name, {}), parents.get(name)
                groups[name] = {
                    **{key: row[key] for key in ("group_id", "iteration", "kind", "starting_turn", "depth")},
                    "learnability": row["learnability"],
                    "iterate": _snippet((start.get("iterate") or {}).get("response")),
                    "parent": parent and {"group_id": parent["group_id"], "g": parent["g"]},
                    "rollouts": [],
                }
            groups[name]["rollouts"].append({key: row[key] for key in ("g", "quality", "return")})
        base = next((row for row in starts if row["prompt"] is not None), {})
        return {
            "task_id": task_id,
            "prompt": base.get("prompt"),
            "gold": base.get("gold"),
            "groups": list(groups.values())[:_MAX_GROUPS],
            "left_out": max(0, len(groups) - _MAX_GROUPS),
        }

    def buffer(self, iteration: int | None = None) -> dict[str, Any]:
        """The task buffer after every iteration, and after one of them, by default the newest, its instances."""
        files = {i: file for i in self.log.files if (file := self._beside(i, "buffer")).is_file()}
        if not files:
            return {"iterations": [], "instances": []}
        iteration = max(files) if iteration is None else iteration
        if iteration not in files:
            raise ValueError(f"iteration {iteration} has no task buffer: the log has {min(files)} to {max(files)}")
        instances = pq.read_table(files[iteration]).sort_by([("score", "descending")])
        return {
            "iterations": [self._of_buffer(i, file) for i, file in files.items()],
            "iteration": iteration,
            "instances": instances.slice(0, _MAX_INSTANCES).to_pylist(),
            "left_out": max(0, len(instances) - _MAX_INSTANCES),
        }

    # Files.

    def _beside(self, iteration: int, kind: str) -> Path:
        file = self.log.files.get(iteration)
        if file is None:
            raise ValueError(f"the log has no iteration {iteration}")
        return file.with_name(f"{kind}-{iteration:06d}.parquet")

    def _of_buffer(self, iteration: int, file: Path) -> dict[str, Any]:
        key = file, file.stat().st_mtime_ns
        if key not in self._buffers:
            table = pq.read_table(file, columns=["depth", "score", "measured"])
            scores = table["score"].to_pylist() or [0.0]
            depths = Counter(min(depth, _DEPTHS - 1) for depth in table["depth"].to_pylist())
            self._buffers[key] = {
                "iteration": iteration,
                "size": len(table),
                "depths": [depths[depth] for depth in range(_DEPTHS)],
                "measured": sum(table["measured"].to_pylist()),
                "score_min": min(scores),
                "score_mean": math.fsum(scores) / len(scores),
                "score_max": max(scores),
            }
        return self._buffers[key]

    def _texts(self, rows: Sequence[Row]) -> dict[tuple[int, int], Row]:
        """The turns of some rollouts, by iteration and place in its file, without the texts of most others."""
        wanted: dict[int, set[int]] = {}
        for row in rows:
            wanted.setdefault(row["iteration"], set()).add(row["row"])
        found: dict[tuple[int, int], Row] = {}
        for iteration, numbers in wanted.items():
            with pq.ParquetFile(self.log.files[iteration]) as file:
                start = 0
                for i in range(file.num_row_groups):
                    size = file.metadata.row_group(i).num_rows
                    here = sorted(number for number in numbers if start <= number < start + size)
                    if here:
                        part = file.read_row_group(i, columns=["turns"]).take([number - start for number in here])
                        found |= {(iteration, n): row for n, row in zip(here, part.to_pylist(), strict=True)}
                    start += size
        return found

    def _with_text(self, table: pa.Table, text: str) -> pa.Table:
        """The rollouts of which a prompt, a response or a feedback has the text."""
        parts = []
        for iteration in pc.unique(table["iteration"]).to_pylist():  # type: ignore[attr-defined]
            part = table.filter(pc.field("iteration") == iteration)
            parts.append(part.filter(self._matches(iteration, text).take(part["row"])))
        return pa.concat_tables(parts) if parts else table

    def _matches(self, iteration: int, text: str) -> pa.Array:
        """Which rows of an iteration have a text; remembered for as many files as a search needs again and again."""
        file = self.log.files[iteration]
        key = file, self._stamps[file], text
        with self._lock:
            if key in self._found:
                return self._found[key]
        table = ds.dataset(str(file), SCHEMA, format="parquet").to_table(["prompt", "iterate", "turns"])
        turns = table["turns"].combine_chunks()
        inner = turns.flatten()
        of_turn = pc.or_kleene(*(_has(inner.field(name), text) for name in ("response", "feedback")))  # type: ignore[attr-defined]
        rows = pc.list_parent_indices(turns).filter(of_turn)  # type: ignore[attr-defined]
        iterates = table["iterate"].combine_chunks()
        found = pc.is_in(pa.array(range(len(table)), pa.int64()), value_set=pc.unique(rows.cast(pa.int64())))  # type: ignore[attr-defined]
        for texts in (table["prompt"].combine_chunks(), iterates.flatten()[0]):
            found = pc.or_(found, _has(texts, text))  # type: ignore[attr-defined]
        with self._lock:
            self._found[key] = found
            while len(self._found) > 4096:
                self._found.popitem(last=False)
        return found


def _light_schema() -> pa.Schema:
    return pa.schema([*(SCHEMA.field(name) for name in LIGHT), ("row", pa.int32())])


def _has(texts: pa.Array, text: str) -> pa.Array:
    return pc.fill_null(pc.match_substring(texts, text, ignore_case=True), False)  # type: ignore[attr-defined]


def _snippet(text: str | None) -> str | None:
    return None if text is None else text if len(text) <= _SNIPPET else text[:_SNIPPET] + "…"


def _pieces(tokenizer: Any, segment: Mapping[str, Any]) -> list[list[Any]]:
    """Texts with the log-probabilities of engine and learner; [text, id, engine, learner], or [text] of a context."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    pieces: list[list[Any]] = []
    columns = ("token_ids", "loss_mask", "logprobs", "learner_logprobs")
    for token, trained, engine, learner in zip(*(segment[name] for name in columns), strict=True):
        # A character that several tokens make up appears with the last of them.
        text = stream.step(tokenizer, token) or ""
        if trained:
            pieces.append([text, token, engine, learner])
        elif pieces and len(pieces[-1]) == 1:
            pieces[-1][0] += text
        else:
            pieces.append([text])
    return pieces
