"""Hands work out to the env runners as they have room, and the work of lost ones out again."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

# A piece of work whose env runner is lost so often is not handed out again: it may be the cause.
MAX_LOSSES = 3
# Seconds from one look for silent env runners to the next.
LOOK_PERIOD_S = 1.0

Call = Callable[[Any], Awaitable[Any]]
_LOST = object()
T = TypeVar("T")


class EnvRunnersLostError(RuntimeError):
    """Work cannot be done, because env runners are lost again and again, or none comes back."""


@dataclass(eq=False)
class _Work:
    call: Call
    size: int
    future: Future[Any] = field(default_factory=Future)
    losses: int = 0


@dataclass(eq=False)
class _Runner:
    actor: Any
    ready: bool = True
    losses: int = 0
    in_flight: dict[_Work, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def load(self) -> int:
        return sum(work.size for work in self.in_flight)


class Dispatcher:
    """Keeps env runners supplied with work, one call at a time, so that a slow call delays no other.

    Work goes, in the order of its submission, to the env runner with the least of it. If that one is lost, its
    unfinished work goes to others, or to itself once it is back. A thread does all this: work goes on while the
    caller does something else. All methods may be called from any thread.

    Args:
        actors: The env runners.
        capacity: An env runner gets more while the sizes of its calls add up to no more than this: it then has
            work waiting when it finishes some.
        is_lost: Whether what a call raised means that its env runner is lost. Anything else is the outcome of
            the call.
        revive: Called with a lost env runner and what its call raised; returns when it answers again.
        patience_s: How long work waits when no env runner is left; None for ever.
        silent: The indices of the actors that give no sign of life. They are lost, whatever they were called for.
    """

    def __init__(
        self,
        actors: Sequence[Any],
        *,
        capacity: int,
        is_lost: Callable[[BaseException], bool],
        revive: Callable[[Any, BaseException], Awaitable[None]],
        patience_s: float | None,
        silent: Callable[[], Sequence[int]] | None = None,
    ) -> None:
        self.num_lost = 0
        """How often an env runner was lost."""
        self._runners = [_Runner(actor) for actor in actors]
        self._capacity = capacity
        self._is_lost = is_lost
        self._revive_actor = revive
        self._patience_s = patience_s
        self._waiting: deque[_Work] = deque()
        self._catch_up: Call | None = None
        self._revivals: set[asyncio.Task[None]] = set()
        self._coroutines: set[asyncio.Task[Any]] = set()
        self._giving_up: asyncio.TimerHandle | None = None
        self._last_error: BaseException | None = None
        # All state belongs to this loop.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dispatcher", daemon=True)
        self._thread.start()
        self._looking = None if silent is None else asyncio.run_coroutine_threadsafe(self._look(silent), self._loop)

    @property
    def num_ready(self) -> int:
        """How many env runners are there."""
        return sum(runner.ready for runner in self._runners)

    def submit(self, call: Call, *, size: int = 1, first: bool = False) -> Future[Any]:
        """Has an env runner do a piece of work.

        Args:
            call: Gets an actor and returns what to await. It may be called again, with another actor.
            size: How much work it is, in the unit of ``capacity``.
            first: Whether it comes before the work that waits, whatever was submitted before.

        Returns:
            The outcome. It raises what the call raised, or EnvRunnersLostError.
        """
        work = _Work(call, size)

        def enqueue() -> None:
            (self._waiting.appendleft if first else self._waiting.append)(work)
            self._hand_out()

        self._loop.call_soon_threadsafe(enqueue)
        return work.future

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine that submits work of which each piece depends on the one before.

        Returns:
            Its outcome.
        """

        async def run() -> T:
            task = asyncio.current_task()
            assert task is not None
            self._coroutines.add(task)
            try:
                return await coroutine
            finally:
                self._coroutines.discard(task)

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def broadcast(self, call: Call) -> list[Any]:
        """Calls every env runner and waits; one that is lost is called when it is back, before it gets work.

        Only the newest call is made up for. What a call raises is raised here, unless it says that the env runner
        is lost.

        Returns:
            The outcomes, of those that were there and are not lost.
        """
        self.catch_up_by(call)
        return self.call_all(call)

    def catch_up_by(self, call: Call) -> dict[Any, int]:
        """Has every env runner that comes back from now on called so, before it gets work.

        Returns:
            Those that are there, and how often each was lost before.
        """

        async def set_call() -> dict[Any, int]:
            self._catch_up = call
            return {runner.actor: runner.losses for runner in self._runners if runner.ready}

        return asyncio.run_coroutine_threadsafe(set_call(), self._loop).result()

    def call_all(self, call: Call) -> list[Any]:
        """As :meth:`broadcast`, but what comes back is not called."""

        async def run() -> list[Any]:
            outcomes = await asyncio.gather(*(self._call(runner, call) for runner in self._runners if runner.ready))
            return [outcome for outcome in outcomes if outcome is not _LOST]

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def cancel(self) -> None:
        """Takes all work back and ends all coroutines; their futures are cancelled."""

        async def cancel_all() -> None:
            for coroutine in self._coroutines:
                coroutine.cancel()
            cancelled = [*self._waiting, *(work for runner in self._runners for work in runner.in_flight)]
            self._waiting.clear()
            for runner in self._runners:
                self._take_back(runner)
            for work in cancelled:
                work.future.cancel()

        asyncio.run_coroutine_threadsafe(cancel_all(), self._loop).result()

    def stop(self) -> None:
        """Takes all work back and ends the thread. The env runners are left alone."""
        self.cancel()
        if self._looking is not None:
            self._looking.cancel()

        async def end_revivals() -> None:
            for task in self._revivals:
                task.cancel()
            await asyncio.gather(*self._revivals, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end_revivals(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # In the thread.

    def _hand_out(self) -> None:
        while self._waiting:
            free = [runner for runner in self._runners if runner.ready and runner.load <= self._capacity]
            if not free:
                break
            runner, work = min(free, key=lambda runner: runner.load), self._waiting.popleft()
            runner.in_flight[work] = self._loop.create_task(self._run(runner, work))
        nobody_there = bool(self._waiting) and not self.num_ready
        if nobody_there and self._giving_up is None and self._patience_s is not None:
            self._giving_up = self._loop.call_later(self._patience_s, self._give_up)
        elif not nobody_there and self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    async def _run(self, runner: _Runner, work: _Work) -> None:
        try:
            result = await work.call(runner.actor)
        except Exception as error:
            if self._is_lost(error):
                self._lose(runner, error)
                return
            work.future.set_exception(error)
        else:
            work.future.set_result(result)
        del runner.in_flight[work]
        self._hand_out()

    async def _call(self, runner: _Runner, call: Call) -> Any:
        losses = runner.losses
        try:
            return await call(runner.actor)
        except Exception as error:
            if not self._is_lost(error):
                raise
            if runner.losses == losses:  # it may have been lost, and be back, since
                self._lose(runner, error)
            return _LOST

    def _lose(self, runner: _Runner, error: BaseException) -> None:
        logger.warning("lost an env runner: %s", error)
        runner.ready = False
        runner.losses += 1
        self.num_lost += 1
        self._last_error = error
        lost = list(runner.in_flight)
        self._take_back(runner)
        for work in reversed(lost):
            work.losses += 1
            if work.losses < MAX_LOSSES:
                self._waiting.appendleft(work)
            else:
                message = f"{MAX_LOSSES} env runners were lost while they did the same work; the last one: {error}"
                work.future.set_exception(EnvRunnersLostError(message))
        revival = self._loop.create_task(self._revive(runner, error))
        self._revivals.add(revival)
        revival.add_done_callback(self._revivals.discard)
        self._hand_out()

    async def _look(self, silent: Callable[[], Sequence[int]]) -> None:
        while True:
            await asyncio.sleep(LOOK_PERIOD_S)
            for i in await asyncio.to_thread(silent):  # one that is being revived is not asked for
                if self._runners[i].ready:
                    self._lose(self._runners[i], TimeoutError("it gave no sign of life"))

    def _take_back(self, runner: _Runner) -> None:
        current = asyncio.current_task()
        for task in runner.in_flight.values():
            if task is not current:
                task.cancel()
        runner.in_flight.clear()

    async def _revive(self, runner: _Runner, error: BaseException) -> None:
        while not runner.ready:
            try:
                await self._revive_actor(runner.actor, error)
                done = None
                while done is not self._catch_up:
                    done = self._catch_up
                    await done(runner.actor)  # type: ignore[misc]
                runner.ready = True
            except Exception as again:
                logger.warning("an env runner that came back was lost again: %s", again)
                error = self._last_error = again
        self._hand_out()

    def _give_up(self) -> None:
        self._giving_up = None
        message = f"no env runner came back within {self._patience_s:g} s; the last one was lost to: {self._last_error}"
        for work in self._waiting:
            work.future.set_exception(EnvRunnersLostError(message))
        self._waiting.clear()
