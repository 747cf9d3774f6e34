"""Signs of life of actors, by which one that is stopped or cut off differs from one that works for long.

A thread of each learner and env runner counts up a number in Ray's key-value store, whatever it does meanwhile.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

NAMESPACE = "rllib-exit-pulses"
PERIOD_S = 1.0

logger = logging.getLogger(__name__)


def start_pulse(key: str) -> None:
    """Counts up the number of this process, until it ends."""

    def beat(number: int) -> None:
        try:
            _internal_kv_put(key, str(number), namespace=NAMESPACE)
        except Exception:  # the store restarts: the next one may come through
            logger.warning("no sign of life was given", exc_info=True)

    def go_on() -> None:
        for number in itertools.count(1):
            time.sleep(PERIOD_S)
            beat(number)

    beat(0)
    threading.Thread(target=go_on, name="pulse", daemon=True).start()


def end_pulse(keys: Sequence[str]) -> None:
    """Removes the numbers of processes that have ended."""
    for key in keys:
        _internal_kv_del(key, namespace=NAMESPACE)


class Watch:
    """Watches processes from now on.

    Args:
        keys: Theirs.
        timeout_s: How long a living one may be silent.
        number: Reads a process's number.
        clock: Gives seconds.
    """

    def __init__(
        self,
        keys: Sequence[str],
        timeout_s: float,
        number: Callable[[str], object] = lambda key: _internal_kv_get(key, namespace=NAMESPACE),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys, self._timeout_s, self._number, self._clock = keys, timeout_s, number, clock
        self._last: dict[str, tuple[object, float]] = {}

    def silent(self) -> list[int]:
        """The indices of those that were silent for too long. Who has not begun to count is waited for."""
        now = self._clock()
        for key in self._keys:
            number = self._number(key)
            if key not in self._last or self._last[key][0] != number:
                self._last[key] = (number, now)
        last = [self._last[key] for key in self._keys]
        return [i for i, (number, at) in enumerate(last) if number is not None and now - at > self._timeout_s]
