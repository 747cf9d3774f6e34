"""What ``reproduction.py --domain countdown`` measures beside accuracy by step, as plain functions of evaluations.

    python benchmarks/countdown_results.py results/quickstart

draws the evaluation of one run beside GRPO's recorded one.

Shapes: N chains or tasks, K self-improvement steps, S independent samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rllib_exit.report.figures import BASE_STYLE, style
from rllib_exit.self_improvement import results
from rllib_exit.self_improvement.curves import figure_axes

CONFIDENCE = 0.95
RECORDED = Path(__file__).resolve().parent.parent / "docs" / "countdown" / "results.json"


def of_chains(rows: pd.DataFrame, solution: Callable[[str], str]) -> dict[str, list[float]]:
    """What the steps of self-improvement do, by step.

    Args:
        rows: Those of one policy in ``evaluation.parquet``; every task has a chain for each sampling seed.
        solution: What of a response makes it differ from others.

    Returns:
        ``accuracy``, K+1 numbers; ``wrong_to_right``, K, the share of answers that are wrong before a step and right
        after it, of those that are wrong before; ``right_kept``, K, likewise; ``distinct_answers``, K+1, how many
        different answers a chain has had so far. All fractions but the last; None where no answer is counted.
    """
    right_NK, answers_NK = _right_and_answers(rows, solution, ["seed", "task_id"], "step")
    before, after = right_NK[:, :-1], right_NK[:, 1:]
    return {
        "accuracy": right_NK.mean(axis=0).tolist(),
        "wrong_to_right": _shares(after & ~before, ~before),
        "right_kept": _shares(after & before, before),
        "distinct_answers": [
            float(np.mean([len(set(answers[: k + 1])) for answers in answers_NK])) for k in range(answers_NK.shape[1])
        ],
    }


def of_samples(rows: pd.DataFrame, solution: Callable[[str], str]) -> dict[str, list[float]]:
    """What independent first answers reach, by their number, 1 to S.

    Args:
        rows: Those of one policy in ``evaluation.parquet``, step 0 of every sampling seed.
        solution: What of a response makes it differ from others.

    Returns:
        ``pass_at``, the probability that one of so many answers is right, by the unbiased estimator of Chen et al.
        (2021); ``majority_at``, the accuracy of the most frequent of the first so many answers, the earliest of
        equally frequent ones.
    """
    right_NS, answers_NS = _right_and_answers(rows[rows.step == 0], solution, ["task_id"], "seed")
    num = right_NS.shape[1]
    return {
        "pass_at": [
            float(np.mean([1 - comb(num - right, k) / comb(num, k) for right in right_NS.sum(axis=1).tolist()]))
            for k in range(1, num + 1)
        ],
        "majority_at": [
            float(np.mean(right_NS[np.arange(len(right_NS)), _most_frequent(answers_NS[:, :k])]))
            for k in range(1, num + 1)
        ],
    }


def _right_and_answers(
    rows: pd.DataFrame, solution: Callable[[str], str], index: list[str], columns: str
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each answer is right, and the answers, as tables with such rows and columns."""
    rows = rows.assign(right=rows.quality == 1.0, answer=[solution(responses[0]) for responses in rows.responses])
    right, answers = (rows.pivot(index=index, columns=columns, values=value) for value in ("right", "answer"))
    return right.to_numpy(bool), answers.to_numpy()


def _most_frequent(answers_NS: np.ndarray) -> list[int]:
    """For each task, the index of the first answer of the most frequent ones."""
    return [int(np.argmax([list(answers).count(answer) for answer in answers])) for answers in answers_NS]


def _shares(counted_NK: np.ndarray, of_NK: np.ndarray) -> list[Any]:
    sums = of_NK.sum(axis=0)
    return [float(count / of) if of else None for count, of in zip(counted_NK.sum(axis=0), sums, strict=True)]


def interval(values_R: Sequence[float]) -> tuple[float, float]:
    """The mean over training runs and half of its 95 % interval by Student's t; NaN for a single run."""
    from scipy import stats

    values = np.asarray(values_R, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def table(entries: Sequence[dict[str, Any]]) -> str:
    """A column for each strategy: the mean over training seeds, ± half of its 95 % interval.

    Step rates are means over the K steps. Everything is in percent or in points, but for the entropy in nats.
    """
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "first answer %": lambda e: 100 * e["accuracy"][0],
        "after K steps %": lambda e: 100 * e["accuracy"][-1],
        "gain points": lambda e: 100 * (e["accuracy"][-1] - e["accuracy"][0]),
        "greedy first %": lambda e: 100 * e["greedy_accuracy"][0],
        "greedy gain": lambda e: 100 * (e["greedy_accuracy"][-1] - e["greedy_accuracy"][0]),
        "wrong→right %": lambda e: 100 * _mean(e["wrong_to_right"]),
        "right kept %": lambda e: 100 * _mean(e["right_kept"]),
        "distinct answers": lambda e: e["distinct_answers"][-1],
        "pass@K+1 %": lambda e: 100 * e["pass_at"][-1],
        "majority@K+1 %": lambda e: 100 * e["majority_at"][-1],
        "entropy": lambda e: e["entropy"] if e["entropy"] is not None else float("nan"),
    }
    by_strategy = {
        strategy: [entry for entry in entries if entry["strategy"] == strategy]
        for strategy in dict.fromkeys(entry["strategy"] for entry in entries)
    }
    cells = {
        strategy: [
            f"{len(runs)}",
            *(_text(*interval([column(entry) for entry in runs])) for column in columns.values()),
        ]
        for strategy, runs in by_strategy.items()
    }
    return pd.DataFrame(cells, index=["training seeds", *columns]).to_string()


def _text(mean: float, half: float) -> str:
    return "" if np.isnan(mean) else f"{mean:.1f}" if np.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def _mean(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else float("nan")


def draw(entries: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Draws accuracy by step, sampled and greedy, and beside what independent samples reach, means over seeds.

    The bands are 95 % intervals over training seeds.
    """
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    sampled, greedy, samples = figure.subplots(1, 3, sharey=True)
    for strategy in dict.fromkeys(entry["strategy"] for entry in entries):
        of_strategy = [entry for entry in entries if entry["strategy"] == strategy]
        look = BASE_STYLE if strategy == "untrained" else style(strategy)

        def line(
            axes: Any, name: str, start: int, label: str, linestyle: Any, runs=of_strategy, color=look.color
        ) -> None:
            values = 100 * np.array([entry[name] for entry in runs])
            x = np.arange(start, start + values.shape[1])
            mean, half = np.array([interval(column) for column in values.T]).T
            axes.plot(x, mean, color=color, linestyle=linestyle, label=label, lw=1.6)
            axes.fill_between(x, mean - half, mean + half, color=color, alpha=0.15, lw=0)

        line(sampled, "accuracy", 0, strategy, look.linestyle)
        line(greedy, "greedy_accuracy", 0, strategy, look.linestyle)
        if strategy in ("grpo", "exit"):
            line(samples, "accuracy", 1, f"{strategy}, steps", "-")
            line(samples, "pass_at", 1, f"{strategy}, one of the samples", ":")
            line(samples, "majority_at", 1, f"{strategy}, their majority", "--")
    sampled.set(xlabel="self-improvement steps", ylabel="held-out accuracy (%)", title="Sampled, temperature 1")
    greedy.set(xlabel="self-improvement steps", title="Greedy")
    samples.set(xlabel="responses per task", title="Steps beside independent samples")
    for axes in (sampled, greedy, samples):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.set_ylim(0, 100)
    sampled.legend(fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, 0.16))
    samples.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title)
    figure.savefig(file, dpi=130)


def read(file: Path) -> list[dict[str, Any]]:
    """The entries of a ``results.json``; none if there is no file."""
    return json.loads(file.read_text()) if file.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="a run that rllib evaluate --baseline has evaluated")
    args = parser.parse_args()
    evaluation = results.read(max(args.directory.rglob(results.JSON), key=lambda file: file.stat().st_mtime))
    (by_policy,) = evaluation.curves.values()
    recorded = [entry["accuracy"] for entry in read(RECORDED) if entry["strategy"] == "grpo"]
    lines = {
        "untrained": by_policy[results.BASELINE].accuracy,
        f"GRPO, recorded, mean of {len(recorded)} runs": np.mean(recorded, axis=0),
        f"this run, {evaluation.run['strategy']}": by_policy[results.TRAINED].accuracy,
    }
    file = args.directory / "self_improvement.png"
    title = "What steps of self-improvement add"
    with figure_axes(file, "self-improvement steps", "held-out accuracy (%)", title, "center right") as axes:
        for (name, accuracy), look in zip(lines.items(), (BASE_STYLE, style("grpo"), style("exit")), strict=True):
            axes.plot(100 * accuracy, color=look.color, marker=look.marker, label=name)
        axes.set_ylim(0, 100)
    print(f"picture: {file}")


if __name__ == "__main__":
    main()
