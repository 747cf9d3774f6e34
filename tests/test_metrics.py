from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_exit.metrics import METRICS, Gauges, readings

# What users' dashboards and analyses rely on.
NAMES = {
    "curriculum": {
        "buffer_size", "buffer_score_min", "buffer_score_mean", "buffer_score_max", "selected_fraction",
        "improve_fraction", "diverge_fraction", "depth_mean", "starting_turn_mean", "distinct_tasks_total",
        "distinct_instances_total", "group_variance_mean", "zero_variance_fraction",
    },
    "rollouts": {
        "return_mean", "quality_mean", "response_tokens_mean", "truncated_fraction", "invalid_fraction", "tokens_per_s",
    },
    "learner": {
        "loss", "kl", "clip_fraction", "entropy", "grad_norm", "logprob_abs_diff_mean", "logprob_abs_diff_max",
        "tokens_per_s", "mfu", "gpu_memory_max", "bubble_s",
    },
    "engine": {
        "tokens_per_s", "requests_running", "requests_waiting", "kv_cache_usage", "kv_cache_usage_max",
        "prefix_cache_hit_rate", "preemptions", "bubble_s",
    },
    "timers": {"select", "rollout", "embed", "update", "sync"},
    "sync": {"bytes", "changed_fraction", "transfer_s", "load_s"},
    "policy": {"policy_version", "policy_lag_max"},
}  # fmt: skip

OF_GPUS = {"learner/mfu", "learner/gpu_memory_max"}


def test_the_list_has_every_metric_of_training_once():
    paths = [metric.path for metric in METRICS]
    assert len(set(paths)) == len({metric.gauge for metric in METRICS}) == len(paths)
    assert all(metric.description.isascii() for metric in METRICS)  # Ray takes no other
    for row, names in NAMES.items():
        assert {metric.name for metric in METRICS if metric.row == row} >= names


def test_readings_are_the_listed_metrics_and_the_domains_own():
    result = {
        "training_iteration": 3,
        "policy_version": np.float64(2),
        "rollouts": {"return_mean": 0.5, "calls/made": np.float32(4), "text": "no number"},
        "timers": {"rollout": 1.5, "training_iteration": 9.0},
        "evaluation": {"num_tasks": 7, "accuracy": {"step_0": 0.25, "step_1": 0.5}, "turns": {"step_0": 3}},
        "engine": {"tokens_per_s": {"engine_1": 40.0, "engine_12": 50.0}},
        "curriculum": {},
    }
    assert [(metric.path, tags, value) for metric, tags, value in readings(result)] == [
        ("rollouts/return_mean", {}, 0.5),
        ("engine/tokens_per_s", {"engine": "1"}, 40.0),
        ("engine/tokens_per_s", {"engine": "12"}, 50.0),
        ("timers/rollout", {}, 1.5),
        ("policy_version", {}, 2.0),
        ("evaluation/accuracy", {"step": "0"}, 0.25),
        ("evaluation/accuracy", {"step": "1"}, 0.5),
        ("evaluation/num_tasks", {}, 7.0),
        ("rollouts/calls/made", {}, 4.0),
        ("evaluation/turns", {"step": "0"}, 3.0),
    ]
    assert all(re.fullmatch(r"rllib_exit_[a-z_]+", metric.gauge) for metric, _, _ in readings(result))


class FakeGauge:
    made: list[tuple[str, str, tuple[str, ...]]] = []
    values: list[tuple[str, float, dict[str, str]]] = []

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name = name
        self.made.append((name, description, tag_keys))

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values.append((self.name, value, tags))


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.util.metrics.Gauge", FakeGauge)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr(FakeGauge, "made", [])
    monkeypatch.setattr(FakeGauge, "values", [])
    gauges = Gauges("run_é", "exit")
    yield gauges
    gauges.close()


def test_gauges_are_made_once_and_tagged(gauges: Gauges):
    for version in (1, 2):
        gauges.set({"policy_version": version, "evaluation": {"accuracy": {"step_0": 0.5}}})
    assert [(name, tags) for name, _, tags in FakeGauge.made] == [
        ("rllib_exit_policy_version", ("run", "strategy")),
        ("rllib_exit_evaluation_accuracy", ("run", "strategy", "step")),
    ]
    assert FakeGauge.values[-2:] == [
        ("rllib_exit_policy_version", 2.0, {"run": "run_?", "strategy": "exit"}),
        ("rllib_exit_evaluation_accuracy", 0.5, {"run": "run_?", "strategy": "exit", "step": "0"}),
    ]


def test_gauges_are_set_again_until_they_are_closed(gauges: Gauges):
    gauges.set({"policy_version": 1, "rollouts": {"return_mean": 0.5}})
    gauges.set({"policy_version": 2})
    FakeGauge.values.clear()
    deadline = time.monotonic() + 30
    while len(FakeGauge.values) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {(name, value) for name, value, _ in FakeGauge.values} == {
        ("rllib_exit_policy_version", 2.0),
        ("rllib_exit_rollouts_return_mean", 0.5),
    }
    gauges.close()
    time.sleep(0.1)
    FakeGauge.values.clear()
    time.sleep(1.2)
    assert not FakeGauge.values


@pytest.mark.ray
@pytest.mark.slow
def test_an_iteration_reports_and_sets_exactly_what_is_listed(
    tiny_model: str, ray_session: None, monkeypatch: pytest.MonkeyPatch
):
    from ray.util.metrics import Gauge

    from tests.cli.helpers import make_config

    values: dict[tuple[str, str | None], float] = {}
    tagged: list[dict[str, str]] = []

    class RecordingGauge(Gauge):
        def set(self, value: Any, tags: Any = None) -> None:
            super().set(value, tags)
            values[self.info["name"], tags.get("step") or tags.get("engine")] = value
            tagged.append(tags)

    monkeypatch.setattr("ray.util.metrics.Gauge", RecordingGauge)
    config = make_config(tiny_model).training(prompts_per_batch=2, rollouts_per_prompt=2, learner_threads=1)
    config.evaluation(evaluation_interval=1)
    algo: Any = config.build_algo()
    try:
        result = algo.train()
        assert {metric.path for metric, _, _ in readings(result)} == {metric.path for metric in METRICS} - OF_GPUS
        for row in ("curriculum", "rollouts", "learner", "engine", "evaluation"):
            assert set(result[row]) == {m.name for m in METRICS if m.row == row and m.path not in OF_GPUS}
        expected = {(m.gauge, next(iter(tags.values()), None)): value for m, tags, value in readings(result)}
        assert values == pytest.approx(expected, nan_ok=True)
        assert {"run": Path(algo.logdir).name, "strategy": "exit"} in tagged
    finally:
        algo.stop()
