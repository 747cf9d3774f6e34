"""The real Prometheus scrapes the gauges of a real Ray, and its own tool tests the example of alerts."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from rllib_exit.cli.grafana import TEMPLATE, dashboard
from rllib_exit.metrics import METRICS, Gauges
from tests import test_docs
from tests.processes import wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Debian's package `prometheus` is not installed"
)
ALERTS = TEMPLATE.with_name("alerts.yaml")
RUN = 'run="a", strategy="exit"'
ENGINE = f'{RUN}, engine="2"'
# Of each alert: what it watches; values, a minute apart, at which it is silent and at which it fires; what it says.
CASES: dict[str, tuple[dict[str, tuple[str, str]], str]] = {
    "NoUpdate": (
        {f"ray_rllib_exit_policy_version{{{RUN}}}": ("0+1x120", "7x120")},
        "a has made no update for an hour.",
    ),
    "LogprobMismatch": (
        {f"ray_rllib_exit_learner_logprob_abs_diff_mean{{{RUN}}}": ("0.01x120", "0.5x120")},
        "In a the log-probabilities of learner and engine differ by 0.5 on average.",
    ),
    "NoSignal": (
        {f"ray_rllib_exit_curriculum_zero_variance_fraction{{{RUN}}}": ("0.5x120", "1x120")},
        "In a 100% of the groups teach nothing.",
    ),
    "KVCacheTooSmall": (
        {f"ray_rllib_exit_engine_preemptions{{{ENGINE}}}": ("0x120", "3x120")},
        "Engine 2 of a puts requests back, because its KV cache is full.",
    ),
    "EngineIdle": (
        {f"ray_rllib_exit_engine_tokens_per_s{{{ENGINE}}}": ("100x120", "0x120")},
        "Engine 2 of a generates nothing.",
    ),
    "SkippedUpdate": (
        {f"ray_rllib_exit_learner_skipped_updates{{{RUN}}}": ("0x120", "1x120")},
        "a left out an update, because its loss or gradient was not finite.",
    ),
    "EnvRunnerLost": (
        {f"ray_rllib_exit_rollouts_lost_env_runners{{{RUN}}}": ("0x120", "2x120")},
        "a lost 2 env runners in an iteration.",
    ),
    "EpisodesDropped": (
        {f"ray_rllib_exit_rollouts_dropped_episodes{{{RUN}}}": ("0x120", "4x120")},
        "a leaves episodes out, because graders or sandboxes break down.",
    ),
    "NodeMemory": (
        {
            'ray_node_mem_used{ip="10.0.0.1"}': ("50x120", "99x120"),
            'ray_node_mem_total{ip="10.0.0.1"}': ("100x120", "100x120"),
        },
        "Of 10.0.0.1's memory 99% is used.",
    ),
}


def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == list(CASES)
    tests = []
    for name, (watched, summary) in CASES.items():
        labels = dict(re.findall(r'(\w+)="(.*?)"', next(iter(watched))))
        fires = [{"exp_labels": labels, "exp_annotations": {"summary": summary}}]
        for column, expected in enumerate(([], fires)):
            series = [{"series": series, "values": values[column]} for series, values in watched.items()]
            asked = [{"eval_time": "2h", "alertname": name, "exp_alerts": expected}]
            tests.append({"interval": "1m", "input_series": series, "alert_rule_test": asked})
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    for command in (["check", "rules", ALERTS], ["test", "rules", tmp_path / "tests.yaml"]):
        done = subprocess.run(["promtool", *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def prometheus(target: str, directory: Path) -> Iterator[str]:
    """Prometheus, configured as docs/observability.md has it, and with the alerts; gives its address."""
    text = (test_docs.DOCS / "observability.md").read_text()
    config = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    config["scrape_configs"][0] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
    config["scrape_configs"][0]["file_sd_configs"] = [{"files": [str(directory / "nodes.json")]}]
    config |= {"global": {"evaluation_interval": "1s"}, "rule_files": [str(ALERTS)]}
    (directory / "nodes.json").write_text(json.dumps([{"targets": [target]}]))
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={directory / 'prometheus.yaml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={address}",
            ],
            stderr=log,
        )
    try:
        yield f"http://{address}/api/v1"
    finally:
        process.terminate()
        process.wait(20)


def ask(url: str) -> Any:
    with urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


def query(api: str, expression: str) -> list[dict[str, Any]]:
    return ask(f"{api}/query?{urlencode({'query': expression})}")["result"]


def scraped(api: str) -> dict[tuple[str, str], float]:
    """The values of our gauges, by name and step or engine."""
    found = query(api, '{__name__=~"ray_rllib_exit_.*", run="a run", strategy="exit"}')
    of = [(series["metric"], float(series["value"][1])) for series in found]
    return {(metric["__name__"], metric.get("step") or metric.get("engine") or ""): value for metric, value in of}


def firing(api: str) -> set[str]:
    return {alert["labels"]["alertname"] for alert in ask(f"{api}/alerts")["alerts"]}


def eventually(holds: Callable[[], bool]) -> None:
    """Waits until it holds, for a minute at most; Prometheus may not be there yet."""

    def held() -> bool:
        with suppress(URLError):
            return holds()
        return False

    wait_until(held, 60)


@pytest.mark.ray
@pytest.mark.slow
def test_prometheus_scrapes_every_gauge(ray_session: None, tmp_path: Path) -> None:
    import ray

    result: dict[str, Any] = {}
    for i, metric in enumerate(METRICS):
        row, _, name = metric.path.rpartition("/")
        at = result.setdefault(row, {}) if row else result
        at[name] = {f"{metric.by}_1": float(i), f"{metric.by}_2": i + 0.5} if metric.by else float(i)
    expected = {
        (f"ray_{metric.gauge}", of): i + 0.5 * (of == "2")
        for i, metric in enumerate(METRICS)
        for of in (("1", "2") if metric.by else ("",))
    }
    [node] = ray.nodes()
    gauges = Gauges("a run", "exit")
    try:
        gauges.set(result)
        with prometheus(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}", tmp_path) as api:
            eventually(lambda: scraped(api) == expected)
            for panel in dashboard()["panels"]:
                for target in panel.get("targets", []):
                    found = query(api, target["expr"].replace("$run", "a run"))
                    assert found or not target["expr"].startswith("ray_rllib_exit_"), target["expr"]
            eventually(lambda: {"SkippedUpdate", "EnvRunnerLost"} <= firing(api))
    finally:
        gauges.close()
