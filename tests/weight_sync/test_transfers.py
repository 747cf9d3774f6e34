"""How a broadcast over NCCL is set up, and what becomes of it when env runners are lost; the wire itself is a fake."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OwnerDiedError

from rllib_exit.env_runners.dispatcher import Dispatcher
from rllib_exit.learner.learner_group import LearnerError, LearnersTimeoutError
from rllib_exit.weight_sync.transfers import NCCLTransfer, ObjectStoreTransfer
from rllib_exit.weight_sync.weight_store import StoredWeights
from tests.processes import wait_until


class LostError(Exception):
    pass


class FakeRunner:
    """An env runner's actor: ``runner.method.remote(...)`` is a coroutine."""

    owner_died = False  # of the weights in the object store

    def __init__(self) -> None:
        self.alive = True
        self.joined: dict[str, Any] = {}
        self.receiving = False
        self.version = 0
        self.caught_up: list[tuple[int, tuple]] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(type(self), f"_{name}").__get__(self))

    async def _join_transfer(self, init_info: dict[str, Any]) -> None:
        self._check()
        self.joined = init_info

    async def _receive_weights(self, version: int, update_info: dict[str, Any]) -> float:
        assert update_info == {"names": ["w"]}
        self._check()
        self.receiving = True
        while self.receiving:
            self._check()
            await asyncio.sleep(0.002)
        self.version = version
        return 0.0

    async def _update_weights(self, weights: StoredWeights) -> float:
        self._check()
        if self.owner_died:
            raise OwnerDiedError("00", None, "")
        self.version = weights.policy_version
        self.caught_up.append((self.version, weights.files))
        return 0.25

    def _check(self) -> None:
        if not self.alive:
            raise LostError("killed")

    def kill(self) -> None:
        self.alive = False

    async def revive(self, error: BaseException) -> None:
        await asyncio.sleep(0.02)
        self.__init__()


class FakeLearners:
    """Learners whose group and whose broadcast come about when all that belong to them are there."""

    def __init__(self, runners: list[FakeRunner]) -> None:
        self.runners, self.version, self.groups = runners, 1, 0
        self.members: list[FakeRunner] = []

    def transfer_address(self) -> dict[str, Any]:
        self.groups += 1
        return {"master_address": "here", "master_port": self.groups}

    def open_transfer(self, init_info: dict[str, Any], timeout_s: float) -> None:
        def members() -> list[FakeRunner]:
            return [r for r in self.runners if r.joined.get("master_port") == init_info["master_port"]]

        wait(lambda: 1 + 2 * len(members()) == init_info["world_size"], timeout_s)
        self.members = members()

    def describe_weights(self) -> tuple[dict[str, Any], int, int]:
        return {"names": ["w"]}, 8, self.version

    def send_weights(self, timeout_s: float) -> None:
        wait(lambda: all(runner.receiving for runner in self.members), timeout_s)
        for runner in self.members:
            runner.receiving = False

    def put_weights(self) -> StoredWeights:
        return StoredWeights.full(self.version, ["file 1", "file 2"], num_bytes=8, changed_fraction=0.5)


def wait(condition: Callable[[], bool], timeout_s: float) -> None:
    try:
        wait_until(condition, timeout_s)
    except TimeoutError:
        raise LearnersTimeoutError("hanging") from None


class Setup:
    def __init__(self) -> None:
        self.runners = [FakeRunner() for _ in range(3)]
        self.learners = FakeLearners(self.runners)
        self.env_runners = Dispatcher(
            self.runners,
            capacity=1,
            is_lost=lambda error: isinstance(error, LostError),
            revive=FakeRunner.revive,
            patience_s=None,
        )
        learners: Any = self.learners
        self.transfer = NCCLTransfer(learners, engine_size=2, timeout_s=1)
        self.through_store = ObjectStoreTransfer(learners)

    def lose(self, runner: FakeRunner) -> None:
        """It is lost as soon as it is given something to do."""
        runner.kill()
        self.env_runners.call_all(lambda actor: actor.update_weights.remote(None) if actor is runner else nothing())
        assert self.env_runners.num_lost == 1


async def nothing() -> None:
    pass


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup()
    yield made
    made.env_runners.stop()


def test_a_broadcast_goes_to_all_workers_of_all_engines(setup: Setup) -> None:
    transferred = setup.transfer(setup.env_runners)
    assert (transferred.policy_version, transferred.num_bytes, transferred.load_s) == (1, 8, 0.0)
    assert [runner.version for runner in setup.runners] == [1, 1, 1]
    # Rank 0 is the learner's; every engine has two workers.
    assert [runner.joined["rank_offset"] for runner in setup.runners] == [1, 3, 5]
    assert {runner.joined["world_size"] for runner in setup.runners} == {7}
    setup.learners.version = 2
    setup.transfer(setup.env_runners)
    assert [runner.version for runner in setup.runners] == [2, 2, 2] and setup.learners.groups == 1


def test_what_comes_back_catches_up_through_the_object_store_and_joins_the_next_group(setup: Setup) -> None:
    setup.transfer(setup.env_runners)
    lost = setup.runners[1]
    setup.lose(lost)
    time.sleep(0.2)
    # It is back, but gets no work before it has weights.
    assert lost.alive and setup.env_runners.num_ready == 2 and lost.version == 0

    def ready() -> bool:
        setup.transfer.serve()
        return setup.env_runners.num_ready == 3

    wait_until(ready, 5)
    assert lost.caught_up == [(1, ("file 1", "file 2"))]
    setup.learners.version = 2
    setup.transfer(setup.env_runners)
    assert [runner.version for runner in setup.runners] == [2, 2, 2] and setup.learners.groups == 2


def test_what_comes_back_too_late_for_a_broadcast_catches_up_with_it(setup: Setup) -> None:
    setup.transfer(setup.env_runners)
    lost = setup.runners[1]
    setup.lose(lost)
    time.sleep(0.2)
    setup.learners.version = 2
    setup.transfer(setup.env_runners)  # without it
    assert setup.env_runners.num_ready == 2 and setup.learners.groups == 2

    def ready() -> bool:
        setup.transfer.serve()
        return setup.env_runners.num_ready == 3

    wait_until(ready, 5)
    assert [runner.version for runner in setup.runners] == [2, 2, 2]


def test_an_engine_that_dies_in_a_broadcast_ends_the_learners_wait_with_a_learner_error(setup: Setup) -> None:
    setup.transfer(setup.env_runners)
    setup.runners[2].kill()
    with pytest.raises(LearnerError, match="hanging"):
        setup.transfer(setup.env_runners)
    for runner in setup.runners:
        runner.receiving = False


def test_where_the_learner_that_held_the_weights_is_gone_nobody_waits_for_env_runners_that_come_back(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.through_store(setup.env_runners)
    setup.through_store.serve()
    monkeypatch.setattr(FakeRunner, "owner_died", True)
    setup.lose(setup.runners[1])
    time.sleep(0.2)
    with pytest.raises(LearnerError, match="OwnerDiedError"):
        setup.through_store.serve()
    assert setup.env_runners.num_ready == 2


def test_the_object_store_reports_what_the_slowest_engine_took(setup: Setup) -> None:
    transferred = setup.through_store(setup.env_runners)
    assert (transferred.policy_version, transferred.num_bytes, transferred.load_s) == (1, 8, 0.25)
    assert transferred.metrics.keys() == {"bytes", "changed_fraction", "transfer_s", "load_s"}
    assert transferred.changed_fraction == 0.5
    assert [runner.caught_up for runner in setup.runners] == [[(1, ("file 1", "file 2"))]] * 3
