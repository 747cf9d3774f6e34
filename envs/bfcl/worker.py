"""Runs the API classes in worker processes that a hard deadline can kill.

``power(9, 10**9)`` keeps Python busy for hours inside one operation, which no thread or signal handler can
interrupt. So the API objects live in plain Python processes (this module run by name): requests are JSON
lines on stdin, answers JSON lines on stdout. A process ends when its stdin does.

A process keeps nothing between requests. Every request brings the initial configuration and the calls so
far, which are replayed on new objects; that takes less than a millisecond. So a few processes serve any
number of episodes, a killed one takes no state with it, and a restored episode is not a special case.
"""

from __future__ import annotations

import contextlib
import decimal
import json
import math
import os
import queue
import resource
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mpmath

from envs.bfcl.apis import functions, load, methods, same_state
from envs.bfcl.calls import Call

START_TIMEOUT_S = 120.0
# A process that the deadline cannot kill, because its parent is dead, ends itself after so much more CPU time.
ORPHAN_GRACE_S = 1
WORKER_MEMORY_BYTES = 1 << 30
# A longer result of one call is cut.
MAX_RESULT_CHARS = 4000

Scenario = Mapping[str, Any]  # the task's "classes" and "config"


class WorkerError(RuntimeError):
    """The API classes could not be run: nothing is known about the calls."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a call.

    Attributes:
        ok: Whether it succeeded. An API answers a failure with an ``error`` or raises.
        text: What it returned as JSON, or ``{"error": ...}``.
        finished: False if the deadline stopped it; the call then left no trace in the state.
    """

    ok: bool
    text: str
    finished: bool = True


class ApiWorkers:
    """A pool of processes, started when first needed. Safe to use from many threads.

    Calls come with every argument (see :func:`envs.bfcl.calls.bind`): a default of a method is a single
    object, which some methods change.

    Args:
        workers: The most processes; by default one per CPU, up to 4.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or min(4, os.cpu_count() or 1)
        # One slot per process. Last in, first out: an idle process is used before a new one is started.
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._slots.put(None)

    def __enter__(self) -> ApiWorkers:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def execute(
        self, scenario: Scenario, replayed: Sequence[Call], calls: Sequence[Call], timeout_s: float
    ) -> list[Result]:
        """Runs calls in order, up to the first that fails.

        Args:
            scenario: The task's ``classes`` and ``config``.
            replayed: The calls made before, failed ones too; unfinished ones not.
            calls: The new calls.
            timeout_s: The deadline for all of it. The call that it stops has failed.

        Returns:
            The results of the calls that were run.

        Raises:
            WorkerError: If the process died twice for another reason than the deadline.
        """
        request = {**_scenario(scenario), "replayed": _plain(replayed), "calls": _plain(calls)}
        answers, in_time = self._ask("execute", request, timeout_s)
        results = [Result(ok, text) for ok, text in answers]
        complete = len(results) == len(calls) or (bool(results) and not results[-1].ok)
        if not in_time and not complete:
            error = f"stopped after {timeout_s:g} s: this takes too long"
            results.append(Result(False, json.dumps({"error": error}), finished=False))
        return results

    def compare(
        self,
        scenario: Scenario,
        made: Sequence[Sequence[Call]],
        ground_truth: Sequence[Sequence[Call]],
        timeout_s: float,
    ) -> list[bool]:
        """Whether the states are equal after each user request.

        Args:
            scenario: The task's ``classes`` and ``config``.
            made: The calls made for each request, failed ones too.
            ground_truth: The calls that fulfil each, as many.
            timeout_s: The deadline. States that it leaves uncompared count as different.

        Raises:
            WorkerError: If the process died twice for another reason than the deadline.
        """
        request = {**_scenario(scenario), "made": [*map(_plain, made)], "ground_truth": [*map(_plain, ground_truth)]}
        answers, _ = self._ask("compare", request, timeout_s)
        return answers + [False] * (len(ground_truth) - len(answers))

    def official_verdict(
        self,
        scenario: Scenario,
        made: Sequence[Sequence[Call]],
        ground_truth: Sequence[Sequence[Call]],
        timeout_s: float,
    ) -> bool:
        """What the package's own checker says of the calls; the arguments are those of :meth:`compare`.

        A deadline makes it False.

        Raises:
            WorkerError: If the process died twice for another reason than the deadline.
        """
        request = {**_scenario(scenario), "made": [*map(_plain, made)], "ground_truth": [*map(_plain, ground_truth)]}
        answers, _ = self._ask("official_verdict", request, timeout_s)
        return any(answers)

    def close(self) -> None:
        """Ends the processes, once they are idle. The pool can be used again."""
        for worker in [self._slots.get() for _ in range(self.workers)]:
            if worker is not None:
                worker.kill()
            self._slots.put(None)

    def _ask(self, operation: str, request: dict[str, Any], timeout_s: float) -> tuple[list[Any], bool]:
        """The answers to a request, and whether they are all there, not cut short by the deadline."""
        request = {"operation": operation, "timeout_s": timeout_s, **request}
        worker, idle = self._slots.get(), None
        try:
            for _ in range(2):
                worker = worker or _Worker()
                answers: list[Any] = []
                try:
                    for answer in worker.ask(request, timeout_s):
                        answers.append(answer)
                except TimeoutError:
                    return answers, False
                except EOFError:
                    worker.kill()
                    worker = None
                else:
                    idle = worker
                    return answers, True
            raise WorkerError(f"the API process died twice, asked to {operation} {json.dumps(request)[:1000]}")
        finally:
            # Only a process that has answered goes back: any other still works, or owes an answer.
            if worker is not idle and worker is not None:
                worker.kill()
            self._slots.put(idle)


class _Worker:
    """One process, its modules imported."""

    def __init__(self) -> None:
        # The child finds the same modules as this process, however this one came by them; -P keeps the
        # working directory from shadowing them. Some error messages list a set: the hash seed fixes their
        # order. Its own session: Ctrl-C is for us to handle.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "envs.bfcl.worker"],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._unread = b""
        try:
            self._answer(time.monotonic() + START_TIMEOUT_S)
        except (TimeoutError, EOFError) as error:
            self.kill()
            raise WorkerError(
                f"the API process did not start (exit status {self.process.returncode}): its error is on stderr"
            ) from error
        except BaseException:
            self.kill()
            raise

    def ask(self, request: dict[str, Any], timeout_s: float) -> Iterator[Any]:
        """Sends one request; TimeoutError past the deadline, EOFError if the process died."""
        deadline = time.monotonic() + timeout_s
        data = memoryview(json.dumps(request).encode() + b"\n")
        assert self.process.stdin
        try:
            while data:
                data = data[self.process.stdin.write(data) :]
        except BrokenPipeError:
            raise EOFError from None
        while (answer := self._answer(deadline)) is not None:
            yield answer

    def _answer(self, deadline: float) -> Any:
        """The next line; None is the last of a request."""
        assert self.process.stdout
        with selectors.DefaultSelector() as selector:  # select() itself fails for high file descriptors
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                data = self.process.stdout.read(1 << 16)
                if not data:
                    raise EOFError
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        with self.process:  # closes the pipes and reaps
            self.process.kill()


def _scenario(scenario: Scenario) -> dict[str, Any]:
    return {"classes": scenario["classes"], "config": scenario["config"]}


def _plain(calls: Sequence[Call]) -> list[list[Any]]:
    return [[call.name, call.args] for call in calls]


_shared = ApiWorkers()


def shared_workers() -> ApiWorkers:
    """The processes that all environments of this process share."""
    return _shared


def _reset_shared() -> None:
    global _shared
    _shared = ApiWorkers()


# The pipes of a forked process' workers belong to its parent.
os.register_at_fork(after_in_child=_reset_shared)


# What runs in the process, request by request. A call is a list of a documented function's name and arguments.


def execute(
    classes: list[str], config: dict[str, Any], replayed: list[Any], calls: list[Any]
) -> Iterator[tuple[bool, str]]:
    """Answers each new call."""
    bound = methods(load(classes, config))
    for name, args in replayed:
        call_method(bound[name], args)
    for name, args in calls:
        ok, text = call_method(bound[name], args)
        yield ok, text
        if not ok:
            return


def compare(classes: list[str], config: dict[str, Any], made: list[Any], ground_truth: list[Any]) -> Iterator[bool]:
    """Answers each user request."""
    ours, theirs = load(classes, config), load(classes, config)
    our_methods, their_methods = methods(ours), methods(theirs)
    for our_calls, their_calls in zip(made, ground_truth, strict=True):
        for name, args in our_calls:
            call_method(our_methods[name], args)
        for name, args in their_calls:
            call_method(their_methods[name], args)
        try:
            yield same_state(ours, theirs)
        except (RecursionError, MemoryError):  # a directory moved into itself, for one
            yield False


def official_verdict(
    classes: list[str], config: dict[str, Any], made: list[Any], ground_truth: list[Any]
) -> Iterator[bool]:
    """The official checker, but for its executor, which evaluates the text of calls and never frees its objects."""
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker as official

    apis: dict[str, dict[str, Any]] = {}

    def execute_calls(func_call_list: list[Any], model_name: str, **_: Any) -> tuple[list[str], dict[str, Any]]:
        if model_name not in apis:
            apis[model_name] = load(classes, config)
        bound = methods(apis[model_name])
        return [_official_text(bound[name], args) for name, args in func_call_list], apis[model_name]

    official.execute_multi_turn_func_call = execute_calls
    steps = [[calls] if calls else [] for calls in made]
    entry = {"id": "multi_turn_base_0", "initial_config": config, "involved_classes": classes}
    try:
        yield official.multi_turn_checker(steps, ground_truth, entry, "multi_turn_base", "policy")["valid"]
    except (RecursionError, MemoryError):
        yield False


def call_method(method: Callable[..., Any], args: dict[str, Any]) -> tuple[bool, str]:
    """Whether a call succeeded, and its result as JSON text."""
    try:
        with _precision_kept():
            result = method(**args)
            text = _json(result)
    except Exception as error:  # whatever the API's code raises for these arguments
        return False, _json({"error": f"{type(error).__name__}: {error}"[:MAX_RESULT_CHARS]})
    if len(text) > MAX_RESULT_CHARS:
        text = _json(f"{text[:MAX_RESULT_CHARS]}… (cut, {len(text)} characters)")
    return not _is_error(result), text


def _json(value: Any) -> str:
    """As JSON; lone surrogates, which no file takes, become question marks."""
    return json.dumps(value, ensure_ascii=False, default=str).encode(errors="replace").decode()


def _is_error(result: Any) -> bool:
    first = result[0] if isinstance(result, list) and result else result
    return (isinstance(first, dict) and "error" in first) or (isinstance(first, str) and first.startswith("Error:"))


@contextlib.contextmanager
def _precision_kept() -> Iterator[None]:
    """Some functions set the precision of all later computations."""
    with mpmath.workdps(mpmath.mp.dps), decimal.localcontext():
        yield


def _official_text(method: Callable[..., Any], args: dict[str, Any]) -> str:
    """A result as the official executor renders it."""
    try:
        with _precision_kept():
            result = method(**args)
            if isinstance(result, dict):
                with contextlib.suppress(Exception):
                    return json.dumps(result)
            return str(result)
    except Exception as error:
        return f"Error during execution: {error}"


def _serve() -> None:
    # stdout carries the answers: what a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    if sys.platform == "linux":  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY_BYTES, WORKER_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    functions()
    operations = {"execute": execute, "compare": compare, "official_verdict": official_verdict}
    answers.write(b"null\n")
    for line in sys.stdin.buffer:
        request = json.loads(line)
        operation = operations[request.pop("operation")]
        _limit_cpu_time(request.pop("timeout_s"))
        for answer in operation(**request):
            answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(b"null\n")


def _limit_cpu_time(timeout_s: float) -> None:
    """Lets this request use so much, and a grace; more ends the process."""
    used = time.process_time()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + timeout_s) + ORPHAN_GRACE_S, hard))


if __name__ == "__main__":
    _serve()
