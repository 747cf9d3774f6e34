"""The result files that numbers come from, copied beside the page so that its links lead somewhere wherever it goes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pandas as pd

from rllib_exit.files import whole_lines
from rllib_exit.report.runs import Run
from rllib_exit.run_identity import PARAMS, RESULTS

# Names are made of slugs, and no part of one leads out of the report's directory.
_PART = re.compile(r"[A-Za-z0-9_-]+(?:\.[a-z]+)?")
# What Tune's results say of the machine, and the config, which every line repeats.
_NOT_COPIED = ("config", "hostname", "node_ip", "pid")


@dataclass(frozen=True, slots=True)
class Source:
    """A result file: a label, a link to its copy, and where it was read."""

    label: str
    href: str
    original: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Result files, and what to copy of them into ``data/`` under the page's directory, ``output``."""

    output: Path
    _added: dict[tuple[str, str], Source] = field(default_factory=dict)
    _contents: dict[Path, tuple[Path, Callable[[], bytes] | None]] = field(default_factory=dict)

    def copy(self) -> list[dict[str, str]]:
        """Copies the files; of each, in the order of their links, ``href``, ``original`` and ``sha256`` of a file."""
        files = []
        for source in sorted(self._added.values(), key=lambda source: source.href):
            copy = self.output / unquote(source.href)
            original, content = self._contents[copy]
            read = original.read_bytes() if original.is_file() else b""
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content() if content else read)
            sha256 = hashlib.sha256(read).hexdigest() if read else ""
            files.append({"href": source.href, "original": source.original, "sha256": sha256})
        return files

    def add(self, original: Path, name: str, label: str, content: Callable[[], bytes] | None = None) -> Source:
        """A file, or a directory of files that are too large to copy.

        Args:
            original: The file or directory.
            name: Of the copy; a number is added if another original has taken it.
            label: Of the links to it.
            content: Makes what to write, if it is not the file as it is.
        """
        key = str(original), name
        if not all(_PART.fullmatch(part) for part in name.split("/")):
            raise ValueError(f"{original} would be copied to {name!r}, which is no name for a file")
        if key not in self._added:
            stem, suffix = os.path.splitext(f"data/{name}")
            number = 1 + sum(taken == name for _, taken in self._added)
            href = f"{stem}-{number}{suffix}" if number > 1 else f"{stem}{suffix}"
            self._added[key] = Source(label, quote(href), os.path.relpath(original, self.output))
            self._contents[self.output / href] = original, content
        return self._added[key]

    def results(self, runs: Iterable[Run]) -> tuple[Source, ...]:
        """The results of some runs, of every trial."""
        files = [(run, trial / RESULTS) for run in runs for trial in run.trials]
        return tuple(
            self.add(file, f"{run.key}/results.jsonl", run.name, lambda file=file: _results(file))
            for run, file in files
            if file.is_file()
        )

    def params(self, runs: Iterable[Run]) -> tuple[Source, ...]:
        """The configs of some runs."""
        files = [(run, trial / PARAMS) for run in runs for trial in run.trials[:1]]
        return tuple(self.add(file, f"{run.key}/{PARAMS}", run.name) for run, file in files if file.is_file())

    def from_log(self, run: Run, name: str, table: pd.DataFrame) -> Source:
        """What was taken from a run's log of rollouts, as a CSV file."""
        assert run.log is not None
        directory = next(iter(run.log.files.values())).parent
        return self.add(directory, f"{run.key}/{name}.csv", run.name, lambda: to_csv(table))


def unique(sources: Iterable[Iterable[Source]]) -> tuple[Source, ...]:
    """Sources in their order, each once."""
    return tuple(dict.fromkeys(source for some in sources for source in some))


def to_csv(table: pd.DataFrame) -> bytes:
    """A table as a CSV file; of a column ``files``, tuples of sources, the links."""
    if "files" in table:
        table = table.assign(files=[" ".join(source.href for source in files) for files in table.files])
    return table.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a last one that is still being written is left out.

    Raises:
        ValueError: If another one is damaged.
    """
    lines = []
    for number, line in enumerate(whole_lines(file), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{file}: line {number} is damaged ({error})") from error
    return lines


def _results(file: Path) -> bytes:
    """Tune's results without what is not copied; lines that are damaged are left out."""
    results = []
    for line in file.read_bytes().split(b"\n")[:-1]:
        with suppress(ValueError, RecursionError):
            results.append(json.loads(line))
    lines = [{k: v for k, v in line.items() if k not in _NOT_COPIED} for line in results if isinstance(line, dict)]
    return "".join(json.dumps(line, default=str) + "\n" for line in lines).encode()
