"""What the policy is told: the instruction, and the results of its calls."""

from __future__ import annotations

INSTRUCTION = """You fulfil the user's requests, one after the other, by calling functions. In each response first \
reason briefly about what to do next, then end it with exactly one of:
<tool>[{"name": "...", "args": {...}}]</tool> to call functions in order; you then get their results in <tool_response>.
<TASK_FINISHED> when the results show that the current request is fulfilled; you then get the next one, if any.
<TASK_ERROR> when it cannot be fulfilled, because a function or a detail is missing.

Example:
User: Set a timer for five minutes.
You: I need a timer of 300 seconds. <tool>[{"name": "set_timer", "args": {"seconds": 300}}]</tool>
User: <tool_response>[{"timer_id": 1}]</tool_response>
You: The timer is set, so that nothing is left to do. <TASK_FINISHED>

Functions"""


NATIVE_INSTRUCTION = """You fulfil the user's requests, one after the other, by calling functions. In each response \
first reason briefly about what to do next. Then call one or several functions; you then get their results. When the \
results show that the current request is fulfilled, or when it cannot be, because a function or a detail is missing, \
say so without a call; you then get the next request, if any."""


def tool_response(results: str) -> str:
    """What the policy is told of its calls, so that it can be told from a request.

    Args:
        results: JSON. Nothing in it can spell the end of the tool response.
    """
    return f"<tool_response>{escaped(results)}</tool_response>"


def escaped(results: str) -> str:
    """JSON that cannot spell an end, such as that of a tool response."""
    return results.replace("</", "<\\/")
