"""How the report's figures are drawn: one colour, line and marker per strategy, and a band of one standard error.

The colours are Okabe and Ito's, which the colour-blind tell apart; lines and markers differ too, so that a grey print
can be read.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.6  # inches of a figure that fills the page's width
PANEL_HEIGHT = 2.9


@dataclass(frozen=True, slots=True)
class Style:
    """How a strategy is drawn."""

    color: str
    marker: str
    linestyle: Any = "-"


BASE = "base"
STYLES: Mapping[str, Style] = {
    BASE: Style("#7f7f7f", "x", (0, (4, 2))),
    "grpo": Style("#222222", "o"),
    "curriculum": Style("#E69F00", "s"),
    "improve": Style("#0072B2", "^"),
    "diverge": Style("#009E73", "D"),
    "exit": Style("#D55E00", "v"),
}
_OTHER = Style("#CC79A7", "P")
_VARIANTS = (("-", ""), ((0, (3, 1.5)), "p"), ((0, (1, 1)), "*"), ((0, (5, 1.5, 1, 1.5)), "h"))


def style(strategy: str, variant: int = 0) -> Style:
    """A strategy's style; variants of one strategy share its colour."""
    base = STYLES.get(strategy, _OTHER)
    linestyle, marker = _VARIANTS[variant % len(_VARIANTS)]
    return replace(base, linestyle=linestyle, marker=marker) if marker else base


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A mean over runs along an axis.

    Attributes:
        label: In the legend.
        style: How it is drawn.
        x: (N,) where.
        mean: (N,) the mean.
        se: (N,) its standard error; None for a single run.
    """

    label: str
    style: Style
    x: np.ndarray
    mean: np.ndarray
    se: np.ndarray | None = None


def panels(
    drawn: Sequence[tuple[str, str, Sequence[Line]]],
    *,
    x_label: str,
    columns: int = 2,
    markers: bool = False,
    steps: bool = False,
) -> Figure:
    """A grid of panels with one legend.

    Args:
        drawn: For every panel its title, the label of its y axis, and its lines.
        x_label: Of every panel.
        columns: So many panels in a row.
        markers: Mark the points.
        steps: Draw steps: a value holds until the next one.
    """
    figure, axes = _grid(len(drawn), columns)
    for panel, (title, y_label, lines) in zip(axes, drawn, strict=True):
        panel.set_title(title, fontsize=10, loc="left", fontweight="bold", parse_math=False)
        panel.set_xlabel(x_label)
        panel.set_ylabel(y_label)
        for line in lines:
            every = max(1, len(line.x) // 12)
            marked: dict[str, Any] = {"marker": line.style.marker, "markersize": 4, "markevery": every}
            if not markers:
                marked["markersize"] = 3.5
            panel.plot(
                line.x,
                line.mean,
                color=line.style.color,
                linestyle=line.style.linestyle,
                linewidth=1.6,
                label=line.label,
                drawstyle="steps-post" if steps else "default",
                **marked,
            )
            if line.se is not None:
                low, high = line.mean - line.se, line.mean + line.se
                band: dict[str, Any] = {"color": line.style.color, "alpha": 0.15, "linewidth": 0}
                panel.fill_between(line.x, low, high, step="post" if steps else None, **band)
        _plain(panel)
    _legend(figure, axes)
    return figure


def bars(drawn: Sequence[tuple[str, Style, float, float | None]], *, y_label: str) -> Figure:
    """A bar per strategy: label, style, mean and standard error."""
    figure, (panel,) = _grid(1, 1, width=min(WIDTH, 2.5 + 1.2 * len(drawn)))
    for i, (_, of_bar, mean, se) in enumerate(drawn):
        panel.bar(i, mean, yerr=se, color=of_bar.color, width=0.65, capsize=4, error_kw={"linewidth": 1.2})
    panel.set_xticks(range(len(drawn)), [label.replace(" (", "\n(") for label, *_ in drawn], fontsize=8.5)
    panel.set_ylabel(y_label)
    _plain(panel)
    panel.xaxis.grid(False)
    return figure


def scatters(drawn: Mapping[str, tuple[Style, np.ndarray]], background: np.ndarray, *, label: str) -> Figure:
    """A map per strategy, over the same points in grey.

    Args:
        drawn: By label, the style and (N, 2) points.
        background: (M, 2) points.
        label: Of the background.
    """
    figure, axes = _grid(len(drawn), min(3, len(drawn)), height=2.9)
    for panel, (name, (of_points, points)) in zip(axes, drawn.items(), strict=True):
        grey: dict[str, Any] = {"s": 22, "facecolors": "none", "edgecolors": "#777777", "linewidths": 0.8}
        panel.scatter(*background.T, label=label, **grey)
        panel.scatter(*points.T, s=9, color=of_points.color, alpha=0.65, linewidths=0, rasterized=True)
        panel.set_title(f"{name}: {len(points)}", fontsize=10, loc="left", fontweight="bold")
        panel.set_xticks([])
        panel.set_yticks([])
    everything = np.concatenate([background, *(points for _, points in drawn.values())])
    low, high = everything.min(axis=0), everything.max(axis=0)
    margin = 0.06 * (high - low)
    for panel in axes:
        panel.set_xlim(low[0] - margin[0], high[0] + margin[0])
        panel.set_ylim(low[1] - margin[1], high[1] + margin[1])
    _legend(figure, axes[:1])
    return figure


def _grid(
    number: int, columns: int, *, width: float = WIDTH, height: float = PANEL_HEIGHT
) -> tuple[Figure, list[Axes]]:
    # Without pyplot there is no global state, and no display is looked for.
    from matplotlib.figure import Figure

    columns = min(columns, number)
    rows = -(-number // columns)
    width = width if columns > 1 else min(width, 5.6 if width == WIDTH else width)
    figure = Figure(figsize=(width, height * rows + 0.35), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def _plain(panel: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True)) if panel.get_lines() else None
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8.5)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    handles: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    # A line of the legend is as long as its handles and characters, in inches.
    columns = len(handles)
    while columns > 1 and 0.75 * columns + 0.075 * _widest(list(handles), columns) > figure.get_figwidth():
        columns -= 1
    if handles:
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=8.5)


def _widest(labels: Sequence[str], columns: int) -> int:
    """The characters of a legend's columns, which are filled one after the other."""
    rows = -(-len(labels) // columns)
    return sum(max(map(len, labels[i : i + rows])) for i in range(0, len(labels), rows))


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as ``png`` or ``svg``; the same bytes for the same figure."""
    import matplotlib

    stream = io.BytesIO()
    metadata: Any = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "rllib-exit"}):
        figure.savefig(stream, format=kind, dpi=160, metadata=metadata)
    return stream.getvalue()


def mean_and_se(values_SN: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(N,) the mean over the first axis, and its standard error; None where that has a single entry."""
    from rllib_exit.self_improvement.curves import standard_error

    return values_SN.mean(axis=0), standard_error(values_SN)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the last ``window`` values, at the beginning of as many as there are."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    return np.array([(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(values))])
