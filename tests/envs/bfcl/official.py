"""The package's own executor and checker as they are. They evaluate the text of calls: of ground truth only."""

from __future__ import annotations

import functools
import itertools
from typing import Any

from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

from envs.bfcl.apis import read_data

# Both keep their objects for ever, by this name.
_names = (f"model{n}" for n in itertools.count())


@functools.cache
def entries() -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read_data("BFCL_v4_multi_turn_base.json")}


@functools.cache
def solutions() -> dict[str, list[list[str]]]:
    """The ground-truth calls of each task's requests as text."""
    return {row["id"]: row["ground_truth"] for row in read_data("possible_answer/BFCL_v4_multi_turn_base.json")}


def verdict(task_id: str, made: list[list[str]], ground_truth: list[list[str]]) -> bool:
    """What the checker says of the calls made for each request."""
    entry, name = entries()[task_id], next(_names)
    try:
        return multi_turn_checker([[calls] for calls in made], ground_truth, entry, "multi_turn_base", name)["valid"]
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
