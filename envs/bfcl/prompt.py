"""The system prompt: the response format and the JSON schemas of the functions."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from envs.bfcl.apis import offered

INSTRUCTION = """You fulfil the user's requests by calling functions. End each response with exactly one of:
<tool>[{"name": "...", "args": {...}}]</tool> to call functions in order; you then see their results.
<TASK_FINISHED> when the current request is fulfilled.
<TASK_ERROR> when it cannot be fulfilled.
Functions"""

# The package's own names of the JSON schema types.
_TYPES = {"dict": "object", "float": "number"}


@functools.cache
def system_prompt(classes: tuple[str, ...], excluded: tuple[str, ...], trim: bool) -> str:
    """The system prompt for tasks that involve these classes: one line per function.

    Args:
        classes: The API classes.
        excluded: Functions of theirs that are not offered.
        trim: Whether to leave out most of each schema (see :func:`trimmed`).
    """
    schemas = [trimmed(f.doc) if trim else _json_schema(f.doc) for f in offered(classes, excluded).values()]
    heading = f"{INSTRUCTION} (? is optional):" if trim else f"{INSTRUCTION}:"
    return "\n".join([heading, *(json.dumps(s, ensure_ascii=False, separators=(",", ":")) for s in schemas)])


def trimmed(doc: Mapping[str, Any]) -> dict[str, Any]:
    """A short schema: the first sentence of the description, and the parameters' types, if any."""
    description = doc["description"].rpartition("Tool description: ")[2].strip()
    schema: dict[str, Any] = {"name": doc["name"], "description": description.partition(". ")[0].rstrip(".")}
    required = doc["parameters"]["required"]
    parameters = {
        name: f"{_TYPES.get(value['type'], value['type'])}{'' if name in required else '?'}"
        for name, value in doc["parameters"]["properties"].items()
    }
    return {**schema, "parameters": parameters} if parameters else schema


def _json_schema(value: Any) -> Any:
    """The doc with JSON schema's names of types."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: _TYPES.get(item, item) if key == "type" and isinstance(item, str) else _json_schema(item)
        for key, item in value.items()
    }
