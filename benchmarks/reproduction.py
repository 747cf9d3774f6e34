"""The paper's comparison at small scale: strategies and seeds on arithmetic, on a CPU, at equal rollouts.

    python benchmarks/reproduction.py --output results/reproduction

Trains every strategy with every seed by ``rllib train file tuned_examples/math_STRATEGY.py --scale cpu``, measures
K-step self-improvement before and after by ``rllib evaluate``, and draws held-out accuracy over the training time. It
can be stopped and resumed: what is done is not done again, and a run that was cut off goes on from its last checkpoint.
``rllib report results/reproduction --output DIR`` makes the whole report.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from rllib_exit import checkpoints
from rllib_exit.cli.runs import load_iteration
from rllib_exit.evaluation.curves import Curve
from rllib_exit.evaluation.results import BASELINE, JSON, TRAINED, read

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = ("grpo", "curriculum", "improve", "diverge", "exit")


def rllib(log: Path, *arguments: str, cores: Sequence[int] = ()) -> None:
    """Runs the command line, its output in a log file; on some cores only, if they are given."""
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    with open(log, "a") as file:
        subprocess.run(
            [*pinned, str(Path(sys.executable).parent / "rllib"), *arguments],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
        )


def train(strategy: str, seed: int, iterations: int, run: Path, cores: Sequence[int]) -> None:
    try:
        resume = ["--resume", str(checkpoints.newest(run))]
        if load_iteration(Path(resume[1])) >= iterations:
            return
    except checkpoints.CheckpointError:
        resume = []
    run.mkdir(parents=True, exist_ok=True)
    options = ["--scale", "cpu", "--set", f"seed={seed}", "--stop-iters", f"{iterations}", "--log-rollouts"]
    file = f"tuned_examples/math_{strategy}.py"
    rllib(run / "train.log", "train", "file", file, *options, *resume, "--results-dir", str(run), cores=cores)


def results(run: Path) -> Iterator[dict[str, Any]]:
    """RLlib's results, one per iteration. A run that went on wrote more than one file."""
    by_iteration: dict[int, dict[str, Any]] = {}
    for file in sorted(run.rglob("result.json"), key=lambda file: file.stat().st_mtime):
        for line in file.read_text().splitlines():
            result = json.loads(line)
            by_iteration[result["training_iteration"]] = result
    return (by_iteration[i] for i in sorted(by_iteration))


def summarise(output: Path) -> None:
    """Prints and writes the table of all runs, and draws their curves."""
    from matplotlib.figure import Figure

    runs: dict[str, dict[int, tuple[Path, dict[str, Curve]]]] = defaultdict(dict)
    for strategy in STRATEGIES:
        for run in sorted(output.glob(f"{strategy}-seed*")):
            for file in run.rglob(JSON):
                runs[strategy][int(run.name.rpartition("seed")[2])] = run, read(file).pooled()

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    over_time, over_steps = figure.subplots(1, 2)
    table = ["strategy    seed  untrained %  trained %  points  after K steps %  points  train minutes"]
    untrained = np.empty(0)
    for i, (strategy, seeds) in enumerate(runs.items()):
        trained = []
        for seed, (run, curves) in seeds.items():
            untrained = 100 * curves[BASELINE].accuracy
            trained.append(100 * curves[TRAINED].accuracy)
            history = list(results(run))
            points = [
                (result["time_total_s"] / 60, 100 * result["evaluation"]["accuracy"]["step_0"])
                for result in history
                if "evaluation" in result
            ]
            over_time.plot(
                *zip((0.0, untrained[0]), *points, strict=True),
                "o-",
                ms=3,
                lw=1,
                color=f"C{i}",
                label=strategy if seed == min(seeds) else None,
            )
            first, last = trained[-1][0], trained[-1][-1]
            table.append(
                f"{strategy:10}  {seed:4}  {untrained[0]:11.1f}  {first:9.1f}  {first - untrained[0]:+6.1f}  "
                f"{last:15.1f}  {last - untrained[-1]:+6.1f}  {history[-1]['time_total_s'] / 60:13.1f}"
            )
        over_steps.plot(np.mean(trained, axis=0), color=f"C{i}", label=strategy)
    over_steps.plot(untrained, ":", color="black", label="untrained")
    over_time.set(xlabel="training time (minutes)", ylabel="held-out accuracy (%)", title="One line per seed")
    over_steps.set(xlabel="self-improvement steps", ylabel="held-out accuracy (%)", title="Mean over seeds")
    over_steps.xaxis.get_major_locator().set_params(integer=True)
    for axes in (over_time, over_steps):
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle("SmolLM2-135M on held-out arithmetic, on a CPU")
    figure.savefig(output / "learning.png", dpi=130)
    (output / "learning.txt").write_text("\n".join(table) + "\n")
    print("\n".join(table), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--steps", type=int, default=8, help="K, the self-improvement steps of the evaluation")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on its share of the cores")
    parser.add_argument("--output", type=Path, default=Path("results/reproduction"))
    args = parser.parse_args()
    output = args.output.absolute()
    cores = sorted(os.sched_getaffinity(0))
    shares: SimpleQueue[list[int]] = SimpleQueue()
    for i in range(args.jobs):
        shares.put(cores[i :: args.jobs])

    def job(run: tuple[int, str]) -> None:
        seed, strategy = run
        share = shares.get()
        try:
            train(strategy, seed, args.iterations, output / f"{strategy}-seed{seed}", share)
        finally:
            shares.put(share)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(job, itertools.product(args.seeds, args.strategies)))
    # All at once: they share the engine and the evaluation of the untrained model. It keeps what it has done.
    rllib(output / "evaluate.log", "evaluate", str(output), "--baseline", "--steps", f"{args.steps}")
    summarise(output)


if __name__ == "__main__":
    main()
