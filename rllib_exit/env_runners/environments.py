"""Makes the environment that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
