"""From ``rllib train`` to the first response: how long each part of starting up takes.

    python benchmarks/startup.py

Every turn runs the command ``rllib train file tuned_examples/math_grpo.py``, with a single group whose responses are
of one token: when they are in, the first tokens are. The last two parts are exact to half a second.
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

from side_by_side import arguments, write

EXAMPLE = Path(__file__).resolve().parent.parent / "tuned_examples" / "math_grpo.py"
SETTINGS: Mapping[str, int | None] = {
    "prompts_per_batch": 1,
    "rollouts_per_prompt": 2,
    "max_response_tokens": 1,
    "evaluation_interval": None,
}
# What the command prints, and what has come to its end then.
LINES = {"scale:": "command line", "start Ray:": "example and Ray", "results:": "check of resources"}


def start_up(directory: Path) -> dict[str, float]:
    """The seconds of each part."""
    command = [str(Path(sys.executable).with_name("rllib")), "train", "file", str(EXAMPLE), "--scale", "cpu"]
    command += ["--stop-iters", "1", "--results-dir", str(directory)]
    command += [argument for name, value in SETTINGS.items() for argument in ("--set", f"{name}={value}")]
    begun = time.time()
    marks = {}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    for line in process.stdout:
        for start, part in LINES.items():
            if line.startswith(start):
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


def main() -> None:
    args = arguments(__doc__, "startup", repeats=3).parse_args()
    turns: list[dict[str, float]] = []
    for _ in range(1 if args.quick else args.repeats + 1):
        directory = Path(tempfile.mkdtemp())
        turns.append(start_up(directory))
        shutil.rmtree(directory)
    measured = turns if args.quick else turns[1:]  # the first one fills the caches
    medians = {name: statistics.median(turn[name] for turn in measured) for name in turns[0]}
    total = statistics.median(sum(turn.values()) for turn in measured)
    rows = [{"part": name, "s": value, "%": 100 * value / total} for name, value in medians.items()]
    write(args, [*rows, {"part": "together", "s": total, "%": 100.0}], turns=turns)


if __name__ == "__main__":
    main()
