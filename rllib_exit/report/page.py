"""The report's page: pieces with their numbers, figures and sources, rendered to one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from rllib_exit.report.figures import rendered
from rllib_exit.report.results import read_lines
from rllib_exit.report.runs import Run
from rllib_exit.run_identity import PARAMS, RESULTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
# What Tune's results say of the machine, and the config, which every line repeats.
_NOT_COPIED = ("config", "hostname", "node_ip", "pid")


class GapError(Exception):
    """A piece has nothing to show. The message says why, and what makes the piece."""


@dataclass(frozen=True, slots=True)
class Source:
    """A result file that numbers come from: a label and a link, where it was read, and its SHA-256 if it is a file."""

    label: str
    href: str
    original: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A text or number of a table, with the files that it comes from; ``format`` says how a number is written."""

    value: float | str
    sources: tuple[Source, ...] = ()
    format: str = "{}"
    standard_error: float = math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One table or figure.

    Attributes:
        caption: What is shown, and how it was computed.
        rows: The numbers, for a CSV file; a column ``files`` holds tuples of sources.
        sources: The files that the numbers come from.
        figure: Drawn.
        table: Of :class:`Cell`, or NaN; the index holds the names of the rows, and its name is the header's first.
        centred: Whether the table is; cells that are the same for a whole row are one then.
        chains: Self-iteration chains, each as title, prompt, source and steps.
        key: Names its files.
        title: Of the piece.
        paper: What it answers to in the paper.
        gap: Why there is nothing to show; empty if there is.
    """

    caption: str = ""
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    sources: Sequence[Source] = ()
    figure: Figure | None = None
    table: pd.DataFrame | None = None
    centred: bool = False
    chains: Sequence[tuple[str, str, Source, Sequence[Mapping[Any, Any]]]] = ()
    key: str = ""
    title: str = ""
    paper: str = ""
    gap: str = ""

    @classmethod
    def make(cls, key: str, title: str, paper: str, content: Callable[..., Piece], *arguments: Any) -> Piece:
        """A piece with a heading and a content, or with the gap that making the content raises."""
        try:
            return replace(content(*arguments), key=key, title=title, paper=paper)
        except GapError as gap:
            return cls(key=key, title=title, paper=paper, gap=str(gap))


def cells(rows: pd.DataFrame, columns: Mapping[str, tuple[str, ...]], *, index: str, name: str) -> pd.DataFrame:
    """A table of some rows that have a column ``files``.

    Args:
        rows: The rows.
        columns: By header, the column of the numbers, their format and, if there is one, that of their errors.
        index: The column of the rows' names.
        name: Its header.
    """
    table = {}
    for header, (column, number, *error) in columns.items():
        errors = rows[error[0]] if error else len(rows) * [math.nan]
        values = zip(rows[column], rows.files, errors, strict=True)
        table[header] = [Cell(value, files, number, standard_error) for value, files, standard_error in values]
    return pd.DataFrame(table, pd.Index(rows[index], name=name))


@dataclass(frozen=True, slots=True)
class Sources:
    """Copies the files that numbers come from beside the page, so that its links lead somewhere wherever it goes.

    Attributes:
        output: The page's directory.
    """

    output: Path
    _added: dict[tuple[str, str], Source] = field(default_factory=dict)

    @property
    def all(self) -> list[Source]:
        """In the order of their links."""
        return sorted(self._added.values(), key=lambda source: source.href)

    def add(self, original: Path, name: str, label: str, content: Callable[[], bytes] | None = None) -> Source:
        """A file, or a directory of files that are too large to copy.

        Args:
            original: The file or directory.
            name: Of the copy, under ``data/``; another one if another original has taken it.
            label: Of the links to it.
            content: Makes what to write, if it is not the file as it is.
        """
        key = str(original), name
        if key not in self._added:
            stem, suffix = os.path.splitext(f"data/{name}")
            taken = [source.href for source in self._added.values()]
            numbered = (f"{stem}{'' if number == 1 else f'-{number}'}{suffix}" for number in itertools.count(1))
            href = next(name for name in numbered if quote(name) not in taken)
            read = original.read_bytes() if original.is_file() else b""
            (self.output / href).parent.mkdir(parents=True, exist_ok=True)
            (self.output / href).write_bytes(content() if content else read)
            sha256 = hashlib.sha256(read).hexdigest() if read else ""
            self._added[key] = Source(label, quote(href), os.path.relpath(original, self.output), sha256)
        return self._added[key]

    def results(self, runs: Iterable[Run]) -> tuple[Source, ...]:
        """The results of some runs, of every trial."""
        return tuple(
            self.add(file, f"{run.key}/results.jsonl", run.name, lambda file=file: _results(file))
            for run in runs
            for trial in run.trials
            if (file := trial / RESULTS).is_file()
        )

    def params(self, runs: Iterable[Run]) -> tuple[Source, ...]:
        """The configs of some runs."""
        files = [(run, trial / PARAMS) for run in runs for trial in run.trials[:1]]
        return tuple(self.add(file, f"{run.key}/{PARAMS}", run.name) for run, file in files if file.is_file())

    def from_log(self, run: Run, name: str, table: pd.DataFrame) -> Source:
        """What was taken from a run's log of rollouts, as a CSV file."""
        assert run.log is not None
        directory = next(iter(run.log.files.values())).parent
        return self.add(directory, f"{run.key}/{name}.csv", run.name, lambda: _csv(table))


def write_page(output: Path, sections: Sequence[Mapping[str, Any]], **values: Any) -> Path:
    """Writes the page, a PNG file for every figure and a CSV file for the numbers of every piece.

    Args:
        output: The directory.
        sections: By ``key``, ``title``, ``domain`` and ``pieces``.
        **values: What else the template takes.

    Returns:
        The page.
    """
    for folder in ("figures", "tables"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for piece in (piece for section in sections for piece in section["pieces"] if not piece.gap):
        (output / "tables" / f"{piece.key}.csv").write_bytes(_csv(piece.rows))
        if piece.figure is not None:
            (output / "figures" / f"{piece.key}.png").write_bytes(rendered(piece.figure, "png"))
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {"printable": printable, "code": with_code, "shortened": shortened, "svg": _svg}
    page = output / PAGE
    html = templates.get_template("report.html").render(sections=sections, **values)
    page.write_text(html, encoding="utf-8")
    return page


def _svg(figure: Figure) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(rendered(figure, 'svg')).decode()}"


def with_code(text: str) -> Markup:
    """A text as HTML, with what stands between backticks as code."""
    parts = str(escape(text)).split("`")
    return Markup("".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)))


def printable(text: str) -> str:
    """A text without characters that HTML does not take."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "�", text)


def shortened(text: str, limit: int = 1600) -> str:
    """A text's beginning and end, if it is long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]}\n… ({len(text) - limit} characters left out) …\n{text[-(limit // 3) :]}"


def unique(sources: Iterable[Iterable[Source]]) -> tuple[Source, ...]:
    """Sources in their order, each once."""
    return tuple(dict.fromkeys(source for some in sources for source in some))


def _csv(table: pd.DataFrame) -> bytes:
    if "files" in table:
        table = table.assign(files=[" ".join(source.href for source in files) for files in table.files])
    return table.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace")


def _results(file: Path) -> bytes:
    """Tune's results without what is not copied."""
    lines = [{name: value for name, value in line.items() if name not in _NOT_COPIED} for line in read_lines(file)]
    return "".join(json.dumps(line, default=str) + "\n" for line in lines).encode()
