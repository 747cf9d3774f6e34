"""An environment on an OpenEnv server as one of ours: its client speaks with the server over a WebSocket."""

from __future__ import annotations

import math
import pkgutil
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from envs.base import InfrastructureError, Message, Outcome, SelfImprovementEnv, Task
from envs.bridges.rewards import RewardRange, quality_of
from envs.extras import extra
from envs.options import Options


class OpenEnvOptions(Options):
    """The options of :class:`OpenEnv`."""

    url: str = Field(pattern=r"^(https?|wss?)://", description="The server's address, such as `http://localhost:8000`.")
    resets: tuple[dict[str, Any], ...] | None = Field(
        None,
        description="What the server's `reset` gets, one mapping for each task, such as `{'seed': 3}` or "
        "`{'split': 'train', 'index': 3}`. By default the seeds from 0 to `limit` - 1.",
    )
    limit: PositiveInt | None = Field(None, description="So many of the first tasks; 100 if there are no `resets`.")
    action: str | Callable[[str], Mapping[str, Any]] = Field(
        description="How a response becomes an action: the action's field that is the text, or a function, also as "
        "`module:function`, which returns the action's fields and raises a `ValueError` for what is none."
    )
    observation: str | Callable[[Mapping[str, Any]], str] = Field(
        description="How an observation becomes a text: its field that is the text, or a function of the observation, "
        "also as `module:function`."
    )
    system_prompt: str | None = Field(None, description="The system message; none by default.")
    reward: str = Field(
        "last",
        pattern="^(last|sum)$",
        description="What counts for the quality: the `last` reward that the server gave, or their `sum`.",
    )
    reward_range: RewardRange = Field(
        (0.0, 1.0), description="The least and the greatest such reward, which become the qualities 0 and 1."
    )
    max_turns: PositiveInt = Field(10, description="The most responses; the episode then ends as it is.")
    connect_timeout_s: PositiveFloat = Field(10.0, description="The seconds that connecting may take.")
    message_timeout_s: PositiveFloat = Field(60.0, description="The seconds that the server's answer may take.")


class OpenEnv(SelfImprovementEnv):
    """An environment that an OpenEnv server runs.

    Every environment holds a session of the server, so the server must allow as many as there are episodes at once. A
    task is what the server's ``reset`` gets. The same reset must begin the same task, and the same actions must have
    the same results: a partial history is restored by a reset and its actions. What the server sends is data that
    nobody vouches for: it is shown to the policy as text, and none of it is run.

    Args:
        config: The options, see :class:`OpenEnvOptions`; also as RLlib's ``env_config``.

    Raises:
        ModuleNotFoundError: If ``openenv`` is not installed.
        ValueError: If an option is unknown or has an impossible value.
        InfrastructureError: If the server does not answer in time, or answers with an error.

    Example:
        ::

            fields = {"action": "message", "observation": "echoed_message"}
            config.environment(OpenEnv, env_config={"url": "http://localhost:8000", **fields})
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.options = options = OpenEnvOptions.parse(config)
        resets = options.resets
        if resets is None:
            resets = tuple({"seed": seed} for seed in range(options.limit or 100))
        resets = resets[: options.limit]
        self.max_turns = options.max_turns
        self._action = _function("action", options.action) or (lambda response: {str(options.action): response})
        self._text = _function("observation", options.observation)
        self._session = _Session(options)
        self._rewards: list[float] = []
        self._left = options.max_turns
        self._first: str | None = None
        super().__init__([Task(f"{number}:{reset}", "", {"reset": reset}) for number, reset in enumerate(resets)])

    def begin(self, task: Task) -> None:
        self._rewards, self._left = [], self.options.max_turns
        result = self._session.reset(task.data["reset"])
        if result.done:
            raise InfrastructureError(f"task {task.id!r} is over before its first response")
        self._first = self._shown(result.observation)

    def prompt(self, task: Task) -> list[Message]:
        if self._first is None:
            raise RuntimeError("call reset() first: the server shows a task only then")
        system: list[Message] = []
        if self.options.system_prompt:
            system.append({"role": "system", "content": self.options.system_prompt})
        return [*system, {"role": "user", "content": self._first}]

    def respond(self, task: Task, response: str) -> Outcome:
        self._left -= 1
        try:
            action = dict(self._action(response))
        except ValueError as error:
            return Outcome(self._quality(task), f"This is no action: {error}", self._left <= 0, valid=False)
        result = self._session.step(action)
        if result.reward is not None:
            self._rewards.append(float(result.reward))
        return Outcome(self._quality(task), self._shown(result.observation), bool(result.done) or self._left <= 0)

    def close(self) -> None:
        """Ends the session."""
        self._session.close()

    def _shown(self, observation: Any) -> str:
        if self._text is not None:
            return str(self._text(observation))
        field = self.options.observation
        if not isinstance(observation, Mapping) or field not in observation:
            raise ValueError(f"observation is {field!r}, but what the server sent has {list(observation)}")
        return str(observation[field])

    def _quality(self, task: Task) -> float:
        """The quality of the rewards so far; that of no reward is 0."""
        if not self._rewards:
            return 0.0
        reward = self._rewards[-1] if self.options.reward == "last" else math.fsum(self._rewards)
        what = f"task {task.id!r}: the {self.options.reward} of the server's rewards"
        return quality_of(reward, self.options.reward_range, what)


def _function(option: str, given: str | Callable[..., Any]) -> Callable[..., Any] | None:
    """The function that an option names or is; None if it names a field."""
    if callable(given):
        return given
    if ":" not in given:
        return None
    try:
        function = pkgutil.resolve_name(given)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{option} is {given!r}: there is no such function ({error})") from error
    if not callable(function):
        raise ValueError(f"{option} is {given!r}: it must be a function")
    return function


class _Session:
    """A session of the server, which is begun anew when it broke down."""

    def __init__(self, options: OpenEnvOptions) -> None:
        with extra("openenv", "an OpenEnv server needs the package openenv"):
            from openenv.core import GenericEnvClient  # pyright: ignore[reportMissingImports]
        self._client = GenericEnvClient(
            options.url,
            connect_timeout_s=options.connect_timeout_s,
            message_timeout_s=options.message_timeout_s,
            mode="simulation",
        ).sync()
        self._url = options.url
        self.close = weakref.finalize(self, self._client.close)

    def reset(self, options: Mapping[str, Any]) -> Any:
        return self._ask(self._client.reset, **options)

    def step(self, action: Mapping[str, Any]) -> Any:
        return self._ask(self._client.step, action)

    def _ask(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the server answers.

        Raises:
            InfrastructureError: If it does not answer, or with an error. The next ``reset`` connects again.
        """
        from websockets.exceptions import WebSocketException

        try:
            return method(*args, **kwargs)
        except (OSError, RuntimeError, ValueError, WebSocketException) as error:
            self._client.disconnect()
            raise InfrastructureError(f"the OpenEnv server {self._url}: {error!r}") from error
