"""``rllib examples``: lists the files for ``rllib train file`` that come with the package, and copies one."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Annotated

import typer

import rllib_exit
from rllib_exit.cli.console import clear_errors, say

EXAMPLES = Path(rllib_exit.__file__).parents[1] / "tuned_examples"


def examples(context: typer.Context) -> None:
    """Lists the examples; `rllib examples copy NAME` copies one to change it."""
    if context.invoked_subcommand is None:
        names = _names()
        for name in names:
            doc = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text())) or ""
            say(f"{name:{max(map(len, names))}}  {doc.splitlines()[0].partition(': ``rllib')[0].rstrip('.')}")


def copy(
    name: Annotated[str, typer.Argument(help="An example, as `rllib examples` lists it.")],
    directory: Annotated[Path, typer.Argument(help="Where to; it is made if need be.")] = Path("."),
) -> None:
    """Copies an example with the files that it needs."""
    with clear_errors(verbose=False):
        name = name.removesuffix(".py")
        if name not in _names():
            raise ValueError(f"there is no example {name!r}: use one of {', '.join(_names())}")
        files = _needed(name)
        for file in files:
            if (directory / file).exists():
                raise FileExistsError(f"{directory / file} exists: remove it, or name another directory")
        for file in files:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(EXAMPLES / file, directory / file)
            say(f"{directory / file}")
        say(f"train it: rllib train file {directory / name}.py")


def _names() -> list[str]:
    """The files that have a config of their own."""
    files = sorted(EXAMPLES.glob("*.py"))
    return [file.stem for file in files if re.search(r"^config\b", file.read_text(), re.MULTILINE)]


def _needed(name: str) -> list[Path]:
    """The example's file, the examples that it imports, and the data that one of these names."""
    sources: dict[str, str] = {}
    names = [name]
    while names:
        name = names.pop()
        source = sources[name] = (EXAMPLES / f"{name}.py").read_text()
        imported = [node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        names += [other for other in imported if other not in sources and (EXAMPLES / f"{other}.py").is_file()]
    text = "\n".join(sources.values())
    data = [file for file in sorted((EXAMPLES / "data").iterdir()) if f'"{file.name}"' in text]
    return [*(Path(f"{source}.py") for source in sources), *(file.relative_to(EXAMPLES) for file in data)]
