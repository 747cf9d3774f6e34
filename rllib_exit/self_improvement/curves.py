"""K-step self-improvement over seeds: its numbers, tables and figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from rllib_exit.rollouts import means
from rllib_exit.self_improvement.chain import Chain


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The self-improvement of one policy, over seeds.

    Attributes:
        num_tasks: On so many tasks.
        accuracy_SK: (S, K+1) mean quality by seed and step.
        net_corrections_SK: (S, K+1) problems right after step k and wrong after step 0, less those the other way
            round. A quality of 1 is right, all else wrong.
        metrics_SK: (S, K+1) for every metric of the domain, its mean; NaN where no episode reports it.
    """

    num_tasks: int
    accuracy_SK: np.ndarray
    net_corrections_SK: np.ndarray
    metrics_SK: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, chains_by_seed: Sequence[Sequence[Chain]]) -> Curve:
        """The curve of the chains of every seed."""
        qualities_SNK = np.array([[chain.qualities for chain in chains] for chains in chains_by_seed])
        right_SK = (qualities_SNK == 1.0).sum(axis=1)
        # By seed and step, the mean of every metric over the chains that report it.
        steps = range(len(chains_by_seed[0][0].metrics))
        metrics = [[means([chain.metrics[k] for chain in chains]) for k in steps] for chains in chains_by_seed]
        names = sorted({name for by_step in metrics for of_step in by_step for name in of_step})
        return cls(
            len(chains_by_seed[0]),
            np.stack([qualities_NK.mean(axis=0) for qualities_NK in qualities_SNK]),
            right_SK - right_SK[:, :1],
            {name: np.array([[of_step.get(name, np.nan) for of_step in seed] for seed in metrics]) for name in names},
        )

    @classmethod
    def pooled(cls, curves: Sequence[Curve]) -> Curve:
        """The curve of the tasks of several splits together, every task counting the same."""
        num_tasks = sum(curve.num_tasks for curve in curves)

        def mean(values: Sequence[np.ndarray]) -> np.ndarray:
            return np.sum([v * c.num_tasks for v, c in zip(values, curves, strict=True)], axis=0) / num_tasks

        shared = [name for name in curves[0].metrics_SK if all(name in curve.metrics_SK for curve in curves)]
        return cls(
            num_tasks,
            mean([curve.accuracy_SK for curve in curves]),
            np.sum([curve.net_corrections_SK for curve in curves], axis=0),
            {name: mean([curve.metrics_SK[name] for curve in curves]) for name in shared},
        )

    @property
    def accuracy(self) -> np.ndarray:
        """(K+1,) mean over the seeds."""
        return self.accuracy_SK.mean(axis=0)

    @property
    def graded(self) -> bool:
        """Whether there are qualities between 0 and 1: then the means are no shares of right answers."""
        sums_SK = self.accuracy_SK * self.num_tasks
        whole = np.allclose(sums_SK, sums_SK.round())
        return not (whole and np.allclose(sums_SK - sums_SK[:, :1], self.net_corrections_SK))

    @property
    def net_corrections(self) -> np.ndarray:
        """(K+1,) mean over the seeds."""
        return self.net_corrections_SK.mean(axis=0)

    def to_metrics(self) -> dict[str, Any]:
        """The mean over the seeds, as training reports it under ``evaluation/``.

        Returns:
            ``num_tasks``; ``improvement``, the accuracy after K steps less that before, if there are any; and
            ``accuracy``, ``net_corrections`` and the other metrics with one entry for each step, ``step_0`` to
            ``step_K``.
        """
        by_step = {"accuracy": self.accuracy_SK, "net_corrections": self.net_corrections_SK, **self.metrics_SK}
        return {
            "num_tasks": self.num_tasks,
            **({"improvement": float(self.accuracy[-1] - self.accuracy[0])} if len(self.accuracy) > 1 else {}),
            **{
                name: {f"step_{k}": float(value) for k, value in enumerate(values_SK.mean(axis=0))}
                for name, values_SK in by_step.items()
            },
        }

    def to_json(self) -> dict[str, Any]:
        """Gives the mean and the standard error over the seeds of everything, and the values of every seed."""
        return {
            "num_tasks": self.num_tasks,
            "accuracy": _statistics(self.accuracy_SK),
            "net_corrections": _statistics(self.net_corrections_SK),
            "metrics": {name: _statistics(values_SK) for name, values_SK in self.metrics_SK.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Curve:
        """The inverse of :meth:`to_json`."""
        return cls(
            data["num_tasks"],
            _by_seed(data["accuracy"]),
            _by_seed(data["net_corrections"]),
            {name: _by_seed(statistics) for name, statistics in data["metrics"].items()},
        )


def standard_error(values_SK: np.ndarray) -> np.ndarray | None:
    """(K+1,) the standard error of the mean over the first axis; None where that has a single entry."""
    seeds = len(values_SK)
    return values_SK.std(axis=0, ddof=1) / math.sqrt(seeds) if seeds > 1 else None


def _statistics(values_SK: np.ndarray) -> dict[str, Any]:
    se = standard_error(values_SK)
    return {
        "mean": _numbers(values_SK.mean(axis=0)),
        "standard_error": None if se is None else _numbers(se),
        "by_seed": [_numbers(values_K) for values_K in values_SK],
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]  # JSON has no NaN


def _by_seed(statistics: Mapping[str, Any]) -> np.ndarray:
    return np.array(statistics["by_seed"], dtype=float)


def table(curves: Mapping[str, Curve], title: str | None = None) -> Table:
    """Accuracy and net corrections by step, with a pair of columns per curve and the gain of the last over the first.

    Args:
        curves: By name, the baseline first.
        title: Of the table.
    """
    result = Table(title=title, title_justify="left")
    result.add_column("step", justify="right")
    for name in curves:
        result.add_column(f"{name}\naccuracy %", justify="right")
        result.add_column("net\ncorrections", justify="right")
    compared = list(curves.values())
    first, last = compared[0], compared[-1]
    if len(curves) > 1:
        result.add_column("gain\npoints", justify="right")
    for k in range(len(first.accuracy)):
        cells = [str(k)]
        for curve in compared:
            cells.append(_accuracy_cell(curve, k))
            cells.append(_corrections_cell(curve, k) if k else "")
        if len(curves) > 1:
            cells.append(f"{100 * (last.accuracy[k] - first.accuracy[k]):+.1f}")
        result.add_row(*cells)
    return result


def summary_table(curves: Mapping[tuple[str, str], Curve], title: str | None = None) -> Table:
    """One row per curve: accuracy before and after the last step, and net corrections.

    Args:
        curves: By split and policy.
        title: Of the table.
    """
    result = Table(title=title, title_justify="left")
    result.add_column("split", overflow="fold")
    result.add_column("policy", no_wrap=True)
    last = max(len(curve.accuracy) for curve in curves.values()) - 1
    for column in ("tasks", "step 0\n%", f"step {last}\n%", "gain\npoints", "net cor-\nrections"):
        result.add_column(column, justify="right", no_wrap=True)
    for (split, policy), curve in curves.items():
        result.add_row(
            split,
            policy,
            str(curve.num_tasks),
            _accuracy_cell(curve, 0),
            _accuracy_cell(curve, -1),
            f"{100 * (curve.accuracy[-1] - curve.accuracy[0]):+.1f}",
            _corrections_cell(curve, -1),
        )
    return result


def _accuracy_cell(curve: Curve, k: int) -> str:
    return _cell(100 * curve.accuracy_SK, k, ".1f")


def _corrections_cell(curve: Curve, k: int) -> str:
    return _cell(curve.net_corrections_SK, k, "+.0f" if len(curve.net_corrections_SK) == 1 else "+.1f")


def _cell(values_SK: np.ndarray, k: int, spec: str) -> str:
    se = standard_error(values_SK)
    text = format(values_SK.mean(axis=0)[k], spec)
    return text if se is None else f"{text} ± {se[k]:.1f}"


def plot(curves: Mapping[str, Curve], path: str | Path, title: str | None = None) -> None:
    """Draws accuracy by step, with a band of one standard error, into an image file."""
    with figure_axes(path, "self-improvement step k", "accuracy (%)", title) as axes:
        for name, curve in curves.items():
            steps, accuracy = np.arange(len(curve.accuracy)), 100 * curve.accuracy
            (line,) = axes.plot(steps, accuracy, marker="o", label=name)
            if (se := standard_error(100 * curve.accuracy_SK)) is not None:
                axes.fill_between(steps, accuracy - se, accuracy + se, color=line.get_color(), alpha=0.2, linewidth=0)


@contextmanager
def figure_axes(
    path: str | Path, x_label: str, y_label: str, title: str | None, legend: Literal["best", "center right"] = "best"
) -> Iterator[Any]:
    """Matplotlib axes over whole steps, which are written into an image file when the context ends."""
    # Without pyplot there is no global state, and no display is looked for.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    yield axes
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc=legend)
    if title:
        axes.set_title(title, parse_math=False)
    figure.savefig(path, dpi=150)
