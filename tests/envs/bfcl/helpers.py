"""What several of the tool-use tests need."""

import json
from typing import Any


def results(feedback: str | None) -> list[Any]:
    """The results, or errors, of the calls that a response made."""
    begin, end = "<tool_response>", "</tool_response>"
    assert feedback is not None and feedback.startswith(begin) and feedback.endswith(end)
    assert feedback.count(end) == 1
    return json.loads(feedback[len(begin) : -len(end)])
