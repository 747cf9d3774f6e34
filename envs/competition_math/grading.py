r"""Grades answers with math-verify, in worker processes that a hard deadline can kill.

An answer such as ``9^{9^{9^9}}`` keeps SymPy busy for ever, inside single calls that neither a signal
handler nor a thread can interrupt; math-verify's own time limit therefore does not hold, and works in a
main thread only. So each worker is a plain Python process (this module run by name): requests are JSON
lines on its stdin, verdicts single bytes on its stdout. It ends when its stdin does.
"""

from __future__ import annotations

import json
import os
import queue
import selectors
import subprocess
import sys
import time
from enum import Enum
from typing import Any

READY, YES, NO = b"r", b"1", b"0"
START_TIMEOUT_S = 120.0
# A worker that the deadline cannot kill, because its parent is dead, ends itself so much later.
ORPHAN_GRACE_S = 5
WORKER_MEMORY_BYTES = 4 << 30


class Verdict(Enum):
    """What grading says of an answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    TIMED_OUT = "timed_out"


class GradingError(RuntimeError):
    """Grading itself failed: the answer was not judged."""


class MathGrader:
    r"""A pool of grading processes, started when first needed. Safe to use from many threads.

    Args:
        workers: The most processes; by default one per CPU, up to 4.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or min(4, os.cpu_count() or 1)
        # One slot per process. Last in, first out: an idle process is used before a new one is started.
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._slots.put(None)

    def __enter__(self) -> MathGrader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def grade(self, answer: str, response: str, timeout_s: float = 5.0, *, literal: bool = False) -> Verdict:
        r"""Compares the answer found in a response with the gold answer.

        Args:
            answer: The gold answer in LaTeX, without ``\boxed{}``.
            response: The policy's text; the answer is what math-verify extracts by default.
            timeout_s: The deadline, from when a process takes up the answer.
            literal: Whether the response must spell the answer out as a number. Without this, ``7 + 5``
                is a correct answer to "What is 7 + 5?".

        Raises:
            GradingError: If the process died twice for another reason than the deadline.
        """
        request = {"answer": answer, "response": response, "timeout_s": timeout_s, "literal": literal}
        worker, idle = self._slots.get(), None
        try:
            for _ in range(2):
                worker = worker or _Worker()
                try:
                    verdict = worker.ask(request)
                except TimeoutError:
                    return Verdict.TIMED_OUT
                except EOFError:
                    worker.kill()
                    worker = None
                else:
                    idle = worker
                    return verdict
            raise GradingError(f"the grading process died twice on the answer {answer!r} and response {response!r}")
        finally:
            # Only a process that has answered goes back: any other still works, or owes an answer.
            if worker is not idle and worker is not None:
                worker.kill()
            self._slots.put(idle)

    def close(self) -> None:
        """Ends the processes, once they are idle. The grader can be used again."""
        for worker in [self._slots.get() for _ in range(self.workers)]:
            if worker is not None:
                worker.kill()
            self._slots.put(None)


class _Worker:
    """One grading process, warmed up."""

    def __init__(self) -> None:
        # The child finds the same modules as this process, however this one came by them; -P keeps the
        # working directory from shadowing them. Its own session: Ctrl-C is for us to handle.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "envs.competition_math.grading"],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        try:
            self._read(time.monotonic() + START_TIMEOUT_S)
        except (TimeoutError, EOFError) as error:
            self.kill()
            raise GradingError(
                f"the grading process did not start (exit status {self.process.returncode}): its error is on stderr"
            ) from error
        except BaseException:
            self.kill()
            raise

    def ask(self, request: dict[str, Any]) -> Verdict:
        """Sends one request; TimeoutError past the deadline, EOFError if the process died."""
        deadline = time.monotonic() + request["timeout_s"]
        data = memoryview(json.dumps(request).encode() + b"\n")
        assert self.process.stdin
        try:
            while data:
                data = data[self.process.stdin.write(data) :]
        except BrokenPipeError:
            raise EOFError from None
        return Verdict.CORRECT if self._read(deadline) == YES else Verdict.WRONG

    def _read(self, deadline: float) -> bytes:
        assert self.process.stdout
        with selectors.DefaultSelector() as selector:  # select() itself fails for high file descriptors
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
        reply = self.process.stdout.read(1)
        if not reply:
            raise EOFError
        return reply

    def kill(self) -> None:
        with self.process:  # closes the pipes and reaps
            self.process.kill()


_shared = MathGrader()


def shared_grader() -> MathGrader:
    """The grader that all environments of this process share."""
    return _shared


def _reset_shared() -> None:
    global _shared
    _shared = MathGrader()


# The pipes of a forked process' grading processes belong to its parent.
os.register_at_fork(after_in_child=_reset_shared)


def _is_correct(answer: str, response: str, literal: bool) -> bool:
    from math_verify import parse, verify

    # Bare gold answers often fail to parse. The time limits are the parent's.
    gold = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)  # type: ignore[arg-type]
    found = parse(response, parsing_timeout=None)  # type: ignore[arg-type]
    if literal:
        sides = [getattr(value, "rhs", value) for value in found]  # of 7 + 5 = 12, the 12
        found = [side for side in sides if getattr(side, "is_Number", False)]
    return verify(gold, found, timeout_seconds=None)


def _serve() -> None:
    import logging
    import resource
    import signal

    # stdout carries the verdicts: what a library prints goes to stderr.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    if sys.platform == "linux":  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY_BYTES, WORKER_MEMORY_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # its default ends the process, whatever it is doing
    _is_correct(r"\frac{1}{2}", "The answer is $0.5$.", literal=False)
    replies.write(READY)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.alarm(int(request["timeout_s"]) + ORPHAN_GRACE_S)
        correct = _is_correct(request["answer"], request["response"], request["literal"])
        signal.alarm(0)
        replies.write(YES if correct else NO)


if __name__ == "__main__":
    _serve()
