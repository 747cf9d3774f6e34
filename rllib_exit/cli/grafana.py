"""``rllib grafana``: a Grafana dashboard of the training metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import typer

from rllib_exit.metrics import BYTES, DOMAIN_ROWS, FRACTION, METRICS, NUMBER, Metric

# A dashboard in Grafana's JSON model; its two panels stand for all rows and all graphs.
TEMPLATE = Path(__file__).with_suffix(".json")
# A panel's size. A dashboard is a grid of 24 columns.
WIDTH, HEIGHT = 8, 7
PER_LINE = 24 // WIDTH
RUNS = 'run=~"$run"'

# The rows. A metric belongs to the longest beginning of its path that stands here.
LEARNING, CURRICULUM, TIME, ENGINE, GPUS, FAILURES = (
    "Is it learning?",
    "Is the curriculum alive?",
    "Where does the time go?",
    "Is the engine full?",
    "Are the GPUs busy?",
    "Does anything fail?",
)
QUESTIONS = {
    LEARNING: ("evaluation/", "rollouts/", "learner/", "policy_"),
    CURRICULUM: ("curriculum/",),
    TIME: ("timers/", "sync/", "learner/tokens_per_s", "learner/bubble", "engine/bubble"),
    ENGINE: ("engine/", "rollouts/tokens_per_s", "rollouts/response_tokens"),
    GPUS: ("learner/mfu", "learner/gpu"),
    FAILURES: (
        "curriculum/skipped",
        "curriculum/unjudged",
        "rollouts/skipped",
        "rollouts/retried",
        "rollouts/dropped",
        "rollouts/lost",
        "learner/skipped",
    ),
}
# What Ray measures of the whole cluster, whichever run it is of: row, title, description, query, legend, unit.
GPU = "{{ip}} GPU {{GpuIndex}}"
OF_RAY = (
    (
        GPUS,
        "GPUs in use",
        "Of each GPU, the share of time in which it computed.",
        "ray_node_gpus_utilization / 100",
        GPU,
        FRACTION,
    ),
    (GPUS, "GPU memory", "Used on each GPU.", "ray_node_gram_used * 1024 * 1024", GPU, BYTES),
    (
        TIME,
        "CPU cores",
        "What env runners, learners and the driver compute on each node; vLLM's own processes are not in it.",
        'sum by (ip, Component) (ray_component_cpu_percentage{Component=~"ray::(LLMEnvRunner|GRPO).*"}) / 100',
        "{{ip}} {{Component}}",
        NUMBER,
    ),
    (FAILURES, "node memory", "Used on each node.", "ray_node_mem_used", "{{ip}}", BYTES),
)


def grafana() -> None:
    """Prints a Grafana dashboard of the training metrics, to be imported: `rllib grafana > dashboard.json`."""
    typer.echo(json.dumps(dashboard(), indent=2))


def dashboard() -> dict[str, Any]:
    """A dashboard of every metric, grouped by question, in Grafana's JSON model.

    The Prometheus data source and the run are variables.
    """
    filled = json.loads(TEMPLATE.read_text())
    row_model, graph_model = filled["panels"]
    panels: list[dict[str, Any]] = []
    y = 0
    for row in QUESTIONS:
        panels.append({**row_model, "title": row, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        graphs = _graphs(row)
        for i, graph in enumerate(graphs):
            line, column = divmod(i, PER_LINE)
            place = {"x": column * WIDTH, "y": y + 1 + line * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append({**graph_model, **graph, "gridPos": place})
        y += 1 + math.ceil(len(graphs) / PER_LINE) * HEIGHT
    return {**filled, "panels": [{**panel, "id": number} for number, panel in enumerate(panels, 1)]}


def question(metric: Metric) -> str:
    """The row in which a metric is shown."""
    found = [
        (len(start), row) for row, starts in QUESTIONS.items() for start in starts if metric.path.startswith(start)
    ]
    return max(found)[1] if found else FAILURES


def _graphs(row: str) -> list[dict[str, Any]]:
    """A row's graphs: one for each panel that its metrics name, the domain's own numbers, and what Ray measures."""
    shown: dict[str, list[Metric]] = {}
    for metric in METRICS:
        if question(metric) == row:
            # Panels of the same title in different parts of a result, such as `invalid_fraction`, are two.
            shown.setdefault(metric.panel or metric.path, []).append(metric)
    # Evaluations come first: the others are of training.
    graphs = []
    for metrics in sorted(shown.values(), key=lambda metrics: metrics[0].row != "evaluation"):
        first, several = metrics[0], len(metrics) > 1
        queries = {
            f"ray_{m.gauge}{{{RUNS}}}": "{{run}}" + f" {m.name}" * several + (f" {m.by} {{{{{m.by}}}}}" if m.by else "")
            for m in metrics
        }
        description = "\n\n".join(f"{m.name}: {m.description}" if several else m.description for m in metrics)
        graphs.append(_graph(first.panel or first.path, description, queries, first.unit))
    for part in DOMAIN_ROWS:
        if question(Metric(f"{part}/", "")) == row:
            listed = "|".join(f"ray_{metric.gauge}" for metric in METRICS if metric.row == part)
            query = f'{{__name__=~"ray_rllib_exit_{part}_.+", __name__!~"{listed}", {RUNS}}}'
            legend = "{{run}} {{__name__}}" + " step {{step}}" * (part == "evaluation")
            described = "The numbers that the environment reports besides."
            graphs.append(_graph(f"{part}: the domain's own", described, {query: legend}, NUMBER))
    graphs += [
        _graph(title, text, {query: legend}, unit) for at, title, text, query, legend, unit in OF_RAY if at == row
    ]
    return graphs


def _graph(title: str, description: str, queries: dict[str, str], unit: str) -> dict[str, Any]:
    """What a graph has of its own; its legends are given by query."""
    data_source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "title": title,
        "description": description,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": data_source, "expr": query, "legendFormat": legend}
            for i, (query, legend) in enumerate(queries.items())
        ],
        # A run that has ended leaves a gap, not a line to where it starts again.
        "fieldConfig": {"defaults": {"unit": unit, "custom": {"spanNulls": False}}, "overrides": []},
    }
