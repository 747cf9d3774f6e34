"""The ways by which the learners' weights come to the env runners.

Both update the engines in place, reset their prefix caches and stamp the weights with their version:

- :class:`ObjectStoreTransfer`: from the first learner through Ray's object store, which is shared memory on each
  node, and from there through shared memory into the engine. Works everywhere.
- :class:`NCCLTransfer`: broadcast from the first learner's GPU into those of the engines' workers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from ray.exceptions import OwnerDiedError

from rllib_exit.env_runners.dispatcher import Dispatcher
from rllib_exit.env_runners.llm_env_runner import remote_call
from rllib_exit.learner.learner_group import GRPOLearnerGroup, learner_errors
from rllib_exit.weight_sync.weight_store import StoredWeights


@dataclass(frozen=True, slots=True)
class Transferred:
    """One transfer.

    Attributes:
        policy_version: The weights' version.
        num_bytes: The size of what was sent.
        transfer_s: Seconds from the learner until an engine has them, without what follows.
        load_s: Seconds that the slowest engine took to load them. 0 where it loads while they come.
        changed_fraction: How many of the weights differ from those sent before; 1 where they were not compared.
    """

    policy_version: int
    num_bytes: int
    transfer_s: float
    load_s: float
    changed_fraction: float = 1.0

    @property
    def metrics(self) -> dict[str, float]:
        """What is reported, by its name under ``sync``."""
        return {
            "bytes": self.num_bytes,
            "changed_fraction": self.changed_fraction,
            "transfer_s": self.transfer_s,
            "load_s": self.load_s,
        }


class WeightTransfer(Protocol):
    """Gives the learners' weights to all env runners."""

    def __call__(self, env_runners: Dispatcher) -> Transferred:
        """Returns when the env runners have the weights; one that is lost gets them when it is back.

        Raises:
            LearnerError: If a learner failed.
        """
        ...

    def serve(self) -> None:
        """Does what env runners that came back wait for. To be called while the learners have nothing to do."""
        ...


class ObjectStoreTransfer:
    """Through Ray's object store.

    The first learner puts the weights there bucket by bucket, or of each bucket what changed, see
    :class:`WeightStore`; Ray carries it once to every other node. An env runner that came back gets what it lacks.
    """

    def __init__(self, learners: GRPOLearnerGroup) -> None:
        self._learners = learners
        self._gone: OwnerDiedError | None = None  # the learner that holds the weights

    def __call__(self, env_runners: Dispatcher) -> Transferred:
        start = time.perf_counter()
        with learner_errors():
            weights = self._learners.put_weights()
        load_s = max(env_runners.broadcast(partial(self._give, weights)), default=0.0)
        transfer_s = time.perf_counter() - start - load_s
        return Transferred(weights.policy_version, weights.num_bytes, transfer_s, load_s, weights.changed_fraction)

    async def _give(self, weights: StoredWeights, actor: Any) -> float:
        try:
            return await remote_call("update_weights", weights)(actor)
        except OwnerDiedError as error:
            self._gone = error
            raise

    def serve(self) -> None:
        """Raises the LearnerError if the weights are gone: no env runner could come back, and rollouts would wait."""
        if self._gone is not None:
            with learner_errors():
                raise self._gone


class NCCLTransfer:
    """Broadcast over NCCL, by vLLM's weight-transfer engine.

    The first learner and the workers of all engines form a group, formed anew where another set of env runners is
    there than before. An env runner that comes back in between gets its weights through the object store.

    Args:
        learners: The learners.
        engine_size: How many workers an engine has.
        timeout_s: The longest that a broadcast may take. If an engine dies in the middle of one, the learners wait
            for it for so long, and are then lost: training goes on from the last checkpoint.
    """

    def __init__(self, learners: GRPOLearnerGroup, *, engine_size: int, timeout_s: float | None) -> None:
        self._learners = learners
        self._engine_size = engine_size
        self._timeout_s = timeout_s
        self._group: dict[Any, int] = {}
        self._waiting: SimpleQueue[Future[Any]] = SimpleQueue()

    def __call__(self, env_runners: Dispatcher) -> Transferred:
        # From here on nobody comes back before `serve`: who is there now is whom all that follows is about. A new
        # object each time: what came back with older weights has to catch up again.
        present = env_runners.catch_up_by(partial(self._catch_up))
        with learner_errors():
            if present != self._group:
                self._form_group(env_runners, present)
            start = time.perf_counter()
            update_info, num_bytes, version = self._learners.describe_weights()
            receive = remote_call("receive_weights", version, update_info)
            _together(lambda: self._learners.send_weights(self._timeout_s), lambda: env_runners.call_all(receive))
        return Transferred(version, num_bytes, time.perf_counter() - start, 0.0)

    def serve(self) -> None:
        while True:
            try:
                waiting = self._waiting.get_nowait()
            except Empty:
                return
            if waiting.set_running_or_notify_cancel():
                with learner_errors():
                    waiting.set_result(self._learners.put_weights())

    def _form_group(self, env_runners: Dispatcher, members: dict[Any, int]) -> None:
        ranks = {actor: 1 + i * self._engine_size for i, actor in enumerate(members)}
        init_info = self._learners.transfer_address() | {"world_size": 1 + len(members) * self._engine_size}

        def join(actor: Any) -> Awaitable[Any]:
            return remote_call("join_transfer", init_info | {"rank_offset": ranks[actor]})(actor)

        self._group = {}  # until it stands
        _together(lambda: self._learners.open_transfer(init_info, self._timeout_s), lambda: env_runners.call_all(join))
        self._group = members

    async def _catch_up(self, actor: Any) -> None:
        # In the dispatcher's thread. The learners are asked in the trainer's: what they do together must come in
        # one order for all of them.
        waiting: Future[Any] = Future()
        self._waiting.put(waiting)
        await remote_call("update_weights", await asyncio.wrap_future(waiting))(actor)


class WeightSync:
    """Gives the learners' weights to env runners and waits until they have them.

    RLlib's own sync does not wait, and drops weights while older ones are under way.

    Args:
        learners: The learners.
        config: The GRPOConfig, which says how weights come to ``training``.
        training: The env runners that roll out.
        evaluation: The env runners that evaluate; they may be the same. Others get weights through the object store.
    """

    def __init__(self, learners: GRPOLearnerGroup, config: Any, training: Dispatcher, evaluation: Dispatcher) -> None:
        transfer: WeightTransfer = ObjectStoreTransfer(learners)
        if config.weight_transfer == "nccl":
            transfer = NCCLTransfer(learners, engine_size=config.engine_size, timeout_s=config.sync_timeout_s)
        self._transfers: dict[Dispatcher, WeightTransfer] = {evaluation: ObjectStoreTransfer(learners)}
        self._transfers[training] = transfer

    def __call__(self, env_runners: Dispatcher) -> Transferred:
        """Gives the weights to these env runners.

        Raises:
            LearnerError: If a learner failed.
        """
        return self._transfers[env_runners](env_runners)

    def serve(self) -> None:
        """Gives weights to env runners that came back; to be called while the learners have nothing to do."""
        for transfer in self._transfers.values():
            transfer.serve()


def _together(learners: Callable[[], None], env_runners: Callable[[], Any]) -> None:
    """Does two things at once that wait for each other."""
    executor = ThreadPoolExecutor(1)
    try:
        outcome = executor.submit(env_runners)
        try:
            learners()
        except Exception:
            if outcome.done():
                outcome.result()  # the cause
            raise
        outcome.result()
    finally:
        # Not to wait for env runners that wait for learners that failed.
        executor.shutdown(wait=False)
