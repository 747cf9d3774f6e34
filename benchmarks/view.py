"""How long `rllib view` takes until a large log of rollouts can be looked at.

    python benchmarks/view.py

The log has ``--iterations`` iterations of 128 prompts with 8 rollouts each, by default about 100,000 rollouts, with
responses of about 1,000 characters. Opening is what the page waits for: reading the log, the summary and the first page
of the list. Then come the worst rollouts of a kind, one group, a task's lineage, the task buffer, and the search for a
text.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import arguments, write

from envs.base import Turn
from rllib_exit.curriculum.exit import STRATEGIES, ExIt
from rllib_exit.objective.advantages import group_advantages
from rllib_exit.rollout_log import RolloutLog
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup, Segment
from rllib_exit.view.queries import Query, RunView

WORDS = np.array(["answer", "sum", "is", "seven", "add", "two", "then", "check", "again", "carry", "digits", "minus"])
SEGMENT = Segment(np.arange(2, dtype=np.int32), np.array([False, True]), np.zeros(2, np.float32))


def make_group(request: RolloutRequest, rng: np.random.Generator, size: int = 8) -> RolloutGroup:
    rollouts = []
    for _ in range(size):
        quality = float(rng.random() < 0.5)
        text = " ".join(rng.choice(WORDS, 200))
        instance = request.instance
        turn = Turn(text, "feedback", quality, instance.depth + 1 if instance.iterate else 0)
        rollouts.append(Rollout((SEGMENT,), (*instance.history, turn), quality, quality))
    return RolloutGroup(request, tuple(rollouts))


def write_log(directory: Path, iterations: int, prompts: int) -> None:
    rng = np.random.default_rng(0)
    curriculum = ExIt(STRATEGIES["exit"], [f"task/{i}" for i in range(1280)], rng)
    log = RolloutLog(directory / "rollouts")
    for iteration in range(1, iterations + 1):
        groups = [make_group(request, rng) for request in curriculum.select(prompts)]
        curriculum.update(groups)
        log.write(iteration, [ScoredGroup(group, group_advantages(group.returns_G)) for group in groups], curriculum)


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def opened(directory: Path) -> RunView:
    view = RunView(directory)
    view.refresh().summary()
    view.rollouts(Query())
    return view


def looked_at(directory: Path) -> dict[str, float]:
    """The seconds of each thing that is looked at."""
    took: dict[str, float] = {}
    took["open"], view = seconds(lambda: opened(directory))
    worst = Query(kind="improve", sort="quality", descending=False)
    took["worst of a kind"], page = seconds(lambda: view.rollouts(worst))
    row = page["rows"][0]
    took["group"], _ = seconds(lambda: view.group(row["iteration"], row["group_id"]))
    took["lineage"], _ = seconds(lambda: view.lineage(row["task_id"]))
    took["task buffer"], _ = seconds(view.buffer)
    took["search a text"], _ = seconds(lambda: view.rollouts(Query(text="seven add two then check again")))
    return took


def main() -> None:
    parser = arguments(__doc__, "view")
    parser.add_argument("--iterations", type=int, default=98)
    args = parser.parse_args()
    iterations, prompts = (3, 8) if args.quick else (args.iterations, 128)
    with tempfile.TemporaryDirectory() as directory:
        write_log(Path(directory), iterations, prompts)
        # The first turn warms up.
        turns = [looked_at(Path(directory)) for _ in range(args.repeats + 1)][1:]
        rows = [
            {"what": what, "median s": statistics.median(turn[what] for turn in turns),
             "longest s": max(turn[what] for turn in turns)} for what in turns[0]
        ]  # fmt: skip
        write(args, rows, rollouts=iterations * prompts * 8)


if __name__ == "__main__":
    main()
