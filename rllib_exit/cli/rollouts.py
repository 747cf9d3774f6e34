"""``rllib rollouts``: pages through a run's log of rollouts."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rllib_exit.cli.console import Verbose, clear_errors, visible

if TYPE_CHECKING:
    from rllib_exit.rollout_log import LoggedRollouts, Row

PLAIN_WIDTH = 160  # the width of a table that goes into a file or pipe


def rollouts(
    directory: Annotated[Path, typer.Argument(help="Directory of a run that was trained with --log-rollouts.")],
    iteration: Annotated[
        int | None, typer.Option(min=1, help="Those of this iteration; by default of the newest, with --task of all.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Those of this task.")] = None,
    kind: Annotated[str | None, typer.Option(help="Those of this kind: base, improve or diverge.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The highest quality first.")] = False,
    worst: Annotated[bool, typer.Option("--worst", help="The lowest quality first.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="List this many at most.")] = 100,
    show: Annotated[
        str | None, typer.Option(metavar="GROUP/G", help="Show one in full, and what came from what.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Lists the rollouts of a training run, or shows one with its lineage.

    Characters that a terminal would act on are shown as escapes.
    """
    with clear_errors(verbose):
        if kind not in (None, "base", "improve", "diverge"):
            raise ValueError(f"--kind is {kind!r}: use base, improve or diverge")
        if best and worst:
            raise ValueError("--best and --worst exclude each other: give one")

        from pyarrow.parquet import filters_to_expression

        from rllib_exit.rollout_log import LoggedRollouts

        log = LoggedRollouts(directory)
        if show is not None:
            group_id, slash, g = show.rpartition("/")
            if not slash or not g.isdecimal():
                raise ValueError(f"--show is {show!r}: write it as in the list, GROUP/G")
            rollout = log.rollout(group_id, int(g))
            with _page() as page:
                _show(page, rollout)
                _show_lineage(page, log, rollout)
            return

        if iteration is None and task is None:
            iteration = max(log.files)
        asked = [(name, "==", value) for name, value in (("task_id", task), ("kind", kind)) if value is not None]
        rows = log.read(filters_to_expression(asked) if asked else None, iteration=iteration)
        if best or worst:
            rows.sort(key=lambda row: (row["quality"], row["return"]), reverse=best)
        with _page() as page:
            _list(page, log, rows, limit)


@contextmanager
def _page() -> Iterator[Console]:
    """Where to print: into a pager, if it is in a terminal and does not fit the screen."""
    # Models wrote what is printed: none of its text is markup.
    page = Console(highlight=False, markup=False, emoji=False)
    if not page.is_terminal:
        page.width = PLAIN_WIDTH
        yield page
        return
    os.environ.setdefault("LESS", "-RFX")  # as Git does: show colours, end if it fits the screen
    with page.pager(styles=True):
        yield page


def _line(text: str) -> str:
    return visible(" ".join(text.split()))


# The list.


def _list(page: Console, log: LoggedRollouts, rows: list[Row], limit: int) -> None:
    if not rows:
        page.print("no rollouts")
        return
    iterations, tasks = (sorted({row[name] for row in rows}) for name in ("iteration", "task_id"))
    title = f"{len(rows)} rollouts of "
    title += f"task {_line(tasks[0])}, " if len(tasks) == 1 else f"{len(tasks)} tasks, "
    title += f"iteration {iterations[0]}" + (f" to {iterations[-1]}" if len(iterations) > 1 else "")
    for name in ("return", "quality"):
        title += f", mean {name} {sum(row[name] for row in rows) / len(rows):.3f}"
    page.print(title)

    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("rollout", no_wrap=True)
    # The table has the iteration and the task where the title does not say them.
    names = ["iteration"] * (len(iterations) > 1) + ["kind", "turn", "depth", "return", "quality"]
    for name in names:
        table.add_column(name, no_wrap=True, justify="left" if name == "kind" else "right")
    if len(tasks) > 1:
        table.add_column("task", no_wrap=True, ratio=1)
    table.add_column("response", no_wrap=True, ratio=2)
    for row in rows[:limit]:
        cells = {**row, "turn": row["starting_turn"]} | {n: f"{row[n]:.3f}" for n in ("return", "quality")}
        response = Text(" ".join([*_flaws(row), ""]), style="red")
        response.append(_line(row["turns"][row["starting_turn"]]["response"]), style="default")
        texts = [_name(row), *(str(cells[name]) for name in names), *[_line(row["task_id"])] * (len(tasks) > 1)]
        table.add_row(*map(Text, texts), response)
    page.print(table)
    if len(rows) > limit:
        page.print(f"and {len(rows) - limit} more: --limit")
    page.print(f"iterations {min(log.files)} to {max(log.files)} are logged; --show {_name(rows[0])} shows one in full")


def _name(row: Row) -> str:
    return visible(f"{row['group_id']}/{row['g']}")


def _flaws(row: Row) -> list[str]:
    return ["invalid"] * (not row["valid"]) + ["truncated"] * row["truncated"]


# One rollout.


def _show(page: Console, row: Row) -> None:
    page.print(f"rollout {_name(row)} of iteration {row['iteration']}, policy version {row['policy_version']}")
    page.print(f"task {_line(row['task_id'])}: {row['kind']}, from turn {row['starting_turn']}, depth {row['depth']}")
    values = [
        f"{name} {row[name]:.4g}"
        for name in ("return", "quality", "advantage", "learnability")
        if row[name] is not None
    ]
    page.print(", ".join([*values, f"{row['response_tokens']} tokens", *_flaws(row)]))
    if row["metrics"]:
        page.print(", ".join(f"{_line(name)} {value:.4g}" for name, value in row["metrics"]))
    for name in ("prompt", "gold"):
        if row[name] is not None:
            page.print(f"\n{name}", style="bold")
            _print_text(page, row[name])
    for t, turn in enumerate(row["turns"]):
        title = "history" if t < row["starting_turn"] else "response"
        if t == row["starting_turn"] and row["iterate"]:
            _show_turn(page, f"turn {t}, iterate", row["iterate"])
            title = row["kind"]
        _show_turn(page, f"turn {t}, {title}", turn)


def _show_turn(page: Console, title: str, turn: dict[str, Any]) -> None:
    quality = "" if turn["quality"] is None else f", quality {turn['quality']:.4g}"
    page.print(f"\n{title}, depth {turn['depth']}{quality}", style="bold")
    _print_text(page, turn["response"])
    if turn["feedback"]:
        page.print("  feedback", style="bold")
        _print_text(page, turn["feedback"])


def _print_text(page: Console, text: str) -> None:
    # It is indented, so that no text looks like one of our titles.
    text = visible(text)
    if page.is_terminal:
        page.print(Padding(Text(text), (0, 0, 0, 4)))
    else:
        page.print(Text(textwrap.indent(text, "    ", lambda line: True)), soft_wrap=True)


def _show_lineage(page: Console, log: LoggedRollouts, rollout: Row) -> None:
    page.print("\nlineage", style="bold")
    ancestors, children = log.lineage(rollout)
    labels = [_label(rollout, rollout["turns"][rollout["starting_turn"]], "bold")]
    for child, row in pairwise([rollout, *ancestors]):
        turns = log.rollout(row["group_id"], row["g"], iteration=row["iteration"])["turns"]
        labels.append(_label(row, turns[row["turn_ids"].index(child["instance_id"])]))  # what the child began from
    first = [rollout, *ancestors][-1]
    if first["kind"] != "base" or first["starting_turn"]:
        labels.append(Text("written before the log begins"))
    tree = node = Tree(labels.pop())
    while labels:
        node = node.add(labels.pop())
    for group_id, group in groupby(children, key=lambda row: row["group_id"]):
        rows = list(group)
        qualities = [row["quality"] for row in rows]
        name = f"{visible(group_id)}/0-{len(rows) - 1}"
        node.add(Text(f"{name}  {_start(rows[0])}  quality {min(qualities):.3f} to {max(qualities):.3f}"))
    page.print(tree)


def _label(row: Row, turn: dict[str, Any], style: str = "") -> Text:
    label = Text(no_wrap=True, overflow="ellipsis")
    label.append(_name(row), style=style)
    label.append(f"  {_start(row)}  quality {row['quality']:.3f}  ")
    return label.append(_line(turn["response"]), style="dim")


def _start(row: Row) -> str:
    start = f"iteration {row['iteration']}  {row['kind']} turn {row['starting_turn']}"
    return start + (f" depth {row['depth']}" if row["kind"] != "base" else "")
