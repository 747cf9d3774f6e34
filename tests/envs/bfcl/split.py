"""Draws BFCL's train, test and validation tasks, stratified by API classes and number of requests.

``python -m tests.envs.bfcl.split`` writes ``envs/bfcl/split.json``, which the environment reads.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from fractions import Fraction

from envs.base import Task
from envs.bfcl.tasks import SPLIT_FILE, load_tasks
from envs.sampling import stable_hash

SEED = 3
TRAIN, VAL = 100, 25


def features(task: Task) -> tuple[frozenset[str], int]:
    """The set of API classes and the number of requests: a draw keeps the share of each, and of both together."""
    return frozenset(task.data["classes"]), len(task.data["requests"])


def draw(tasks: Sequence[Task], size: int, seed: int) -> list[Task]:
    """Draws a stratified sample.

    A stratum, the tasks of one class set and number of requests, gives its share rounded down, in the hash
    order of the ids. Where the share was not whole, the next task in that order is a candidate; the sample
    is filled up with those candidates whose classes and number of requests it lacks most.
    """
    share = Fraction(size, len(tasks))
    ranked = sorted(tasks, key=lambda task: stable_hash(f"{seed}:{task.id}"))
    strata: dict[tuple[frozenset[str], int], list[Task]] = defaultdict(list)
    for task in ranked:
        strata[features(task)].append(task)
    drawn: list[Task] = []
    candidates: set[str] = set()
    for stratum in strata.values():
        whole = int(share * len(stratum))
        drawn += stratum[:whole]
        if whole < share * len(stratum):
            candidates.add(stratum[whole].id)
    lack: dict[object, Fraction] = defaultdict(Fraction)
    for task in tasks:
        for feature in features(task):
            lack[feature] += share
    for task in drawn:
        for feature in features(task):
            lack[feature] -= 1
    while len(drawn) < size:
        left = [task for task in ranked if task.id in candidates]
        best = max(left, key=lambda task: sum(lack[feature] for feature in features(task)))
        candidates.remove(best.id)
        drawn.append(best)
        for feature in features(best):
            lack[feature] -= 1
    return drawn


def make_split() -> dict[str, list[str]]:
    """The ids of the train and test tasks, and of the validation tasks, which are train tasks too."""
    tasks = load_tasks("all")
    train = draw(tasks, TRAIN, SEED)
    drawn = {task.id for task in train}
    test = [task for task in tasks if task.id not in drawn]
    return {"train": _ids(train), "test": _ids(test), "val": _ids(draw(train, VAL, SEED))}


def _ids(tasks: Collection[Task]) -> list[str]:
    return sorted((task.id for task in tasks), key=lambda task_id: int(task_id.rpartition("_")[2]))


if __name__ == "__main__":
    SPLIT_FILE.write_text(json.dumps(make_split(), indent=0) + "\n", encoding="utf-8")
