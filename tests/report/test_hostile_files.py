"""Files from elsewhere: one that is bad is named and left out, none is unpickled, and none writes beside the report."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from rllib_exit.report import report
from rllib_exit.report.sources import Sources
from tests.report.runs_on_disk import evaluate, search, train


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a file was unpickled",)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good run, beside which bad files come."""
    runs = tmp_path_factory.mktemp("hostile")
    evaluate(train(runs / "good", "exit", 0, iterations=2), splits=["test"])
    return runs


def page_of(runs: Path, output: Path) -> str:
    before = {file for file in runs.parent.rglob("*") if output not in file.parents}
    page = report.write_report([runs], output)
    assert {file for file in runs.parent.rglob("*") if output not in file.parents and file != output} == before
    return page.read_text()


BAD_JSON = ["", "{", "[]", "null", "3", "[" * 100_000, "\xff\xfe", '{"strategy": [], "env": {}}', "{}" * 9]
BAD_VALUES: list[Any] = [
    None,
    [],
    {},
    "",
    "../../../x",
    -1,
    10**400,
    1e308,
    float("nan"),
    [[1, "a"]],
    {"a": {"b": []}},
    "<b>$\\frac{",
]


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("name", ["params.json", "result.json", "evaluation.json", "search.jsonl"])
def test_a_file_that_is_no_json_is_named_and_left_out(good: Path, tmp_path: Path, name: str, end: str) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(good, runs)
    for number, content in enumerate(BAD_JSON):
        trial = train(runs / "bad", "grpo", number, trial=f"bad-{number}", iterations=1)
        evaluate(trial, splits=["test"])
        search(trial / "search", "a", trial=trial, steps=2)
        file = next(iter(trial.rglob(name)), trial / name)
        file.write_bytes((content + end).encode("latin-1"))
        (trial / "params.pkl").write_bytes(pickle.dumps(Bomb()))
    html = page_of(runs, tmp_path / "report")
    assert "exit-seed0" in html
    assert html.count(f"/{name}") >= len(BAD_JSON) - 1


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in leaves(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", ["params.json", "result.json", "evaluation.json", "search.jsonl"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.full) for n in range(1, 20))])
def test_any_value_in_any_place_is_borne(good: Path, tmp_path: Path, name: str, seed: int) -> None:
    """Each run has one file in which a part was replaced by something else."""
    rng = random.Random(f"{name}{seed}")
    runs = tmp_path / "runs"
    shutil.copytree(good, runs)
    for number in range(12):
        trial = train(runs / "bad", "exit", number, trial=f"bad-{number}", iterations=1)
        evaluate(trial, splits=["test"])
        search(trial / "search", "a", trial=trial, steps=2)
        file = next(trial.rglob(name))
        lines = (
            [json.loads(line) for line in file.read_text().splitlines()]
            if name[-1] == "l" or name == "result.json"
            else [json.loads(file.read_text())]
        )
        at = rng.randrange(len(lines))
        lines[at] = changed(lines[at], rng.choice(leaves(lines[at])), rng.choice(BAD_VALUES))
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = page_of(runs, tmp_path / "report")
    assert "exit-seed0" in html and "<b>$" not in html


def test_a_seed_is_no_path(good: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(good, runs)
    search(runs / "searched", "../../x", steps=2)
    file = runs / "searched" / "search.jsonl"
    first, *rest = file.read_text().splitlines(keepends=True)
    file.write_text(json.dumps({**json.loads(first), "seed": "../../../../escaped"}) + "\n" + "".join(rest))
    page_of(runs, tmp_path / "report")
    for name in ("../x", "a/../../x", "/x", "a b", "", "a/", "x\0"):
        with pytest.raises(ValueError, match="no name for a file"):
            Sources(tmp_path).add(runs, name, "")


def test_the_page_may_load_and_run_nothing(good: Path, tmp_path: Path) -> None:
    html = page_of(good, tmp_path / "report")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in html


def test_a_damaged_log_is_a_gap(good: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(good, runs)
    for file in runs.rglob("iteration-*.parquet"):
        file.write_bytes(file.read_bytes()[:50] + b"x" * 50)
    (file.parent / "iteration-x.parquet").touch()
    assert "the files do not hold what this needs" in page_of(runs, tmp_path / "report")
