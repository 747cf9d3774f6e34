"""Episodes in the format that BFCL's own command grades, ``bfcl evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envs.tool_use.calls import Call

# The command looks up how to read a model's calls by the name of its directory: under this one as Python calls.
READER = "Qwen_Qwen3-0.6B"


def file_name(category: str) -> str:
    """Where the command looks for the episodes of a category, in its ``--result-dir``."""
    return f"{READER}/BFCL_v4_multi_turn_{category}_result.json"


def row(task_id: str, made: Sequence[Sequence[Sequence[Call]]]) -> dict[str, Any]:
    """What the command reads of an episode.

    Args:
        task_id: BFCL's name of the task.
        made: The calls that were made: for each request and response. BFCL evaluates their text, so they must be calls
            of documented functions, with JSON values as arguments.
    """
    return {"id": task_id, "result": [[_python(calls) for calls in request] for request in made]}


def _python(calls: Sequence[Call]) -> str:
    texts = [f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.args.items())})" for call in calls]
    return f"[{', '.join(texts)}]"
