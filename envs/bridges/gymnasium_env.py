"""One of our environments for code that knows Gymnasium alone: plain values go in, chats and plain numbers come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from envs.base import Kind, SelfImprovementEnv, TaskInstance, Turn, UnicodeText

OPTIONS = ("task", "history", "kind", "response")

Chat = tuple[dict[str, str], ...]


class GymnasiumEnv(gym.Env[Chat, str]):
    """One of our environments, whose observation is the whole chat that the policy answers.

    A :class:`~envs.base.SelfImprovementEnv` is a Gymnasium environment itself. Its observation is the last message
    alone, and its episodes start from a ``TaskInstance``. This class needs neither: the observation is the chat, as a
    tuple of ``{"role": ..., "content": ...}``, the action is the text of a response, and an episode is chosen by
    ``reset(options=...)`` with plain values:

    - ``task``: the id of a task; one is drawn by default.
    - ``history``: the responses to the turns before; none by default.
    - ``kind``: ``base`` (the default), ``improve`` or ``diverge``.
    - ``response``: the response to improve on or to diverge from. The environment answers it first, so that the
      prompt shows its feedback.

    ``info`` has the ``task``; after a step also the ``quality``, whether the response was ``valid``, and the domain's
    ``metrics``. The reward is 0 before the end.

    Args:
        env: The environment that plays.
        max_turns: The most turns of an episode, those of the history included. An episode that is longer is truncated,
            and rewarded with what it has reached. By default what the environment says; None if it has no limit.

    Raises:
        ValueError: If ``max_turns`` is not positive.

    Example:
        >>> from envs.countdown.env import CountdownEnv
        >>> env = GymnasiumEnv(CountdownEnv())
        >>> options = {"task": "countdown/1,2,3/7", "kind": "improve", "response": "1+2+3"}
        >>> chat, info = env.reset(options=options)
        >>> chat[-1]["content"]
        'value is 6 < 7 improve'
        >>> chat, reward, terminated, truncated, info = env.step("1+2*3")
        >>> reward, terminated, info["quality"]
        (1.0, True, 1.0)
    """

    metadata = {"render_modes": []}

    def __init__(self, env: SelfImprovementEnv, max_turns: int | None = None) -> None:
        if max_turns is not None and max_turns < 1:
            raise ValueError(f"max_turns is {max_turns}: it must be positive")
        self.env = env
        self.max_turns = env.max_turns if max_turns is None else max_turns
        message = gym.spaces.Dict({"role": UnicodeText(), "content": UnicodeText()})
        self.observation_space = gym.spaces.Sequence(message)
        self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Chat, dict[str, Any]]:
        """Starts an episode.

        Raises:
            ValueError: If an option is unknown or has an impossible value.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := [name for name in options if name not in OPTIONS]:
            raise ValueError(f"reset has no option {unknown[0]!r}: use {', '.join(OPTIONS)}")
        history = _texts(options.get("history") or ())
        if self.max_turns is not None and len(history) >= self.max_turns:
            raise ValueError(f"history has {len(history)} responses: an episode has at most {self.max_turns} turns")
        kind, response = options.get("kind", "base"), options.get("response")
        if (response is None) != (kind == "base"):
            raise ValueError(f"kind is {kind!r} and response is {response!r}: a response belongs to improve or diverge")
        task = options.get("task")
        if task is None:
            self.env.reset(seed=seed)  # draws one
            task = self.env.task.id
        self.env.reset(seed=seed, options={"instance": TaskInstance(task, history)})
        if response is not None:
            self._iterate_on(_texts([response])[0].response, kind)
        return self._chat(), {"task": task}

    def step(self, action: str) -> tuple[Chat, float, bool, bool, dict[str, Any]]:
        """Takes a response, as any Gymnasium environment does."""
        _, reward, terminated, truncated, info = self.env.step(action)
        outcome = info["outcome"]
        if not terminated and self.max_turns is not None and len(self.env.turns) >= self.max_turns:
            truncated, reward = True, self.env.episode_return(outcome.quality)
        told = {"quality": outcome.quality, "valid": outcome.valid, "metrics": dict(outcome.metrics)}
        return self._chat(), reward, terminated, truncated, {"task": self.env.task.id, **told}

    def close(self) -> None:
        """Closes the environment that plays."""
        self.env.close()

    def _iterate_on(self, response: str, kind: Kind) -> None:
        """Has the response answered, then starts the episode that improves on it or diverges from it."""
        self.env.step(response)
        *history, iterate = self.env.turns
        instance = TaskInstance(self.env.task.id, tuple(history), iterate, kind)
        self.env.reset(options={"instance": instance})

    def _chat(self) -> Chat:
        return tuple({"role": message["role"], "content": message["content"]} for message in self.env.messages())


def _texts(responses: Sequence[Any]) -> tuple[Turn, ...]:
    if isinstance(responses, str) or not all(isinstance(response, str) for response in responses):
        raise ValueError(f"{responses!r} is given as responses: each must be a text")
    return tuple(map(Turn, responses))
