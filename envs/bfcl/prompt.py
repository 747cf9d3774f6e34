"""The system prompt: the JSON schemas of the documented functions after the instruction."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, Literal

from envs.bfcl.apis import offered
from envs.tool_use.prompt import INSTRUCTION

Schemas = Literal["full", "call", "short"]

# The package's own names of the JSON schema types.
_TYPES = {"dict": "object", "float": "number"}


@functools.cache
def system_prompt(classes: tuple[str, ...], excluded: tuple[str, ...], schemas: Schemas) -> str:
    """The system prompt for tasks that involve these classes: one line per function.

    Args:
        classes: The API classes.
        excluded: Functions of theirs that are not offered.
        schemas: How much of each schema is shown.
    """
    heading = f"{INSTRUCTION} (? is optional):" if schemas == "short" else f"{INSTRUCTION}:"
    return "\n".join([heading, *(schema(f.doc, schemas) for f in offered(classes, excluded).values())])


@functools.cache
def described(classes: tuple[str, ...], excluded: tuple[str, ...], schemas: Schemas) -> tuple[dict[str, Any], ...]:
    """What the system prompt would show of each function, for a chat template to show; ``short`` as ``call``."""
    shown: Schemas = "call" if schemas == "short" else schemas
    return tuple(json.loads(schema(f.doc, shown)) for f in offered(classes, excluded).values())


def schema(doc: Mapping[str, Any], schemas: Schemas) -> str:
    """A function's schema, on one line."""
    match schemas:
        case "full":
            shown = _json_schema(doc)
        case "call":
            shown = {key: _json_schema(value) for key, value in doc.items() if key != "response"}
        case "short":
            shown = _short(doc)
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))


def _short(doc: Mapping[str, Any]) -> dict[str, Any]:
    """The first sentence of the description, and the parameters' types, if any."""
    description = doc["description"].rpartition("Tool description: ")[2].strip()
    short: dict[str, Any] = {"name": doc["name"], "description": description.partition(". ")[0].rstrip(".")}
    required = doc["parameters"]["required"]
    parameters = {
        name: f"{_TYPES.get(value['type'], value['type'])}{'' if name in required else '?'}"
        for name, value in doc["parameters"]["properties"].items()
    }
    return {**short, "parameters": parameters} if parameters else short


def _json_schema(value: Any) -> Any:
    """The doc with JSON schema's names of types."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: _TYPES.get(item, item) if key == "type" and isinstance(item, str) else _json_schema(item)
        for key, item in value.items()
    }
