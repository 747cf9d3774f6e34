"""GRPO and Exploratory Iteration on Ray RLlib: the names that a training file needs.

They are imported when they are first used, so that a pure module of this package loads neither Ray nor torch.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.base import InfrastructureError, Message, Outcome, SelfImprovementEnv, Task, TaskInstance, Turn
    from envs.dataset.rewards import code_reward, exact_match, json_schema, math_reward, multiple_choice
    from envs.tool_use.mcp import MCPEnv
    from envs.tool_use.own import ToolEnv
    from rllib_exit.grpo.algorithm import GRPO
    from rllib_exit.grpo.config import GRPOConfig

__all__ = [
    "GRPO",
    "GRPOConfig",
    "InfrastructureError",
    "MCPEnv",
    "Message",
    "Outcome",
    "SelfImprovementEnv",
    "Task",
    "TaskInstance",
    "ToolEnv",
    "Turn",
    "code_reward",
    "exact_match",
    "json_schema",
    "math_reward",
    "multiple_choice",
]

# Where they are defined.
_MODULES = {
    "rllib_exit.grpo.algorithm": {"GRPO"},
    "rllib_exit.grpo.config": {"GRPOConfig"},
    "envs.dataset.rewards": {"code_reward", "exact_match", "json_schema", "math_reward", "multiple_choice"},
    "envs.tool_use.mcp": {"MCPEnv"},
    "envs.tool_use.own": {"ToolEnv"},
    "envs.base": {"InfrastructureError", "Message", "Outcome", "SelfImprovementEnv", "Task", "TaskInstance", "Turn"},
}


_ENVS = Path(__file__).resolve().parents[1] / "envs"
_found = getattr(find_spec("envs"), "submodule_search_locations", None) or []
if _ENVS not in [Path(location).resolve() for location in _found]:
    _there = next(iter(_found), getattr(find_spec("envs"), "origin", None))
    raise ImportError(f"{_there} hides the package `envs` of rllib-exit: rename it, to my_envs for example")


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
