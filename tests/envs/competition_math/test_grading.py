import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.competition_math import grading
from envs.competition_math.grading import GradingError, MathGrader, Verdict, shared_grader

ROOT = Path(__file__).parents[3]
FOR_EVER = "$9^{9^{9^9}}$"


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(workers=2) as grader:
        yield grader


def pids(grader: MathGrader) -> set[int]:
    return {worker.process.pid for worker in grader._slots.queue if worker is not None}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        (r"\frac{1}{2}", r"So it is $\boxed{0.5}$."),
        (r"\frac{1}{2}", "The answer is 1/2"),
        ("12", "7 + 5 = 12."),
        (r"3\sqrt{2}", r"\boxed{\sqrt{18}}"),
        ("2, 3", r"$\boxed{3, 2}$"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}"),
        (r"x^2-3x-10", r"\boxed{(x+2)(x-5)}"),
        ("12", "\ud800 12"),
    ],
)
def test_correct(grader: MathGrader, answer: str, response: str):
    assert grader.grade(answer, response) is Verdict.CORRECT


@pytest.mark.parametrize("response", ["13", "", "I do not know.", r"\boxed{}", "twelve", "(" * 300, "12\n13"])
def test_wrong(grader: MathGrader, response: str):
    assert grader.grade("12", response) is Verdict.WRONG


@pytest.mark.parametrize("response", ["7 + 5", "$7 + 5$", r"\boxed{7+5}", "$7+5=7+5$", "24/2"])
def test_a_literal_answer_is_no_expression(grader: MathGrader, response: str):
    assert grader.grade("12", response) is Verdict.CORRECT
    assert grader.grade("12", response, literal=True) is Verdict.WRONG


@pytest.mark.parametrize(
    "response", ["12", "12.", "7 + 5 = 12", "$7 + 5 = 12$", r"\boxed{12}", "**12**", "It is $12$."]
)
def test_a_literal_answer_may_come_with_words(grader: MathGrader, response: str):
    assert grader.grade("12", response, literal=True) is Verdict.CORRECT


def test_the_deadline_is_hard(grader: MathGrader):
    grader.grade("1", "1")
    before = pids(grader)
    start = time.monotonic()
    assert grader.grade("12", FOR_EVER, timeout_s=2.0) is Verdict.TIMED_OUT
    assert time.monotonic() - start < 4.0
    killed = before - pids(grader)
    assert len(killed) == 1 and not alive(killed.pop())
    assert grader.grade("12", "12") is Verdict.CORRECT


def test_warming_up_does_not_count():
    with MathGrader(workers=1) as grader:
        assert grader.grade("12", "12", timeout_s=0.2) is Verdict.CORRECT


def test_many_threads_share_the_processes(grader: MathGrader):
    def verdict(i: int) -> Verdict:
        return grader.grade(str(i), str(i if i % 2 else i + 1))

    with ThreadPoolExecutor(16) as threads:
        verdicts = list(threads.map(verdict, range(64)))
    assert verdicts == [Verdict.CORRECT if i % 2 else Verdict.WRONG for i in range(64)]
    assert len(pids(grader)) <= 2


def test_an_idle_process_is_used_before_a_new_one_is_started():
    with MathGrader(workers=2) as grader:
        for _ in range(3):
            grader.grade("1", "1")
        assert len(pids(grader)) == 1


def test_a_dead_process_is_replaced(grader: MathGrader):
    grader.grade("1", "1")
    for pid in pids(grader):
        os.kill(pid, signal.SIGKILL)
    assert grader.grade("12", "12") is Verdict.CORRECT


def test_a_process_that_dies_twice_is_an_error(grader: MathGrader, monkeypatch: pytest.MonkeyPatch):
    def dies(worker: grading._Worker, request: dict[str, object]) -> Verdict:
        raise EOFError

    with monkeypatch.context() as patch:
        patch.setattr(grading._Worker, "ask", dies)
        with pytest.raises(GradingError, match=r"died twice.*'12'.*'13'"):
            grader.grade("12", "13")
    assert grader.grade("12", "12") is Verdict.CORRECT


def test_an_interrupted_question_leaves_no_answer_behind(grader: MathGrader, monkeypatch: pytest.MonkeyPatch):
    grader.grade("1", "1")

    def interrupted(worker: grading._Worker, deadline: float) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grading._Worker, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            grader.grade("12", "12")
    assert grader.grade("12", "13") is Verdict.WRONG


def test_a_process_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with MathGrader(workers=1) as grader, pytest.raises(GradingError, match=r"did not start .exit status"):
        grader.grade("12", "12")


def test_close_ends_the_processes_and_the_grader_starts_again():
    grader = MathGrader(workers=1)
    grader.grade("1", "1")
    (pid,) = pids(grader)
    grader.close()
    assert not alive(pid) and not pids(grader)
    assert grader.grade("12", "12") is Verdict.CORRECT
    grader.close()


def test_the_shared_grader_is_one_and_a_fork_gets_its_own():
    assert shared_grader() is shared_grader()
    before = shared_grader()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if shared_grader() is not before and not pids(shared_grader()) else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("busy", [False, True])
def test_the_processes_die_with_their_parent(busy: bool, tmp_path: Path):
    # Without a module path of its own, and from another directory.
    response = FOR_EVER if busy else "1"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from envs.competition_math import grading\n"
        "grader = grading.MathGrader(workers=1)\n"
        "grader.grade('1', '1'); (worker,) = grader._slots.queue; print(worker.process.pid, flush=True)\n"
        f"grader.grade('1', {response!r}, timeout_s=2); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout and parent.stdin
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    deadline = time.monotonic() + (15 if busy else 5)
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pid)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_equal_themselves_only(gold: int, other: int):
    grader = shared_grader()
    assert grader.grade(str(gold), f"The answer is ${gold}$.", literal=True) is Verdict.CORRECT
    if other != gold:
        assert grader.grade(str(gold), f"\\boxed{{{other}}}", literal=True) is Verdict.WRONG


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_gets_a_verdict(response: str):
    assert shared_grader().grade(r"\sqrt{123456789}", response) in (Verdict.WRONG, Verdict.TIMED_OUT)
