"""What the sandbox costs: an empty script in each tier that works here, beside a plain interpreter.

    python benchmarks/sandbox_overhead.py --output docs/sandbox_overhead.json

The contenders take turns, so that a change in the machine's load falls on all of them. Wall-clock time is what a run
takes; CPU time, of this process and all that it started, is what it costs, and varies little with the load.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from envs.sandbox.sandbox import SandboxUnavailableError, Status, Tier, available_tier, run_script  # noqa: E402


def plain() -> None:
    subprocess.run([sys.executable, "-c", "pass"], check=True, capture_output=True)


def sandboxed(tier: Tier) -> Callable[[], None]:
    def run() -> None:
        result = run_script("pass", tier=tier)
        assert result.status is Status.OK, result

    return run


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="runs of each contender")
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    args = parser.parse_args()
    contenders: dict[str, Callable[[], None]] = {"plain": plain}
    for tier in get_args(Tier):
        try:
            contenders[available_tier(tier=tier)] = sandboxed(tier)
        except SandboxUnavailableError as error:
            print(error, file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    cpu_times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, run in contenders.items():
            begin, cpu_begin = time.perf_counter(), cpu_seconds()
            run()
            times[name].append(1000 * (time.perf_counter() - begin))
            cpu_times[name].append(1000 * (cpu_seconds() - cpu_begin))

    medians = {name: statistics.median(values) for name, values in times.items()}
    cpu_medians = {name: statistics.median(values) for name, values in cpu_times.items()}
    print(f"{'':12}{'median ms':>10}{'min ms':>8}{'over plain':>12}{'CPU ms':>8}{'over plain':>12}")
    for name, values in times.items():
        wall, cpu = medians[name], cpu_medians[name]
        over, cpu_over = wall - medians["plain"], cpu - cpu_medians["plain"]
        print(f"{name:12}{wall:10.1f}{min(values):8.1f}{over:12.1f}{cpu:8.1f}{cpu_over:12.1f}")
    if args.output:
        machine = {"python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count()}
        report = {**machine, "uid": os.getuid(), "rounds": args.rounds, "median_ms": medians, "ms": times}
        report |= {"cpu_median_ms": cpu_medians, "cpu_ms": cpu_times}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
