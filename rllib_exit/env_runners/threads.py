"""Calls an environment, which may take long or hang, without holding up the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

# Of every thread that does nothing, where it waits for its next call.
_idle: deque[SimpleQueue[Callable[[], None] | None]] = deque()


async def call_in_thread(function: Callable[[], T], timeout_s: float | None) -> T:
    """Calls a function of an environment in a thread, which is used again.

    A thread cannot be killed: one that hangs is left behind. As a daemon it does not hold up the end of the process, as
    that of an executor would.

    Raises:
        TimeoutError: If the function does not return in time. It runs on, and nobody gets what it returns.
    """
    loop = asyncio.get_running_loop()
    # An error is a result here too: it may come when nobody waits for it any more.
    done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def run() -> None:
        try:
            outcome = function(), None
        except BaseException as error:
            outcome = None, error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_set_result, done, outcome)

    try:
        calls = _idle.pop()
    except IndexError:
        calls = _start_thread()
    calls.put(run)
    try:
        result, error = await asyncio.wait_for(done, timeout_s)
    except BaseException as error:
        calls.put(None)  # the thread ends when the function has returned
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"the environment did not answer within env_timeout_s ({timeout_s} s)") from None
        raise
    _idle.append(calls)
    if error is not None:
        raise error
    return result


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _start_thread() -> SimpleQueue[Callable[[], None] | None]:
    calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def run() -> None:
        while (call := calls.get()) is not None:
            call()

    threading.Thread(target=run, name="env", daemon=True).start()
    return calls
