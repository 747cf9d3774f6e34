"""``rllib grafana``: a Grafana dashboard of the training metrics."""

from __future__ import annotations

import json

import typer

from rllib_exit.metrics import grafana_dashboard


def grafana() -> None:
    """Prints a Grafana dashboard of the training metrics, to be imported: `rllib grafana > dashboard.json`."""
    typer.echo(json.dumps(grafana_dashboard(), indent=2))
