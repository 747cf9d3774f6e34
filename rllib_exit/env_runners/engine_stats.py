"""What an engine did between two reports."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class EngineStats:
    """Adds up what an engine does until it is read.

    It is one of vLLM's stat loggers: vLLM calls ``record`` after every forward pass of the engine.
    """

    def __init__(self) -> None:
        self._in_flight = 0
        self._start()

    def _start(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._kv_cache_usage_max = 0.0
        self._since = self._idle_since = time.perf_counter()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request, from its arrival to its response; the engine has nothing to do while there is none."""
        if not self._in_flight:
            self._sums["bubble_s"] += time.perf_counter() - self._idle_since
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            self._idle_since = time.perf_counter()

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Adds a forward pass; vLLM gives None where it has no numbers of a kind."""
        sums = self._sums
        if scheduler_stats is not None:
            sums["passes"] += 1
            sums["requests_running"] += scheduler_stats.num_running_reqs
            sums["requests_waiting"] += scheduler_stats.num_waiting_reqs
            sums["kv_cache_usage"] += scheduler_stats.kv_cache_usage
            self._kv_cache_usage_max = max(self._kv_cache_usage_max, scheduler_stats.kv_cache_usage)
            sums["queries"] += scheduler_stats.prefix_cache_stats.queries
            sums["hits"] += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            sums["tokens"] += iteration_stats.num_generation_tokens
            sums["preemptions"] += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Does nothing; vLLM calls it."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """Does nothing; vLLM calls it."""

    def read(self) -> dict[str, float]:
        """The numbers since the last read, by their names under ``engine/``; what is not known is not there."""
        with self.request():  # as if one arrived now
            pass
        sums, kv_cache_usage_max, since = self._sums, self._kv_cache_usage_max, self._since
        self._start()
        numbers = {
            "tokens_per_s": sums["tokens"] / (self._since - since),
            "preemptions": sums["preemptions"],
            "bubble_s": sums["bubble_s"],
        }
        if passes := sums["passes"]:
            averaged = ("requests_running", "requests_waiting", "kv_cache_usage")
            numbers |= {name: sums[name] / passes for name in averaged}
            numbers["kv_cache_usage_max"] = kv_cache_usage_max
        if queries := sums["queries"]:
            numbers["prefix_cache_hit_rate"] = sums["hits"] / queries
        return numbers
