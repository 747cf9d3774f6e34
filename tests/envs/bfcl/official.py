"""The package's own executor and checker as they are. They evaluate the text of calls: of ground truth only."""

from __future__ import annotations

import functools
import itertools
from typing import Any, get_args

from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

from envs.bfcl.apis import read_data
from envs.bfcl.tasks import Category

# Both keep their objects for ever, by this name.
_names = (f"model{n}" for n in itertools.count())


@functools.cache
def entries() -> dict[str, dict[str, Any]]:
    """The tasks of all categories."""
    return {row["id"]: row for name in get_args(Category) for row in read_data(f"BFCL_v4_multi_turn_{name}.json")}


@functools.cache
def solutions() -> dict[str, list[list[str]]]:
    """The ground-truth calls of each task's requests as text."""
    files = [f"possible_answer/BFCL_v4_multi_turn_{name}.json" for name in get_args(Category)]
    return {row["id"]: row["ground_truth"] for file in files for row in read_data(file)}


def verdict(task_id: str, made: list[list[str]], ground_truth: list[list[str]]) -> bool:
    """What the checker says of the calls made for each request, one a step."""
    entry, name = entries()[task_id], next(_names)
    steps = [[[call] for call in calls] for calls in made]
    try:
        return multi_turn_checker(steps, ground_truth, entry, "multi_turn_base", name)["valid"]
    finally:
        _forget(name)


class Executor:
    """Executes calls on one set of API objects."""

    def __init__(self, task_id: str) -> None:
        self.entry, self.name = entries()[task_id], next(_names)

    def __enter__(self) -> Executor:
        self.execute()
        return self

    def execute(self, *calls: str) -> list[str]:
        results, self.apis = multi_turn_utils.execute_multi_turn_func_call(
            list(calls), self.entry["initial_config"], self.entry["involved_classes"], self.name, self.entry["id"]
        )
        return results

    def __exit__(self, *exc_info: object) -> None:
        _forget(self.name)


def _forget(name: str) -> None:
    for key in [key for key in vars(multi_turn_utils) if key.startswith(f"{name}_")]:
        delattr(multi_turn_utils, key)
