"""Whole training iterations: where their time goes, how it grows, and what the diversity bonus adds.

    python benchmarks/iterations.py --output docs/benchmarks/iterations.json --plot docs/iterations.png

Every setting changes one of: group size, prompts per batch, the most response tokens, the task buffer's size; the
others have the values of ``BASE``. Settings take turns of one iteration in one algorithm, which trains the bundled
model on arithmetic with a learning rate of 0, so that the policy stays what it is. Each has a task buffer of its own,
which is full from the start.

What grows should grow with the generated tokens at most: the last column is the time for each of them. The pair
``without bonus`` and ``with bonus`` differs in the diversity bonus alone.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tuned_examples"))

import math_common
import numpy as np
import ray
from side_by_side import alternate, arguments, write

from envs.base import TaskInstance, Turn
from rllib_exit.connectors.exit_replay import ExItReplay
from rllib_exit.curriculum.exit import CurriculumConfig, ExIt
from rllib_exit.embeddings import make_diversity

BASE = {"group size": 4, "prompts": 4, "response tokens": 16, "buffer size": 1000}
GROWTH = {"group size": [2, 8], "prompts": [2, 8], "response tokens": [8, 32], "buffer size": [100, 100_000]}
TIMERS = ("select", "rollout", "embed", "update", "sync")


def settings(quick: bool) -> dict[str, dict[str, Any]]:
    chosen: dict[str, dict[str, Any]] = {"with bonus": {**BASE}, "without bonus": {**BASE, "bonus": False}}
    for name, values in GROWTH.items():
        for value in () if quick else values:
            chosen[f"{name} {value}"] = {**BASE, name: value}
    return chosen


def changed(config: Any, setting: dict[str, Any]) -> Any:
    """The configuration of a setting."""
    config = config.copy(copy_frozen=False)
    config.training(prompts_per_batch=setting["prompts"], rollouts_per_prompt=setting["group size"])
    config.generation(max_response_tokens=setting["response tokens"])
    config.curriculum("exit", buffer_size=setting["buffer size"], min_buffer_size=1)
    config.diversity_bonus = setting.get("bonus", True)
    config.freeze()
    return config


def full_buffer(config: Any, task_ids: list[str]) -> ExItReplay:
    rng = np.random.default_rng(0)
    exit_ = ExIt(CurriculumConfig.of(config), task_ids, rng)
    for i in range(config.buffer_size):
        exit_.buffer.insert(
            TaskInstance(task_ids[i % len(task_ids)], (), Turn(f"{i}"), "improve"), score=rng.random() / 4
        )
    return ExItReplay(exit_)


class Settings:
    """One algorithm, which takes on one setting after another."""

    def __init__(self, chosen: dict[str, dict[str, Any]]) -> None:
        base = math_common.cpu("exit")[0].training(lr=0.0).evaluation(evaluation_interval=None)
        self.algo: Any = base.build_algo()
        self.configs = {name: changed(base, setting) for name, setting in chosen.items()}
        task_ids = list(self.algo._env.tasks)
        self.replays = {name: full_buffer(config, task_ids) for name, config in self.configs.items()}
        self.turns: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}

    def iteration(self, name: str) -> float:
        config = self.configs[name]

        def take_on(env_runner: Any) -> None:
            env_runner.config = config
            vars(env_runner).pop("_training_envs", None)

        self.algo.env_runner_group.foreach_env_runner(take_on)
        self.algo.config, self.algo.replay = config, self.replays[name]
        self.algo.diversity = make_diversity(config)
        self.algo.rollouts.selected.clear()
        start = time.perf_counter()
        result = self.algo.train()
        seconds = time.perf_counter() - start
        tokens = result["rollouts"]["response_tokens_mean"] * config.prompts_per_batch * config.rollouts_per_prompt
        self.turns[name].append({"seconds": seconds, "tokens": tokens, **{t: result["timers"][t] for t in TIMERS}})
        return seconds


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
    parser.add_argument("--plot", type=Path, help="a PNG")
    args = parser.parse_args()
    if args.quick:
        args.repeats = 1
    chosen = settings(args.quick)
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    algorithm = Settings(chosen)
    alternate({name: lambda name=name: algorithm.iteration(name) for name in chosen}, args.repeats)
    algorithm.algo.stop()
    ray.shutdown()

    table: list[dict[str, Any]] = []
    for name, (_, *rows) in algorithm.turns.items():  # the first one warms up
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        shares = {f"{t} %": 100 * statistics.median(row[t] / row["seconds"] for row in rows) for t in TIMERS}
        # What is in none of the timers; embedding is part of rolling out.
        others = 100 - sum(share for timer, share in shares.items() if timer != "embed %")
        per_token = statistics.median(row["seconds"] / row["tokens"] for row in rows)
        table.append(
            {"setting": name, "s / iteration": middle["seconds"], **shares, "other %": others}
            | {"response tokens": middle["tokens"], "ms / token": 1e3 * per_token}
        )
    write(args, table, base=BASE, turns=algorithm.turns)
    if args.plot and not args.quick:
        plot(table, args.plot)


if __name__ == "__main__":
    main()
