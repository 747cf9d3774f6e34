"""Needs the package openenv, which `make bridges` installs in an environment of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import uvicorn
from gymnasium.utils.env_checker import check_env

from envs.base import InfrastructureError, TaskInstance, Turn
from envs.bridges.openenv_env import OpenEnv

openenv = pytest.importorskip("openenv.core", reason="make bridges runs it")


class Guess(openenv.Action):
    number: int


class Told(openenv.Observation):
    text: str


class Guessing(openenv.Environment):
    """Guess the number that the seed is."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Told:
        self.secret, self.guesses = seed, 0
        return Told(text=f"Guess a number, {kwargs.get('name', 'you')}.")

    def step(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Told:
        if action.number == 13:
            raise RuntimeError("13 is bad luck")
        self.guesses += 1
        right = action.number == self.secret
        text = "right" if right else "too low" if action.number < (self.secret or 0) else "too high"
        return Told(text=f"{text} after {self.guesses}", reward=float(right), done=right)

    async def step_async(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Told:
        if action.number == 99:
            await asyncio.Event().wait()
        return self.step(action, timeout_s, **kwargs)

    @property
    def state(self) -> Any:
        return openenv.State()


def number(response: str) -> Mapping[str, Any]:
    return {"number": int(response)}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = openenv.create_fastapi_app(Guessing, Guess, Told, max_concurrent_envs=20)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    # The socket listens before the server runs, so that a client which is earlier waits for it.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def make(url: str) -> Iterator[Any]:
    made: list[OpenEnv] = []

    def env(**options: Any) -> OpenEnv:
        made.append(OpenEnv({"url": url, "action": number, "observation": "text", "limit": 8, **options}))
        return made[-1]

    yield env
    for each in made:
        each.close()


def begin(env: OpenEnv, seed: int, **instance: Any) -> str:
    return env.reset(options={"instance": TaskInstance(list(env.tasks)[seed], **instance)})[0]


def test_gymnasium_accepts_it(make: Any) -> None:
    check_env(make(), skip_render_check=True)


def test_an_episode(make: Any) -> None:
    env = make(system_prompt="You guess.")
    assert len(env.tasks) == 8
    assert begin(env, 5) == "Guess a number, you."
    assert env.messages()[0] == {"role": "system", "content": "You guess."}
    assert env.step("3")[:4] == ("too low after 1", 0.0, False, False)
    observation, reward, terminated, _, info = env.step("three")
    assert observation.startswith("This is no action: invalid literal") and not info["outcome"].valid
    assert (reward, terminated) == (0.0, False)
    assert env.step("5")[:4] == ("right after 2", 1.0, True, False)


def test_a_history_is_restored_and_improved_on(make: Any) -> None:
    env = make()
    iterate = Turn("9", "too high after 2", 0.0)
    shown = begin(env, 5, history=(Turn("3"),), iterate=iterate, kind="improve")
    assert "too high after 2" in shown
    assert [turn.feedback for turn in env.turns] == ["too low after 1"]
    assert env.step("5")[:3] == ("right after 2", 1.0, True)


def test_an_episode_ends_after_the_most_turns(make: Any) -> None:
    env = make(max_turns=2)
    begin(env, 5)
    assert not env.step("no number")[2]
    assert env.step("1")[1:3] == (0.0, True)


def test_what_the_server_gets_and_shows_can_be_chosen(make: Any) -> None:
    env = make(
        resets=({"seed": 1, "name": "Ann"}, {"seed": 2, "name": "Bob"}),
        limit=None,
        observation=lambda observation: observation["text"].upper(),
        reward="sum",
        reward_range=(-1, 1),
    )
    assert [begin(env, task) for task in range(2)] == ["GUESS A NUMBER, ANN.", "GUESS A NUMBER, BOB."]
    assert env.step("1")[4]["outcome"].quality == 0.5
    assert env.step("2")[1:3] == (1.0, True)


def test_sessions_are_apart(make: Any) -> None:
    one, other = make(), make()
    begin(one, 1)
    begin(other, 2)
    assert one.step("1")[1] == 1.0 and other.step("2")[1] == 1.0


def test_an_error_of_the_server_is_no_fault_of_the_response(make: Any) -> None:
    env = make()
    begin(env, 5)
    with pytest.raises(InfrastructureError, match="13 is bad luck"):
        env.step("13")
    begin(env, 5)
    assert env.step("5")[1] == 1.0


def test_a_server_that_does_not_answer_in_time_is_asked_anew(make: Any) -> None:
    env = make(message_timeout_s=0.5)
    begin(env, 5)
    with pytest.raises(InfrastructureError, match="TimeoutError"):
        env.step("99")
    begin(env, 5)
    assert env.step("5")[:2] == ("right after 1", 1.0)


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    env = OpenEnv({"url": address, "action": number, "observation": "text"})
    with pytest.raises(InfrastructureError, match=f"the OpenEnv server {address}: ConnectionError"):
        env.reset()


def test_a_reward_outside_of_its_range_is_named(make: Any) -> None:
    env = make(reward_range=(0.5, 1))
    begin(env, 5)
    with pytest.raises(ValueError, match=r"the last of the server's rewards is 0\.0, outside of reward_range"):
        env.step("1")


def test_a_field_that_observations_lack_is_named(make: Any) -> None:
    with pytest.raises(ValueError, match="observation is 'txt', but what the server sent has "):
        begin(make(observation="txt"), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "url is 'localhost:8000'"),
        ({"action": "no_such_module:f"}, "action is 'no_such_module:f': there is no such function"),
        ({"observation": "math:pi"}, "observation is 'math:pi': it must be a function"),
        ({"reward": "mean"}, "reward is 'mean'"),
        ({"reward_range": (1, 1)}, "reward_range is"),
        ({"resets": ()}, "OpenEnv got no tasks"),
    ],
)
def test_options_that_cannot_be_used(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
