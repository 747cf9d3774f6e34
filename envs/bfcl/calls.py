"""Calls of the documented functions: their arguments by name, and those of the ground truth."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping

from envs.tool_use.calls import Call


def bind(call: Call, signature: inspect.Signature) -> Call:
    """The call with every argument of the function: those that are given, and the defaults of the others.

    Raises:
        ValueError: If an argument is missing or unknown.
    """
    try:
        bound = signature.bind(**call.args)
    except TypeError as error:
        raise ValueError(f"{error}; {call.name} takes {', '.join(signature.parameters) or 'no arguments'}") from None
    bound.apply_defaults()
    return Call(call.name, bound.arguments)


def parse_ground_truth(text: str, signatures: Mapping[str, inspect.Signature]) -> Call:
    """A ground-truth call such as ``mv('a.txt', destination='b')``, its arguments named.

    Raises:
        ValueError: If it is no call of a documented function with literal arguments.
    """
    node = ast.parse(text.strip(), mode="eval").body
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in signatures:
        raise ValueError(f"ground truth {text!r} is no call of a documented function")
    args = [ast.literal_eval(value) for value in node.args]
    keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    return Call(node.func.id, signatures[node.func.id].bind(*args, **keywords).arguments)
