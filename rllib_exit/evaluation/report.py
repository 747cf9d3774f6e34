"""The tables and figures of K-step self-improvement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from rllib_exit.evaluation.self_improvement import Chain, accuracy_by_step, net_corrections_by_step


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The self-improvement of one policy, over seeds.

    Attributes:
        accuracy_SK: (S, K+1) mean quality by seed and step.
        net_corrections_SK: (S, K+1) problems corrected since step 0, less those spoilt.
    """

    accuracy_SK: np.ndarray
    net_corrections_SK: np.ndarray

    @classmethod
    def of(cls, chains_by_seed: Sequence[Sequence[Chain]]) -> Curve:
        """The curve of the chains of every seed."""
        return cls(
            np.stack([accuracy_by_step(chains) for chains in chains_by_seed]),
            np.stack([net_corrections_by_step(chains) for chains in chains_by_seed]),
        )

    @property
    def accuracy(self) -> np.ndarray:
        """(K+1,) mean over the seeds."""
        return self.accuracy_SK.mean(axis=0)

    @property
    def accuracy_se(self) -> np.ndarray | None:
        """(K+1,) standard error over the seeds; None for a single seed."""
        return _standard_error(self.accuracy_SK)

    @property
    def net_corrections(self) -> np.ndarray:
        """(K+1,) mean over the seeds."""
        return self.net_corrections_SK.mean(axis=0)

    @property
    def net_corrections_se(self) -> np.ndarray | None:
        """(K+1,) standard error over the seeds; None for a single seed."""
        return _standard_error(self.net_corrections_SK)


def _standard_error(values_SK: np.ndarray) -> np.ndarray | None:
    seeds = len(values_SK)
    return values_SK.std(axis=0, ddof=1) / math.sqrt(seeds) if seeds > 1 else None


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
            accuracy_se = None if curve.accuracy_se is None else 100 * curve.accuracy_se
            cells.append(_cell(100 * curve.accuracy, accuracy_se, k, ".1f"))
            sign = "+.0f" if len(curve.net_corrections_SK) == 1 else "+.1f"
            cells.append(_cell(curve.net_corrections, curve.net_corrections_se, k, sign) if k else "")
        if len(curves) > 1:
            cells.append(f"{100 * (last.accuracy[k] - first.accuracy[k]):+.1f}")
        result.add_row(*cells)
    return result


def _cell(mean: np.ndarray, se: np.ndarray | None, k: int, spec: str) -> str:
    text = format(mean[k], spec)
    return text if se is None else f"{text} ± {se[k]:.1f}"


def plot(curves: Mapping[str, Curve], path: str | Path, title: str | None = None) -> None:
    """Draws accuracy by step, with a band of one standard error, into an image file."""
    # Without pyplot there is no global state, and no display is looked for.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        steps, accuracy = np.arange(len(curve.accuracy)), 100 * curve.accuracy
        (line,) = axes.plot(steps, accuracy, marker="o", label=name)
        if curve.accuracy_se is not None:
            se = 100 * curve.accuracy_se
            axes.fill_between(steps, accuracy - se, accuracy + se, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel("self-improvement step k")
    axes.set_ylabel("accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    if title:
        axes.set_title(title)
    figure.savefig(path, dpi=150)
