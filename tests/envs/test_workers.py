from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from envs import workers as module
from envs.workers import WorkerError, Workers, usable_cpus
from tests.processes import alive, wait_for_end

ROOT = Path(__file__).parents[2]


def start(argument: Any) -> Callable[[Any], Iterator[Any]]:
    """Answers what it is told to, in a process of its own."""
    if argument == "fails":
        raise LookupError("nothing there")
    print("a worker prints")

    def answer(request: list[Any]) -> Iterator[Any]:
        for what in request:
            if what == "argument":
                yield argument
            elif what == "for ever":
                pow(9, 10**9)
            elif what == "compute":
                end = time.process_time() + 0.25
                while time.process_time() < end:
                    pass
            elif what == "sleep":
                time.sleep(0.6)
            elif what == "die":
                os._exit(3)
            elif what == "raise":
                raise ZeroDivisionError
            elif what == "allocate":
                try:
                    bytearray(600 << 20)
                except MemoryError:
                    yield "MemoryError"
            elif what == "set":
                yield list({f"{i}" for i in range(20)})
            else:
                yield what

    return answer


def make(argument: Any = None, **kwargs: Any) -> Workers:
    return Workers(f"{__name__}:start", argument, **kwargs)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with make(workers=2) as workers:
        yield workers


def test_every_answer_comes_back_in_order(workers: Workers):
    assert workers.ask([1, None, ["a", 2.5], "é \ud800", ""], 5) == ([1, None, ["a", 2.5], "é \ud800", ""], True)
    assert workers.ask([], 5) == ([], True)


def test_a_process_gets_its_argument():
    with make({"key": [1]}, workers=1) as workers:
        assert workers.ask(["argument"], 5) == ([{"key": [1]}], True)


def test_large_requests_and_answers_pass(workers: Workers):
    text = "x" * (4 << 20)
    assert workers.ask([text], 30) == ([text], True)


def test_the_deadline_is_hard_and_answers_before_it_are_kept(workers: Workers):
    workers.ask([], 5)
    before = set(workers.pids)
    begin = time.monotonic()
    assert workers.ask([1, 2, "for ever", 3], timeout_s=0.5) == ([1, 2], False)
    assert time.monotonic() - begin < 60  # of CPU time it has half a second
    (killed,) = before - set(workers.pids)
    assert not alive([killed])
    assert workers.ask([4], 5) == ([4], True)


def test_only_cpu_time_counts(workers: Workers):
    assert workers.ask([1, "sleep", 2], timeout_s=0.3) == ([1, 2], True)


def test_every_request_has_its_own_time(workers: Workers):
    for _ in range(3):
        assert workers.ask(["compute"], timeout_s=0.5) == ([], True)


def test_a_stalled_process_says_nothing_about_the_work(workers: Workers, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "STALL_FACTOR", 1)
    with pytest.raises(WorkerError, match=r"has not answered within 0\.3 s"):
        workers.ask([1, "sleep"], timeout_s=0.3)
    assert workers.ask([4], 5) == ([4], True)


def test_starting_up_does_not_count():
    with make(workers=1) as workers:
        assert workers.ask([1], timeout_s=0.05) == ([1], True)


def test_memory_is_bounded():
    with make(workers=1, memory_bytes=512 << 20) as workers:
        assert workers.ask(["allocate"], 5) == (["MemoryError"], True)


def test_every_process_orders_sets_alike():
    def order() -> list[Any]:
        with make(workers=1) as workers:
            return workers.ask(["set"], 5)[0]

    assert order() == order()


def test_many_threads_share_the_processes(workers: Workers):
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda i: workers.ask([i], 5), range(64))) == [([i], True) for i in range(64)]
    assert 1 <= len(workers.pids) <= 2


def test_an_idle_process_is_used_before_a_new_one_is_started():
    with make(workers=2) as workers:
        for _ in range(3):
            workers.ask([], 5)
        assert len(workers.pids) == 1


def test_a_dead_process_is_replaced(workers: Workers):
    workers.ask([], 5)
    for pid in workers.pids:
        os.kill(pid, signal.SIGKILL)
    assert workers.ask([1], 5) == ([1], True)


@pytest.mark.parametrize("request_", [["die"], ["raise"], [1, "die"]])
def test_a_process_that_dies_twice_is_an_error(workers: Workers, request_: list[Any]):
    with pytest.raises(WorkerError, match=r"died twice on the request \[.*(die|raise)"):
        workers.ask(request_, 5)
    assert workers.ask([1], 5) == ([1], True)


def test_an_interrupted_request_leaves_no_answer_behind(workers: Workers, monkeypatch: pytest.MonkeyPatch):
    workers.ask([], 5)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module._Worker, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            workers.ask([1], 5)
    assert workers.ask([2], 5) == ([2], True)


def test_a_process_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch):
    with (
        make("fails") as workers,
        pytest.raises(WorkerError, match=r"start\('fails'\) does not work: LookupErr"),
    ):
        workers.ask([], 5)
    with Workers("envs.base:nothing") as workers, pytest.raises(WorkerError, match=r"AttributeError: .*'nothing'"):
        workers.ask([], 5)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with make() as workers, pytest.raises(WorkerError, match=r"did not start .exit status 1."):
        workers.ask([], 5)


def test_close_ends_the_processes_and_the_pool_starts_again():
    workers = make(workers=1)
    workers.ask([], 5)
    pids = workers.pids
    workers.close()
    assert not alive(pids) and not workers.pids
    assert workers.ask([1], 5) == ([1], True)
    workers.close()


def test_a_fork_gets_processes_of_its_own(workers: Workers):
    workers.ask([], 5)
    before = workers.pids[-1]
    pid = os.fork()
    if pid == 0:
        good = not workers.pids and workers.ask([1], 30) == ([1], True) and before not in workers.pids
        workers.close()
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert alive([before]) and workers.ask([2], 5) == ([2], True)


@pytest.mark.parametrize("busy", [False, True])
def test_the_processes_die_with_their_parent(busy: bool, tmp_path: Path):
    # Without a module path of its own, and from another directory.
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from envs.workers import Workers\n"
        "workers = Workers('tests.envs.test_workers:start', workers=1); workers.ask([], 5)\n"
        f"print(*workers.pids, flush=True); workers.ask({['for ever'] if busy else []}, 1); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout and parent.stdin
    pid = int(parent.stdout.readline())
    assert alive([pid])
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    wait_for_end([pid], timeout_s=15)


def test_cpus_that_are_not_ours_do_not_count():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cpus() == len(before)
