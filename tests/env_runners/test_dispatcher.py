from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import pytest

from rllib_exit.env_runners import dispatcher as dispatcher_module
from rllib_exit.env_runners.dispatcher import Dispatcher, EnvRunnersLostError
from tests.processes import wait_until


class LostError(Exception):
    pass


class FakeRunner:
    """Works for ``seconds`` on a piece of work; ``kill`` fails all that it works on, until it is revived."""

    def __init__(self, name: str, seconds: float = 0.01) -> None:
        self.name, self.seconds = name, seconds
        self.alive = True
        self.deaths = 0
        self.calls: list[Any] = []
        self.running = 0
        self.cancelled = 0
        self.version = 0

    async def work(self, item: Any, seconds: float | None = None) -> tuple[str, Any, int]:
        self.calls.append(item)
        self.running += 1
        deaths = self.deaths
        end = time.monotonic() + (self.seconds if seconds is None else seconds)
        try:
            while time.monotonic() < end:
                await asyncio.sleep(0.002)
                self._check(deaths)
            self._check(deaths)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return self.name, item, self.version

    async def update(self, version: int) -> None:
        self._check(self.deaths)
        await asyncio.sleep(0.01)
        self.version = version

    def _check(self, deaths: int) -> None:
        if not self.alive or self.deaths != deaths:
            raise LostError(self.name)

    def kill(self) -> None:
        self.alive = False
        self.deaths += 1
        self.version = 0

    async def revive(self, error: BaseException) -> None:
        await asyncio.sleep(0.05)
        self.alive = True


def work(item: Any, **kwargs: Any) -> Callable[[FakeRunner], Awaitable[Any]]:
    return lambda runner: runner.work(item, **kwargs)


def items(futures: list[Future[Any]]) -> list[Any]:
    return [future.result(60)[1] for future in futures]


@pytest.fixture
def make() -> Iterator[Callable[..., Dispatcher]]:
    made = []

    def make(
        runners: list[FakeRunner], capacity: int = 1, revive: Any = FakeRunner.revive, **kwargs: Any
    ) -> Dispatcher:
        kwargs.setdefault("patience_s", 5.0)
        is_lost = lambda error: isinstance(error, LostError)  # noqa: E731
        made.append(Dispatcher(runners, capacity=capacity, is_lost=is_lost, revive=revive, **kwargs))
        return made[-1]

    yield make
    for dispatcher in made:
        dispatcher.stop()


def test_work_is_spread_evenly_and_comes_back_under_its_own_future(make: Any) -> None:
    runners = [FakeRunner(f"{i}", 0.05) for i in range(3)]
    dispatcher = make(runners, capacity=100)
    assert items([dispatcher.submit(work(i)) for i in range(30)]) == list(range(30))
    assert [len(runner.calls) for runner in runners] == [10, 10, 10]


def test_a_runner_holds_no_more_than_its_capacity_and_what_exceeds_it_first(make: Any) -> None:
    runner = FakeRunner("0", 0.5)
    dispatcher = make([runner], capacity=16)
    futures = [dispatcher.submit(work(i), size=8) for i in range(6)]
    wait_until(lambda: runner.running == 3)  # two fill it; one more waits there
    time.sleep(0.05)
    assert runner.running == 3
    assert items(futures) == list(range(6)) and runner.calls == list(range(6))


def test_urgent_work_comes_before_all_that_waits(make: Any) -> None:
    runner = FakeRunner("0", 0.1)
    dispatcher = make([runner], capacity=0)
    futures = [dispatcher.submit(work(i)) for i in range(4)]
    wait_until(lambda: runner.running == 1)
    futures.append(dispatcher.submit(work("urgent"), first=True))
    items(futures)
    assert runner.calls == [0, "urgent", 1, 2, 3]


def test_slow_work_delays_nobody(make: Any) -> None:
    runners = [FakeRunner("0"), FakeRunner("1")]
    dispatcher = make(runners)
    slow = dispatcher.submit(work("slow", seconds=200.0))
    wait([dispatcher.submit(work(i)) for i in range(40)])
    assert not slow.done()


def test_a_lost_runners_work_is_done_by_the_others_once(make: Any) -> None:
    runners = [FakeRunner(f"{i}", 0.03) for i in range(3)]
    dispatcher = make(runners, capacity=3)
    futures = [dispatcher.submit(work(i)) for i in range(60)]
    wait_until(lambda: runners[1].running > 0)
    runners[1].kill()
    assert items(futures) == list(range(60))
    done_again = {item: n for item, n in Counter(c for r in runners for c in r.calls).items() if n > 1}
    assert 1 <= len(done_again) <= 4  # what runner 1 had in flight, and nothing else
    assert dispatcher.num_lost == 1


def test_a_runner_that_comes_back_has_the_newest_weights_before_it_works(make: Any) -> None:
    runners = [FakeRunner("0"), FakeRunner("1")]
    dispatcher = make(runners)
    dispatcher.broadcast(lambda runner: runner.update(1))
    assert [runner.version for runner in runners] == [1, 1]
    runners[0].kill()
    dispatcher.submit(work("x")).result(60)
    dispatcher.broadcast(lambda runner: runner.update(2))  # runner 0 is away or hears it now
    futures = [dispatcher.submit(work(i)) for i in range(60)]
    versions = {future.result(60)[2] for future in futures}
    assert versions == {2} and {future.result()[0] for future in futures} == {"0", "1"}


def test_a_broadcast_that_finds_a_runner_lost_does_not_fail(make: Any) -> None:
    runners = [FakeRunner("0"), FakeRunner("1")]
    dispatcher = make(runners)
    runners[1].kill()
    dispatcher.broadcast(lambda runner: runner.update(7))
    assert {future.result(60)[2] for future in [dispatcher.submit(work(i)) for i in range(40)]} == {7}
    with pytest.raises(ZeroDivisionError):
        dispatcher.broadcast(lambda runner: divide(runner))


async def divide(runner: FakeRunner) -> None:
    raise ZeroDivisionError


def test_when_all_are_lost_work_waits_for_the_first_to_come_back(make: Any) -> None:
    runners = [FakeRunner("0"), FakeRunner("1")]
    dispatcher = make(runners, capacity=5)
    futures = [dispatcher.submit(work(i)) for i in range(20)]
    for runner in runners:
        runner.kill()
    assert items(futures) == list(range(20)) and dispatcher.num_lost >= 2


def test_what_a_call_raises_is_its_outcome_and_its_runner_goes_on(make: Any) -> None:
    dispatcher = make([FakeRunner("0")])
    failing = dispatcher.submit(divide)
    with pytest.raises(ZeroDivisionError):
        failing.result(60)
    assert dispatcher.submit(work(1)).result(60)[1] == 1 and dispatcher.num_lost == 0


def test_work_that_costs_runner_after_runner_is_given_up(make: Any) -> None:
    runners = [FakeRunner("0"), FakeRunner("1")]
    dispatcher = make(runners, capacity=0)  # one at a time: nothing else is lost with it

    async def poison(runner: FakeRunner) -> None:
        runner.kill()
        raise LostError("segmentation fault")

    poisoned = dispatcher.submit(poison)
    futures = [dispatcher.submit(work(i)) for i in range(20)]
    with pytest.raises(EnvRunnersLostError, match=r"3 env runners were lost .* segmentation fault"):
        poisoned.result(60)
    assert items(futures) == list(range(20))
    assert dispatcher.num_lost == dispatcher_module.MAX_LOSSES


def test_when_none_comes_back_in_time_work_fails_with_the_last_cause(make: Any) -> None:
    async def never(runner: FakeRunner, error: BaseException) -> None:
        await asyncio.sleep(1e9)

    runner = FakeRunner("the node")
    dispatcher = make([runner], revive=never, patience_s=0.2)
    runner.kill()
    with pytest.raises(EnvRunnersLostError, match=r"no env runner came back within 0\.2 s; .* the node"):
        dispatcher.submit(work(1)).result(60)
    with pytest.raises(EnvRunnersLostError):  # and so does what comes later
        dispatcher.submit(work(2)).result(60)


def test_a_runner_that_fails_as_it_comes_back_is_tried_again(make: Any) -> None:
    attempts = []

    async def revive(runner: FakeRunner, error: BaseException) -> None:
        attempts.append(error)
        await asyncio.sleep(0.01)
        if len(attempts) < 3:
            raise RuntimeError("cannot start its engine yet")
        runner.alive = True

    runner = FakeRunner("0")
    dispatcher = make([runner], revive=revive)
    runner.kill()
    assert dispatcher.submit(work(1)).result(60)[1] == 1
    assert [type(error) for error in attempts] == [LostError, RuntimeError, RuntimeError]


def test_cancelled_work_ends_everywhere(make: Any) -> None:
    runners = [FakeRunner("0", 30), FakeRunner("1", 30)]
    dispatcher = make(runners, capacity=2)
    futures = [dispatcher.submit(work(i)) for i in range(10)]
    wait_until(lambda: [runner.running for runner in runners] == [3, 3])
    dispatcher.cancel()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(60)
    wait_until(lambda: [runner.running for runner in runners] == [0, 0])
    assert [runner.cancelled for runner in runners] == [3, 3]
    assert dispatcher.submit(work("next", seconds=0)).result(60)[1] == "next"


def test_work_goes_on_while_the_caller_is_busy(make: Any) -> None:
    dispatcher = make([FakeRunner("0", 0.02)])
    futures = [dispatcher.submit(work(i)) for i in range(10)]
    time.sleep(0.6)
    wait_until(lambda: all(future.done() for future in futures))


def test_stop_leaves_no_thread(make: Any) -> None:
    before = threading.active_count()
    runner = FakeRunner("0", 30)
    dispatcher = Dispatcher(
        [runner], capacity=1, is_lost=lambda error: False, revive=FakeRunner.revive, patience_s=None
    )
    future = dispatcher.submit(work(1))
    dispatcher.stop()
    assert future.cancelled() and threading.active_count() == before


def test_a_runner_without_a_sign_of_life_is_lost_whatever_it_was_called_for(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "LOOK_PERIOD_S", 0.02)
    runners = [FakeRunner("0", 1000), FakeRunner("1")]

    async def revive(runner: FakeRunner, error: BaseException) -> None:
        assert "no sign of life" in str(error)
        runner.kill()  # what it works on fails
        runner.seconds = 0.01
        await runner.revive(error)

    dispatcher = make(
        runners, revive=revive, silent=lambda: [0] if runners[0].running and runners[0].seconds > 1 else []
    )
    assert items([dispatcher.submit(work(i)) for i in range(4)]) == list(range(4))
    wait_until(lambda: dispatcher.num_ready == 2)
    runners[0].seconds = 1000
    assert dispatcher.call_all(work("a")) == [("1", "a", 0)]
    assert dispatcher.num_lost == 2


def test_what_comes_back_is_called_as_was_said_last_and_those_there_are_told(make: Any) -> None:
    runners = [FakeRunner(f"{i}") for i in range(2)]
    dispatcher = make(runners)
    assert dispatcher.broadcast(lambda runner: runner.update(1)) == [None, None]
    assert dispatcher.catch_up_by(lambda runner: runner.update(2)) == {runners[0]: 0, runners[1]: 0}
    assert [runner.version for runner in runners] == [1, 1]
    runners[0].kill()
    assert dispatcher.call_all(work("a", seconds=0)) == [("1", "a", 1)]
    wait_until(lambda: dispatcher.num_ready == 2)
    assert [runner.version for runner in runners] == [2, 1]
    assert dispatcher.catch_up_by(lambda runner: runner.update(3)) == {runners[0]: 1, runners[1]: 0}


async def in_order(dispatcher: Dispatcher, count: int, **kwargs: Any) -> list[str]:
    """Work of which every piece waits for the one before."""
    return [(await asyncio.wrap_future(dispatcher.submit(work(i, **kwargs))))[0] for i in range(count)]


def test_work_that_depends_on_other_work_goes_to_whoever_has_room(make: Callable[..., Dispatcher]) -> None:
    runners = [FakeRunner("a"), FakeRunner("b", seconds=0.02)]
    dispatcher = make(runners)
    outcomes = [dispatcher.run(in_order(dispatcher, 5)) for _ in range(4)]
    assert all(len(outcome.result(60)) == 5 for outcome in outcomes)
    for i in range(5):
        assert sum(runner.calls.count(i) for runner in runners) == 4
    assert all(runner.calls for runner in runners)


def test_of_work_that_depends_on_other_work_only_the_lost_piece_is_done_again(make: Callable[..., Dispatcher]) -> None:
    runners = [FakeRunner("a", seconds=0.05)]
    dispatcher = make(runners)
    outcome = dispatcher.run(in_order(dispatcher, 4))
    wait_until(lambda: runners[0].calls == [0, 1, 2])
    runners[0].kill()
    assert len(outcome.result(60)) == 4 and runners[0].calls == [0, 1, 2, 2, 3]


def test_cancelling_ends_coroutines_too(make: Callable[..., Dispatcher]) -> None:
    runner = FakeRunner("a")
    dispatcher = make([runner])
    outcomes = [dispatcher.run(in_order(dispatcher, 2, seconds=60)) for _ in range(3)]
    wait_until(lambda: runner.calls == [0, 0])  # the third waits
    dispatcher.cancel()
    for outcome in outcomes:
        with pytest.raises(CancelledError):
            outcome.result(60)
    wait_until(lambda: runner.cancelled == 2 and not runner.running)  # in the dispatcher's thread
    assert items([dispatcher.submit(work("next"))]) == ["next"] and runner.calls == [0, 0, "next"]


def test_an_error_in_a_coroutine_is_its_outcome(make: Callable[..., Dispatcher]) -> None:
    async def fail(runner: FakeRunner) -> None:
        raise ValueError("a bug")

    dispatcher = make([FakeRunner("a")])

    async def run() -> None:
        await asyncio.wrap_future(dispatcher.submit(fail))

    with pytest.raises(ValueError, match="a bug"):
        dispatcher.run(run()).result(60)
