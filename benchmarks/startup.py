"""From ``rllib train`` to the first response: how long each part of starting up takes.

    python benchmarks/startup.py
    python benchmarks/startup.py --before ANOTHER_CHECKOUT --plot docs/startup.png

Every turn runs the command ``rllib train file tuned_examples/math_grpo.py``, with a single group whose responses are
of one token: when they are in, the first tokens are. With ``--before``, two checkouts take turns. The last two parts
are exact to half a second.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from side_by_side import arguments, write

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: Mapping[str, int | None] = {
    "prompts_per_batch": 1,
    "rollouts_per_prompt": 2,
    "max_response_tokens": 1,
    "evaluation_interval": None,
}
# What the command prints, one or the other, and what has come to its end then.
LINES = {
    ("scale:",): "command line",
    ("start Ray:", "Ray dashboard:"): "example and Ray",
    ("results:",): "workers",
}


def start_up(checkout: Path, directory: Path) -> dict[str, float]:
    """The seconds of each part."""
    command = [sys.executable, "-c", "from rllib_exit.cli.main import main; main()", "train", "file"]
    command += [str(checkout / "tuned_examples" / "math_grpo.py"), "--scale", "cpu"]
    command += ["--stop-iters", "1", "--results-dir", str(directory)]
    command += [argument for name, value in SETTINGS.items() for argument in ("--set", f"{name}={value}")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(checkout)}
    begun = time.time()
    marks = {}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout)
    assert process.stdout is not None
    for line in process.stdout:
        for starts, part in LINES.items():
            if line.startswith(starts):
                marks[part] = time.time()
    if process.wait() or len(marks) < len(LINES):
        raise SystemExit(f"{' '.join(command)} failed, or no longer prints lines with {list(LINES)}")
    [file] = directory.rglob("result.json")
    [result] = [json.loads(line) for line in file.read_text().splitlines()]
    # The second in which the iteration ended; the file is written after the checkpoint.
    iteration_began = result["timestamp"] + 0.5 - result["time_this_iter_s"]
    marks["trial, env runner, learner"] = iteration_began
    marks["rest of the engine, first tokens"] = iteration_began + result["timers"]["rollout"]
    return {part: mark - before for (part, mark), before in zip(marks.items(), [begun, *marks.values()], strict=False)}


def plot(rows: list[dict[str, Any]], names: list[str], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.6 * len(names)), layout="constrained")
    left = dict.fromkeys(names, 0.0)
    for row in rows[:-1]:
        axis.barh(names, [row[f"{name} s"] for name in names], left=list(left.values()), label=row["part"])
        left = {name: left[name] + row[f"{name} s"] for name in names}
    axis.invert_yaxis()
    axis.set_xlabel("seconds from `rllib train` to the first tokens")
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = arguments(__doc__, "startup", repeats=5)
    parser.add_argument("--before", type=Path, help="another checkout, which takes turns with this one")
    parser.add_argument("--plot", type=Path, help="a PNG")
    args = parser.parse_args()
    contenders = {"now": ROOT} if args.before is None else {"before": args.before.resolve(), "now": ROOT}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(1 if args.quick else args.repeats + 1):
        for name, checkout in contenders.items():
            directory = Path(tempfile.mkdtemp())
            turns[name].append(start_up(checkout, directory))
            shutil.rmtree(directory)
    measured = turns if args.quick else {name: each[1:] for name, each in turns.items()}  # the first fills the caches
    rows = [
        {"part": part} | {f"{name} s": statistics.median(turn[part] for turn in measured[name]) for name in contenders}
        for part in turns["now"][0]
    ]
    together = {f"{name} s": statistics.median(sum(turn.values()) for turn in measured[name]) for name in contenders}
    write(args, [*rows, {"part": "together", **together}], turns=turns)
    if args.plot:
        plot([*rows, {"part": "together", **together}], list(contenders), args.plot)


if __name__ == "__main__":
    main()
