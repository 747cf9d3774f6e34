"""Episodes in BFCL's own format: its checker must say of them what the environment says of the responses."""

from __future__ import annotations

import ast
import random
from collections.abc import Sequence
from typing import get_args

import pytest

from envs.base import Task, TaskInstance
from envs.bfcl.env import BFCLEnv
from envs.bfcl.tasks import Category
from envs.tool_use.calls import TASK_FINISHED, Call, format_calls, format_native
from tests.envs.bfcl import official


def read_as_bfcl_does(text: str) -> list[str]:
    """The calls of a response, as text that is evaluated."""
    calls = ast.parse(text, mode="eval").body
    assert isinstance(calls, ast.List)
    return [ast.unparse(call) for call in calls.elts]


def verdict(env: BFCLEnv, task: Task, responses: Sequence[str]) -> tuple[bool, bool]:
    """What the environment says of an episode, and what BFCL's checker says of its row."""
    env.reset(options={"instance": TaskInstance(task.id)})
    said = [env.step(response)[4]["outcome"] for response in responses][-1].metrics["official_accuracy"]
    name, row = env.official_result(task, responses)
    assert name == f"Qwen_Qwen3-0.6B/BFCL_v4_multi_turn_{env.options.category}_result.json"
    assert row["id"] == task.id
    made = [[call for text in request for call in read_as_bfcl_does(text)] for request in row["result"]]
    return bool(said), official.verdict(task.id, made, official.solutions()[task.id])


@pytest.mark.parametrize("category", get_args(Category))
def test_bfcls_checker_agrees_on_what_is_written(category: Category) -> None:
    env = BFCLEnv({"split": "all", "requests": "all", "category": category, "call_timeout_s": 20.0})
    rng = random.Random(0)
    found = []
    for task in rng.sample(list(env.tasks.values()), 6):
        responses = list(env.demonstration(task))
        cut = [response for response in responses if "</tool>" not in response or rng.random() < 0.7]
        ended = responses[: len(responses) // 2]
        talk = ["Which file?", *responses[:1], "</tool>", *responses[1:]]
        for changed in (responses, cut, ended, talk):
            ours, theirs = verdict(env, task, changed)
            assert ours == theirs, (task.id, changed)
            found.append(ours)
    assert True in found and False in found


def test_text_and_calls_that_were_not_made_are_not_written() -> None:
    env = BFCLEnv({"split": "all", "requests": "all"})
    task = env.tasks["multi_turn_base_0"]
    calls = [Call("cd", {"folder": "document"}), Call("cd", {"folder": "no'where"}), Call("ls", {"a": True})]
    responses = [
        format_calls(Call("__import__", {"name": "os"})),
        "[rm(file_name='x')] <TASK_FINISHED>",
        format_calls(*calls),
        TASK_FINISHED,
    ]
    _, row = env.official_result(task, responses)
    assert row["result"][:2] == [["[]"], ["[cd(folder='document'), cd(folder=\"no'where\")]"]]
    assert row["result"][2:] == [[]] * (len(official.solutions()[task.id]) - 2)


def test_calls_in_a_models_own_format_are_written_alike() -> None:
    rows = []
    for tool_format, write, end in (("tags", format_calls, TASK_FINISHED), ("native", format_native, "Done.")):
        env = BFCLEnv({"split": "all", "requests": "all", "tool_format": tool_format})
        responses = [write(Call("cd", {"folder": "document"})), end]
        rows.append(env.official_result(env.tasks["multi_turn_base_0"], responses))
    assert rows[0] == rows[1]


def test_the_first_request_alone_is_nothing_that_bfcl_knows() -> None:
    env = BFCLEnv({"split": "all"})
    with pytest.raises(ValueError, match=r"env_config\.requests=all"):
        env.official_result(next(iter(env.tasks.values())), [])
