"""The tasks of BFCL's four multi-turn categories from the package ``bfcl-eval``, 200 each, and their split."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, get_args

from envs.base import Task
from envs.bfcl.apis import API_CLASSES, PACKAGE, functions, read_data
from envs.bfcl.calls import parse_ground_truth
from envs.sampling import subset
from envs.tool_use.calls import Call

SPLIT_FILE = Path(__file__).with_name("split.json")

Split = Literal["train", "test", "val", "train75", "all"]
Requests = Literal["first", "all"]
Category = Literal["base", "miss_func", "miss_param", "long_context"]

# What the package says where it offers further functions.
MORE_FUNCTIONS = "I have updated some more functions you can choose from. What about now?"


@functools.cache
def load_tasks(requests: Requests = "first", category: Category = "base") -> tuple[Task, ...]:
    """Loads all tasks, cached: environments share them.

    A task's ``data``: ``requests``, the user's, in order; ``ground_truth``, the calls that fulfil each, none if
    nothing can; ``classes``, the API classes it involves; ``config``, their initial state; ``long_context``, whether
    that is larger than need be; ``excluded``, functions that are not offered; ``withheld``, functions that are offered
    from a request on, by its index; ``metrics``, with the number of ground-truth calls.

    Args:
        requests: ``first`` leaves out all requests after the first that calls can fulfil.
        category: Of BFCL's multi-turn tasks. The tasks of one number are variants of each other. In ``miss_func``
            functions that a request needs are withheld until the next one, in ``miss_param`` a detail is.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    signatures = {name: function.signature for name, function in functions().items()}
    solutions = {row["id"]: row for row in read_data(f"possible_answer/BFCL_v4_multi_turn_{category}.json")}
    tasks = []
    for row in read_data(f"BFCL_v4_multi_turn_{category}.json"):
        ground_truth = tuple(
            tuple(parse_ground_truth(call, signatures) for call in calls)
            for calls in solutions[row["id"]]["ground_truth"]
        )
        withheld = {
            int(i): _withheld(names, ground_truth[: int(i)]) for i, names in row.get("missed_function", {}).items()
        }
        if requests == "first":
            ground_truth = ground_truth[: 1 + next(i for i, calls in enumerate(ground_truth) if calls)]
        texts = [
            "\n".join(message["content"] for message in question) or MORE_FUNCTIONS
            for question in row["question"][: len(ground_truth)]
        ]
        data = {
            "requests": tuple(texts),
            "ground_truth": ground_truth,
            "classes": tuple(row["involved_classes"]),
            "config": row["initial_config"],
            "long_context": category == "long_context",
            "excluded": tuple(row.get("excluded_function") or ()),
            "withheld": withheld,
            "metrics": {"ground_truth_calls": sum(map(len, ground_truth))},
        }
        tasks.append(Task(row["id"], texts[0], data))
    return tuple(tasks)


def not_offered(task: Task, request: int) -> tuple[str, ...]:
    """The functions of a task's APIs that are not offered with a request, which is counted from 0."""
    later = [name for index, names in task.data["withheld"].items() if index > request for name in names]
    return (*task.data["excluded"], *later)


def _withheld(names: Iterable[str], before: Iterable[Iterable[Call]]) -> tuple[str, ...]:
    """Without those that a request before needs: multi_turn_miss_func_49 withholds one."""
    needed = {call.name for calls in before for call in calls}
    return tuple(name for name in names if name not in needed)


def select_tasks(
    split: str,
    requests: Requests = "first",
    classes: Collection[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    category: Category = "base",
) -> tuple[Task, ...]:
    """The tasks of a split, in the package's order.

    Args:
        split: ``train`` (100), ``test`` (100), ``val`` (25 of train), ``train75`` (the rest of train) or ``all``.
        requests: See :func:`load_tasks`.
        classes: If given, only the tasks that involve no other API classes are selected.
        limit: How many tasks are drawn; None for all.
        seed: The seed of that draw.
        category: See :func:`load_tasks`. The variants of a task are in the same split.

    Raises:
        ValueError: If a split or class is unknown, no task is left, or the package has other tasks than the
            split was made for.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}: use {', '.join(get_args(Split))}")
    if unknown := set(classes or ()) - API_CLASSES.keys():
        raise ValueError(f"classes has {', '.join(sorted(unknown))}: use {', '.join(API_CLASSES)}")
    tasks = load_tasks(requests, category)
    if split != "all":
        ids = {base.replace("base", category) for base in split_ids()[split]}
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
    """The ids of every split of ``base`` but ``all``. ``tests/envs/bfcl/split.py`` has drawn them."""
    drawn = json.loads(SPLIT_FILE.read_text(encoding="utf-8"))
    train, test, val = (frozenset(drawn[name]) for name in ("train", "test", "val"))
    return {"train": train, "test": test, "val": val, "train75": train - val}
