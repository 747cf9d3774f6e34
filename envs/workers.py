"""Processes that do risky work and that a hard limit of CPU time can kill.

An answer such as ``9^{9^{9^9}}`` keeps Python or SymPy busy for hours inside one operation, which neither a
signal handler nor a thread can interrupt; a submission can eat all memory of what reads it. So such work is
done in plain Python processes, which run this module. A process ends when its pipe does. The limit is one of CPU
time, not of the clock, because a busy machine says nothing about the work.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pkgutil
import queue
import signal
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any, Self

from envs.base import InfrastructureError

START_TIMEOUT_S = 300.0
# A process that has not answered after this many times its CPU time is stalled, or waits for what never comes.
STALL_FACTOR = 20
# A process whose parent is dead, so that nobody can kill it, ends itself this much later.
ORPHAN_GRACE_S = 3

Handler = Callable[[Any], Iterable[Any]]
"""Gives the answers to a request."""


def usable_cpus() -> int:
    """How many CPUs this process may use: in a container or under ``taskset`` fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerError(InfrastructureError):
    """The work could not be done: nothing is known about its outcome."""


class Workers:
    """A pool of processes, started when first needed. Safe to use from many threads.

    A process keeps nothing between requests, so that a killed one takes no state with it.

    Args:
        start: ``module:function``. A new process calls it with ``argument``; it returns the :data:`Handler` that
            answers requests there.
        argument: The argument of ``start``, a JSON value.
        workers: The largest number of processes; by default one per CPU, up to 4.
        memory_bytes: The memory that a process may allocate.
    """

    def __init__(
        self, start: str, argument: Any = None, *, workers: int | None = None, memory_bytes: int = 4 << 30
    ) -> None:
        self.start, self.argument, self.memory_bytes = start, argument, memory_bytes
        self.workers = workers or min(4, usable_cpus())
        self._empty()
        _pools.add(self)

    def _empty(self) -> None:
        # There is one slot per process. The last one in is the first out, so that an idle process is used before a new
        # one is started.
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._slots.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The idle processes."""
        return [worker.process.pid for worker in self._slots.queue if worker is not None]

    def ask(self, request: Any, timeout_s: float) -> tuple[list[Any], bool]:
        """Lets a process answer a request.

        Args:
            request: What the handler gets; anything that can be pickled.
            timeout_s: The CPU seconds for each answer. A process that needs more is killed.

        Returns:
            The handler's answers, and whether they are all there, not cut short by the limit.

        Raises:
            WorkerError: If no process can be started, one died twice for another reason than the limit, or has
                answered nothing for ``STALL_FACTOR`` times ``timeout_s``.
        """
        worker, idle = self._slots.get(), None
        try:
            for _ in range(2):
                worker = worker or _Worker(self.start, self.argument, self.memory_bytes)
                answers: list[Any] = []
                try:
                    for answer in worker.ask(request, timeout_s):
                        answers.append(answer)
                except TimeoutError:
                    return answers, False
                except (EOFError, OSError):
                    worker.kill()
                    worker = None
                else:
                    idle = worker
                    return answers, True
            raise WorkerError(f"a process of {self.start} died twice on the request {repr(request)[:1000]}")
        finally:
            # Only a process that has answered goes back. Any other one still works, or still owes an answer.
            if worker is not idle and worker is not None:
                worker.kill()
            self._slots.put(idle)

    def close(self) -> None:
        """Ends the processes, once they are idle. The pool can be used again."""
        for worker in [self._slots.get() for _ in range(self.workers)]:
            if worker is not None:
                worker.kill()
            self._slots.put(None)


_pools: weakref.WeakSet[Workers] = weakref.WeakSet()


def _after_fork() -> None:
    # The processes of a forked process' pools belong to its parent.
    for pool in _pools:
        for worker in pool._slots.queue:
            if worker is not None:
                worker.connection.close()
        pool._empty()


os.register_at_fork(after_in_child=_after_fork)


class _Worker:
    """One process, ready for requests."""

    def __init__(self, start: str, argument: Any, memory_bytes: int) -> None:
        self.connection, child = Pipe()
        # The child finds the same modules as this process, and -P keeps the working directory from shadowing them. A
        # fixed hash seed fixes the order of sets in messages. The child has a session of its own, so that Ctrl-C does
        # not reach it.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "envs.workers", str(child.fileno()), str(memory_bytes), start],
            env={**os.environ, **threads, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.__stderr__,
            start_new_session=True,
        )
        child.close()
        try:
            self.connection.send(argument)
            if error := self._receive(time.monotonic() + START_TIMEOUT_S):
                raise WorkerError(f"{start}({argument!r}) does not work: {error[0]}")
        except (TimeoutError, EOFError, OSError) as error:
            self.kill()
            raise WorkerError(
                f"a process of {start} did not start (exit status {self.process.returncode}): its error is on stderr"
            ) from error
        except BaseException:
            self.kill()
            raise

    def ask(self, request: Any, timeout_s: float) -> Iterator[Any]:
        """The answers to a request.

        Raises:
            TimeoutError: If the process used up its CPU time.
            WorkerError: If it is stalled.
            EOFError, OSError: If it died.
        """
        self.connection.send((request, timeout_s))
        try:
            while answer := self._receive(time.monotonic() + STALL_FACTOR * timeout_s):
                yield answer[0]
        except TimeoutError:
            raise WorkerError(
                f"a process has not answered within {STALL_FACTOR * timeout_s:g} s, and did not use up its "
                f"{timeout_s:g} s of CPU time: the machine is overloaded, or the work waits for something"
            ) from None
        except (EOFError, OSError) as error:
            if self.process.wait() == -signal.SIGPROF:
                raise TimeoutError from error
            raise

    def _receive(self, deadline: float) -> list[Any]:
        """One answer in a list, or the empty list that ends them. They are JSON, since the process is not trusted."""
        if not self.connection.poll(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        return json.loads(self.connection.recv_bytes())

    def kill(self) -> None:
        with self.process:  # reaps
            self.process.kill()
        self.connection.close()


def _serve(descriptor: int, memory_bytes: int, start: str) -> None:
    """What runs in the process."""
    import resource

    connection = Connection(descriptor)

    def reply(*answer: Any) -> None:
        connection.send_bytes(json.dumps(answer).encode())

    def limit(timeout_s: float) -> None:
        """Begins the time for the next answer; 0 for none."""
        signal.setitimer(signal.ITIMER_PROF, timeout_s)
        signal.alarm(math.ceil(STALL_FACTOR * timeout_s) + ORPHAN_GRACE_S if timeout_s else 0)

    if sys.platform == "linux":  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # its default ends the process, whatever it is doing
    try:
        handler: Handler = pkgutil.resolve_name(start)(connection.recv())
    except Exception as error:
        reply("".join(traceback.format_exception_only(error)).strip())
        return
    reply()
    while True:
        request, timeout_s = connection.recv()
        limit(timeout_s)
        for answer in handler(request):
            reply(answer)
            limit(timeout_s)
        reply()
        limit(0)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone
        _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
