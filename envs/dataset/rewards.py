"""Rewards for data sets: functions of a response, the row's answer and the row's other columns.

A reward of your own has the same form, and may leave out what it does not need::

    def reward(response: str, answer: str, **row) -> float: ...

It returns a quality between 0 and 1, or a pair of that and a text: the feedback that the policy sees when it is asked
to improve the response. A row's other columns come under their own names, and the prompt's text as ``prompt``.
"""

from __future__ import annotations

import inspect
import json
import math
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from envs.workers import Handler, Workers

RewardFunction = Callable[..., float | tuple[float, str]]


def math_reward(response: str, answer: str, prompt: str = "") -> float:
    """1 if math-verify accepts the answer in the response; see :mod:`envs.competition_math.grading`."""
    from envs.competition_math.grading import Verdict, grade

    return float(grade(answer, response, problem=prompt) is Verdict.CORRECT)


def exact_match(response: str, answer: str) -> float:
    """1 if the response is the answer, but for upper and lower case, white space and a full stop at the end."""

    def plain(text: str) -> str:
        return " ".join(text.split()).rstrip(".").casefold()

    return float(plain(response) == plain(answer))


def multiple_choice(response: str, answer: str) -> float:
    """1 if the answer, a letter, is the last capital letter of the response that stands alone, as in ``(B)``."""
    letters = re.findall(r"(?<![A-Za-z0-9])[A-Z](?![A-Za-z0-9'’])", response)
    return float(letters[-1:] == [answer.strip(" ().").upper()])


def json_schema(response: str, schema: Any) -> tuple[float, str]:
    """1 if the response is JSON that fits the row's ``schema``; it may stand in a fenced block.

    A schema's patterns may take for ever on some text, so all is done in a process with a limit of CPU time.

    Args:
        response: The response.
        schema: A JSON schema, as an object or as its text. It refers to nothing outside itself.

    Raises:
        ValueError: If the schema is none.
        WorkerError: If nothing is known about the response.
    """
    answers, in_time = _checkers.ask((response, schema), CHECK_TIMEOUT_S)
    if not in_time:
        return 0.0, f"Checking this took more than {CHECK_TIMEOUT_S:g} s."
    (quality, message), *_ = answers
    if quality is None:
        raise ValueError(f"the schema cannot be used: {message}")
    return quality, message


# Between "```" and its line's end there is no line break: one search passes each place once.
_FENCED = re.compile(r"```(?:json)?[^\S\n]*\n(.*?)```", re.DOTALL)
CHECK_TIMEOUT_S, _MAX_MESSAGE_CHARS = 5.0, 1000
_checkers = Workers("envs.dataset.rewards:start_checker", memory_bytes=1 << 30)


def start_checker(_: None) -> Handler:
    """Loads the validator, in a process of its own."""
    _check("{}", {})  # loads what checking needs

    return lambda request: [_check(*request)]


def _check(response: str, schema: Any) -> tuple[float | None, str]:
    """The reward and what is said of the response; without a reward, what is wrong with the schema."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError, best_match
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable

    try:
        schema = json.loads(schema) if isinstance(schema, str) else schema
        validator = validator_for(schema, default=Draft202012Validator)
        validator.check_schema(schema)
    except (ValueError, RecursionError, SchemaError) as error:
        return None, str(error)[:_MAX_MESSAGE_CHARS]
    fenced = _FENCED.search(response)
    try:
        value = json.loads(fenced[1] if fenced else response)
        # Without a registry of ours, a schema could have any address fetched.
        error = best_match(validator(schema, registry=REGISTRY).iter_errors(value))
    except (Unresolvable, re.error) as error:
        return None, f"{error}"[:_MAX_MESSAGE_CHARS]
    except (ValueError, RecursionError, ArithmeticError, MemoryError) as error:
        return 0.0, f"This is not JSON: {error}"[:_MAX_MESSAGE_CHARS]
    if error is not None:
        return 0.0, f"At {error.json_path}: {error.message}"[:_MAX_MESSAGE_CHARS]
    return 1.0, "This fits the schema."


def code_reward(response: str, tests: Any) -> tuple[float, str]:
    """The share of the row's ``tests`` that pass with the response's Python program, in the sandbox.

    Args:
        response: The program; it may stand in a fenced block.
        tests: Python statements such as ``assert add(1, 2) == 3``, as one text or as a list of tests.
    """
    from envs.dataset.unit_tests import run_tests
    from envs.mle_bench.prompts import extract_script

    return run_tests(extract_script(response) or response, [tests] if isinstance(tests, str) else tests)


REWARDS: Mapping[str, RewardFunction] = {
    "math": math_reward,
    "exact_match": exact_match,
    "multiple_choice": multiple_choice,
    "json_schema": json_schema,
    "code": code_reward,
}
"""The rewards that come with the package, by their short names."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward function with its share of the quality.

    Attributes:
        function: The function, its name as ``"module:function"``, or a name in :data:`REWARDS`.
        weight: Its weight; the quality is the weighted mean of all rewards.
    """

    function: RewardFunction | str
    weight: float = 1.0

    @classmethod
    def of(cls, given: Any) -> Reward:
        """The reward that is given as a function, a name, or a pair of one of these and a weight.

        Raises:
            ValueError: If it is none of these, or the weight is not a positive number.
        """
        if isinstance(given, Reward):
            return given
        function, weight = given if isinstance(given, tuple | list) and len(given) == 2 else (given, 1.0)
        if isinstance(function, str) and ":" not in function:
            if function not in REWARDS:
                raise ValueError(
                    f"reward is {function!r}: use {', '.join(REWARDS)}, or one of yours: 'module:function'"
                )
            function = REWARDS[function]
        if not (callable(function) or isinstance(function, str)):
            raise ValueError(f"reward is {given!r}: use a function, 'module:function', or a pair of one and its weight")
        if not (isinstance(weight, int | float) and 0 < weight < math.inf):
            raise ValueError(f"the weight of reward {_name(function)} is {weight!r}: use a number above 0")
        return cls(cast(Any, function), float(weight))

    def __repr__(self) -> str:
        return self.name if self.weight == 1 else f"({self.name}, {self.weight:g})"

    @property
    def name(self) -> str:
        return _name(self.function)

    def resolve(self) -> Callable[[str, Mapping[str, Any]], tuple[float, str | None]]:
        """The function, as one of the response and of what a reward may take besides; it gets what it asks for.

        Raises:
            ValueError: If there is no such function, or it asks for what no row has. From the function that is
                returned, if the reward is not a number between 0 and 1.
        """
        function: Any = self.function
        if isinstance(function, str):
            try:
                function = pkgutil.resolve_name(function)
            except (ImportError, AttributeError, ValueError) as error:
                raise ValueError(f"reward is {self.function!r}: {error}; use 'module:function'") from error
        try:
            first, *parameters = inspect.signature(function).parameters.values()  # the first one is the response
        except (TypeError, ValueError):
            raise ValueError(
                f"reward {self.name} takes no response: write it as def {self.name}(response, ...)"
            ) from None
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        taken = {p.name for p in parameters}
        required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]

        def reward(response: str, row: Mapping[str, Any]) -> tuple[float, str | None]:
            if missing := [name for name in required if name not in row]:
                raise ValueError(f"reward {self.name} asks for {missing[0]!r}: a row has {', '.join(row)}")
            result = function(
                response, **{n: v for n, v in row.items() if n in taken or (takes_all and n != first.name)}
            )
            value, feedback = result if isinstance(result, tuple) else (result, None)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"reward {self.name} gave {value!r}: it must be a number from 0 to 1")
            return float(value), feedback

        return reward


def _name(function: Any) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
