import importlib.util
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from typing import get_args

import pytest

from envs.bfcl.apis import API_CLASSES, functions, offered, read_data
from envs.bfcl.calls import bind
from envs.bfcl.tasks import MORE_FUNCTIONS, Category, load_tasks, select_tasks, split_ids
from tests.envs.bfcl.split import features, make_split

TASKS = {task.id: task for task in load_tasks("all")}


def counts(ids: frozenset[str]) -> Counter[object]:
    return Counter(feature for task_id in ids for feature in features(TASKS[task_id]))


def test_the_tasks():
    assert len(TASKS) == 200
    task = TASKS["multi_turn_base_0"]
    assert task.prompt == task.data["requests"][0] and task.prompt.startswith("Move 'final_report.pdf'")
    assert len(task.data["requests"]) == len(task.data["ground_truth"]) == 4
    assert task.data["classes"] == ("TwitterAPI", "GorillaFileSystem")
    assert task.data["excluded"] == ("cp",)
    assert task.data["metrics"] == {"ground_truth_calls": 10}
    # Positional in the data: sort('final_report.pdf').
    assert task.data["ground_truth"][2][0].args == {"file_name": "final_report.pdf"}


def test_the_first_requests():
    first = {task.id: task for task in load_tasks("first")}
    assert first.keys() == TASKS.keys()
    for task_id, task in first.items():
        for key in ("requests", "ground_truth"):
            assert task.data[key] == TASKS[task_id].data[key][:1]
    counts = [task.data["metrics"]["ground_truth_calls"] for task in first.values()]
    assert (min(counts), max(counts)) == (1, 7)


@pytest.mark.parametrize("category", get_args(Category))
def test_every_ground_truth_call_is_offered(category: Category):
    for task in load_tasks("all", category):
        for request, calls in enumerate(task.data["ground_truth"]):
            later = [name for index, names in task.data["withheld"].items() if index > request for name in names]
            functions = offered(task.data["classes"], (*task.data["excluded"], *later))
            for call in calls:
                bind(call, functions[call.name].signature)


def test_the_categories():
    for category in get_args(Category):
        tasks = load_tasks("all", category)
        assert [task.id for task in tasks] == [task_id.replace("base", category) for task_id in TASKS]
        assert all(task.data["long_context"] == (category == "long_context") for task in tasks)
        assert all(len(task.data["withheld"]) == (category == "miss_func") for task in tasks)
        assert all(len(task.data["requests"]) == len(task.data["ground_truth"]) for task in tasks)
        # The first requests have something to do in the last of them only.
        for task in load_tasks("first", category):
            *before, last = task.data["ground_truth"]
            assert last and not any(before)
    task = load_tasks("all", "miss_func")[0]
    assert task.data["withheld"] == {3: ("sort",)} and task.data["requests"][3] == MORE_FUNCTIONS
    assert task.data["ground_truth"][2] == ()


@pytest.mark.parametrize("category", get_args(Category))
def test_the_variants_of_a_task_are_in_the_same_split(category: Category):
    for split, ids in split_ids().items():
        drawn = {task.id for task in select_tasks(split, category=category)}
        assert drawn == {base.replace("base", category) for base in ids}


def test_every_documented_function_takes_what_its_doc_says():
    assert len(functions()) == 128
    for function in functions().values():
        parameters = function.doc["parameters"]
        assert set(function.signature.parameters) == set(parameters["properties"])
        required = [p.name for p in function.signature.parameters.values() if p.default is p.empty]
        assert set(required) == set(parameters["required"])


def test_the_split_is_what_the_script_draws():
    assert {name: frozenset(ids) for name, ids in make_split().items()} == {
        name: ids for name, ids in split_ids().items() if name != "train75"
    }


def test_train_and_test_are_alike():
    ids = split_ids()
    assert len(ids["train"]) == len(ids["test"]) == 100
    assert ids["train"] | ids["test"] == TASKS.keys()
    train, test = counts(ids["train"]), counts(ids["test"])
    assert max(abs(train[feature] - test[feature]) for feature in train | test) <= 1


def test_validation_is_a_quarter_of_train():
    ids = split_ids()
    assert len(ids["val"]) == 25 and ids["val"] < ids["train"]
    assert ids["train75"] == ids["train"] - ids["val"]
    train, val = counts(ids["train"]), counts(ids["val"])
    assert max(abs(val[feature] - Fraction(train[feature], 4)) for feature in train) < 1


def test_selection():
    assert [task.id for task in select_tasks("all")] == list(TASKS)
    for split, ids in split_ids().items():
        assert {task.id for task in select_tasks(split)} == ids
    files = select_tasks("all", classes=["GorillaFileSystem"])
    assert len(files) == 13 and all(task.data["classes"] == ("GorillaFileSystem",) for task in files)
    assert len(select_tasks("all", classes=list(API_CLASSES))) == 200


def test_a_limit_draws_the_same_tasks_each_time():
    drawn = [task.id for task in select_tasks("train", limit=10, seed=1)]
    assert len(drawn) == 10 and drawn == [task.id for task in select_tasks("train", limit=10, seed=1)]
    assert set(drawn) != {task.id for task in select_tasks("train", limit=10, seed=2)}
    assert set(drawn) < {task.id for task in select_tasks("train", limit=11, seed=1)}


def test_what_cannot_be_selected():
    with pytest.raises(ValueError, match="split is 'dev': use train, test, val, train75, all"):
        select_tasks("dev")
    with pytest.raises(ValueError, match="classes has Files: use GorillaFileSystem"):
        select_tasks("train", classes=["MathAPI", "Files"])
    with pytest.raises(ValueError, match=r"no task of split 'train' has only classes of \['MathAPI'\]"):
        select_tasks("train", classes=["MathAPI"])


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps bfcl-eval=="):
        read_data("BFCL_v4_multi_turn_base.json")


def test_nothing_that_writes_or_needs_more_is_imported():
    code = "import sys, envs.bfcl.env as e; e.BFCLEnv(); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert not {name.partition(".")[0] for name in loaded} & {"ray", "torch", "vllm", "transformers", "rllib_exit"}
    used = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code."
    modules = {name for name in loaded if name.startswith("bfcl_eval")}
    assert {name for name in modules if name.startswith(used)} == {
        used + module for module in (*API_CLASSES.values(), "long_context")
    }
    assert all(name.startswith(used) or used.startswith(f"{name}.") for name in modules)
