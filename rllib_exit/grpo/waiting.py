"""How the trainer waits for env runners: failures and requests to stop end the wait at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

from rllib_exit.grpo.stopping import StoppedError, stop_requested

T = TypeVar("T")


class RolloutError(RuntimeError):
    """Rollouts failed, and running them again would not help."""


def as_completed(futures: Sequence[Future[T]], meanwhile: Callable[[], object] = lambda: None) -> Iterator[T]:
    """Yields each answer of the env runners when it is in, while others may be under way.

    Args:
        futures: The answers.
        meanwhile: Called between answers, ten times a second or more often.

    Raises:
        RolloutError: At the first failure.
        StoppedError: If the run is asked to stop before the last answer is in.
    """
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
        for error in filter(None, (future.exception() for future in done)):
            # An error that was raised in an env runner has Ray's error, which tells where, as its cause.
            details = f"\n\n{error.__cause__}" if error.__cause__ else ""
            raise RolloutError(f"{error}{details}") from error
        for future in done:
            yield future.result()
        if waiting and stop_requested():
            raise StoppedError("training was asked to stop")
        meanwhile()
