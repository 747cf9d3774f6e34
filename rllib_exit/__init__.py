"""GRPO and Exploratory Iteration on Ray RLlib: the names that a training file needs.

They are imported when they are first used, so that a pure module of this package loads neither Ray nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.base import InfrastructureError, Message, Outcome, SelfImprovementEnv, Task, TaskInstance, Turn
    from envs.dataset.rewards import exact_match, json_schema, math_reward, multiple_choice
    from rllib_exit.grpo.algorithm import GRPO
    from rllib_exit.grpo.config import GRPOConfig

__all__ = [
    "GRPO",
    "GRPOConfig",
    "InfrastructureError",
    "Message",
    "Outcome",
    "SelfImprovementEnv",
    "Task",
    "TaskInstance",
    "Turn",
    "exact_match",
    "json_schema",
    "math_reward",
    "multiple_choice",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    module = {"GRPO": "rllib_exit.grpo.algorithm", "GRPOConfig": "rllib_exit.grpo.config"}.get(name)
    return getattr(import_module(module or ("envs.dataset.rewards" if name.islower() else "envs.base")), name)
