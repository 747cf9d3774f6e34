"""Grades submissions with a competition's own grader, in a process that a hard limit of CPU time can kill.

A submission is untrusted data in the hands of pandas and scikit-learn: it may make them slow, or eat
memory. So each competition has one process of its own, which loads grader and answers once.
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from envs.mle_bench.competitions import Competition, import_from, load_competition
from envs.workers import START_TIMEOUT_S, Handler, Workers

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


class SubmissionGrader:
    """Grades submissions to one competition, one after the other. Safe to use from many threads.

    Args:
        competition: The competition.
    """

    def __init__(self, competition: Competition) -> None:
        self.workers = Workers(
            "envs.mle_bench.grading:start", str(competition.directory), workers=1, memory_bytes=GRADER_MEMORY_BYTES
        )

    def __enter__(self) -> SubmissionGrader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.workers.close()

    def grade(self, submission: bytes, timeout_s: float = 60.0) -> Grade:
        """Scores a submission.

        Args:
            submission: The content of ``submission.csv``.
            timeout_s: The CPU time for it. A submission that takes more is invalid.

        Raises:
            WorkerError: If the submission was not judged: the grader cannot be loaded, rejects the competition's
                own answers, died twice for another reason than the limit, or is stalled.
        """
        if len(submission) > MAX_SUBMISSION_BYTES:
            return Grade(None, f"the file has {len(submission)} bytes; the most are {MAX_SUBMISSION_BYTES}")
        answers, in_time = self.workers.ask(submission, timeout_s)
        return Grade(*answers[0]) if in_time else Grade(None, f"grading the file took more than {timeout_s:g} s")

    @functools.cached_property
    def gold_score(self) -> float:
        """The score of the competition's gold submission.

        Raises:
            WorkerError: If the grader cannot be loaded, or rejects it.
        """
        (score,), _ = self.workers.ask(None, START_TIMEOUT_S)
        return score


@functools.cache
def shared_grader(competition: Competition) -> SubmissionGrader:
    """The grader of a competition that all environments of this process share."""
    return SubmissionGrader(competition)


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


def start(directory: str) -> Handler:
    """Loads a competition's grader, which proves itself on the gold submission."""
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    competition = load_competition(directory)
    grader = load_grader(competition)
    gold = grade(grader, competition.gold.read_bytes())
    # A grader that fails always, because a library has changed, would else make every submission invalid.
    if gold.score is None:
        raise ValueError(f"it rejects the right answers, {competition.gold}: {gold.message}")

    def answer(request: bytes | None) -> list[Any]:  # None asks for the gold submission's score
        if request is None:
            return [gold.score]
        result = grade(grader, request)
        return [(result.score, result.message)]

    return answer
