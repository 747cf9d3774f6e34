from __future__ import annotations

import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from envs.reasoning_gym import worker
from envs.reasoning_gym.worker import Source, confined_score, grade, make, parse_arithmetic
from envs.sandbox import seccomp
from envs.workers import STALL_FACTOR, WorkerError, Workers
from tests.envs.reasoning_gym.hostile import TEXTS, expressions

factory = pytest.importorskip("reasoning_gym.factory")
NAMES = sorted(factory.DATASETS.keys() - {"composite"})
# They state no answer: many are right, and the grader finds out by playing the moves.
WITHOUT_ANSWER = {"boxnet", "rush_hour"}
TIMEOUT_S = 0.3
# One of each kind of harm; the others try what confinement, the same for all, is made of.
TO_ALL = {"shell", "write", "read", "connect", "fork bomb", "endless", "endless in C", "memory", "exit", "print"}


class Trap:
    """Where hostile answers would leave a trace: an empty directory, a secret file, a listening port."""

    def __init__(self, path: Path) -> None:
        self.directory, self.secret = path / "empty", path / "secret"
        self.directory.mkdir()
        self.secret.write_text("a secret")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)

    def expressions(self) -> dict[str, str]:
        return expressions(self.directory, self.secret, self.listener.getsockname()[1])

    def check(self) -> None:
        assert list(self.directory.iterdir()) == []
        assert self.secret.read_text() == "a secret"
        with pytest.raises(BlockingIOError):
            self.listener.accept()


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    trap = Trap(tmp_path)
    with trap.listener:
        yield trap


def children(pids: list[int]) -> str:
    return "".join(Path(f"/proc/{pid}/task/{pid}/children").read_text() for pid in pids)


def test_all_data_sets_are_there():
    assert len(NAMES) == 105  # and composite, which mixtures replace


def test_without_confinement_they_would_do_harm(trap: Trap):
    answers = trap.expressions()
    for name in ("shell", "exec", "subprocess", "write", "connect", "delete"):
        subprocess.run([sys.executable, "-c", answers[name]], check=True)
    assert {path.name for path in trap.directory.iterdir()} == {"shell", "exec", "subprocess", "written"}
    trap.listener.accept()[0].close()
    assert not trap.secret.exists()


def test_nothing_that_a_grader_runs_does_harm_or_lasts(trap: Trap):
    with Workers("tests.envs.reasoning_gym.hostile:start", workers=1, memory_bytes=1 << 30) as unsafe:
        [[right], _] = unsafe.ask(("1.0", TIMEOUT_S), 5.0)
        [pid] = unsafe.pids
        for name, answer in trap.expressions().items():
            begin = time.monotonic()
            [[score], _] = unsafe.ask((answer, TIMEOUT_S), 5.0)
            assert score == 0.0, name
            assert time.monotonic() - begin < STALL_FACTOR * TIMEOUT_S + 30, name
            assert children(unsafe.pids) == "", name
        changed = "[__import__('builtins').__dict__.__setitem__('float', lambda _: 1.0), 1.0][1]"
        assert unsafe.ask((changed, TIMEOUT_S), 5.0)[0] == [1.0]  # its own score is all that it can change
        assert unsafe.ask(("0.25", TIMEOUT_S), 5.0)[0] == [0.25]
        assert right == 1.0 and unsafe.pids == [pid]
    trap.check()


def test_time_on_the_clock_is_limited_too():
    lock = threading.Lock()
    lock.acquire()
    begin = time.monotonic()
    assert confined_score(lock.acquire, 0.05) == 0.0
    assert 0.9 * STALL_FACTOR * 0.05 < time.monotonic() - begin < STALL_FACTOR * 0.05 + 30


def test_a_machine_that_cannot_confine_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(seccomp._ARCHITECTURES, "x86_64", (0, 0))
    monkeypatch.setattr("envs.sandbox.kernel.apply_seccomp", refuse)
    with pytest.raises(OSError, match="graders cannot be confined here: no seccomp"):
        confined_score(lambda: 1.0, 1.0)


def refuse(_: bytes) -> None:
    raise OSError("no seccomp")


@pytest.mark.slow
@pytest.mark.full
def test_every_data_set_accepts_its_own_answers_and_no_hostile_ones(trap: Trap):
    # Whether a grader evaluates its answer does not matter: all get all of these.
    expressions = {name: text for name, text in trap.expressions().items() if name in TO_ALL}
    assert len(expressions) == len(TO_ALL)
    hostile = {**expressions, **TEXTS}

    def check(name: str) -> None:
        source = Source(name, 2, 3)
        for index, (question, answer) in enumerate(make(source)):
            assert question
            assert (answer is None) == (name in WITHOUT_ANSWER), name
            assert answer is None or grade(source, index, answer, 2.0) == 1.0, (name, answer)
        for what, answer in hostile.items():
            begin = time.monotonic()
            assert 0.0 <= grade(source, 0, answer, TIMEOUT_S) < 1.0, (name, what)
            assert time.monotonic() - begin < STALL_FACTOR * TIMEOUT_S + 30, (name, what)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(check, NAMES))
    assert children(worker.workers.pids) == ""
    trap.check()


@pytest.mark.slow
def test_items_are_the_same_in_every_process():
    # Of one pool the process is always the same; the other one makes the items in another order.
    with Workers("envs.reasoning_gym.worker:start", workers=1, memory_bytes=1 << 30) as others:
        sources = [Source(name, 2, 7) for name in NAMES]
        there = {source: others.ask((source,), 60.0)[0] for source in reversed(sources)}
        for source in sources:
            here = [{"question": question, "answer": answer} for question, answer in make(source)]
            assert here == there[source], source.name


def test_a_verdict_is_compared_and_not_only_there():
    source = Source("game_of_life_halting", 4, 3)
    for index, (_, answer) in enumerate(make(source)):
        assert answer in ("True", "False")
        other = str(answer == "False")
        assert [grade(source, index, text, 5.0) for text in (answer, other, "maybe", "")] == [1.0, 0.0, 0.0, 0.0]


def test_another_seed_makes_other_items():
    questions = [question for seed in (0, 1) for question, _ in make(Source("countdown", 50, seed))]
    assert len(set(questions)) == 100


def test_right_answers_in_other_words_are_right_in_confinement():
    """Grading loads nothing that confinement forbids."""
    source = Source("simple_integration", 20)
    for index, (_, answer) in enumerate(make(source)):
        assert answer is not None
        variable = "X" if "X" in answer else "x"
        same = f"({answer}) + sin({variable})**2 + cos({variable})**2 + log(exp(2))"
        assert grade(source, index, same, 5.0) == 1.0
        assert grade(source, index, f"{answer} + {variable}", 5.0) == 0.0


@pytest.mark.parametrize(
    ("text", "value"), [("(3 + 4) * 5 - 6/2", 32), (" 2**-1", 0.5), ("sqrt(4) + exp(0)", 3), ("y - y", 0)]
)
def test_arithmetic_is_evaluated(text: str, value: float):
    assert math.isclose(float(parse_arithmetic(text)), value)


@pytest.mark.parametrize(
    "text",
    ["x.y", "open", "eval('1')", "N('1')", "sqrt('1')", "f(1)", "[1]", "1 if 1 else 2", "1 < 2", "True", "1j", "'1'"],
)
def test_what_is_not_arithmetic_is_not_evaluated(text: str):
    with pytest.raises(ValueError, match="no place in arithmetic"):
        parse_arithmetic(text)


def test_unknown_data_sets_and_parameters():
    with pytest.raises(ValueError, match=r"'count-down'.*reasoning-gym has only ab, "):
        make(Source("count-down", 1))
    with pytest.raises(ValueError, match=r"countdown.*unexpected keyword argument 'numbers'"):
        make(Source("countdown", 1, params='{"numbers": 3}'))
    with pytest.raises(ValueError, match="reasoning-gym has only"):
        make(Source("composite", 1))


def test_a_grader_that_cannot_be_asked_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "_REMAKE_S", 0.01)
    with pytest.raises(WorkerError, match=r"item 1 of Source.*knight_swap"):
        grade(Source("knight_swap", 2, 4000), 1, "", 1.0)
