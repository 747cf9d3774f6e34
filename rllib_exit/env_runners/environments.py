"""Makes the environment that a config names."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import envs.base
from envs.base import SelfImprovementEnv


def make_env(env: Any, env_config: Mapping[str, Any]) -> SelfImprovementEnv:
    """Makes an environment as RLlib does: a class or function that takes ``env_config``, or a registered name.

    Raises:
        TypeError: If it is no :class:`SelfImprovementEnv`.
        ValueError: If it is a name that is not registered.
    """
    if isinstance(env, str):
        from ray.tune.registry import ENV_CREATOR, _global_registry

        creator = _global_registry.get(ENV_CREATOR, env)
        if creator is None:
            raise ValueError(f"env is {env!r}, which is not registered: pass the class, or call ray.tune.register_env")
        env = creator
    made = env(dict(env_config))
    if not isinstance(made, SelfImprovementEnv):
        raise TypeError(f"env made a {type(made).__name__}: it must be a SelfImprovementEnv")
    return made


def rehearse(env: SelfImprovementEnv) -> None:
    """Begins an episode and answers it with nothing, which costs seconds where a model would be loaded first.

    Raises:
        ValueError: If the environment raises, or gives what it must not. The message names where.
    """
    name = type(env).__name__
    try:
        env.reset(seed=0)
        for message in env.messages():
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise TypeError(f"prompt gave the message {message!r}: use {{'role': …, 'content': …}}")
            if not isinstance(message["content"], str):
                raise TypeError(f"prompt gave the content {message['content']!r}: it must be a text")
        env.step("")
    except Exception as error:
        ours = str(Path(envs.base.__file__).parent), str(Path(__file__).parents[1])
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
        where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
        raise ValueError(f"{name} fails in an episode tried out: {type(error).__name__}: {error}{where}") from error
