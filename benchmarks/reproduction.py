"""The paper's comparison at small scale, on a CPU: strategies and seeds at equal rollouts.

    python benchmarks/reproduction.py --output results/reproduction
    python benchmarks/reproduction.py --domain bfcl --strategies exit --seeds 0 --output results/bfcl

Trains every strategy with every seed by ``rllib train file tuned_examples/DOMAIN_STRATEGY.py --scale cpu``, measures
K-step self-improvement before and after by ``rllib evaluate``, and draws both. Tool use starts from a model that
``rllib sft`` has warmed up. The script can be stopped and resumed: what is done is not done again, and a run that was
cut off goes on from its last checkpoint. ``rllib report results/reproduction --output DIR`` makes the whole report.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pyarrow.dataset as ds

from rllib_exit import checkpoints
from rllib_exit.cli.runs import load_iteration
from rllib_exit.report.results import Results, find
from rllib_exit.report.runs import BASE, Run

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = ("grpo", "curriculum", "improve", "diverge", "exit")
ITERATIONS = 40  # which the examples' learning rates are made for
# For each domain, what its figure is called, the options of its warm start, and those of its training after it.
DOMAINS: dict[str, tuple[str, list[str], list[str]]] = {
    "math": ("SmolLM2-135M on arithmetic, on a CPU", [], []),
    "bfcl": (
        "SmolLM2-135M on multi-turn tool use (TradingBot) after a warm start, on a CPU",
        ["--epochs", "4", "--lr", "1e-4", "--batch-size", "8"],
        # Of the example's APIs the one with most tasks that the warm start solves now and then.
        ["--set", "env_config.classes=[TradingBot]"],
    ),
}
HELD_OUT = "evaluation/accuracy/step_0"
SMOOTHED = 5  # iterations: one has few episodes that start where a task does


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


def warm_start(domain: str, options: Sequence[str], output: Path) -> list[str]:
    """The options of ``rllib train`` that make it start from the warmed-up model."""
    if not options:
        return []
    model = output / "warm-start"
    if not (model / "sft.json").is_file():
        file = f"tuned_examples/{domain}_exit.py"
        rllib(output / "warm-start.log", "sft", file, "--scale", "cpu", "--output", str(model), *options)
    return ["--set", f"model_name={model}"]


def train(file: str, seed: int, iterations: int, run: Path, options: Sequence[str], cores: Sequence[int]) -> None:
    try:
        resume = ["--resume", str(checkpoints.newest(run))]
        if load_iteration(Path(resume[1])) >= iterations:
            return
    except checkpoints.CheckpointError:
        resume = []
    run.mkdir(parents=True, exist_ok=True)
    options = ["--scale", "cpu", "--set", f"seed={seed}", "--stop-iters", f"{iterations}", "--log-rollouts", *options]
    rllib(run / "train.log", "train", "file", file, *options, *resume, "--results-dir", str(run), cores=cores)


def first_answers(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """By iteration, the mean quality in % of the training episodes that start where a task does, smoothed."""
    assert run.log is not None
    at_start = (ds.field("kind") == "base") & (ds.field("starting_turn") == 0)
    rows = run.log.read(at_start, columns=["iteration", "quality"])
    iterations = np.array([row["iteration"] for row in rows])
    qualities = np.array([row["quality"] for row in rows])
    ends = np.arange(min(SMOOTHED, iterations.max()), iterations.max() + 1)
    windows = [(iterations > end - SMOOTHED) & (iterations <= end) for end in ends]
    return ends, np.array([100 * qualities[window].mean() if window.any() else np.nan for window in windows])


def accuracies(results: Results, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(K+1,) accuracy in % by step of the model before training and of the run, every task counting the same."""
    rows = results.evaluations[results.evaluations.run == run.key]
    rows = rows.assign(right=rows.accuracy * rows.tasks, base=rows.method == BASE)
    sums = rows.groupby(["base", "step"])[["right", "tasks"]].sum()
    by_step = sums.right / sums.tasks
    return by_step[True].to_numpy(), by_step[False].to_numpy()


def summarise(title: str, output: Path) -> None:
    """Prints and writes the table of all runs, and draws their curves."""
    from matplotlib.figure import Figure

    (results,) = find([output]).domains()
    found = [run for run in results.trained if (results.evaluations.run == run.key).any()]
    numbers = results.iterations.reindex(columns=["run", "iteration", "time_this_iter_s", HELD_OUT])
    held_out = bool(numbers[HELD_OUT].notna().any())
    figure = Figure(figsize=(15 if held_out else 10, 4.2), layout="constrained")
    axes = list(figure.subplots(1, 3 if held_out else 2))
    over_iterations, over_steps, over_time = axes[0], axes[-1], axes[1] if held_out else None
    table = ["strategy    seed  untrained %  trained %  points  after K steps %  points  train minutes"]
    untrained = np.empty(0)
    strategies = sorted({run.strategy for run in found}, key=STRATEGIES.index)
    for strategy in strategies:
        color = f"C{STRATEGIES.index(strategy)}"
        trained = []
        for i, run in enumerate(run for run in found if run.strategy == strategy):
            label = None if i else strategy
            untrained, of_run = accuracies(results, run)
            trained.append(of_run)
            over_iterations.plot(*first_answers(run), lw=1, color=color, label=label)
            own = numbers[numbers.run == run.key]
            own = own.assign(minutes=own.time_this_iter_s.cumsum() / 60)
            if over_time is not None:
                measured = own.dropna(subset=HELD_OUT)
                x, y = [0.0, *measured.minutes], [untrained[0], *(100 * measured[HELD_OUT])]
                over_time.plot(x, y, "o-", ms=3, lw=1, color=color, label=label)
            first, last = of_run[0], of_run[-1]
            table.append(
                f"{strategy:10}  {run.params['seed']:4}  {untrained[0]:11.1f}  {first:9.1f}  "
                f"{first - untrained[0]:+6.1f}  {last:15.1f}  {last - untrained[-1]:+6.1f}  {own.minutes.max():13.1f}"
            )
        over_steps.plot(np.mean(trained, axis=0), color=color, label=strategy)
    over_steps.plot(untrained, ":", color="black", label="untrained")
    over_iterations.set(
        xlabel="iteration",
        ylabel="training quality at a task's start (%)",
        title=f"Training, mean of {SMOOTHED} iterations, a line per seed",
    )
    over_steps.set(xlabel="self-improvement steps", ylabel="held-out accuracy (%)", title="Held out, mean over seeds")
    over_steps.xaxis.get_major_locator().set_params(integer=True)
    if over_time is not None:
        over_time.set(xlabel="training time (minutes)", ylabel="held-out accuracy (%)", title="Held out, per seed")
    for ax in axes:
        ax.set_ylim(0, 100)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(output / "learning.png", dpi=130)
    (output / "learning.txt").write_text("\n".join(table) + "\n")
    print("\n".join(table), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", choices=DOMAINS, default="math")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--steps", type=int, default=8, help="K, the self-improvement steps of the evaluation")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on its share of the cores")
    parser.add_argument("--output", type=Path, default=Path("results/reproduction"))
    args = parser.parse_args()
    output = args.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    title, warm_start_options, training_options = DOMAINS[args.domain]
    options = [*warm_start(args.domain, warm_start_options, output), *training_options]
    cores = sorted(os.sched_getaffinity(0))
    shares: SimpleQueue[list[int]] = SimpleQueue()
    for i in range(args.jobs):
        shares.put(cores[i :: args.jobs])

    def job(run: tuple[int, str]) -> None:
        seed, strategy = run
        share = shares.get()
        file = f"tuned_examples/{args.domain}_{strategy}.py"
        try:
            train(file, seed, args.iterations, output / f"{strategy}-seed{seed}", options, share)
        finally:
            shares.put(share)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(job, itertools.product(args.seeds, args.strategies)))
    # All at once: they share the engine and the evaluation of the untrained model. It keeps what it has done.
    rllib(output / "evaluate.log", "evaluate", str(output), "--baseline", "--steps", f"{args.steps}")
    summarise(title, output)


if __name__ == "__main__":
    main()
