from __future__ import annotations

import warnings
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

from envs.base import TaskInstance, Turn
from envs.countdown.env import CountdownEnv
from envs.countdown.grading import grade
from envs.prompts import IMPROVE

TASK = TaskInstance("countdown/3,5,8/37")  # 8*5-3


class EnvContext(dict[str, Any]):
    """Like RLlib's: a dict with attributes of its own."""

    worker_index = 1


@pytest.mark.parametrize("config", [{}, {"hidden_target": True, "graded": True}, {"prompt": "prose", "limit": 8}])
def test_gymnasium_accepts_it(config: dict[str, Any]):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*render modes.*")
        check_env(CountdownEnv(EnvContext(config)))


def split_with(task_id: str) -> str:
    return next(split for split in ("train", "validation", "test") if task_id in CountdownEnv({"split": split}).tasks)


def make_env(**config: Any) -> CountdownEnv:
    env = CountdownEnv({"split": split_with(TASK.task_id), **config})
    env.reset(options={"instance": TASK})
    return env


@pytest.mark.parametrize(
    ("response", "feedback", "quality"),
    [
        ("8*5-3", "value is 37 = 37 right", 1.0),
        (" 5 * 8 - 3 = 37", "value is 37 = 37 right", 1.0),
        ("8+5+3", "value is 16 < 37", 0.0),
        ("8*(5+3)", "value is 64 > 37", 0.0),
        ("8*5", "lacks 3", 0.0),
        ("8*3*3", "uses 3 twice", 0.0),
        ("3+3+3", "uses 3 too often", 0.0),
        ("8*5-4", "lacks 3", 0.0),
        ("8*5-3+40", "40 is not given", 0.0),
        ("37", "lacks 3", 0.0),
        ("8/5-3", "/ is not given", 0.0),
        ("8*5-", "not an expression", 0.0),
        ("eight", "not an expression", 0.0),
        ("", "not an expression", 0.0),
    ],
)
def test_an_episode(response: str, feedback: str, quality: float):
    env = make_env()
    assert env.messages() == [{"role": "user", "content": "3 5 8 make 37"}]
    observation, reward, terminated, truncated, info = env.step(response)
    assert (observation, reward, terminated, truncated) == (feedback, quality, True, False)
    outcome = info["outcome"]
    assert outcome.quality == quality and outcome.metrics["right"] == quality
    assert outcome.metrics["well_formed"] == float(feedback.startswith("value"))
    assert outcome.valid == (feedback not in ("not an expression", "/ is not given"))


@pytest.mark.parametrize(
    ("response", "feedback"),
    [("8*5+3", "guess is 6 too high"), ("8+5+3", "guess is 21 too low"), ("5*8-3", "guess is right"), ("8", "lacks 3")],
)
def test_a_hidden_target(response: str, feedback: str):
    env = make_env(hidden_target=True)
    assert env.messages()[-1]["content"] == "3 5 8 make ?"
    assert env.step(response)[0] == feedback
    assert "37" not in str(make_env(hidden_target=True, prompt="prose").messages())
    with pytest.raises(NotImplementedError):
        env.demonstration(env.task)


@pytest.mark.parametrize(("feedback", "prompt"), [(True, "guess is 6 too high improve"), (False, "improve")])
def test_without_feedback_a_step_sees_the_earlier_answer_alone(feedback: bool, prompt: str):
    env = make_env(hidden_target=True, feedback=feedback)
    env.step("8*5+3")
    env.reset(options={"instance": TaskInstance(TASK.task_id, iterate=env.turns[-1], kind="improve")})
    assert [message["content"] for message in env.messages()] == ["3 5 8 make ?", "8*5+3", prompt]


def test_feedback_of_fractions():
    assert grade("8/3+5", (3, 5, 8), 37, "+-*/").feedback == "value is 23/3 < 37"
    assert grade("8/3+5", (3, 5, 8), 37, "+-*/", hidden=True).feedback == "guess is 88/3 too low"
    assert grade("8/(5-5)", (5, 5, 8), 37, "+-*/").feedback == "divides by zero"


def test_graded_quality_falls_with_the_distance():
    def quality(response: str) -> float:
        return make_env(graded=True).step(response)[4]["outcome"].quality

    right, near, far = quality("8*5-3"), quality("8*5+3"), quality("8*5*3")
    assert right == 1.0 and near == pytest.approx(0.5**0.6) and 0 < far < 0.01
    assert quality("8*5") == quality("?") == 0.0


@pytest.mark.parametrize(("kind", "quality"), [("improve", 1.0), ("diverge", 0.0)])
def test_a_self_iteration(kind: Any, quality: float):
    env = make_env()
    iterate = Turn("8+5+3", "value is 16 < 37", 0.0)
    env.reset(options={"instance": TaskInstance(TASK.task_id, (), iterate, kind)})
    assert [message["content"] for message in env.messages()] == ["3 5 8 make 37", "8+5+3", f"value is 16 < 37 {kind}"]
    assert env.step("8*5-3" if quality else "8+5+3")[1] == quality


def test_the_prose_prompt():
    env = make_env(prompt="prose", operators="+-*/")
    assert env.messages()[0]["content"] == (
        "Make 37 from the numbers 3, 5, 8. Use each of them exactly once, with parentheses and the operators + - * /. "
        "Give the expression between <answer> and </answer>."
    )
    response = "First <answer>8+5+3</answer> is 16, too low. So <answer>5 × 8 − 3 = 37</answer>."
    assert env.step(response)[:2] == ("value is 37 = 37 right", 1.0)
    assert env.solution(response) == "8*5-3"
    instance = TaskInstance(TASK.task_id, (), Turn("<answer>8</answer>", "lacks 3", 0.0), "improve")
    env.reset(options={"instance": instance})
    assert "lacks 3" in env.messages()[-1]["content"] and env.messages()[-1]["content"].endswith(IMPROVE)


@pytest.mark.parametrize("prompt", ["short", "prose"])
def test_demonstrations_are_right(prompt: str):
    env = CountdownEnv({"numbers": [3, 4], "operators": "+-*/", "limit": 40, "prompt": prompt})
    assert {len(task.data["numbers"]) for task in env.tasks.values()} == {3, 4}
    for task in env.tasks.values():
        env.reset(options={"instance": TaskInstance(task.id)})
        [response] = env.demonstration(task)
        assert env.step(response)[1] == 1.0


def test_a_solution_is_canonical():
    env = make_env()
    assert env.solution("3 + 8*5") == env.solution("5*8+3 = 43") == "8*5+3"
    assert env.solution("no idea") == "no idea"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"number": 3}, "no option 'number': use split, numbers.*'numbers'"),
        ({"limit": 0}, "limit is 0: it must be greater than 0"),
        ({"prompt": "long"}, "prompt is 'long': it must be 'short' or 'prose'"),
        ({"split": "dev"}, "split is 'dev'"),
        ({"numbers": 1}, r"numbers.0 is 1: it must be greater than or equal to 2"),
        ({"numbers": [3, 6]}, r"numbers.1 is 6"),
        ({"number_range": (5, 4)}, r"number_range is \(5, 4\): give the least, then the greatest"),
        ({"target_range": [0, 9]}, r"target_range.0 is 0"),
        ({"operators": "+^"}, r"operators is '\+\^'"),
        ({"operators": ""}, "operators is ''"),
        ({"numbers": []}, "no tasks"),
        ({"target_range": [10**9, 10**9]}, "no tasks"),
    ],
)
def test_options_that_cannot_be_used(config: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CountdownEnv(config)


def test_none_counts_as_absent():
    assert CountdownEnv({"numbers": None, "limit": None}).tasks.keys() == CountdownEnv().tasks.keys()
