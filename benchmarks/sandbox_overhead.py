"""What the sandbox costs: an empty script in each tier that works here, beside a plain interpreter.

    python benchmarks/sandbox_overhead.py --output docs/sandbox_overhead.json

The contenders take turns, so that a change in the machine's load falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
    for _ in range(args.rounds):
        for name, run in contenders.items():
            begin = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - begin))

    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'':12}{'median ms':>10}{'min ms':>8}{'over plain':>12}")
    for name, values in times.items():
        print(f"{name:12}{medians[name]:10.1f}{min(values):8.1f}{medians[name] - medians['plain']:12.1f}")
    if args.output:
        machine = {"python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count()}
        report = {**machine, "uid": os.getuid(), "rounds": args.rounds, "median_ms": medians, "ms": times}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
