from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from envs.mle_bench.competitions import SCORE_RANGES, ScoreRange, import_from, load_competition


@pytest.fixture
def copy(deliveries: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(deliveries, tmp_path / deliveries.name))


def edit(competition: Path, **fields: Any) -> None:
    file = competition / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **fields}))


def test_a_competition_is_read_from_its_folder(deliveries: Path):
    competition = load_competition(deliveries)
    assert competition.id == "courier-delivery-times"
    assert competition.description.startswith("# Task\n\nPredict how many minutes")
    assert competition.metric == "rmsle"
    assert competition.score_range == ScoreRange(worst=1.0, best=0.0)
    assert competition.answers == competition.gold == deliveries / "prepared/private/test.csv"
    assert not competition.packaged


def test_the_folder_may_have_another_name(copy: Path):
    renamed = copy.rename(copy.with_name("renamed"))
    assert load_competition(renamed).answers == renamed / "prepared/private/test.csv"


def test_the_obfuscated_description_goes_first(copy: Path):
    (copy / "description.md").write_text("The long one.")
    assert load_competition(copy).description.startswith("# Task")
    (copy / "description_obfuscated.md").unlink()
    assert load_competition(copy).description == "The long one."


def test_gold_may_differ_from_the_answers(copy: Path):
    gold = copy / "prepared/private/gold.csv"
    gold.write_text("id,minutes\n")
    dataset = {
        "answers": f"{copy.name}/prepared/private/test.csv",
        "gold_submission": f"{copy.name}/prepared/private/gold.csv",
    }
    edit(copy, dataset=dataset)
    assert load_competition(copy).gold == gold


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": 7}, "config.yaml: id is 7: it must be a valid string"),
        ({"dataset": {"answers": "other/test.csv"}}, "dataset.answers is 'other/test.csv': it must begin with courier"),
        ({"dataset": {"answers": "courier-delivery-times/../x.csv"}}, "dataset.answers"),
        ({"dataset": None}, "dataset is None: it must be"),
        ({"grader": {"name": "auc", "grade_fn": "grade"}}, "grader.grade_fn is 'grade': write it as module:function"),
        ({"score_range": [0, 1]}, r"score_range is \[0, 1\]: it must be a dictionary"),
        ({"score_range": {"worst": 1, "best": 1}}, "two different numbers"),
        ({"score_range": {"worst": "1", "best": 0}}, "score_range.worst is '1': it must be a valid number"),
    ],
)
def test_a_config_that_cannot_be_used(copy: Path, fields: dict[str, Any], message: str):
    edit(copy, **fields)
    with pytest.raises(ValueError, match=message):
        load_competition(copy)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("prepared/public", "prepared/public does not exist: name a competition's directory"),
        ("prepared/private/test.csv", "test.csv does not exist: .*config.yaml names it as dataset.answers"),
        ("description_obfuscated.md", "neither description_obfuscated.md nor description.md"),
        ("config.yaml", "config.yaml does not exist and the package mlebench is not installed"),
    ],
)
def test_a_file_that_is_missing(copy: Path, missing: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlebench", None)  # as if it were not installed
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_competition(copy)


def test_without_a_config_the_definition_is_the_packages(
    copy: Path, deliveries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "site" / "mlebench"
    shutil.copytree(deliveries, package / "competitions" / deliveries.name, ignore=shutil.ignore_patterns("prepared"))
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(package.parent))
    assert not load_competition(copy).packaged
    (copy / "config.yaml").unlink()
    competition = load_competition(copy)
    assert competition.packaged and competition.definition == package / "competitions" / deliveries.name
    assert competition.answers == copy / "prepared/private/test.csv"
    with pytest.raises(FileNotFoundError, match=r"nor the installed mlebench has a config\.yaml for 'renamed'"):
        load_competition(copy.rename(copy.with_name("renamed")))


def test_the_papers_table():
    assert len(SCORE_RANGES) == 6
    assert [name for name, value in SCORE_RANGES.items() if not value.higher_is_better] == [
        "spooky-author-identification",
        "nomad2018-predict-transparent-conductors",
    ]
    spooky = SCORE_RANGES["spooky-author-identification"]
    assert spooky.quality(0.0) == 1.0 and spooky.quality(0.75) == 0.5 and spooky.quality(9.0) == 0.0


scores = st.floats(-100, 100)


@given(scores, scores, scores)
def test_quality_is_monotonic_from_worst_to_best(worst: float, best: float, score: float):
    if abs(best - worst) < 1e-6:
        return
    score_range = ScoreRange(worst, best)
    assert score_range.quality(worst) == 0.0 and score_range.quality(best) == 1.0
    assert 0.0 <= score_range.quality(score) <= 1.0
    assert score_range.quality(score) <= score_range.quality(score + 1e-3 * (best - worst))


def test_modules_of_a_definition_import_each_other_and_not_their_namesakes(tmp_path: Path):
    for name, value in (("a-1", 1), ("b.2", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "classes.py").write_text(f"VALUE = {value}\n")
        (tmp_path / name / "grade.py").write_text("from .classes import VALUE\ndef grade(): return VALUE\n")
    assert import_from(tmp_path / "a-1", "mlebench.competitions.a-1.grade:grade")() == 1
    assert import_from(tmp_path / "b.2", "grade:grade")() == 2
