"""A user's tools and check, in processes that a hard limit of CPU time can kill.

The code is the user's own. What is not to be trusted are the arguments, which the policy chose: they can keep a tool
busy for hours, or eat all memory. As :mod:`envs.workers` has it, a process keeps nothing between requests: every
request brings the row and the calls so far, which are made again on a new state.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cloudpickle
import docstring_parser
import pydantic
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from pydantic_core import to_jsonable_python
from referencing import Registry
from referencing.exceptions import Unresolvable

from envs.dataset.rewards import Reward
from envs.tool_use.calls import Call
from envs.tool_use.worker import as_made, call_method, run_calls
from envs.workers import Handler, Workers

Tools = type | Sequence[Callable[..., Any]]
Row = Mapping[str, Any]

MAX_PROBLEM_CHARS = 1000


class Toolkit:
    """The tools and the check of one environment.

    Args:
        tools: A class, whose public methods are the tools and whose objects are the state, or functions; None if the
            tools are elsewhere.
        check: What an episode is worth.

    Raises:
        ValueError: If a tool cannot be described, or the check is no function.
    """

    def __init__(self, tools: Tools | None, check: Reward) -> None:
        self._workers = _pool(_pickled(tools, check))
        self.functions: list[dict[str, Any]] = self._ask(("describe",), 60.0)[0]

    def run(
        self, row: Row, replayed: Sequence[Call], calls: Sequence[Call], timeout_s: float
    ) -> list[tuple[bool, str]]:
        """The answers to new calls, see :func:`envs.tool_use.worker.run_calls`; fewer if the time ran out."""
        return self._ask(("run", row, replayed, calls), timeout_s)[len(replayed) :]

    def grade(self, row: Row, calls: Sequence[Call], response: str, timeout_s: float) -> float:
        """The quality of an episode with these calls, which ends with this response; 0 if the time ran out."""
        answers = self._ask(("grade", row, calls, response), timeout_s)
        return answers[-1] if len(answers) > len(calls) else 0.0

    def check(
        self, subject: Any, row: Row, made: Sequence[Mapping[str, Any]], response: str, timeout_s: float
    ) -> float:
        """The quality where the tools are elsewhere: what the check says of this subject; 0 if the time ran out.

        Args:
            subject: The check's first argument.
            row: The task's row.
            made: The calls made, each with ``name``, ``args``, ``ok`` and ``result``.
            response: The last response.
            timeout_s: The CPU seconds for it.
        """
        return (self._ask(("check", subject, row, made, response), timeout_s) or [0.0])[0]

    def mismatch(self, parameters: Mapping[str, Any], args: Mapping[str, Any], timeout_s: float) -> str:
        """What of arguments does not fit a JSON schema, as ``.amount: …``; empty if all does.

        A schema's patterns may take for ever on some text.
        """
        answers = self._ask(("mismatch", parameters, args), timeout_s)
        return answers[0] if answers else f": checking the arguments took more than {timeout_s:g} s"

    def _ask(self, request: tuple[Any, ...], timeout_s: float) -> list[Any]:
        answers, _ = self._workers.ask(request, timeout_s)
        if answers and isinstance(answers[-1], dict) and "raised" in answers[-1]:
            raise ValueError(f"the environment's own tools or check raised {answers[-1]['raised']}")
        return answers


@functools.lru_cache(maxsize=16)
def _pool(definition: bytes) -> Workers:
    """The processes of all environments of one definition."""
    # More than there are CPUs, so that one that computes for seconds keeps nobody else waiting.
    return Workers("envs.tool_use.toolkit:start", definition, workers=8)


def _pickled(tools: Tools | None, check: Reward) -> bytes:
    """Both as bytes. What other processes cannot import, as a training file, goes by value."""
    for value in (*(tools if isinstance(tools, Sequence) else [tools]), check.function):
        module = sys.modules.get(getattr(value, "__module__", None) or "")
        package = module.__name__.partition(".")[0] if module else ""
        if module and package != "__main__" and not any(finder.find_spec(package, None) for finder in sys.meta_path):
            cloudpickle.register_pickle_by_value(module)
    return cloudpickle.dumps((tools, check))


# What follows runs in the processes.


def start(definition: bytes) -> Handler:
    """Loads the tools and the check, before any request's time begins, and answers what :class:`Toolkit` asks."""
    process: Any
    failure = None
    try:
        process = _Process(*cloudpickle.loads(definition))
    except Exception as error:
        failure = error

    def answer(request: tuple[Any, ...]) -> Iterator[Any]:
        try:
            if failure is not None:
                raise failure
            yield from getattr(process, request[0])(*request[1:])
        except Exception as error:  # the user's code, and not the policy's call, is wrong
            traceback.print_exc()
            yield {"raised": f"{type(error).__name__}: {error}"}

    return answer


class _Process:
    def __init__(self, tools: Tools | None, check: Reward) -> None:
        self._state_class = tools if isinstance(tools, type) else None
        self._functions = {f.__name__: f for f in (_methods(tools) if isinstance(tools, type) else tools or ())}
        if tools is not None and not self._functions:
            raise ValueError(f"tools is {tools!r}: give a class with public methods, or a list of functions")
        self._described = [
            _describe(name, function, method=self._state_class is not None)
            for name, function in self._functions.items()
        ]
        self._validated = {name: pydantic.validate_call(function) for name, function in self._functions.items()}
        self._check = check.resolve()

    def describe(self) -> Iterator[Any]:
        yield self._described

    def run(self, row: Row, replayed: Sequence[Call], calls: Sequence[Call]) -> Iterator[tuple[bool, str] | None]:
        return run_calls(self._begin(row)[1], replayed, calls)

    def grade(self, row: Row, calls: Sequence[Call], response: str) -> Iterator[float | None]:
        state, run = self._begin(row)
        made = []
        for call in calls:
            made.append(as_made(call, *run(call)))
            yield None  # the time for the next one begins
        yield from self.check(made if state is None else state, row, made, response)

    def check(self, subject: Any, row: Row, made: Sequence[Mapping[str, Any]], response: str) -> Iterator[float]:
        try:
            yield self._check(subject, {**row, "calls": made, "response": response})[0]
        except (RecursionError, MemoryError):  # as of a list that the policy has put into itself
            yield 0.0

    def mismatch(self, parameters: Mapping[str, Any], args: Mapping[str, Any]) -> Iterator[str]:
        try:
            # Without a registry of ours, a schema could have any address fetched.
            error = best_match(Draft202012Validator(parameters, registry=Registry()).iter_errors(args))
            problem = f"{error.json_path[1:]}: {error.message}" if error else ""
        except (ArithmeticError, RecursionError, MemoryError, re.error, Unresolvable) as unchecked:
            problem = f": the arguments cannot be checked: {unchecked}"
        yield problem[:MAX_PROBLEM_CHARS]

    def _begin(self, row: Row) -> tuple[Any, Callable[[Call], tuple[bool, str]]]:
        """A new state, None if there is none, and what makes a call on it."""
        state = None
        if self._state_class is not None:
            names = inspect.signature(self._state_class).parameters
            # A copy, because the check gets the row as it was.
            state = self._state_class(**{name: copy.deepcopy(row[name]) for name in names if name in row})

        def call_on(name: str, /, **args: Any) -> Any:
            function = self._validated[name]
            return to_jsonable_python(function(**args) if state is None else function(state, **args), fallback=str)

        return state, lambda call: call_method(functools.partial(call_on, call.name), call.args)


def _methods(tools: type) -> list[Callable[..., Any]]:
    """The public methods of a class and its bases, in the order in which they are defined."""
    found = {
        name: value
        for base in reversed(tools.__mro__)
        for name, value in vars(base).items()
        if inspect.isfunction(value)
    }
    return [value for name, value in found.items() if not name.startswith("_")]


def _describe(name: str, function: Callable[..., Any], method: bool) -> dict[str, Any]:
    """What the policy is told of a function: from its docstring and its type hints."""
    parsed = docstring_parser.parse(inspect.getdoc(function) or "")
    if not parsed.description:
        raise ValueError(f"tool {name!r} has no docstring: say in it what it does")
    parameters = list(inspect.signature(function).parameters.values())[method:]
    if bare := [p.name for p in parameters if p.annotation is p.empty]:
        raise ValueError(f"tool {name!r}: argument {bare[0]!r} has no type hint: give it one")
    try:
        adapter: Any = pydantic.TypeAdapter
        schema = adapter(function).json_schema()
    except (pydantic.errors.PydanticUserError, NameError) as error:
        raise ValueError(
            f"tool {name!r}: its type hints say nothing to pydantic ({str(error).splitlines()[0]}): use types that "
            "JSON has, and no `from __future__ import annotations` in the file that defines it"
        ) from error
    _drop_titles(schema)
    properties = schema.setdefault("properties", {})
    if method:
        own = next(iter(properties))
        del properties[own]
        schema["required"] = [name for name in schema.get("required", ()) if name != own]
    for parameter in parsed.params:
        if parameter.arg_name in properties and parameter.description:
            properties[parameter.arg_name]["description"] = parameter.description
    return {"name": name, "description": parsed.description.strip(), "parameters": schema}


def _drop_titles(schema: Any) -> None:
    """Pydantic gives every schema a title, which repeats its name."""
    children = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    if isinstance(schema, dict) and isinstance(schema.get("title"), str):
        del schema["title"]
    for child in children:
        _drop_titles(child)
