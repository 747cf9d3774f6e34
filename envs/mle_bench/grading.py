"""Grades submissions with a competition's own grader, in a process that a hard limit of CPU time can kill.

A submission is untrusted data that pandas and scikit-learn read: it may make them slow, or use much memory. So each
competition has one process of its own, which loads the grader and the answers once.
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from envs.mle_bench.competitions import Competition, import_from, load_competition
from envs.workers import START_TIMEOUT_S, Handler, Workers

GRADER_MEMORY_BYTES = 8 << 30
MAX_SUBMISSION_BYTES = 256 << 20
MAX_MESSAGE_CHARS = 500
# Like mle-bench, we round scores to this many decimals.
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


class SubmissionGrader(Workers):
    """Grades submissions to one competition, one after the other. It may be used from many threads."""

    def __init__(self, competition: Competition) -> None:
        directory = str(competition.directory)
        super().__init__("envs.mle_bench.grading:start", directory, workers=1, memory_bytes=GRADER_MEMORY_BYTES)

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
        answers, in_time = self.ask(submission, timeout_s)
        return Grade(*answers[0]) if in_time else Grade(None, f"grading the file took more than {timeout_s:g} s")

    @functools.cached_property
    def gold_score(self) -> float:
        """The score of the competition's gold submission.

        Raises:
            WorkerError: If the grader cannot be loaded, or rejects it.
        """
        (score,), _ = self.ask(None, START_TIMEOUT_S)
        return score


@functools.cache
def shared_grader(competition: Competition) -> SubmissionGrader:
    """The grader of a competition that all environments of this process share."""
    return SubmissionGrader(competition)


# What follows runs in the grading process.


Grader = Callable[[bytes], float]
"""Gives the score of a submission, not rounded; any exception means that the submission is invalid."""


def load_grader(competition: Competition) -> Grader:
    """The competition's grader: that of the ``mlebench`` package if the definition is the package's, else its own."""
    if competition.packaged:
        from mlebench.registry import registry  # type: ignore[import-not-found]
        from mlebench.utils import load_answers, read_csv  # type: ignore[import-not-found]

        # Its Grader object drops the message of an invalid submission, so the function itself is called.
        packaged = registry.set_data_dir(competition.directory.parent).get_competition(competition.directory.name)
        grade_fn, answers = packaged.grader.grade_fn, load_answers(packaged.answers)
    else:
        import pandas as pd

        read_csv = functools.partial(pd.read_csv, float_precision="round_trip")
        grade_fn = import_from(competition.definition, competition.grade_fn)
        file = competition.answers
        if file.suffix == ".csv":
            answers = read_csv(file)
        elif file.suffix == ".jsonl":
            answers = [json.loads(line) for line in file.read_text().splitlines()]
        else:
            raise ValueError(f"{file}: the answers must be in a .csv or .jsonl file")
    return lambda submission: grade_fn(read_csv(io.BytesIO(submission)), answers)


def grade(grader: Grader, submission: bytes) -> Grade:
    """Grades in this process.

    As in mle-bench, any exception of a grader means that the submission is invalid: graders check little, and fail in
    many ways on what they do not expect.
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
    """Loads a competition's grader and tries it on the gold submission."""
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    competition = load_competition(directory)
    grader = load_grader(competition)
    gold = grade(grader, competition.gold.read_bytes())
    # If a library has changed, a grader may always fail. Without this check every submission would be invalid.
    if gold.score is None:
        raise ValueError(f"it rejects the right answers, {competition.gold}: {gold.message}")

    def answer(request: bytes | None) -> list[Any]:  # None asks for the gold submission's score
        if request is None:
            return [gold.score]
        result = grade(grader, request)
        return [(result.score, result.message)]

    return answer
