"""Whole training iterations: where their time goes, how it grows, and what the diversity bonus adds.

    python benchmarks/iterations.py --output docs/iterations.json --plot docs/iterations.png

Every setting changes one of: group size, prompts per batch, the most response tokens, the task buffer's size; the
others have the values of ``BASE``. Settings take turns, each with a new algorithm on the bundled model, arithmetic and
a learning rate of 0, so that the policy stays what it is. The first iteration of each turn warms up. Finished turns
are kept in ``--output``: a run that is broken off goes on from there.

What grows should grow with the generated tokens at most: the last column is the time for each of them. The pair
``without bonus`` and ``with bonus`` differs in the diversity bonus alone.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tuned_examples"))

import math_common
import ray
from side_by_side import arguments, write

BASE = {"group size": 4, "prompts": 8, "response tokens": 16, "buffer size": 1000}
GROWTH = {"group size": [2, 8], "prompts": [4, 16], "response tokens": [8, 32], "buffer size": [100, 100_000]}
TIMERS = ("select", "rollout", "embed", "update", "sync")


def settings(quick: bool) -> dict[str, dict[str, Any]]:
    chosen: dict[str, dict[str, Any]] = {"with bonus": {**BASE}, "without bonus": {**BASE, "bonus": False}}
    for name, values in GROWTH.items():
        for value in () if quick else values:
            chosen[f"{name} {value}"] = {**BASE, name: value}
    return chosen


def turn(setting: dict[str, Any], iterations: int) -> list[dict[str, float]]:
    """Some iterations of a new algorithm, after one that warms it up."""
    config = math_common.cpu("exit")[0]
    config.training(lr=0.0, prompts_per_batch=setting["prompts"], rollouts_per_prompt=setting["group size"]).generation(
        max_response_tokens=setting["response tokens"]
    )
    config.curriculum("exit", buffer_size=setting["buffer size"], min_buffer_size=1)
    if not setting.get("bonus", True):
        config.diversity_bonus = False
    config.evaluation(evaluation_interval=None)
    algo = config.build_algo()
    try:
        rows = []
        for i in range(iterations + 1):
            start = time.perf_counter()
            result = algo.train()
            took = time.perf_counter() - start
            rollouts = result["rollouts"]
            if i:
                tokens = rollouts["response_tokens_mean"] * setting["prompts"] * setting["group size"]
                rows.append({"seconds": took, "tokens": tokens, **{t: result["timers"][t] for t in TIMERS}})
        return rows
    finally:
        algo.stop()


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 7))
    base = next(row for row in rows if row["setting"] == "with bonus")
    for axis, (name, values) in zip(axes.flat, GROWTH.items(), strict=True):
        points = {BASE[name]: base, **{v: next(r for r in rows if r["setting"] == f"{name} {v}") for v in values}}
        x = sorted(points)
        for part, style in [("s / iteration", "o-"), ("rollout %", "s--"), ("update %", "^--")]:
            seconds = [points[v]["s / iteration"] * (points[v][part] / 100 if "%" in part else 1) for v in x]
            axis.plot(x, seconds, style, label=part.removesuffix(" %").replace("s / iteration", "iteration"))
        if name == "buffer size":
            axis.set_xscale("log")
        axis.set(xlabel=name, ylabel="seconds", ylim=(0, None))
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = arguments(__doc__, "iterations")
    parser.add_argument("--iterations", type=int, default=2, help="per turn")
    parser.add_argument("--plot", type=Path, help="a PNG")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.iterations = 1, 1
    chosen = settings(args.quick)
    partial = args.output.with_suffix(".partial.json")
    partial.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, list[dict[str, float]]] = json.loads(partial.read_text()) if partial.exists() else {}
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    for repeat in range(args.repeats):
        for name, setting in chosen.items():
            key = f"{repeat} {name}"
            if key not in done:
                done[key] = turn(setting, args.iterations)
                partial.write_text(json.dumps(done))
                print(key, f"{statistics.median(r['seconds'] for r in done[key]):.1f} s", flush=True)
    ray.shutdown()

    table: list[dict[str, Any]] = []
    for name in chosen:
        rows = [row for repeat in range(args.repeats) for row in done[f"{repeat} {name}"]]
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        shares = {f"{t} %": 100 * statistics.median(row[t] / row["seconds"] for row in rows) for t in TIMERS}
        # What is in none of the timers; embedding is part of rolling out.
        others = 100 - sum(share for timer, share in shares.items() if timer != "embed %")
        per_token = statistics.median(row["seconds"] / row["tokens"] for row in rows)
        table.append(
            {"setting": name, "s / iteration": middle["seconds"], **shares, "other %": others}
            | {"response tokens": middle["tokens"], "ms / token": 1e3 * per_token}
        )
    write(args, table, base=BASE)
    if args.plot and not args.quick:
        plot(table, args.plot)
    partial.unlink()


if __name__ == "__main__":
    main()
