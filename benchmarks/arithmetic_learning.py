"""Does it learn? Trains strategies and seeds on CPU-scale arithmetic and plots held-out accuracy over time.

    python benchmarks/arithmetic_learning.py --output docs/arithmetic_learning

Runs that have finished in the output folder are not run again, so that it can be stopped and resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def train(strategy: str, seed: int, iterations: int, evaluate_every: int, output: Path) -> None:
    """One run; a line of JSON per iteration, line 0 of the untrained model, with an evaluation on some."""
    os.environ["RLLIB_EXIT_SCALE"] = "cpu"
    sys.path.insert(0, str(ROOT / "tuned_examples"))
    import ray
    from math_common import make_config

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    config, _ = make_config(strategy)
    config.debugging(seed=seed).evaluation(evaluation_interval=None)
    algo: Any = config.build_algo()
    lines, seconds = [], 0.0
    for iteration in range(iterations + 1):
        start = time.perf_counter()
        result = algo.train() if iteration else {}
        seconds += time.perf_counter() - start
        line: dict[str, Any] = {"iteration": iteration, "train_seconds": seconds}
        line.update({part: result.get(part) for part in ("rollouts", "learner", "curriculum", "timers")})
        print(strategy, seed, iteration, f"{seconds:.0f} s", (line["rollouts"] or {}).get("return_mean"), flush=True)
        if iteration % evaluate_every == 0:
            line["evaluation"] = algo.evaluate()
            print(line["evaluation"]["accuracy"], flush=True)
        lines.append(json.dumps(line, default=float))
    algo.stop()
    output.write_text("\n".join(lines) + "\n")


def plot(output: Path) -> None:
    """The curves of all runs in the folder, and the table that goes with them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(dict)
    for file in sorted(output.glob("*-seed*.jsonl")):
        strategy, seed = file.stem.rsplit("-seed", 1)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        runs[strategy][int(seed)] = [line for line in lines if "evaluation" in line]
    if not runs:
        raise SystemExit(f"no runs in {output}")

    figure, (over_time, over_steps) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    colours = dict(zip(runs, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    table = ["strategy  seed  untrained  trained  points  train minutes"]
    for strategy, seeds in runs.items():
        for seed, lines in seeds.items():
            minutes = [line["train_seconds"] / 60 for line in lines]
            accuracy = [100 * line["evaluation"]["accuracy"]["step_0"] for line in lines]
            label = strategy if seed == min(seeds) else None
            over_time.plot(minutes, accuracy, "o-", ms=3, lw=1, color=colours[strategy], label=label)
            gain = accuracy[-1] - accuracy[0]
            table.append(
                f"{strategy:9} {seed:4}  {accuracy[0]:9.1f}  {accuracy[-1]:7.1f}  {gain:+6.1f}  {minutes[-1]:.1f}"
            )
        for which, style in ((0, ":"), (-1, "-")):
            curves = [list(lines[which]["evaluation"]["accuracy"].values()) for lines in seeds.values()]
            mean = 100 * np.mean(curves, axis=0)
            label = f"{strategy}, {'untrained' if which == 0 else 'trained'}"
            over_steps.plot(range(len(mean)), mean, style, color=colours[strategy], label=label)
    tasks = next(iter(next(iter(runs.values())).values()))[0]["evaluation"]["num_tasks"]
    over_time.set(xlabel="training time (minutes)", ylabel="held-out accuracy (%)", title="One line per seed")
    over_steps.set(xlabel="self-improvement steps", ylabel="held-out accuracy (%)", title="Mean over seeds")
    over_steps.xaxis.get_major_locator().set_params(integer=True)
    for axes in (over_time, over_steps):
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"SmolLM2-135M on arithmetic, {tasks} held-out problems, on a CPU")
    figure.savefig(output / "arithmetic_learning.png", dpi=130)
    (output / "arithmetic_learning.txt").write_text("\n".join(table) + "\n")
    print("\n".join(table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=["grpo", "exit"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--evaluate-every", type=int, default=10)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "arithmetic_learning")
    parser.add_argument("--one", nargs=3, metavar=("STRATEGY", "SEED", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        train(args.one[0], int(args.one[1]), args.iterations, args.evaluate_every, Path(args.one[2]))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for strategy in args.strategies:
            file = args.output / f"{strategy}-seed{seed}.jsonl"
            if not file.exists():
                options = ["--iterations", str(args.iterations), "--evaluate-every", str(args.evaluate_every)]
                command = [sys.executable, __file__, *options, "--one", strategy, str(seed), str(file)]
                subprocess.run(command, check=True)
            plot(args.output)


if __name__ == "__main__":
    main()
