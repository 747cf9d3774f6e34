"""What the driver does in an iteration beside waiting, and how the task buffer grows.

    python benchmarks/driver.py

First table: select, advantages, loss weights and batches, curriculum update, at the paper's sizes (128 prompts, 8
rollouts each, responses of ``--response`` tokens, a buffer of 512), per iteration. It stays below 1 % of an iteration
that takes longer than a hundred times as long. Second table: one operation of the task buffer, and saving it, by size.
"""

from __future__ import annotations

import pickle
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from side_by_side import arguments, print_table, write

from envs.base import TaskInstance, Turn
from rllib_exit.curriculum.exit import STRATEGIES, ExIt
from rllib_exit.curriculum.task_buffer import TaskBuffer
from rllib_exit.learner.batch import make_batches
from rllib_exit.objective.advantages import group_advantages
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup, Segment
from rllib_exit.settings import TrainingSettings


def timed(times: dict[str, list[float]], name: str, run: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = run()
    times.setdefault(name, []).append(time.perf_counter() - start)
    return result


def make_group(request: RolloutRequest, rng: np.random.Generator, size: int, response: int) -> RolloutGroup:
    rollouts = []
    for _ in range(size):
        length = int(rng.integers(response // 2, response + 1))
        ids = rng.integers(0, 150_000, 200 + length).astype(np.int32)
        mask = np.arange(len(ids)) >= 200
        quality = float(rng.random() < 0.5)
        turns = (
            *request.instance.history,
            Turn(f"answer {rng.integers(1 << 60)} " + "x" * 3 * length, quality=quality),
        )
        rollouts.append(Rollout((Segment(ids, mask, mask.astype(np.float32)),), turns, quality, quality))
    return RolloutGroup(request, tuple(rollouts))


def iterations(prompts: int, group_size: int, response: int, number: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    exit_ = ExIt(STRATEGIES["exit"], [f"task {i}" for i in range(1280)], rng)
    times: dict[str, list[float]] = {}
    for _ in range(number):
        requests = timed(times, "select", lambda: exit_.select(prompts))
        groups = [make_group(request, rng, group_size, response) for request in requests]
        scored = timed(times, "advantages", lambda g=groups: [ScoredGroup(x, group_advantages(x.returns_G)) for x in g])
        timed(
            times,
            "batches",
            lambda s=scored: make_batches(
                s, TrainingSettings(), max_rollout_tokens=response, num_learners=8
            ),
        )  # fmt: skip
        timed(times, "curriculum update", lambda g=groups: exit_.update(g))
    return times


def buffer_operations(size: int, operations: int = 2000) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    buffer = TaskBuffer(size)

    def instance(i: int) -> TaskInstance:
        return TaskInstance(f"task {i % 1280}", (), Turn(f"answer {i}"), "improve")

    for i in range(size):
        buffer.insert(instance(i), score=float(rng.random()) / 4)
    times: dict[str, list[float]] = {}
    drawn = timed(times, "sample", lambda: [buffer.sample(rng) for _ in range(operations)])
    scores = rng.random(operations) / 4
    timed(times, "update", lambda: [buffer.update(d, float(s)) for d, s in zip(drawn, scores, strict=True)])
    new = [instance(size + i) for i in range(operations)]
    timed(times, "insert", lambda: [buffer.insert(n, score=0.25) for n in new])
    state = timed(times, "get_state", buffer.get_state)
    saved = timed(times, "pickle", lambda: pickle.dumps(state))
    per_operation = {f"{n} µs": 1e6 * times[n][0] / operations for n in ("sample", "update", "insert")}
    saving = {"state s": times["get_state"][0] + times["pickle"][0], "state MiB": len(saved) / 2**20}
    return {"instances": size, **per_operation, **saving}


def main() -> None:
    parser = arguments(__doc__, "driver", repeats=11)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--response", type=int, default=2048)
    args = parser.parse_args()
    if args.quick:
        args.repeats = 3
    times = iterations(args.prompts, args.group_size, args.response, args.repeats + 1)
    rows = [{"part": name, "ms": 1e3 * statistics.median(values[1:])} for name, values in times.items()]
    rows.append({"part": "together", "ms": sum(row["ms"] for row in rows)})
    print_table(rows)
    print(f"\nbelow 1 % of an iteration that takes longer than {rows[-1]['ms'] / 10:.1f} s\n")
    sizes = [10**3, 10**4] if args.quick else [10**3, 10**4, 10**5, 10**6]
    write(args, [buffer_operations(size) for size in sizes], iteration=rows)


if __name__ == "__main__":
    main()
