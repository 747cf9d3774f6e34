"""Your own tools as an environment: Python functions, or a class whose objects are the state."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from jsonschema import Draft202012Validator, SchemaError
from pydantic import BeforeValidator, Field, PositiveInt

from envs.base import Message, Task
from envs.dataset.rewards import Reward
from envs.dataset.rows import RowOptions, all_tasks, select
from envs.tool_use.calls import Call
from envs.tool_use.env import ToolUseEnv, ToolUseOptions
from envs.tool_use.prompt import INSTRUCTION
from envs.tool_use.toolkit import Toolkit
from envs.tool_use.worker import Result, results


class RowToolOptions(ToolUseOptions, RowOptions):
    """The options of tool use whose tasks are the rows of a table."""

    check: Annotated[Reward, BeforeValidator(Reward.of)] = Field(
        description="What an episode is worth, from 0 to 1: a function, or its name as `module:function`."
    )
    max_turns: PositiveInt = Field(10, description="The most responses.")
    system_prompt: str | None = Field(None, description="What the system message begins with; nothing by default.")
    demonstration: str | None = Field(
        None,
        description="The column with the calls of a good episode, each with `name` and `args`, for a warm start; none "
        "by default.",
    )


class RowToolEnv(ToolUseEnv):
    """A row, one request; the quality is what the check says.

    Args:
        options: The options.
        toolkit: The check, and the tools if they are in Python.
        functions: What the policy is told of each function: ``name``, ``description`` and ``parameters``, a JSON
            schema.

    Raises:
        ValueError: If an option has an impossible value, or two functions have a name, or a schema is none.
    """

    options: RowToolOptions

    def __init__(self, options: RowToolOptions, toolkit: Toolkit, functions: Sequence[Mapping[str, Any]]) -> None:
        self.options, self.max_turns = options, options.max_turns
        self._toolkit = toolkit
        self._parameters: dict[str, Any] = {}
        for function in functions:
            name, parameters = function["name"], function["parameters"]
            try:
                Draft202012Validator.check_schema(parameters)
            except SchemaError as error:
                raise ValueError(f"tool {name!r}: its parameters are no JSON schema: {error.message}") from error
            if name in self._parameters:
                raise ValueError(f"two tools have the name {name!r}: rename one")
            self._parameters[name] = parameters
        self._functions = functions
        schemas = [json.dumps(function, ensure_ascii=False, separators=(",", ":")) for function in functions]
        self._system_message = "\n".join([f"{INSTRUCTION}:", *schemas])
        super().__init__(select(all_tasks(options), options))

    def prompt(self, task: Task) -> list[Message]:
        system, user = super().prompt(task)
        if before := self.options.system_prompt:
            system["content"] = f"{before}\n\n{system['content']}"
        return [system, user]

    def system_message(self, task: Task) -> str:
        return self._system_message

    def functions(self, task: Task) -> Sequence[Mapping[str, Any]]:
        return self._functions

    def demonstration(self, task: Task) -> Sequence[str]:
        """The calls in the row's column, one at a time, then the end of the request."""
        if self.options.demonstration is None:
            return super().demonstration(task)
        calls = task.data["row"][self.options.demonstration]
        return [*(self.format.calls(Call(call["name"], call["args"])) for call in calls), self.format.finished]

    def gold(self, task: Task) -> str | None:
        """The same, a line each; None without such a column."""
        return None if self.options.demonstration is None else "\n".join(self.demonstration(task))

    def begin(self, task: Task) -> None:
        super().begin(task)
        self.offered = self._parameters

    def bind(self, call: Call) -> Call:
        parameters = self._parameters[call.name]
        if problem := self._toolkit.mismatch(parameters, call.args, self.options.call_timeout_s):
            raise ValueError(f"{call.name}{problem}")
        properties = parameters.get("properties", {})
        defaults = {name: schema["default"] for name, schema in properties.items() if "default" in schema}
        return Call(call.name, {**defaults, **call.args})


class ToolOptions(RowToolOptions):
    """The options of :class:`ToolEnv`."""

    tools: type | tuple[Callable[..., Any], ...] = Field(
        description="Functions; or a class, whose public methods are the tools. Type hints and docstrings say what the "
        "policy is told of them."
    )


class ToolEnv(RowToolEnv):
    """Tools in Python, see :class:`RowToolEnv`.

    Where the tools are a class, its objects are the state. Each episode has a new one, whose constructor gets those
    columns of the task's row that it names. The check gets the object, and further columns, ``calls`` and ``response``
    if it names them. Where the tools are functions, its first argument is the calls::

        class Account:
            def __init__(self, balance: int):
                self.balance = balance

            def pay(self, amount: int) -> int:
                "Pays from the account. Returns what is left."
                self.balance -= amount
                return self.balance


        def check(account, target) -> float:
            return float(account.balance == target)

    An exception, or a result with a key ``error``, is a failed call, of which the policy is told. The tools must give
    the same results for the same calls, since a partial history is restored by making its calls again.

    Args:
        config: The options, see :class:`ToolOptions`; also as RLlib's ``env_config``.

    Raises:
        ValueError: If an option is unknown or has an impossible value, or a tool or the check does not work.
        FileNotFoundError: If there is no file with such rows.
    """

    options: ToolOptions

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        options = ToolOptions.parse(config)
        toolkit = Toolkit(options.tools, options.check)
        super().__init__(options, toolkit, toolkit.functions)
        # A mistake in the constructor or the check shows before any model is loaded.
        self._toolkit.grade(next(iter(self.tasks.values())).data["row"], [], "", options.call_timeout_s)

    def run(self, task: Task, calls: Sequence[Call]) -> list[Result]:
        timeout_s = self.options.call_timeout_s
        return results(self._toolkit.run(task.data["row"], self._calls(), calls, timeout_s), calls, timeout_s)

    def grade(self, task: Task, response: str) -> tuple[float, dict[str, float]]:
        row = task.data["row"]
        return self._toolkit.grade(row, self._calls(), response, self.options.call_timeout_s), {}

    def _calls(self) -> list[Call]:
        return [made.call for made in self._made[0]]
