"""Competition math problems from JSONL, Parquet or the Hugging Face Hub, and the paper's splits."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.base import Task
from envs.competition_math.grading import last_boxed
from envs.sampling import subset
from envs.tables import FILE_SUFFIXES, Row, rows, text


@dataclass(frozen=True, slots=True)
class Source:
    r"""A data set, and the columns of its rows.

    Attributes:
        path: What :func:`envs.tables.rows` reads.
        split: The data set's own split, ``train`` by default. A file has none.
        config: The data set's configuration. A file has none.
        problem_key: The column of the problem.
        answer_key: The column of the answer; None if it is the last ``\boxed{}`` of the worked solution.
        id_key: The column of the id. Rows without one are numbered.
        solution_key: The column of the worked solution, whose number of steps is reported.
        context_key: The column of a text that belongs before the problem.
        keep: A column and a regular expression: rows without a match are left out.
        size: How many problems are drawn; None for all.
    """

    path: str
    split: str | None = None
    config: str | None = None
    problem_key: str = "problem"
    answer_key: str | None = "answer"
    id_key: str = "id"
    solution_key: str = "solution"
    context_key: str | None = None
    keep: tuple[str, str] | None = None
    size: int | None = None


# The paper's splits on the Hub.
SPLITS: Mapping[str, Source] = {
    "train": Source("agentica-org/DeepScaleR-Preview-Dataset", "train", keep=("answer", r"\S"), size=1280),
    "val_math100": Source(
        "DigitalLearningGmbH/MATH-lighteval", "train", answer_key=None, keep=("solution", r"\\boxed\{"), size=100
    ),
    "math500": Source("HuggingFaceH4/MATH-500", "test"),
    "amc12": Source("AI-MO/aimo-validation-amc", "train", keep=("url", r"202[23]_AMC_12")),
    "aime24": Source("HuggingFaceH4/aime_2024", "train"),
    "aime25": Source("math-ai/aime25", "test"),
    "minerva": Source("math-ai/minervamath", "test", problem_key="question"),
    # The configuration is the open-ended (OE), text-only (TO), English competition part.
    "olympiadbench": Source(
        *("Hothan/OlympiadBench", "train", "OE_TO_maths_en_COMP"),
        problem_key="question",
        answer_key="final_answer",
        context_key="context",
    ),
}
# The seed of the draws of `train` and `val_math100`.
SUBSET_SEED = 0


@functools.lru_cache
def load_tasks(path: str, split: str | None = None, **columns: Any) -> tuple[Task, ...]:
    """Loads math problems. The result is cached: environments share it.

    A row has a problem and an answer, may have an id, and may have a worked solution.

    Args:
        path: A file, a folder or a Hub data set; see :class:`Source`.
        split: The data set's split.
        columns: Further fields of :class:`Source`, such as ``problem_key``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the data set cannot be loaded or a row cannot be used. The message names the file,
            the row and the field.
    """
    source, file = Source(path, split, **columns), Path(path)
    return _tasks(
        source, file.stem if file.suffix in FILE_SUFFIXES else path, rows(source.path, source.split, source.config)
    )


@functools.lru_cache
def load_split(name: str, data_dir: str | None = None) -> tuple[Task, ...]:
    """Loads one of the paper's splits, cached.

    Args:
        name: A name in ``SPLITS``.
        data_dir: A folder with ``<name>.jsonl``, ``.parquet`` or ``.csv`` (columns ``problem``, ``answer`` and
            perhaps ``id`` and ``solution``). Without it the split is loaded from the Hub.

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
            f"split {name!r}: there is none of {', '.join(map(str, files))}: put one there, or correct data_dir"
        )
    source = SPLITS[name]
    try:
        tasks = _tasks(source, name, _hub_rows(source))
    except ValueError as error:
        raise ValueError(
            f"split {name!r}: {error}; or give it as a file, and set data_dir to the file's folder"
        ) from error
    return subset(tasks, source.size, SUBSET_SEED)


def _hub_rows(source: Source) -> Iterator[tuple[int, Row]]:
    """The rows of one of the paper's splits, with their ``problem_key`` and ``answer_key`` filled in."""
    columns = {source.problem_key, source.answer_key or source.solution_key, source.context_key}
    columns = (columns | {source.keep and source.keep[0]}) - {None}
    for number, row in rows(source.path, source.split, source.config):
        if missing := columns - row.keys():
            raise ValueError(
                f"{source.path}:{number}: no field {', '.join(sorted(map(repr, missing)))}, the data set has changed"
            )
        if source.keep and not re.search(source.keep[1], str(row[source.keep[0]])):
            continue
        if source.answer_key is None:
            row = {**row, "answer": last_boxed(row[source.solution_key])}
        if source.context_key and row[source.context_key]:
            row = {**row, source.problem_key: f"{row[source.context_key]}\n{row[source.problem_key]}"}
        yield number, row


def _tasks(source: Source, name: str, numbered: Iterable[tuple[int, Row]]) -> tuple[Task, ...]:
    tasks: dict[str, Task] = {}
    numbers: dict[str, int] = {}
    path, id_key = source.path, source.id_key
    for number, row in numbered:
        values = {}
        for column, key in (("problem_key", source.problem_key), ("answer_key", source.answer_key or "answer")):
            values[column] = text(row.get(key))
            if not values[column]:
                raise ValueError(
                    f"{path}:{number}: field {key!r} is missing or empty (fields: {', '.join(row)}): "
                    f"fill it in, or name the right column with {column}"
                )
        task_id = text(row.get(id_key)) or f"{name}/{number}"
        if task_id in tasks:
            raise ValueError(
                f"{path}:{number}: field {id_key!r} is {task_id!r}, as in row {numbers[task_id]}: make ids unique"
            )
        steps = solution_steps(row.get(source.solution_key))
        # Dollar signs would break the \boxed{} that grading puts around the answer.
        answer = re.sub(r"(?<!\\)\$", "", values["answer_key"])
        data = {"answer": answer, "metrics": {"solution_steps": steps} if steps else {}}
        tasks[task_id] = Task(task_id, values["problem_key"], data)
        numbers[task_id] = number
    if not tasks:
        raise ValueError(f"{path}: there are no rows: give it at least one with a problem and an answer")
    return tuple(tasks.values())


def solution_steps(solution: str | list[str] | None) -> int:
    """The number of steps of a worked solution: its sentences and lines. Of several, the first counts."""
    if isinstance(solution, list):
        solution = solution[0] if solution else None
    return sum(1 for step in re.split(r"(?<=[.!?])\s+|\n+", solution or "") if step.strip())
