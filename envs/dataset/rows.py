"""The rows of a table as tasks, one part of which is held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt

from envs.base import Task
from envs.options import Options, PathText
from envs.sampling import stable_hash, subset
from envs.tables import Row, rows, text


class RowOptions(Options):
    """The options that say which rows are tasks."""

    data: PathText | tuple[Mapping[str, Any], ...] = Field(
        description="A JSONL, Parquet or CSV file, a folder, a Hub data set, or the rows themselves."
    )
    data_split: str | None = Field(None, description="For a folder or a Hub data set, its own split; `train`.")
    data_config: str | None = Field(None, description="For a folder or a Hub data set, its configuration.")
    prompt: str = Field("prompt", description="The column of the prompt.")
    split: Literal["train", "test", "all"] = Field(
        "all", description="Which of the rows: `test` is a share of `test_fraction`, by a hash of the prompt."
    )
    test_fraction: float = Field(0.1, ge=0, lt=1, description="The share of the rows that `test` has.")
    limit: PositiveInt | None = Field(None, description="How many tasks are drawn; all by default.")
    seed: int = Field(0, description="The seed of that draw.")


def all_tasks(options: RowOptions, **columns: str) -> tuple[Task, ...]:
    """A task for every row; its data has the row.

    Args:
        options: Which rows.
        **columns: Of columns whose cells are text, as the prompt's are: what they are called in a task's row.

    Raises:
        ValueError: If there are no rows, a column does not exist, or a cell is empty.
        FileNotFoundError: If there is no such file.
    """
    tasks = []
    where = options.data if isinstance(options.data, str) else "data"
    columns = {"prompt": options.prompt, **columns}
    if isinstance(options.data, str):
        numbered = rows(options.data, options.data_split, options.data_config)
    else:
        numbered = enumerate(options.data, start=1)
    for number, row in numbered:
        values = {option: _cell(where, number, row, option, column) for option, column in columns.items()}
        others = {name: value for name, value in row.items() if name not in columns.values()}
        # The number tells rows with the same prompt apart.
        tasks.append(Task(f"{number}", values["prompt"], {"row": {**others, **values}}))
    if not tasks:
        raise ValueError(f"{where}: there are no rows")
    return tuple(tasks)


def select(tasks: tuple[Task, ...], options: RowOptions) -> tuple[Task, ...]:
    """The tasks of the split that the options name, or as many of them as they say.

    Raises:
        ValueError: If the split has none.
    """

    def in_split(task: Task) -> bool:
        held_out = stable_hash(task.prompt) % 10**6 < options.test_fraction * 10**6
        return options.split == "all" or (options.split == "test") == held_out

    mine = tuple(filter(in_split, tasks))
    if not mine:
        raise ValueError(
            f"split is {options.split!r}, which has none of {len(tasks)} rows: change test_fraction "
            f"({options.test_fraction}), or give more rows"
        )
    return subset(mine, options.limit, options.seed)


def _cell(where: str, number: int, row: Row, option: str, column: str) -> str:
    if column not in row:
        first = ", ".join(f"{name}={str(value)[:40]!r}" for name, value in row.items())
        raise ValueError(f"{option} is {column!r}: no such column in row {number} of {where}, which has {first}")
    if not (value := text(row[column])):
        raise ValueError(f"{where}: column {column!r} of row {number} is empty: fill it in, or leave the row out")
    return value
