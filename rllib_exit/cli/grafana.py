"""``rllib grafana``: a Grafana dashboard of the training metrics."""

from __future__ import annotations

import json
import math
from itertools import groupby
from pathlib import Path
from typing import Any

import typer

from rllib_exit.metrics import DOMAIN_ROWS, METRICS, NUMBER

# A dashboard in Grafana's JSON model; its two panels stand for all rows and all graphs.
TEMPLATE = Path(__file__).with_suffix(".json")
# A panel's size. A dashboard is a grid of 24 columns.
WIDTH, HEIGHT = 8, 7
PER_LINE = 24 // WIDTH
RUNS = 'run=~"$run"'


def grafana() -> None:
    """Prints a Grafana dashboard of the training metrics, to be imported: `rllib grafana > dashboard.json`."""
    typer.echo(json.dumps(dashboard(), indent=2))


def dashboard() -> dict[str, Any]:
    """A dashboard of every metric in Grafana's JSON model; the Prometheus data source and the run are variables."""
    filled = json.loads(TEMPLATE.read_text())
    row_model, graph_model = filled["panels"]
    panels: list[dict[str, Any]] = []
    y = 0
    for row in dict.fromkeys(metric.row for metric in METRICS):
        panels.append({**row_model, "title": row, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        graphs = _graphs(row)
        for i, graph in enumerate(graphs):
            line, column = divmod(i, PER_LINE)
            place = {"x": column * WIDTH, "y": y + 1 + line * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append({**graph_model, **graph, "gridPos": place})
        y += 1 + math.ceil(len(graphs) / PER_LINE) * HEIGHT
    return {**filled, "panels": [{**panel, "id": number} for number, panel in enumerate(panels, 1)]}


def _graphs(row: str) -> list[dict[str, Any]]:
    """The graphs of a row: one for every panel that its metrics name, and one for the domain's own numbers."""
    metrics = [metric for metric in METRICS if metric.row == row]
    graphs = []
    for title, group in groupby(metrics, key=lambda metric: metric.panel or metric.name):
        shown = list(group)
        queries = {
            f"ray_{m.gauge}{{{RUNS}}}": "{{run}}" + f" {m.name}" * bool(m.panel) + " step {{step}}" * m.by_step
            for m in shown
        }
        description = "\n\n".join(f"{m.name}: {m.description}" if m.panel else m.description for m in shown)
        graphs.append(_graph(title, description, queries, shown[0].unit))
    if row in DOMAIN_ROWS:
        listed = "|".join(f"ray_{metric.gauge}" for metric in metrics)
        query = f'{{__name__=~"ray_rllib_exit_{row}_.+", __name__!~"{listed}", {RUNS}}}'
        legend = "{{run}} {{__name__}}" + " step {{step}}" * (row == "evaluation")
        graphs.append(_graph("domain", "The numbers that the environment reports.", {query: legend}, NUMBER))
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
