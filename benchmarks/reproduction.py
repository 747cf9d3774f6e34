"""The paper's comparison at small scale, on a CPU: strategies and seeds at equal rollouts.

    python benchmarks/reproduction.py --domain countdown --jobs 2 --output results/countdown
    python benchmarks/reproduction.py --domain countdown_visible --jobs 2 --output results/countdown-visible
    python benchmarks/reproduction.py --domain countdown_smollm2 --jobs 2 --output results/countdown-smollm2
    python benchmarks/reproduction.py --domain math --output results/reproduction
    python benchmarks/reproduction.py --domain bfcl --strategies exit --seeds 0 --output results/bfcl

Trains every strategy with every seed by ``rllib train file tuned_examples/DOMAIN_STRATEGY.py --scale cpu``, measures
K-step self-improvement before and after by ``rllib evaluate``, and draws both. Tool use starts from a model that
``rllib sft`` has warmed up. The script can be stopped and resumed: what is done is not done again, and a run that was
cut off goes on from its last checkpoint. ``rllib report OUTPUT/runs --output DIR`` makes the whole report.

Countdown is also measured greedily and by independent samples, see ``countdown_results.py``. Its numbers go into
``results.json``. Entries of other strategies and seeds that are there already stay: copy the file of an earlier
experiment into the output directory to add seeds to it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import countdown_results
import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from envs.countdown.env import CountdownEnv
from rllib_exit import checkpoints
from rllib_exit.cli.runs import load_iteration
from rllib_exit.report.results import Results, find
from rllib_exit.report.runs import BASE, Run
from rllib_exit.scale import cpu_dtype
from rllib_exit.self_improvement.results import BASELINE, JSON, PARQUET, TRAINED, read

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = ("grpo", "curriculum", "improve", "diverge", "exit")


@dataclass(frozen=True)
class Domain:
    """How a domain is trained and evaluated.

    Attributes:
        title: What its figure is called.
        example: The tuned examples are those whose names begin so.
        iterations: Of training, which the examples' learning rates are made for.
        strategies: That are compared.
        seeds: Of training.
        steps: K, the self-improvement steps of the evaluation.
        warm_start: Options of ``rllib sft``; empty for none.
        training: Options of ``rllib train``.
        evaluation: Options of ``rllib evaluate``.
        more_evaluations: Those of further evaluations, by the name of the directory that they are written to.
    """

    title: str
    example: str
    iterations: int = 40
    strategies: tuple[str, ...] = STRATEGIES
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 8
    warm_start: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    more_evaluations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def set_options(settings: Iterable[str]) -> tuple[str, ...]:
    """The options of ``rllib train`` for some settings, such as ``lr=1e-5``."""
    return tuple(itertools.chain.from_iterable(("--set", setting) for setting in settings))


COUNTDOWN = Domain(
    "Countdown with a target that only the feedback tells of, and a model of one million parameters",
    "countdown",
    iterations=120,
    seeds=(0, 1, 2, 3, 4),
    steps=16,
    evaluation=("--split", "test", "--seeds", "5"),  # there are 39 tasks
    more_evaluations={
        "greedy": ("--split", "test", "--set", "temperature=0"),
        "samples": ("--split", "test", "--steps", "0", "--seeds", "17"),
    },
)
VISIBLE_TARGET = (
    "env_config.numbers=3", "env_config.hidden_target=False", "lr=2e-4", "prompts_per_batch=64", "buffer_size=1024",
    "min_buffer_size=64", "evaluation_interval=80",
)  # fmt: skip
SMOLLM2_TRAINING = (
    f"dtype={cpu_dtype()}", "lr=3e-5", "prompts_per_batch=8", "max_response_tokens=16", "num_envs_per_env_runner=64",
    "max_tokens_per_micro_batch=1024", "min_buffer_size=8", "evaluation_interval=None",
)  # fmt: skip
DOMAINS = {
    "countdown": COUNTDOWN,
    "countdown_smollm2": replace(
        COUNTDOWN,
        title="Countdown with a target that only the feedback tells of, and SmolLM2-135M",
        iterations=60,
        strategies=("grpo", "exit"),
        seeds=(0, 1, 2),
        steps=8,
        # The format, from solutions of tasks that show their targets.
        warm_start=(
            *("--epochs", "2", "--lr", "1e-4"),
            *set_options(("model_name=bundled:smollm2-135m-instruct", "env_config.hidden_target=False")),
        ),
        evaluation=("--split", "test", "--seeds", "2"),
        more_evaluations={**COUNTDOWN.more_evaluations, "samples": ("--split", "test", "--steps", "0", "--seeds", "9")},
        training=set_options(SMOLLM2_TRAINING),
    ),
    "countdown_visible": replace(
        COUNTDOWN,
        title="Countdown with three numbers, and a model of one million parameters",
        iterations=160,
        evaluation=("--split", "test"),
        training=set_options(VISIBLE_TARGET),
    ),
    "math": Domain("SmolLM2-135M on arithmetic, on a CPU", "math"),
    "bfcl": Domain(
        "SmolLM2-135M on multi-turn tool use (TradingBot) after a warm start, on a CPU",
        "bfcl",
        warm_start=("--epochs", "4", "--lr", "1e-4", "--batch-size", "8"),
        # Of the example's APIs the one with most tasks that the warm start solves now and then.
        training=("--set", "env_config.classes=[TradingBot]"),
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


def warm_start(example: str, options: Sequence[str], output: Path) -> list[str]:
    """The options of ``rllib train`` that make it start from the warmed-up model."""
    if not options:
        return []
    model = output / "warm-start"
    if not (model / "sft.json").is_file():
        file = f"tuned_examples/{example}_exit.py"
        rllib(output / "warm-start.log", "sft", file, "--scale", "cpu", "--output", str(model), *options)
    return ["--set", f"model_name={model}", "--set", "warm_start_epochs=0"]


@dataclass(frozen=True)
class Training:
    """A run to train.

    Attributes:
        directory: Of the run.
        file: The tuned example.
        seed: Of the training.
        iterations: How many.
        options: More options of ``rllib train``.
    """

    directory: Path
    file: str
    seed: int
    iterations: int
    options: Sequence[str] = ()

    def run(self, cores: Sequence[int]) -> None:
        """Trains, from the last checkpoint if there is one; does nothing if that is of the last iteration."""
        try:
            resume = ["--resume", str(checkpoints.newest(self.directory))]
            if load_iteration(Path(resume[1])) >= self.iterations:
                return
        except checkpoints.CheckpointError:
            resume = []
        self.directory.mkdir(parents=True, exist_ok=True)
        options = ["--scale", "cpu", "--set", f"seed={self.seed}", "--stop-iters", f"{self.iterations}"]
        options += ["--log-rollouts", *self.options, *resume, "--results-dir", str(self.directory)]
        rllib(self.directory / "train.log", "train", "file", self.file, *options, cores=cores)


def train_all(runs: Iterable[Training], jobs: int) -> None:
    """Trains the runs in this order, so many at once, each on its share of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    shares: SimpleQueue[list[int]] = SimpleQueue()
    for i in range(jobs):
        shares.put(cores[i::jobs])

    def job(run: Training) -> None:
        share = shares.get()
        try:
            run.run(share)
        finally:
            shares.put(share)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(job, runs))


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

    (results,) = find([output / "runs"]).domains()
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


def countdown_entries(output: Path) -> list[dict[str, Any]]:
    """An entry for the untrained model and for every run, as ``results.json`` has them; see ``countdown_results``."""
    solution = CountdownEnv({"limit": 1}).solution
    found = find([output / "runs"])
    entropies = found.iterations.groupby("run")["learner/entropy"].apply(lambda values: values.tail(10).mean())
    minutes = found.iterations.groupby("run").time_this_iter_s.sum() / 60
    keys = {(run.strategy, run.params["seed"]): run.key for run in found.runs}
    entries: dict[tuple[str, int | None], dict[str, Any]] = {}
    for kind in ("runs", *COUNTDOWN.more_evaluations):
        for file in sorted((output / kind).rglob(JSON)):
            evaluation = read(file)
            rows = pd.read_parquet(file.parent / PARQUET)
            of_run = (evaluation.run["strategy"], evaluation.run["seed"])
            for policy, of_policy in {TRAINED: of_run, BASELINE: ("untrained", None)}.items():
                of = rows[rows.policy == policy]
                entry = entries.setdefault(of_policy, dict(zip(("strategy", "seed"), of_policy, strict=True)))
                if kind == "samples":
                    entry |= countdown_results.of_samples(of, solution)
                else:
                    numbers = countdown_results.of_chains(of, solution)
                    entry |= {
                        f"{'greedy_' if kind == 'greedy' else ''}{name}": value for name, value in numbers.items()
                    }
            entries[of_run] |= {
                "iterations": evaluation.iteration,
                "entropy": float(entropies[keys[of_run]]),
                "train_minutes": float(minutes[keys[of_run]]),
            }
    entries["untrained", None] |= {"iterations": 0, "entropy": None, "train_minutes": 0.0}
    return list(entries.values())


def summarise_countdown(title: str, output: Path) -> None:
    """Adds this experiment's entries to ``results.json``, and draws and prints all that are in it."""
    file = output / "results.json"
    entries = {(entry["strategy"], entry["seed"]): entry for entry in countdown_results.read(file)}
    entries |= {(entry["strategy"], entry["seed"]): entry for entry in countdown_entries(output)}
    order = ("untrained", *STRATEGIES)
    ordered = sorted(entries.values(), key=lambda entry: (order.index(entry["strategy"]), entry["seed"] or 0))
    file.write_text(json.dumps(ordered, indent=1) + "\n")
    countdown_results.draw(ordered, output / "self_improvement.png", title)
    print(countdown_results.table(ordered), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", choices=DOMAINS, default="countdown")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, help="by default all, with SmolLM2 two")
    parser.add_argument("--seeds", nargs="+", type=int, help="by default 0 to 4 for countdown, else 0 to 2")
    parser.add_argument("--iterations", type=int, help="by default 120 or 160 for countdown, else 40")
    parser.add_argument("--steps", type=int, help="K, the evaluation's self-improvement steps; by default 16 or 8")
    parser.add_argument("--set", action="append", default=[], help="a setting of all runs, as of rllib train")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on its share of the cores")
    parser.add_argument("--output", type=Path, default=Path("results/reproduction"))
    args = parser.parse_args()
    output = args.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    domain = DOMAINS[args.domain]
    options = [*warm_start(domain.example, domain.warm_start, output), *domain.training, *set_options(args.set)]
    runs = (
        Training(
            output / "runs" / f"{strategy}-seed{seed}",
            f"tuned_examples/{domain.example}_{strategy}.py",
            seed,
            args.iterations or domain.iterations,
            options,
        )
        for seed, strategy in itertools.product(args.seeds or domain.seeds, args.strategies or domain.strategies)
    )
    train_all(runs, args.jobs)
    # All at once: they share the engine and the evaluation of the untrained model. It keeps what it has done.
    evaluate = ["evaluate", str(output / "runs"), "--baseline", "--steps", f"{args.steps or domain.steps}"]
    log = output / "evaluate.log"
    rllib(log, *evaluate, *domain.evaluation)
    for name, more in domain.more_evaluations.items():
        rllib(log, *evaluate, *more, "--output", str(output / name))
    (summarise_countdown if domain.example == "countdown" else summarise)(domain.title, output)


if __name__ == "__main__":
    main()
