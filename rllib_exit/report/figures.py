"""How the report's figures are drawn: one colour, line and marker per strategy, and a band of one standard error.

The colours are Okabe and Ito's, which the colour-blind tell apart. Lines and markers differ too, so that a grey print
can be read.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.6  # inches of a figure that fills the page's width
_TITLE: Mapping[str, Any] = {"fontsize": 10, "loc": "left", "fontweight": "bold", "parse_math": False}


class Style(NamedTuple):
    """How a method is drawn."""

    color: str
    marker: str
    linestyle: Any = "-"


BASE_STYLE = Style("#7f7f7f", "x", (0, (4, 2)))
_STYLES: Mapping[str, Style] = {
    "grpo": Style("#222222", "o"),
    "curriculum": Style("#E69F00", "s"),
    "improve": Style("#0072B2", "^"),
    "diverge": Style("#009E73", "D"),
    "exit": Style("#D55E00", "v"),
}
_VARIANTS = (("-", ""), ((0, (3, 1.5)), "p"), ((0, (1, 1)), "*"), ((0, (5, 1.5, 1, 1.5)), "h"))


def style(strategy: str, variant: int = 0) -> Style:
    """The style of a strategy; its variants share its colour."""
    of_strategy = _STYLES.get(strategy, Style("#CC79A7", "P"))
    linestyle, marker = _VARIANTS[variant % len(_VARIANTS)]
    return Style(of_strategy.color, marker or of_strategy.marker, linestyle)


def panels(lines: pd.DataFrame, styles: Mapping[str, Style], *, x: str, x_label: str, steps: bool = False) -> Figure:
    """A grid of panels with one legend.

    Args:
        lines: A row per point: ``panel``, ``y_label``, ``method``, ``x``, ``mean`` and ``standard_error`` (NaN for a
            single run).
        styles: By method.
        x: The column of the x axis.
        x_label: The label of that axis.
        steps: A value holds until the next one.
    """
    from matplotlib.ticker import MaxNLocator

    by_panel = lines.groupby(["panel", "y_label"], sort=False)
    figure, axes = _grid(len(by_panel), 2 if len(by_panel) < 3 else 3)
    for axis, ((panel, y_label), in_panel) in zip(axes, by_panel, strict=True):
        axis.set_title(textwrap.fill(str(panel), 34 if len(by_panel) > 2 else 52), **_TITLE)
        axis.set(xlabel=x_label, ylabel=y_label)
        for method, line in in_panel.groupby("method", sort=False):
            drawn = styles[str(method)]
            axis.plot(
                line[x],
                line["mean"],
                **drawn._asdict(),
                linewidth=1.6,
                label=method,
                drawstyle="steps-post" if steps else "default",
                markersize=4,
                markevery=max(1, len(line) // 12),
            )
            low, high = line["mean"] - line.standard_error, line["mean"] + line.standard_error
            step = "post" if steps else None
            axis.fill_between(line[x], low, high, step=step, color=drawn.color, alpha=0.15, linewidth=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axis)
    _legend(figure, axes)
    return figure


def bars(means: pd.DataFrame, styles: Mapping[str, Style], *, y_label: str) -> Figure:
    """A bar per row of ``method``, ``mean`` and ``standard_error`` (NaN for a single run)."""
    figure, (axis,) = _grid(1, 1, width=min(WIDTH, 1.2 + 0.95 * len(means)))
    labels = means.method.str.replace(" (", "\n(", regex=False)
    colors = [styles[method].color for method in means.method]
    axis.bar(labels, means["mean"], yerr=means.standard_error, color=colors, width=0.65, capsize=4)
    axis.set_ylabel(y_label)
    _plain(axis)
    axis.xaxis.grid(False)
    return figure


def maps(points: pd.DataFrame, styles: Mapping[str, Style], *, background: str) -> Figure:
    """A map per method: its ``x`` and ``y``, over the points of the method ``background`` in grey."""
    grey = points[points.method == background]
    by_method = points[points.method != background].groupby("method", sort=False)
    figure, axes = _grid(len(by_method), 3, shared=True)
    for axis, (method, own) in zip(axes, by_method, strict=True):
        label = f"{background}: {len(grey)}"
        axis.scatter(grey.x, grey.y, s=22, facecolors="none", edgecolors="#777777", linewidths=0.8, label=label)
        axis.scatter(own.x, own.y, s=9, color=styles[str(method)].color, alpha=0.65, linewidths=0, rasterized=True)
        axis.set_title(f"{method}: {len(own)}", **_TITLE)
        axis.set(xticks=[], yticks=[])
    _legend(figure, axes)
    return figure


def _grid(number: int, columns: int, *, width: float = 5.6, shared: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of panels: over the page's width or, with one column, of ``width`` inches."""
    # Without pyplot there is no global state, and no display is looked for.
    from matplotlib.figure import Figure

    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(WIDTH if columns > 1 else width, 2.5 * rows + 0.35), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).ravel().tolist()
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def _plain(axis: Axes) -> None:
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8.5)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    # The inches of the widest handle and characters.
    columns = int(figure.get_figwidth() / (0.75 + 0.075 * max(map(len, handles))))
    columns = min(max(1, columns), len(handles))
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=8.5)


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as ``png`` or ``svg``; the same bytes for the same figure."""
    import matplotlib
    from matplotlib.text import Text

    stream = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names from files are no formulas
    metadata: Any = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "rllib-exit"}):
        figure.savefig(stream, format=kind, dpi=160, metadata=metadata)
    figure.set_layout_engine("none")  # it is laid out: to do so again takes as long as drawing
    return stream.getvalue()
