"""How the driver waits for env runners, without Ray."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from rllib_exit.grpo import algorithm
from rllib_exit.grpo.algorithm import GRPO, RolloutError


@pytest.fixture(autouse=True)
def nobody_asks_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithm, "stop_requested", lambda: False)


ALGORITHM: Any = SimpleNamespace(_weight_transfers={})


def test_answers_are_used_while_others_are_under_way_and_come_in_order() -> None:
    futures: list[Future[str]] = [Future() for _ in range(3)]
    seen: list[str] = []

    def answer(i: int) -> None:
        futures[i].set_result(f"answer {i}")

    def use(result: str) -> None:
        seen.append(result)
        if result == "answer 2":  # the first to be in; the others are not before it was used
            answer(0)
            answer(1)

    threading.Timer(0.01, answer, [2]).start()
    assert GRPO._results(ALGORITHM, futures, use) == ["answer 0", "answer 1", "answer 2"]
    assert seen[0] == "answer 2" and sorted(seen) == ["answer 0", "answer 1", "answer 2"]


def test_the_first_failure_ends_the_wait() -> None:
    under_way: Future[str] = Future()
    failed: Future[str] = Future()
    failed.set_exception(ValueError("no such task"))
    with pytest.raises(RolloutError, match="no such task"):
        GRPO._results(ALGORITHM, [under_way, failed])
