from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rllib_exit.env_runners.engine_stats import EngineStats
from rllib_exit.metrics import METRICS

Clock = list[float]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr("rllib_exit.env_runners.engine_stats.time.perf_counter", lambda: now[0])
    return now


def scheduled(running: int, waiting: int, usage: float, queries: int = 0, hits: int = 0) -> Any:
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        kv_cache_usage=usage,
        prefix_cache_stats=SimpleNamespace(queries=queries, hits=hits),
    )


def outputs(tokens: int, preempted: int = 0) -> Any:
    return SimpleNamespace(num_generation_tokens=tokens, num_preempted_reqs=preempted)


def test_the_numbers_are_those_since_the_last_read(clock: Clock) -> None:
    stats = EngineStats()
    stats.record(scheduled(4, 2, 0.5, queries=100, hits=25), outputs(4))
    stats.record(scheduled(2, 0, 0.75, queries=100, hits=50), outputs(6, preempted=1))
    stats.record(scheduled(0, 1, 0.25), None)
    stats.record(None, outputs(2))
    clock[0] += 4
    assert stats.read() == {
        "tokens_per_s": 3.0,
        "preemptions": 1,
        "bubble_s": 4.0,
        "requests_running": 2.0,
        "requests_waiting": 1.0,
        "kv_cache_usage": 0.5,
        "kv_cache_usage_max": 0.75,
        "prefix_cache_hit_rate": 0.375,
    }
    clock[0] += 1
    stats.record(scheduled(1, 0, 0.125), outputs(1))
    again = stats.read()
    assert (again["tokens_per_s"], again["kv_cache_usage_max"], again["preemptions"]) == (1.0, 0.125, 0)


def test_what_is_not_known_is_not_reported(clock: Clock) -> None:
    stats = EngineStats()
    clock[0] += 2
    assert stats.read() == {"tokens_per_s": 0.0, "preemptions": 0, "bubble_s": 2.0}
    clock[0] += 1
    stats.record(scheduled(1, 0, 0.5), None)
    assert "prefix_cache_hit_rate" not in stats.read()


def test_the_bubble_is_the_time_without_a_request(clock: Clock) -> None:
    stats = EngineStats()
    clock[0] += 1  # nothing
    with stats.request():
        clock[0] += 10
        with stats.request():
            clock[0] += 10
        clock[0] += 10
    clock[0] += 2  # nothing
    with stats.request():
        clock[0] += 10
        assert stats.read()["bubble_s"] == 3
        clock[0] += 10
    clock[0] += 4  # nothing
    assert stats.read()["bubble_s"] == 4
    with pytest.raises(KeyError), stats.request():
        raise KeyError
    clock[0] += 5
    assert stats.read()["bubble_s"] == 5


def test_every_number_is_listed() -> None:
    stats = EngineStats()
    stats.record(scheduled(1, 0, 0.5, queries=1), outputs(1))
    assert stats.read().keys() == {metric.name for metric in METRICS if metric.row == "engine"}
