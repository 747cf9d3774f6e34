"""The prompt of MLE-bench tasks (paper appendix B): a goal, the task, a script, and what became of the script."""

from __future__ import annotations

import re

START_SCRIPT = """\
import pandas as pd

DATA_DIR = "data"


def main():
    # Read the files in DATA_DIR and write the predictions to submission.csv.
    pass


if __name__ == "__main__":
    main()
"""

GOALS = {
    "base": "Complete the Python script below, so that it solves the machine learning task.",
    "improve": "Improve the Python script below, so that its predictions for the machine learning task score better.",
    "debug": (
        "The Python script below is meant to solve the machine learning task, but it does not work. "
        "Find out why and mend it."
    ),
    "diverge": (
        "The Python script below is an attempt at the machine learning task. Write a script that takes a "
        "substantially different approach and scores better."
    ),
}

PROMPT = """\
{goal}

{description}

# Files

The directory `data`, read-only, holds {files}. The script has {timeout_s:g} seconds and no network. It must write \
`submission.csv` into its working directory.

# Script

```python
{script}```

{feedback}Respond with the whole script in one block that begins with ```python and ends with ```. If there are \
several such blocks, the last one is run."""

# The prompt names at most this many files of a competition.
MAX_FILES = 20

_FENCE = re.compile(r"\s*```+([^`]*)")


def prompt(
    goal: str, *, description: str, files: list[str], timeout_s: float, script: str, feedback: str | None = None
) -> str:
    """The user message.

    Args:
        goal: A key of ``GOALS``.
        description: The description of the competition.
        files: The names of the competition's files.
        timeout_s: The script's time limit in seconds.
        script: The script to begin from.
        feedback: The feedback to that script, which is shown below it.
    """
    named = [f"`{name}`" for name in files[:MAX_FILES]]
    if more := len(files) - len(named):
        named.append(f"{more} more")
    return PROMPT.format(
        goal=GOALS[goal],
        description=description,
        files=" and ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else "".join(named),
        timeout_s=timeout_s,
        script=script if script.endswith("\n") else f"{script}\n",
        feedback=f"{feedback}\n\n" if feedback else "",
    )


def extract_script(response: str) -> str | None:
    """The content of a response's last fenced block that is closed; None if there is none, or it is blank.

    A fence with an info string (```` ```python ````) always opens a block, so that a block left open in a chain
    of thought does not swallow the answer after it.
    """
    script, lines = None, None
    for line in response.split("\n"):
        fence = _FENCE.fullmatch(line.rstrip())
        if fence is None:
            if lines is not None:
                lines.append(line)
        elif lines is None or fence[1]:
            lines = []
        else:
            script, lines = "".join(f"{line}\n" for line in lines), None
    return script if script and script.strip() else None


def tail(text: str, chars: int) -> str:
    """The end of a text: the last line of an error trace says most."""
    text = text.strip()
    return text if len(text) <= chars else f"…{text[-chars:]}"
