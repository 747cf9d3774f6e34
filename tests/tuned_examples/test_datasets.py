"""The examples on data sets: their small rows are right, and at paper scale they find the columns of the Hub's."""

from __future__ import annotations

import runpy
import sys
from typing import Any

import datasets
import pytest

from rllib_exit.env_runners.environments import make_env
from rllib_exit.scale import SCALE_VARIABLE
from tests.tuned_examples.examples import EXAMPLES

HUB = {
    "gsm8k": (("openai/gsm8k", "main"), {"question": "What is 3 + 4?", "answer": "3 + 4 = 7\n#### 7"}, "So 7."),
    "hendrycks_math": (
        ("nlile/hendrycks-MATH-benchmark", None),
        {"problem": "What is $3 + 4$?", "solution": "It is 7.", "answer": "7", "subject": "Algebra", "level": 1},
        r"\boxed{7}",
    ),
    "mbpp": (
        ("google-research-datasets/mbpp", "full"),
        {"text": "Write a function.", "code": "def f():\n    return 7", "test_list": ["assert f() == 7"], "task_id": 1},
        "```python\ndef f():\n    return 7\n```",
    ),
}


def load(name: str, scale: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(SCALE_VARIABLE, scale)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "dataset_common", raising=False)
    config = runpy.run_path(str(EXAMPLES / f"{name}.py"))["config"]
    config.validate()
    return config


@pytest.mark.parametrize("name", HUB)
def test_small_rows_have_right_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(name, "cpu", monkeypatch)
    env = make_env(config.env, {**config.env_config, "split": "all"})
    assert 30 <= len(env.tasks) <= 50
    tasks = list(env.tasks.values())
    for task in tasks[:6] if name == "mbpp" else tasks:
        assert env.respond(task, env.demonstration(task)[0]).quality == 1, task
        assert env.respond(task, "no").quality == 0, task


@pytest.mark.parametrize("name", HUB)
def test_rows_of_the_hub_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, row, right = HUB[name]

    def load_dataset(path: str, config: str | None = None, *, split: str) -> list[dict[str, Any]]:
        assert (path, config, split) == (*source, "train")
        return [row]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = load(name, "paper", monkeypatch)
    env = make_env(config.env, {**config.env_config, "split": "all"})
    env.reset()
    assert env.step(right)[1] == 1
    env.reset()
    assert env.step("8")[1] == 0
