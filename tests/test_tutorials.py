"""The code and the commands of the pages: code runs, commands are taken by the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from rllib_exit.cli.main import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
INCLUDED = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
TUTORIALS = [page for page in sorted((DOCS / "tutorials").glob("*.md")) if "```python" in page.read_text()]


def whole(page: Path) -> str:
    """A page with what it includes."""

    def include(match: re.Match[str]) -> str:
        file, _, section = match[1].partition(":")
        text = (ROOT / file).read_text()
        if not section:
            return text
        return text.partition(f"<!-- --8<-- [start:{section}] -->\n")[2].partition("<!-- --8<-- [end:")[0]

    return INCLUDED.sub(include, page.read_text())


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_code_of_a_tutorial_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks one after the other, as a reader would; a config that comes of it is one that can be trained."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "tutorial"}
    blocks = re.findall(r"^```python\n(.*?)^```$", whole(page), re.DOTALL | re.MULTILINE)
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    if "config" in names and "tune" not in names:
        names["config"].validate()


def commands() -> Iterator[tuple[str, list[str]]]:
    """The commands that the pages show, with the page's name."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
        for line in re.findall(r"^    (?:[A-Z_]+=\S+ )?(?:\.venv/bin/)?rllib (.+)$", text, re.MULTILINE):
            words = shlex.split(line, comments=True)
            yield str(page.relative_to(ROOT)), words[: words.index(">")] if ">" in words else words


def test_there_are_commands_to_check() -> None:
    assert len(list(commands())) > 30 and len({page for page, _ in commands()}) > 8


@pytest.mark.parametrize(
    ("page", "words"), list(commands()), ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_a_command_is_one_and_takes_its_options(page: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="rllib")
    rest = list(words)
    while hasattr(command, "commands") and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    if "--help" not in rest:
        assert command is not typer.main.get_command(app), words
        command.make_context("rllib", rest, parent=context)
    for word in words:
        if word.startswith(("tuned_examples/", "docs/")):
            assert (ROOT / word).exists(), f"{page} names {word}"
