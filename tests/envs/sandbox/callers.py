"""Calls ``run_script`` as this process' user, or, from root, as a user without privileges."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from envs.sandbox.attacks import suite
from envs.sandbox.attacks.suite import NOBODY, Outcome, reachable_interpreter
from envs.sandbox.attacks.surroundings import adopt_orphans, surroundings
from envs.sandbox.sandbox import Run, _bwrap, available_tier, run_script

ROOT = Path(__file__).resolve().parents[3]


def children() -> set[int]:
    own = Path(f"/proc/{os.getpid()}/task")
    found: set[int] = set()
    for thread in own.iterdir():
        with suppress(FileNotFoundError):  # it ended meanwhile
            found.update(map(int, (thread / "children").read_text().split()))
    return found


def run_cleanly(script: str, temporary: str, **arguments: Any) -> Run:
    """One run, after which no process, file or mount is left."""
    mounts, before = Path("/proc/self/mountinfo").read_text(), children()
    tempfile.tempdir = temporary
    try:
        run = run_script(script, **arguments)
    finally:
        tempfile.tempdir = None
    left = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children() - before]
    assert not left, f"processes left: {left}"
    assert not os.listdir(temporary), f"files left: {os.listdir(temporary)}"
    assert Path("/proc/self/mountinfo").read_text() == mounts
    return run


class Caller:
    """This process.

    Attributes:
        pid: The process that calls ``run_script``.
        temporary: Where it makes its temporary directories; empty between runs.
    """

    def __init__(self, temporary: Path) -> None:
        self.pid = os.getpid()
        self.uid = os.geteuid()
        self.temporary = str(temporary)

    def run(self, script: str, **arguments: Any) -> Run:
        return run_cleanly(script, self.temporary, **arguments)

    def play(self, name: str, tier: Any) -> Outcome:
        return play(name, tier)

    def available_tier(self, tier: Any) -> str:
        return available_tier(tier=tier)

    def start(self, code: str, **arguments: Any) -> subprocess.Popen[Any]:
        """Starts Python code that may import ``envs``, as this caller's user."""
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd="/", **arguments)

    def close(self) -> None:
        close_surroundings()


class UnprivilegedCaller(Caller):
    """A process of the user 65534, with an interpreter that this user can reach."""

    def __init__(self, temporary: Path) -> None:
        super().__init__(temporary)
        self.interpreter = reachable_interpreter()
        self.process = self.start("from tests.envs.sandbox import callers; callers.serve()", stdin=subprocess.PIPE)
        self.pid, self.uid = self.process.pid, NOBODY

    def run(self, script: str, **arguments: Any) -> Run:
        return self._ask("run_cleanly", script, self.temporary, **arguments)

    def play(self, name: str, tier: Any) -> Outcome:
        return self._ask("play", name, tier)

    def available_tier(self, tier: Any) -> str:
        return self._ask("available_tier", None, tier)

    def start(self, code: str, **arguments: Any) -> subprocess.Popen[Any]:
        bwrap = [os.path.dirname(path)] if (path := _bwrap()) else []
        return subprocess.Popen(
            [self.interpreter, "-B", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
            stdout=subprocess.PIPE,
            env={"PATH": os.pathsep.join([os.environ["PATH"], *bwrap])},
            cwd="/",
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            **arguments,
        )

    def close(self) -> None:
        with self.process:
            pass

    def _ask(self, function: str, *arguments: Any, **keywords: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        pickle.dump((function, arguments, keywords), self.process.stdin)
        self.process.stdin.flush()
        answer = pickle.load(self.process.stdout)
        if isinstance(answer, BaseException):
            raise answer
        return answer


_around = contextlib.ExitStack()


@functools.cache
def _surroundings() -> Any:
    """What this process' attacks may not reach, made once."""
    return _around.enter_context(surroundings())


def play(name: str, tier: Any) -> Outcome:
    """Plays an attack of the suite."""
    return suite.play(suite.ATTACKS[name], tier, _surroundings())


def close_surroundings() -> None:
    """Removes what :func:`play` made."""
    _around.close()
    _surroundings.cache_clear()


def serve() -> None:
    """Answers an :class:`UnprivilegedCaller`."""
    adopt_orphans(True)
    while True:
        try:
            function, arguments, keywords = pickle.load(sys.stdin.buffer)
        except EOFError:
            close_surroundings()
            return
        try:
            answer = globals()[function](*arguments, **keywords)
        except BaseException as error:
            answer = error
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()
