from __future__ import annotations

import warnings
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

from envs.base import Message, Outcome, SelfImprovementEnv, Task
from envs.bridges.gymnasium_env import GymnasiumEnv
from envs.countdown.env import CountdownEnv
from envs.prompts import DIVERGE, IMPROVE


class Spelling(SelfImprovementEnv):
    """Spell a word, a letter a turn; the quality is the share of letters so far."""

    def __init__(self, words: tuple[str, ...] = ("abc",)) -> None:
        super().__init__([Task(word, word) for word in words])
        self.spelled = 0

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "system", "content": "Spell."}, {"role": "user", "content": task.prompt}]

    def begin(self, task: Task) -> None:
        self.spelled = 0

    def respond(self, task: Task, response: str) -> Outcome:
        right = response == task.prompt[self.spelled]
        self.spelled += right
        feedback = "right" if right else "wrong"
        return Outcome(
            self.spelled / len(task.prompt), feedback, self.spelled == len(task.prompt), right, {"hit": right}
        )


@pytest.mark.parametrize("env", [CountdownEnv(), Spelling(("abc", "de", "f"))])
def test_gymnasium_accepts_it(env: SelfImprovementEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*render modes.*")
        warnings.filterwarnings("ignore", message=".*closing.*")
        check_env(GymnasiumEnv(env, max_turns=3))


def test_the_observation_is_the_chat_and_info_has_plain_values() -> None:
    env = GymnasiumEnv(Spelling())
    chat, info = env.reset()
    assert info == {"task": "abc"}
    assert chat == ({"role": "system", "content": "Spell."}, {"role": "user", "content": "abc"})
    chat, reward, terminated, truncated, info = env.step("a")
    assert [message["content"] for message in chat] == ["Spell.", "abc", "a", "right"]
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == {"task": "abc", "quality": 1 / 3, "valid": True, "metrics": {"hit": True}}
    env.step("b")
    assert env.step("c")[1:4] == (1.0, True, False)


def test_a_seed_decides_which_task_is_drawn() -> None:
    env = GymnasiumEnv(CountdownEnv())
    drawn = [env.reset(seed=seed)[1]["task"] for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


@pytest.mark.parametrize(("kind", "request_"), [("improve", IMPROVE), ("diverge", DIVERGE)])
def test_an_episode_begins_with_a_step_on_a_response(kind: str, request_: str) -> None:
    env = GymnasiumEnv(Spelling())
    chat, _ = env.reset(options={"task": "abc", "history": ["a"], "kind": kind, "response": "x"})
    contents = [message["content"] for message in chat]
    assert contents[:5] == ["Spell.", "abc", "a", "right", "x"]
    assert "wrong" in contents[5] and contents[5].endswith(request_)
    chat, _, terminated, _, info = env.step("b")
    assert [message["content"] for message in chat][2:] == ["a", "right", "b", "right"]
    assert not terminated and info["quality"] == 2 / 3


def test_an_improve_step_is_rewarded_as_the_domain_has_it() -> None:
    class Progress(Spelling):
        def reward(self, quality: float, previous: float | None) -> float:
            return quality if previous is None else quality - previous

    env = GymnasiumEnv(Progress(), max_turns=2)
    options = {"history": ["a"], "kind": "improve", "response": "x"}
    env.reset(options=options)
    assert env.step("b")[1] == pytest.approx(1 / 3)
    env.reset(options={**options, "kind": "diverge"})
    assert env.step("b")[1] == pytest.approx(2 / 3)


def test_an_episode_that_is_too_long_is_truncated_and_rewarded() -> None:
    env = GymnasiumEnv(Spelling(), max_turns=2)
    env.reset()
    assert env.step("a")[1:4] == (0.0, False, False)
    assert env.step("b")[1:4] == (pytest.approx(2 / 3), False, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "abc"}, "no option 'tasks': use task, history, kind, response"),
        ({"task": "xyz"}, "unknown task 'xyz'"),
        ({"kind": "improve"}, "a response belongs to improve or diverge"),
        ({"response": "a"}, "a response belongs to improve or diverge"),
        ({"kind": "better", "response": "a"}, "kind is 'better'"),
        ({"history": "ab"}, "each must be a text"),
        ({"kind": "improve", "response": 1}, "each must be a text"),
        ({"history": ["a", "b"]}, "history has 2 responses"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymnasiumEnv(Spelling(), max_turns=2).reset(options=options)


def test_a_limit_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="max_turns is 0"):
        GymnasiumEnv(Spelling(), max_turns=0)
