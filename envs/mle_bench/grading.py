"""Grades submissions with a competition's own grader, in a process that a hard deadline can kill.

A submission is untrusted data in the hands of pandas and scikit-learn: it may make them slow, or eat
memory. So each competition has one plain Python process (this module run by name), which loads grader and
answers once and then takes submissions, bytes, over a pipe. It ends when its pipe does.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Protocol

from envs.mle_bench.competitions import Competition, import_from, load_competition

START_TIMEOUT_S = 300.0
# A process that the deadline cannot kill, because its parent is dead, ends itself so much later.
ORPHAN_GRACE_S = 5
GRADER_MEMORY_BYTES = 8 << 30
MAX_SUBMISSION_BYTES = 256 << 20
MAX_MESSAGE_CHARS = 500
# mle-bench rounds scores to so many decimals.
DECIMALS = 5


@dataclass(frozen=True, slots=True)
class Grade:
    """What the grader says of a submission.

    Attributes:
        score: The competition's score, rounded to 5 decimals; None if the submission is invalid.
        message: Why it is invalid.
    """

    score: float | None
    message: str = ""


class GradingError(RuntimeError):
    """Grading itself failed: the submission was not judged."""


class SubmissionGrader:
    """Grades submissions to one competition, one after the other. Safe to use from many threads.

    Args:
        competition: The competition.
    """

    def __init__(self, competition: Competition) -> None:
        self.competition = competition
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def __enter__(self) -> SubmissionGrader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def grade(self, submission: bytes, timeout_s: float = 60.0) -> Grade:
        """Scores a submission.

        Args:
            submission: The content of ``submission.csv``.
            timeout_s: The deadline, from when the process takes the submission up. A submission that takes
                longer is invalid.

        Raises:
            GradingError: If the grader cannot be loaded, rejects the competition's own answers, or died
                twice for another reason than the deadline.
        """
        if len(submission) > MAX_SUBMISSION_BYTES:
            return Grade(None, f"the file has {len(submission)} bytes; the most are {MAX_SUBMISSION_BYTES}")
        with self._lock:
            for _ in range(2):
                process = self._running()
                try:
                    return process.grade(submission, timeout_s)
                except TimeoutError:
                    self._end()
                    return Grade(None, f"grading the file took more than {timeout_s:g} s")
                except (EOFError, OSError):
                    self._end()
                except BaseException:  # an interrupted process owes an answer
                    self._end()
                    raise
        raise GradingError(f"{self.competition.id}: the grading process died twice on a submission")

    def gold_score(self) -> float:
        """The score of the competition's gold submission.

        Raises:
            GradingError: If the grader cannot be loaded, or rejects it.
        """
        with self._lock:
            return self._running().gold_score

    def close(self) -> None:
        """Ends the process, once it is idle. The grader can be used again."""
        with self._lock:
            self._end()

    def _running(self) -> _Process:
        self._process = self._process or _Process(self.competition)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None


class _Process:
    """A running grader, which has proved itself on the competition's gold submission."""

    def __init__(self, competition: Competition) -> None:
        self.connection, child = Pipe()
        # The child finds the same modules as this process, however this one came by them; -P keeps the
        # working directory from shadowing them. Its own session: Ctrl-C is for us to handle.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "envs.mle_bench.grading", str(competition.directory), str(child.fileno())],
            env={**os.environ, **threads, "PYTHONPATH": path},
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.__stderr__,
            start_new_session=True,
        )
        child.close()
        try:
            reply = self._receive(START_TIMEOUT_S)
            if "error" in reply:
                raise GradingError(
                    f"{competition.id}: the grader in {competition.definition} does not work: {reply['error']}"
                )
            self.gold_score: float = reply["gold_score"]
        except (TimeoutError, EOFError) as problem:
            self.kill()
            raise GradingError(
                f"{competition.id}: the grading process did not start (exit status {self.process.returncode}): its "
                "error is on stderr"
            ) from problem
        except BaseException:
            self.kill()
            raise

    def grade(self, submission: bytes, timeout_s: float) -> Grade:
        """Grades; TimeoutError past the deadline, EOFError or OSError if the process died."""
        self.connection.send_bytes(json.dumps({"timeout_s": timeout_s}).encode())
        self.connection.send_bytes(submission)
        return Grade(**self._receive(timeout_s))

    def _receive(self, timeout_s: float) -> Any:
        if not self.connection.poll(timeout_s):
            raise TimeoutError
        return json.loads(self.connection.recv_bytes())

    def kill(self) -> None:
        with self.process:  # reaps
            self.process.kill()
        self.connection.close()


@functools.cache
def shared_grader(competition: Competition) -> SubmissionGrader:
    """The grader of a competition that all environments of this process share."""
    return SubmissionGrader(competition)


# The pipes of a forked process' graders belong to its parent.
os.register_at_fork(after_in_child=shared_grader.cache_clear)


# In the grading process.


class Grader(Protocol):
    """A competition's grader, loaded."""

    def __call__(self, submission: bytes) -> float:
        """The score, not rounded; any exception means that the submission is invalid."""
        ...


class FolderGrader:
    """The ``grade.py`` in the competition's directory."""

    def __init__(self, competition: Competition) -> None:
        self._grade: Callable[[Any, Any], float] = import_from(competition.definition, competition.grade_fn)
        self._answers = self._load_answers(competition.answers)

    def __call__(self, submission: bytes) -> float:
        return self._grade(self._read_csv(io.BytesIO(submission)), self._answers)

    @staticmethod
    def _read_csv(file: Any) -> Any:
        import pandas as pd

        return pd.read_csv(file, float_precision="round_trip")

    @classmethod
    def _load_answers(cls, file: Path) -> Any:
        if file.suffix == ".csv":
            return cls._read_csv(file)
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in file.read_text().splitlines()]
        raise ValueError(f"{file}: answers are in a .csv or .jsonl file")


class PackagedGrader:
    """The grader of the installed ``mlebench`` package."""

    def __init__(self, competition: Competition) -> None:
        from mlebench.registry import registry  # type: ignore[import-not-found]
        from mlebench.utils import load_answers, read_csv  # type: ignore[import-not-found]

        # Its Grader object drops the message of an invalid submission: the function itself is called.
        packaged = registry.set_data_dir(competition.directory.parent).get_competition(competition.directory.name)
        self._grade, self._read_csv = packaged.grader.grade_fn, read_csv
        self._answers = load_answers(packaged.answers)

    def __call__(self, submission: bytes) -> float:
        return self._grade(self._read_csv(io.BytesIO(submission)), self._answers)


def load_grader(competition: Competition) -> Grader:
    """The competition's grader: that of the package its definition comes from, or of its own directory."""
    return PackagedGrader(competition) if competition.packaged else FolderGrader(competition)


def grade(grader: Grader, submission: bytes) -> Grade:
    """Grades in this process.

    As in mle-bench, whatever a grader raises means that the submission is invalid: graders check little,
    and fail in many ways on what they do not expect.
    """
    try:
        score = round(float(grader(submission)), DECIMALS)
    except Exception as error:
        message = str(error) or type(error).__name__
        return Grade(None, message[:MAX_MESSAGE_CHARS])
    if not math.isfinite(score):
        return Grade(None, f"the score is {score}")
    return Grade(score)


def _serve(directory: str, descriptor: int) -> None:
    import logging
    import resource
    import signal
    import warnings

    connection = Connection(descriptor)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if sys.platform == "linux":  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (GRADER_MEMORY_BYTES, GRADER_MEMORY_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # its default ends the process, whatever it is doing

    def reply(value: dict[str, Any]) -> None:
        connection.send_bytes(json.dumps(value).encode())

    try:
        competition = load_competition(directory)
        grader = load_grader(competition)
        gold = grade(grader, competition.gold.read_bytes())
    except Exception as error:
        reply({"error": "".join(traceback.format_exception_only(error)).strip()})
        return
    # A grader that fails always, because a library has changed, would else make every submission invalid.
    if gold.score is None:
        reply({"error": f"it rejects the right answers, {competition.gold}: {gold.message}"})
        return
    reply({"gold_score": gold.score})
    while True:
        try:
            request = json.loads(connection.recv_bytes())
            submission = connection.recv_bytes()
        except EOFError:
            return
        signal.alarm(int(request["timeout_s"]) + ORPHAN_GRACE_S)
        result = grade(grader, submission)
        signal.alarm(0)
        reply({"score": result.score, "message": result.message})


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
