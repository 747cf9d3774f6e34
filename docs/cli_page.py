"""Writes ``docs/cli.md``, the reference of all commands, from their own help."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from rllib_exit.cli.main import app

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Commands

What `rllib COMMAND --help` says. `docs/cli_page.py` writes this page from the commands in `rllib_exit/cli/`.

"""


def page() -> str:
    """The page in Markdown."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="rllib")
    # The list of commands cuts their sentences; the page's own contents have it. Every command has --help.
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text)
    text = text.replace("* `--help`: Show this message and exit.\n", "").replace("**Options**:\n\n\n", "")
    return HEAD + text.partition("\n\n")[2].rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
