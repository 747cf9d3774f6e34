from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from envs.base import TaskInstance
from envs.reasoning_gym.env import SYSTEM_PROMPT, ReasoningGymEnv, extract_answer

utils = pytest.importorskip("reasoning_gym.utils")


@pytest.mark.parametrize("config", [{"dataset": "chain_sum"}, {"datasets": {"countdown": 2, "mini_sudoku": 1}}])
def test_gymnasium_accepts_it(config: dict[str, Any]):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*render modes.*")
        check_env(ReasoningGymEnv({**config, "size": 8}))


def test_an_episode():
    env = ReasoningGymEnv({"dataset": "countdown", "size": 4, "params": {"min_numbers": 3, "max_numbers": 3}})
    instance = TaskInstance("countdown/0/2")
    env.reset(options={"instance": instance})
    assert env.messages() == [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": env.task.prompt},
    ]
    [right] = env.demonstration(env.task)
    assert env.solution(f"I think. {right}") == env.task.data["answer"]
    expected = [
        (f"Perhaps <answer>1</answer>. No: {right}", 1.0, "score 1", 1.0),
        ("<answer>1 + 1</answer>", 0.05, "score 0.05", 1.0),
        ("<answer>what?</answer>", 0.01, "score 0.01", 1.0),
        (env.task.data["answer"], 0.0, "no answer found: give it as <answer>your answer</answer>", 0.0),
    ]
    for response, quality, feedback, answered in expected:
        env.reset(options={"instance": instance})
        _, reward, terminated, _, info = env.step(response)
        assert (reward, terminated) == (quality, True)
        assert (info["outcome"].feedback, info["outcome"].metrics) == (feedback, {"answered": answered})
        assert env.task.data["answer"] not in feedback


def test_a_mixture_has_its_shares_and_parameters():
    options = {
        "datasets": {"chain_sum": 3, "gcd": 1},
        "size": 400,
        "params": {"chain_sum": {"min_terms": 2, "max_terms": 2}},
    }
    tasks = ReasoningGymEnv(options).tasks
    sums = [task for task in tasks.values() if task.id.startswith("chain_sum/")]
    assert len(tasks) == 400 and 270 <= len(sums) <= 330
    assert all(task.prompt.count(" + ") + task.prompt.count(" - ") == 1 for task in sums)


def test_a_seed_always_gives_the_same_tasks_and_another_one_others():
    first, again, other = (
        [task.prompt for task in ReasoningGymEnv({"dataset": "countdown", "size": 20, "seed": seed}).tasks.values()]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert not set(first) & set(other)


def test_a_data_set_without_answers_has_no_demonstrations():
    env = ReasoningGymEnv({"dataset": "rush_hour", "size": 1})
    with pytest.raises(NotImplementedError, match="no demonstrations"):
        env.demonstration(env.tasks["rush_hour/0/0"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dataset": "gcd", "name": 1}, "no option 'name'"),
        ({}, "dataset is None and datasets is None"),
        ({"dataset": "gcd", "datasets": {"lcm": 1}}, "dataset is 'gcd' and datasets is"),
        ({"datasets": {"lcm": 0}}, "datasets gives 'lcm' the weight 0"),
        ({"datasets": {"lcm": 1}, "params": {"gcd": {}}}, r"params names \['gcd'\]"),
        ({"dataset": "gcd", "size": 0}, "size is 0"),
        ({"dataset": "gcd", "seed": 4096}, "seed is 4096: it must be a whole number from 0 to 4095"),
        ({"dataset": "gcd", "grading_timeout_s": 0}, "grading_timeout_s is 0"),
        ({"dataset": "gdc"}, "reasoning-gym has only"),
    ],
)
def test_bad_options(config: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ReasoningGymEnv(config)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"rllib-exit\[reasoning-gym\]"):
        ReasoningGymEnv({"dataset": "gcd", "size": 3})


def test_the_package_stays_out_of_the_process():
    script = "import sys, envs.reasoning_gym.env as m; m.ReasoningGymEnv({'dataset': 'gcd', 'size': 2})"
    import subprocess

    check = "; print(*{'reasoning_gym', 'sympy', 'ray', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script + check], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


PIECES = st.sampled_from(["<answer>", "</answer>", "<answer", ">", " ", "\n", "1 + 2", "</"])


@given(st.lists(PIECES, max_size=12).map("".join))
def test_answers_are_found_as_the_package_finds_them(response: str):
    assert extract_answer(response) == utils.extract_answer(response)
