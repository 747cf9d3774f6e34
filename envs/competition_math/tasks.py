"""Competition math problems from JSONL, Parquet or the Hugging Face Hub, and the paper's splits."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.base import Task

Row = Mapping[str, Any]

FILE_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Split:
    r"""Where one of the paper's splits lies on the Hub.

    Attributes:
        path: The data set's id, or a folder.
        config: The data set's configuration.
        split: The data set's own split.
        problem: The column of the problem.
        answer: The column of the answer; None if it is the last ``\boxed{}`` of the column ``solution``.
        context: A column with text that belongs before the problem.
        keep: Column and regular expression: rows without a match are left out.
        size: How many problems are drawn; None for all.
    """

    path: str
    config: str | None = None
    split: str = "test"
    problem: str = "problem"
    answer: str | None = "answer"
    context: str | None = None
    keep: tuple[str, str] | None = None
    size: int | None = None


SPLITS: Mapping[str, Split] = {
    "train": Split("agentica-org/DeepScaleR-Preview-Dataset", split="train", keep=("answer", r"\S"), size=1280),
    "val_math100": Split(
        "DigitalLearningGmbH/MATH-lighteval", split="train", answer=None, keep=("solution", r"\\boxed\{"), size=100
    ),
    "math500": Split("HuggingFaceH4/MATH-500"),
    "amc12": Split("AI-MO/aimo-validation-amc", split="train", keep=("url", r"202[23]_AMC_12")),
    "aime24": Split("HuggingFaceH4/aime_2024", split="train"),
    "aime25": Split("math-ai/aime25"),
    "minerva": Split("math-ai/minervamath", problem="question"),
    # The configuration is the open-ended (OE), text-only (TO), English competition part.
    "olympiadbench": Split(
        "Hothan/OlympiadBench",
        "OE_TO_maths_en_COMP",
        split="train",
        problem="question",
        answer="final_answer",
        context="context",
    ),
}
# Draws `train` and `val_math100` from the Hub's data sets.
SUBSET_SEED = 0


@functools.lru_cache
def load_tasks(
    path: str,
    split: str | None = None,
    *,
    config: str | None = None,
    problem_key: str = "problem",
    answer_key: str = "answer",
    id_key: str = "id",
    solution_key: str = "solution",
) -> tuple[Task, ...]:
    """Loads math problems. The result is cached: environments share it.

    A row has a problem and an answer, may have an id, and may have a worked solution, whose number of
    steps is reported.

    Args:
        path: A ``.jsonl`` or ``.parquet`` file, a folder that ``datasets`` can load, or a Hub data set.
        split: The data set's split, ``train`` by default; a file has none.
        config: The data set's configuration.
        problem_key: The column of the problem.
        answer_key: The column of the answer.
        id_key: The column of the id. Rows without one are numbered.
        solution_key: The column of the worked solution.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the data set cannot be loaded or a row cannot be used; the message names the file,
            the row and the field.
    """
    file = Path(path)
    name = file.stem if file.suffix in FILE_SUFFIXES else path
    return _tasks(path, name, _rows(path, split, config), problem_key, answer_key, id_key, solution_key)


@functools.lru_cache
def load_split(name: str, data_dir: str | None = None) -> tuple[Task, ...]:
    """Loads one of the paper's splits, cached.

    Args:
        name: A name in ``SPLITS``.
        data_dir: A folder with ``<name>.jsonl`` or ``<name>.parquet`` (columns ``problem``, ``answer`` and
            perhaps ``id`` and ``solution``). Without it the Hub is asked.

    Raises:
        FileNotFoundError: If the folder has no such file.
        ValueError: If there is no such split, it cannot be loaded, or a row cannot be used.
    """
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}: use one of {', '.join(SPLITS)}")
    if data_dir is not None:
        files = [Path(data_dir, name + suffix) for suffix in FILE_SUFFIXES]
        for file in files:
            if file.exists():
                return load_tasks(str(file))
        raise FileNotFoundError(
            f"split {name!r}: there is neither {files[0]} nor {files[1]}: put one there, or correct data_dir"
        )
    source = SPLITS[name]
    rows = _source_rows(source)
    tasks = _tasks(source.path, name, rows, source.problem, source.answer or "answer", "id", "solution")
    return tasks if source.size is None else subset(tasks, source.size, SUBSET_SEED)


def subset(tasks: tuple[Task, ...], size: int, seed: int = 0) -> tuple[Task, ...]:
    """Draws tasks by a hash of their prompts: the same ones on every machine, in their old order."""
    ranked = sorted(range(len(tasks)), key=lambda i: stable_hash(f"{seed}:{tasks[i].prompt}"))
    return tuple(tasks[i] for i in sorted(ranked[:size]))


def stable_hash(text: str) -> int:
    """A hash that does not change between processes, unlike ``hash``."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{}``, None if there is none that is closed."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return None


def _source_rows(source: Split) -> Iterator[tuple[int, Row]]:
    columns = {source.problem, source.answer or "solution", source.context, source.keep and source.keep[0]} - {None}
    for number, row in _rows(source.path, source.split, source.config):
        if missing := columns - row.keys():
            raise ValueError(
                f"{source.path}:{number}: no field {', '.join(sorted(map(repr, missing)))}, the data set has changed: "
                "give the split as a file in data_dir"
            )
        if source.keep and not re.search(source.keep[1], str(row[source.keep[0]])):
            continue
        if source.answer is None:
            row = {**row, "answer": last_boxed(row["solution"])}
        if source.context and row[source.context]:
            row = {**row, source.problem: f"{row[source.context]}\n{row[source.problem]}"}
        yield number, row


def _rows(path: str, split: str | None, config: str | None) -> Iterator[tuple[int, Row]]:
    """The rows of a data set, each with its line or row number."""
    file = Path(path)
    if file.suffix in FILE_SUFFIXES:
        if not file.is_file():
            raise FileNotFoundError(f"{path}: no such file: correct the path")
        if split or config:
            raise ValueError(f"{path}: a file has no split {split!r} or config {config!r}: leave them out")
        yield from _jsonl_rows(path) if file.suffix == ".jsonl" else _parquet_rows(path)
        return
    if file.is_file():
        raise ValueError(f"{path}: unknown file type: use {' or '.join(FILE_SUFFIXES)}")
    import datasets  # slow, and files do not need it

    try:
        rows = datasets.load_dataset(path, config, split=split or "train")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load the data set {path!r} (config {config!r}, split {split!r}): {error}. Give a .jsonl or "
            ".parquet file, a folder, or a data set of the Hub; without the Hub, set data_dir for the paper's splits"
        ) from error
    yield from enumerate(rows, start=1)  # type: ignore[arg-type]


def _jsonl_rows(path: str) -> Iterator[tuple[int, Row]]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: broken JSON ({error}): write one object per line") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a {type(row).__name__}: write one JSON object per line")
            yield number, row


def _parquet_rows(path: str) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except ValueError as error:  # pyarrow's own errors are ValueErrors
        raise ValueError(f"{path}: not a readable Parquet file ({error}): write it again") from error
    yield from enumerate(rows, start=1)


def _tasks(
    path: str,
    name: str,
    rows: Iterable[tuple[int, Row]],
    problem_key: str,
    answer_key: str,
    id_key: str,
    solution_key: str,
) -> tuple[Task, ...]:
    tasks: dict[str, Task] = {}
    numbers: dict[str, int] = {}
    for number, row in rows:
        values = {}
        for argument, key in (("problem_key", problem_key), ("answer_key", answer_key)):
            values[argument] = _text(row.get(key))
            if not values[argument]:
                raise ValueError(
                    f"{path}:{number}: field {key!r} is missing or empty (fields: {', '.join(row)}): "
                    f"fill it in, or name the right column with {argument}"
                )
        task_id = _text(row.get(id_key)) or f"{name}/{number}"
        if task_id in tasks:
            raise ValueError(
                f"{path}:{number}: field {id_key!r} is {task_id!r}, as in row {numbers[task_id]}: make ids unique"
            )
        steps = solution_steps(row.get(solution_key))
        data = {
            # Dollar signs would break the \boxed{} that grading puts around the answer.
            "answer": re.sub(r"(?<!\\)\$", "", values["answer_key"]),
            "metrics": {"solution_steps": steps} if steps else {},
        }
        tasks[task_id] = Task(task_id, values["problem_key"], data)
        numbers[task_id] = number
    if not tasks:
        raise ValueError(f"{path}: no rows: give it at least one with {problem_key!r} and {answer_key!r}")
    return tuple(tasks.values())


def _text(value: Any) -> str:
    """A cell as text: several answers become a list, 142.0 becomes 142, None and NaN become nothing."""
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def solution_steps(solution: str | list[str] | None) -> int:
    """The number of steps of a worked solution: its sentences and lines. Of several, the first counts."""
    if isinstance(solution, list):
        solution = solution[0] if solution else None
    return sum(1 for step in re.split(r"(?<=[.!?])\s+|\n+", solution or "") if step.strip())
