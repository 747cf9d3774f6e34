"""The 200 tasks of BFCL's ``multi_turn_base`` from the package ``bfcl-eval``, and their split."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

from envs.base import Task
from envs.bfcl.apis import API_CLASSES, PACKAGE, functions, read_data
from envs.bfcl.calls import parse_ground_truth
from envs.sampling import subset

SPLIT_FILE = Path(__file__).with_name("split.json")

Split = Literal["train", "test", "val", "train75", "all"]
Requests = Literal["first", "all"]


@functools.cache
def load_tasks(requests: Requests = "first") -> tuple[Task, ...]:
    """Loads all tasks, cached: environments share them.

    A task's ``data``: ``requests``, the user's, in order; ``ground_truth``, the calls that fulfil each;
    ``classes``, the API classes it involves; ``config``, their initial state; ``excluded``, functions that
    are not offered; ``metrics``, with the number of ground-truth calls.

    Args:
        requests: ``first`` leaves out all requests but the first.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    signatures = {name: function.signature for name, function in functions().items()}
    solutions = {row["id"]: row for row in read_data("possible_answer/BFCL_v4_multi_turn_base.json")}
    tasks = []
    for row in read_data("BFCL_v4_multi_turn_base.json"):
        used = slice(1 if requests == "first" else None)
        texts = [message["content"] for question in row["question"][used] for message in question]
        ground_truth = tuple(
            tuple(parse_ground_truth(call, signatures) for call in calls)
            for calls in solutions[row["id"]]["ground_truth"][used]
        )
        data = {
            "requests": tuple(texts),
            "ground_truth": ground_truth,
            "classes": tuple(row["involved_classes"]),
            "config": row["initial_config"],
            "excluded": tuple(row.get("excluded_function") or ()),
            "metrics": {"ground_truth_calls": sum(map(len, ground_truth))},
        }
        tasks.append(Task(row["id"], texts[0], data))
    return tuple(tasks)


def select_tasks(
    split: str,
    requests: Requests = "first",
    classes: Collection[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Task, ...]:
    """The tasks of a split, in the package's order.

    Args:
        split: ``train`` (100), ``test`` (100), ``val`` (25 of train), ``train75`` (the rest of train) or ``all``.
        requests: See :func:`load_tasks`.
        classes: If given, only the tasks that involve no other API classes are selected.
        limit: How many tasks are drawn; None for all.
        seed: The seed of that draw.

    Raises:
        ValueError: If a split or class is unknown, no task is left, or the package has other tasks than the
            split was made for.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}: use {', '.join(get_args(Split))}")
    if unknown := set(classes or ()) - API_CLASSES.keys():
        raise ValueError(f"classes has {', '.join(sorted(unknown))}: use {', '.join(API_CLASSES)}")
    tasks = load_tasks(requests)
    if split != "all":
        ids = split_ids()[split]
        tasks = tuple(task for task in tasks if task.id in ids)
        if len(tasks) != len(ids):
            raise ValueError(
                f"split {split!r} has {len(ids)} tasks, the installed bfcl-eval {len(tasks)} of them: install {PACKAGE}"
            )
    if classes is not None:
        tasks = tuple(task for task in tasks if set(task.data["classes"]) <= set(classes))
        if not tasks:
            raise ValueError(f"no task of split {split!r} has only classes of {sorted(classes)}: add a class")
    return subset(tasks, limit, seed, key=lambda task: task.id)


@functools.cache
def split_ids() -> dict[str, frozenset[str]]:
    """The ids of every split but ``all``. ``tests/envs/bfcl/split.py`` has drawn them."""
    drawn = json.loads(SPLIT_FILE.read_text(encoding="utf-8"))
    train, test, val = (frozenset(drawn[name]) for name in ("train", "test", "val"))
    return {"train": train, "test": test, "val": val, "train75": train - val}
