from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, root_mean_squared_log_error

from envs.mle_bench import grading
from envs.mle_bench.competitions import load_competition
from envs.mle_bench.grading import Grade, SubmissionGrader, shared_grader
from envs.workers import WorkerError


def answers(competition: Path) -> pd.DataFrame:
    return pd.read_csv(competition / "prepared/private/test.csv")


def submission(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode()


@pytest.fixture(scope="module")
def auc(messages: Path) -> Iterator[SubmissionGrader]:
    with SubmissionGrader(load_competition(messages)) as grader:
        yield grader


@pytest.fixture(scope="module")
def rmsle(deliveries: Path) -> Iterator[SubmissionGrader]:
    with SubmissionGrader(load_competition(deliveries)) as grader:
        yield grader


def own(competition: Path, tmp_path: Path, grade: str) -> SubmissionGrader:
    """A grader with this grade.py."""
    copy = Path(shutil.copytree(competition, tmp_path / competition.name))
    (copy / "grade.py").write_text(grade)
    return SubmissionGrader(load_competition(copy))


@pytest.mark.parametrize("seed", range(3))
def test_the_synthetic_graders_agree_with_scikit_learn(
    auc: SubmissionGrader, rmsle: SubmissionGrader, messages: Path, deliveries: Path, seed: int
):
    rng = np.random.default_rng(seed)
    truth = answers(messages)
    guess = truth.assign(urgent=rng.integers(0, 5, len(truth)) / 4)  # with ties
    expected = roc_auc_score(truth["urgent"], guess["urgent"])
    assert auc.grade(submission(guess.sample(frac=1, random_state=seed))).score == round(expected, 5)
    truth = answers(deliveries)
    guess = truth.assign(minutes=truth["minutes"] * rng.lognormal(0, 0.3, len(truth)))
    expected = root_mean_squared_log_error(truth["minutes"], guess["minutes"])
    assert rmsle.grade(submission(guess.sample(frac=1, random_state=seed))).score == round(expected, 5)


def test_the_right_answers_score_best(auc: SubmissionGrader, rmsle: SubmissionGrader):
    assert auc.gold_score == 1.0 and rmsle.gold_score == 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "No columns to parse"),
        (b"\x00\xff\xfe", "can't decode|no column"),
        (b"id,minutes\n1,2\n", "the ids must be those of test.csv"),
        (b"id,time\n1,2\n", "no column 'minutes'"),
        (b'"', "EOF|no column"),
    ],
)
def test_a_file_that_is_no_submission(rmsle: SubmissionGrader, content: bytes, message: str):
    grade = rmsle.grade(content)
    assert grade.score is None
    assert re.search(message, grade.message), grade.message


@pytest.mark.parametrize("value", ["", "nan", "inf", "-1", "many"])
def test_a_value_that_is_no_prediction(rmsle: SubmissionGrader, deliveries: Path, value: str):
    table = answers(deliveries).astype({"minutes": str})
    table.loc[3, "minutes"] = value
    assert rmsle.grade(submission(table)).score is None


def test_other_columns_and_row_orders_do_not_matter(auc: SubmissionGrader, messages: Path):
    table = answers(messages)[::-1].assign(note="x")
    table = table.reindex(columns=["note", "urgent", "id"])
    assert auc.grade(submission(table)) == Grade(1.0)


def test_a_duplicate_or_missing_id_is_invalid(auc: SubmissionGrader, messages: Path):
    table = answers(messages)
    table["id"] = [table["id"][1], *table["id"][1:]]
    assert "not unique" in auc.grade(submission(table)).message
    assert "ids" in auc.grade(submission(answers(messages).drop(index=0))).message


def test_a_file_that_is_too_large_is_not_read(rmsle: SubmissionGrader, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grading, "MAX_SUBMISSION_BYTES", 10)
    assert "11 bytes; the most are 10" in rmsle.grade(b"x" * 11).message


SLOW = """
import time
def grade(submission, answers):
    seconds = float(submission["minutes"].iloc[0]) - float(answers["minutes"].iloc[0])
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return 0.5
"""


def test_the_deadline_is_hard_and_the_next_submission_is_graded(deliveries: Path, tmp_path: Path):
    with own(deliveries, tmp_path, SLOW) as grader:
        truth = answers(deliveries)
        assert grader.grade(submission(truth)) == Grade(0.5)
        start = time.monotonic()
        grade = grader.grade(submission(truth.assign(minutes=1e5)), timeout_s=0.5)
        assert grade == Grade(None, "grading the file took more than 0.5 s")
        assert time.monotonic() - start < 60  # of CPU time it has half a second
        assert grader.grade(submission(truth)) == Grade(0.5)


@pytest.mark.parametrize("score", ["float('nan')", "float('-inf')", "None", "'x'"])
def test_a_score_that_is_no_number_is_invalid(deliveries: Path, tmp_path: Path, score: str):
    grade = f"""
def grade(submission, answers):
    return 0.0 if submission.equals(answers) else {score}
"""
    with own(deliveries, tmp_path, grade) as grader:
        assert grader.grade(b"x\n1\n").score is None


def test_what_a_grader_prints_does_not_disturb(deliveries: Path, tmp_path: Path):
    grade = "def grade(submission, answers):\n    print('hello')\n    return 0.25\n"
    with own(deliveries, tmp_path, grade) as grader:
        assert grader.grade(b"x\n1\n") == Grade(0.25)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_this_name", "does not work: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def other(): pass", "has no attribute 'grade'"),
        ("def grade(s, a): raise TypeError('log_loss() got y_pred')", "it rejects the right answers, .*y_pred"),
    ],
)
def test_a_grader_that_does_not_work_is_an_error(deliveries: Path, tmp_path: Path, code: str, message: str):
    with own(deliveries, tmp_path, code) as grader, pytest.raises(WorkerError, match=message):
        grader.grade(b"x\n1\n")


PACKAGE = {
    "__init__.py": "",
    "registry.py": """
from pathlib import Path
from types import SimpleNamespace

class Registry:
    def set_data_dir(self, path):
        self.path = path
        return self

    def get_competition(self, name):
        def grade(submission, answers):
            if "minutes" not in submission.columns:
                raise ValueError("the package misses minutes")
            return 0.123456789
        answers = self.path / name / "prepared/private/test.csv"
        return SimpleNamespace(grader=SimpleNamespace(grade_fn=grade), answers=answers)

registry = Registry()
""",
    "utils.py": "from pandas import read_csv\nload_answers = read_csv\n",
}


def test_a_competition_without_a_definition_is_graded_by_the_package(
    deliveries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "site" / "mlebench"
    shutil.copytree(deliveries, package / "competitions" / deliveries.name, ignore=shutil.ignore_patterns("prepared"))
    for name, content in PACKAGE.items():
        (package / name).write_text(content)
    shutil.copytree(deliveries / "prepared", tmp_path / deliveries.name / "prepared")
    monkeypatch.syspath_prepend(str(package.parent))
    with SubmissionGrader(load_competition(tmp_path / deliveries.name)) as grader:
        assert grader.grade(submission(answers(deliveries))) == Grade(0.12346)
        assert grader.grade(b"x\n1\n") == Grade(None, "the package misses minutes")


def test_a_grader_that_dies_twice_is_an_error(deliveries: Path, tmp_path: Path):
    exits = "import os\ndef grade(s, a): return 0.0 if s.equals(a) else os._exit(1)\n"
    with own(deliveries, tmp_path, exits) as grader, pytest.raises(WorkerError, match="died twice"):
        grader.grade(b"x\n1\n")


def test_many_threads_share_the_process(rmsle: SubmissionGrader, deliveries: Path):
    truth = answers(deliveries)

    def score(i: int) -> float | None:
        return rmsle.grade(submission(truth.assign(minutes=np.exp(i) * (1 + truth["minutes"]) - 1))).score

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(score, range(16))) == [float(i) for i in range(16)]
    assert len(rmsle.pids) == 1


def test_the_shared_grader_is_one_per_competition(messages: Path, deliveries: Path):
    shared = shared_grader(load_competition(messages))
    assert shared is shared_grader(load_competition(messages))
    assert shared is not shared_grader(load_competition(deliveries))
