"""How the driver waits for env runners, without Ray."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from rllib_exit.grpo import waiting
from rllib_exit.grpo.waiting import RolloutError, as_completed


@pytest.fixture(autouse=True)
def nobody_asks_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "stop_requested", lambda: False)


def test_answers_are_used_while_others_are_under_way() -> None:
    futures: list[Future[str]] = [Future() for _ in range(3)]
    seen: list[str] = []

    def answer(i: int) -> None:
        futures[i].set_result(f"answer {i}")

    threading.Timer(0.01, answer, [2]).start()
    for result in as_completed(futures):
        seen.append(result)
        if result == "answer 2":  # the first to be in; the others are not before it was used
            answer(0)
            answer(1)
    assert seen[0] == "answer 2" and sorted(seen) == ["answer 0", "answer 1", "answer 2"]


def test_the_first_failure_ends_the_wait() -> None:
    under_way: Future[str] = Future()
    failed: Future[str] = Future()
    failed.set_exception(ValueError("no such task"))
    with pytest.raises(RolloutError, match="no such task"):
        list(as_completed([under_way, failed]))
