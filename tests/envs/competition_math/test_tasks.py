import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.base import Task
from envs.competition_math import tasks as tasks_module
from envs.competition_math.grading import Verdict, grade
from envs.competition_math.tasks import (
    SPLITS,
    load_split,
    load_tasks,
    solution_steps,
)
from envs.sampling import subset

DATA = Path(__file__).parents[2] / "data" / "math"


@pytest.fixture(autouse=True)
def fresh_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    yield
    load_tasks.cache_clear()
    load_split.cache_clear()


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


ROW = {"id": "a", "problem": "1 + 1?", "answer": "2"}


def test_jsonl(tmp_path: Path):
    path = write(
        tmp_path / "x.jsonl", {**ROW, "solution": "One. And one.\nTwo."}, "\n", {"problem": "P", "answer": 3.0}
    )
    first, second = load_tasks(path)
    assert first == Task("a", "1 + 1?", {"answer": "2", "metrics": {"solution_steps": 3}})
    assert second == Task("x/3", "P", {"answer": "3", "metrics": {}})


def test_parquet_gives_what_jsonl_gives(tmp_path: Path):
    rows = [{**ROW, "solution": "One. Two."}, {"id": "b", "problem": "P", "answer": "3", "solution": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert load_tasks(str(tmp_path / "x.parquet")) == load_tasks(write(tmp_path / "x.jsonl", *rows))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_folder_through_datasets(tmp_path: Path, suffix: str):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [ROW, {"id": "b", "problem": "P", "answer": "3"}]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")
    else:
        write(folder / "test.jsonl", *rows)
    assert [task.id for task in load_tasks(str(folder), "test")] == ["a", "b"]
    with pytest.raises(ValueError, match=r"cannot load the data set.*set.*'dev'.*Give a"):
        load_tasks(str(folder), "dev")


def test_columns_can_be_named(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", {"key": 7, "q": "Q", "a": ["$2$", "$3$"], "s": ["One. Two.", "Other."]})
    (task,) = load_tasks(path, problem_key="q", answer_key="a", id_key="key", solution_key="s")
    assert task == Task("7", "Q", {"answer": "2, 3", "metrics": {"solution_steps": 2}})


def test_tasks_are_shared(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", ROW)
    assert load_tasks(path) is load_tasks(path)
    assert load_split("aime24", str(DATA)) is load_split("aime24", str(DATA))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, {"problem": "P"}], r"x\.jsonl:2: field 'answer' is missing or empty.*fill it in.*answer_key"),
        ([{**ROW, "answer": "  "}], r"x\.jsonl:1: field 'answer'"),
        ([{**ROW, "answer": float("nan")}], r"x\.jsonl:1: field 'answer'"),
        ([{"question": "P", "answer": "1"}], r"x\.jsonl:1: field 'problem'.*fields: question, answer.*problem_key"),
        ([], r"x\.jsonl: there are no rows"),
        (["\n\n"], r"x\.jsonl: there are no rows"),
        ([ROW, "\n", ROW], r"x\.jsonl:3: field 'id' is 'a', as in row 1: make ids unique"),
        ([ROW, '{"problem": \n'], r"x\.jsonl:2: broken JSON"),
        ([ROW, "[1]\n"], r"x\.jsonl:2: a list: write one JSON object per line"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, rows: list[Any], message: str):
    path = write(tmp_path / "x.jsonl", *rows)
    with pytest.raises(ValueError, match=message):
        load_tasks(path)


def test_files_that_cannot_be_used(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl: no such file"):
        load_tasks(str(tmp_path / "gone.jsonl"))
    with pytest.raises(ValueError, match=r"x\.txt: unknown file type"):
        load_tasks(write(tmp_path / "x.txt", "a,b\n"))
    with pytest.raises(ValueError, match=r"x\.parquet: not a readable Parquet file"):
        load_tasks(write(tmp_path / "x.parquet", "no"))
    with pytest.raises(ValueError, match="a file has no split 'test'"):
        load_tasks(write(tmp_path / "x.jsonl", ROW), "test")
    (tmp_path / "bytes.jsonl").write_bytes(b'{"problem": "\xff"}\n')
    with pytest.raises(ValueError, match=r"bytes\.jsonl:1: broken JSON"):
        load_tasks(str(tmp_path / "bytes.jsonl"))


def test_a_data_set_that_is_not_there_is_one_error():
    with pytest.raises(ValueError, match=r"cannot load the data set 'nobody/nothing'.*Give a"):
        load_tasks("nobody/nothing")
    with pytest.raises(ValueError, match=r"cannot load the data set 'math-ai/aime25'.*set data_dir"):
        load_split("aime25")


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_loads_and_its_answers_verify(name: str):
    tasks = load_split(name, str(DATA))
    assert len(tasks) == 2
    for task in tasks:
        answer = task.data["answer"]
        assert grade(answer, f"It is $\\boxed{{{answer}}}$.") is Verdict.CORRECT


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_loads_in_the_hubs_format(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks_module, "SPLITS", {name: replace(SPLITS[name], path=str(DATA / "hub" / name))})
    ours, hubs = load_split(name, str(DATA)), load_split(name)
    assert [task.data for task in hubs] == [task.data for task in ours]
    context = "All numbers are real.\n"
    assert [task.prompt.removeprefix(context) for task in hubs] == [task.prompt for task in ours]
    assert hubs[0].prompt.startswith(context) == (name == "olympiadbench")


def test_a_subset_is_drawn_where_the_split_has_a_size(monkeypatch: pytest.MonkeyPatch):
    source = replace(SPLITS["train"], path=str(DATA / "hub" / "train"), size=1)
    monkeypatch.setattr(tasks_module, "SPLITS", {"train": source})
    assert len(load_split("train")) == 1


def test_a_data_set_that_has_changed_is_an_error(monkeypatch: pytest.MonkeyPatch):
    source = replace(SPLITS["amc12"], path=str(DATA / "hub" / "train"))
    monkeypatch.setattr(tasks_module, "SPLITS", {"amc12": source})
    with pytest.raises(ValueError, match=r"no field 'url'.*data_dir"):
        load_split("amc12")


def test_splits_that_cannot_be_used(tmp_path: Path):
    with pytest.raises(ValueError, match=r"unknown split 'gsm8k'.*aime24"):
        load_split("gsm8k")
    with pytest.raises(FileNotFoundError, match=r"'aime24'.*aime24\.jsonl.*aime24\.parquet.*data_dir"):
        load_split("aime24", str(tmp_path))


@given(st.sets(st.text(max_size=5), min_size=1), st.integers(0, 30), st.randoms())
def test_a_subset_depends_on_the_tasks_alone(prompts: set[str], size: int, random: Any):
    tasks = [Task(prompt, prompt) for prompt in prompts]
    chosen = subset(tuple(tasks), size)
    assert len(chosen) == min(size, len(tasks))
    assert [task for task in tasks if task in chosen] == list(chosen)
    random.shuffle(tasks)
    assert {task.id for task in subset(tuple(tasks), size)} == {task.id for task in chosen}


def test_subsets_of_two_seeds_differ():
    tasks = tuple(Task(str(i), str(i)) for i in range(100))
    assert subset(tasks, 10, seed=0) != subset(tasks, 10, seed=1)


@pytest.mark.parametrize(
    ("solution", "steps"),
    [(None, 0), ("", 0), ([], 0), ("One.", 1), ("One. Two!\n\nThree", 3), (r"So $x = 0.5$.", 1), (["A. B.", "C."], 2)],
)
def test_solution_steps(solution: Any, steps: int):
    assert solution_steps(solution) == steps
