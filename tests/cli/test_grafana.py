from __future__ import annotations

import json
import re

from rllib_exit.cli.grafana import dashboard
from rllib_exit.metrics import DOMAIN_ROWS, METRICS
from tests.cli.helpers import run


def test_the_dashboard_is_printed_as_json():
    result = run("grafana")
    assert result.exit_code == 0
    assert json.loads(result.output) == dashboard()


def test_the_dashboard_shows_every_metric_once():
    panels = json.loads(json.dumps(dashboard()))["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    for metric in METRICS:
        assert queries.count(f'ray_{metric.gauge}{{run=~"$run"}}') == 1
    assert len(queries) == len(METRICS) + len(DOMAIN_ROWS)
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "curriculum", "rollouts", "learner", "timers", "sync", "policy", "evaluation",
    ]  # fmt: skip


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
