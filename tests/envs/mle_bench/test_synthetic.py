from __future__ import annotations

import filecmp
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from envs.mle_bench.competitions import load_competition
from envs.mle_bench.synthetic import DEFINITIONS, ROWS, generate


def contents(directory: Path) -> dict[str, bytes]:
    files = [file for file in directory.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def test_the_same_seed_gives_the_same_files_and_another_one_other_data(competitions: Path, tmp_path: Path):
    ran = subprocess.run(
        [sys.executable, "-m", "envs.mle_bench.synthetic", str(tmp_path / "again")],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == [str(tmp_path / "again" / path.name) for path in generate(tmp_path / "other", seed=1)]
    assert contents(tmp_path / "again") == contents(competitions) != contents(tmp_path / "other")
    with pytest.raises(FileExistsError):
        generate(tmp_path / "other")


@pytest.mark.parametrize("name", ["urgent-support-messages", "courier-delivery-times"])
def test_public_data_holds_no_answer(competitions: Path, name: str):
    competition = load_competition(competitions / name)
    assert filecmp.cmp(competition.definition / "grade.py", DEFINITIONS / name / "grade.py")
    train, test = (pd.read_csv(competition.public / f"{part}.csv") for part in ("train", "test"))
    answers = pd.read_csv(competition.answers)
    assert len(train) == 2 * len(test) == 2 * ROWS / 3
    assert set(train["id"]).isdisjoint(test["id"]) and list(test["id"]) == list(answers["id"])
    assert set(train.columns) - set(test.columns) == {answers.columns[1]}
    sample = pd.read_csv(competition.public / "sample_submission.csv")
    assert list(sample.columns) == list(answers.columns) and len(set(sample[answers.columns[1]])) == 1
