"""Ends an engine's processes when the process that started them is gone, however it ended.

vLLM's processes live on, with the memory they hold, when their parent is killed. The guard is a process that
waits for the end of the parent and then kills them. Linux only, as the engines are.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress


def end_with_this_process(pids: Sequence[int]) -> None:
    """Starts the guard of these processes; it ends with them or with this process."""
    subprocess.run([sys.executable, "-I", "-S", __file__, str(os.getpid()), *map(str, pids)], check=True)


def _guard(owner: int, pids: Sequence[int]) -> None:
    # File descriptors, unlike ids, never come to mean another process.
    processes = {os.pidfd_open(pid) for pid in pids}
    owner_fd = os.pidfd_open(owner)
    # Ray kills the children of an actor with it: the guard must not be one.
    if os.fork():
        return
    os.setsid()
    ends = select.poll()
    for process in (owner_fd, *processes):
        ends.register(process, select.POLLIN)
    while processes:
        ended = {process for process, _ in ends.poll()}
        if owner_fd in ended:
            for process in processes:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            return
        for process in ended:
            ends.unregister(process)
        processes -= ended


if __name__ == "__main__":
    _guard(int(sys.argv[1]), [int(pid) for pid in sys.argv[2:]])
