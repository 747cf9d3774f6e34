"""Writes ``docs/metrics.md``, the reference of all metrics, from ``rllib_exit/metrics.py``."""

from __future__ import annotations

from pathlib import Path

from rllib_exit.cli.grafana import QUESTIONS, question
from rllib_exit.metrics import BYTES, DOMAIN_ROWS, FRACTION, METRICS, SECONDS

PAGE = Path(__file__).with_name("metrics.md")
HEAD = f"""# Metrics

The numbers of every iteration, by the question that they answer. They have these names in `result.json`,
`progress.csv`, TensorBoard, Tune, trackers and stop conditions. `docs/observability.md` says how to watch them, and
`docs/rllib.md` which of RLlib's own names stand beside them.

A name with `/step_K` is one number for each step of self-improvement: `evaluation/accuracy/step_0` is of first
answers. One with `/engine_K` is of the engine of the K-th env runner, since the result before. What an environment
reports besides stands beside these, under {", ".join(f"`{row}/`" for row in DOMAIN_ROWS)}.

What is not known is not there: MFU and the memory of GPUs where learners work on CPUs, MFU also for float32, for
mixtures of experts and for GPUs that `rllib_exit/learner/flops.py` does not list. A number that only some iterations
have is NaN in the later others.
`docs/metrics_page.py` writes this page from `rllib_exit/metrics.py`.
"""
# A stroke that ends no cell of a table.
BAR = r"\|"
UNITS = {FRACTION: "share, 0 to 1", SECONDS: "seconds", BYTES: "bytes"}


def page() -> str:
    """The page in Markdown."""
    lines = [HEAD]
    for row in QUESTIONS:
        lines += [f"## {row}\n", "| Name | Unit | What it says |", "|---|---|---|"]
        for metric in METRICS:
            if question(metric) == row:
                name = metric.path + f"/{metric.by}_K" * bool(metric.by)
                lines.append(f"| `{name}` | {UNITS.get(metric.unit, '')} | {metric.description.replace('|', BAR)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
