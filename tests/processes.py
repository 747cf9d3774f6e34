"""What tests of faults ask of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import psutil

from rllib_exit.env_runners import engine_guard


def children(pid: int, *names: str) -> list[int]:
    """The processes below this one whose command lines hold one of the names, parents first."""
    found = [child for child in psutil.Process(pid).children(recursive=True) if alive([child.pid])]
    return [child.pid for child in found if any(name in " ".join(child.cmdline()) for name in names)]


def guards(owner: int) -> list[int]:
    """The engine guards that watch a process."""
    wanted = [engine_guard.__file__, str(owner)]
    return [p.pid for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[3:5] == wanted]


def alive(pids: Sequence[int]) -> list[int]:
    """Those that have not ended."""
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def wait_for_end(pids: Sequence[int], timeout_s: float = 120) -> None:
    """Returns when all have ended.

    Raises:
        TimeoutError: If one does not in time; it says which.
    """
    try:
        wait_until(lambda: not alive(pids), timeout_s)
    except TimeoutError:
        left = [f"{pid} {' '.join(psutil.Process(pid).cmdline())}" for pid in alive(pids)]
        raise TimeoutError(f"after {timeout_s} s there are still {left}") from None


def wait_until(condition: Callable[[], object], timeout_s: float = 120) -> None:
    """Returns when the condition holds.

    Raises:
        TimeoutError: If it does not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} does not hold after {timeout_s} s")
        time.sleep(0.05)
