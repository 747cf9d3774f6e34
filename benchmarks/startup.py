"""From the command to the first trained iteration: how long each part of starting up takes.

    python benchmarks/startup.py

Every turn is a new process that does what ``rllib train file tuned_examples/math_exit.py --scale cpu`` does: imports,
Ray, the example, the algorithm (env runner actor and learner), the engine, and the first response. ``interpreter`` is
``python -c pass``, which is part of each.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from side_by_side import arguments, write

TUNED_EXAMPLES = Path(__file__).resolve().parent.parent / "tuned_examples"


def child() -> None:
    """Prints the seconds of each part."""
    parts: dict[str, float] = {}
    last = time.perf_counter()

    def done(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        parts[name], last = now - last, now

    import rllib_exit.cli.main

    done("import the command line")
    import ray

    done("import ray")
    import rllib_exit.grpo.grpo  # noqa: F401

    done("import the algorithm")
    sys.path.insert(0, str(TUNED_EXAMPLES))
    import math_common

    config = math_common.cpu("grpo")[0]
    config.training(prompts_per_batch=1, rollouts_per_prompt=2).generation(max_response_tokens=1)
    done("load the example")
    ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=True)
    done("start Ray")
    algo: Any = config.build_algo()
    done("build env runner and learner")
    requests = algo._select()
    algo._roll_out(requests)
    done("engine and first response")
    algo.stop()
    print(json.dumps(parts))


def main() -> None:
    parser = arguments(__doc__, "startup")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child()
    if args.quick:
        args.repeats = 1
    turns: list[dict[str, float]] = []
    for repeat in range(args.repeats + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        interpreter = time.perf_counter() - start
        command = [sys.executable, __file__, "--child"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ).stdout
        parts = {"interpreter": interpreter, **json.loads(output.splitlines()[-1])}
        if repeat or args.quick:  # the first one fills the caches
            turns.append(parts)
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    total = sum(medians.values())
    rows = [{"part": name, "s": value, "%": 100 * value / total} for name, value in medians.items()]
    write(args, [*rows, {"part": "together", "s": total, "%": 100.0}], turns=turns)


if __name__ == "__main__":
    main()
