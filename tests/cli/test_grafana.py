from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from rllib_exit.cli.grafana import OF_RAY, QUESTIONS, TEMPLATE, dashboard, question
from rllib_exit.metrics import DOMAIN_ROWS, METRICS
from tests.cli.helpers import run

ALERTS = yaml.safe_load(TEMPLATE.with_name("alerts.yaml").read_text())["groups"][0]["rules"]


def test_the_dashboard_is_printed_as_json():
    result = run("grafana")
    assert result.exit_code == 0
    assert json.loads(result.output) == dashboard()


def test_the_dashboard_shows_every_metric_once():
    panels = json.loads(json.dumps(dashboard()))["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    for metric in METRICS:
        assert queries.count(f'ray_{metric.gauge}{{run=~"$run"}}') == 1
    assert len(queries) == len(METRICS) + len(DOMAIN_ROWS) + len(OF_RAY)
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == list(QUESTIONS)


def test_every_metric_answers_one_question():
    assert [
        metric.path for metric in METRICS if not any(map(metric.path.startswith, sum(QUESTIONS.values(), ())))
    ] == []
    answers = {metric.path: question(metric) for metric in METRICS}
    assert answers["rollouts/return_mean"] == answers["evaluation/accuracy"] == "Is it learning?"
    assert answers["curriculum/buffer_size"] == "Is the curriculum alive?"
    assert answers["timers/update"] == answers["learner/tokens_per_s"] == "Where does the time go?"
    assert answers["rollouts/tokens_per_s"] == answers["engine/kv_cache_usage"] == "Is the engine full?"
    assert answers["engine/bubble_s"] == answers["learner/bubble_s"] == "Where does the time go?"
    assert answers["learner/mfu"] == "Are the GPUs busy?"
    assert answers["rollouts/dropped_episodes"] == "Does anything fail?"
    assert set(answers.values()) == set(QUESTIONS)


def test_every_query_names_a_gauge_that_is_set():
    """Ours are those of the list; of Ray's, its own source says which it reports, and with which labels."""
    spec = find_spec("ray.dashboard.modules.reporter.reporter_agent")
    assert spec and spec.origin
    of_ray = set(re.findall(r'^    "(\w+)": Gauge\($', Path(spec.origin).read_text(), re.MULTILINE))
    assert "node_cpu_utilization" in of_ray
    known = {f"ray_{name}" for name in of_ray} | {f"ray_{metric.gauge}" for metric in METRICS}
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    for query in [*shown, *(rule["expr"] for rule in ALERTS)]:
        named = set(re.findall(r"ray_\w+", query))
        assert named and named - {f"ray_rllib_exit_{row}_" for row in DOMAIN_ROWS} <= known, query


def test_every_alert_says_what_is_wrong_with_what():
    for rule in ALERTS:
        labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        of_ours = {"run"} | ({"engine"} if "_engine_" in rule["expr"] else set())
        assert labels == (of_ours if "ray_rllib_exit_" in rule["expr"] else {"ip"}), rule["alert"]


def test_grafanas_own_types_know_all_that_the_dashboard_says():
    """What Grafana's types do not know, they drop: read and written again, nothing is missing or different."""
    register_default_plugins()

    def kept(value: Any, again: Any, at: str) -> None:
        if isinstance(value, dict):
            for key in value:
                assert key in again, f"{at}.{key} is unknown to Grafana"
                kept(value[key], again[key], f"{at}.{key}")
        elif isinstance(value, list):
            assert len(value) == len(again), at
            for i, (one, other) in enumerate(zip(value, again, strict=True)):
                kept(one, other, f"{at}[{i}]")
        else:
            assert value == again, at

    filled = dashboard()
    again = json.loads(json.dumps(Dashboard.from_json(filled), cls=JSONEncoder))
    kept(filled, again, "dashboard")
    with pytest.raises(AssertionError, match=r"dashboard\.panes is unknown"):
        unknown = {**filled, "panes": []}
        kept(unknown, json.loads(json.dumps(Dashboard.from_json(unknown), cls=JSONEncoder)), "dashboard")


def test_the_domains_panel_matches_the_unlisted_names_of_its_row():
    [query] = [
        target["expr"]
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
        if target["expr"].startswith('{__name__=~"ray_rllib_exit_rollouts')
    ]
    wanted, unwanted = re.findall(r'__name__.~"(.*?)"', query)

    def shown(name: str) -> bool:
        return bool(re.fullmatch(wanted, name)) and not re.fullmatch(unwanted, name)

    assert shown("ray_rllib_exit_rollouts_calls") and shown("ray_rllib_exit_rollouts_return_mean_of_calls")
    assert not shown("ray_rllib_exit_rollouts_return_mean") and not shown("ray_rllib_exit_learner_calls")


def test_the_dashboards_panels_have_ids_places_and_a_data_source():
    filled = dashboard()
    panels = filled["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        covered = {(x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"])}
        assert not covered & cells and max(x for x, _ in covered) < 24
        cells |= covered
        if panel["type"] != "row":
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs) and panel["description"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [variable["name"] for variable in filled["templating"]["list"]] == ["datasource", "run"]
