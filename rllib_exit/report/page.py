"""The report's page: pieces with their numbers, figures and sources, rendered to one self-contained HTML file."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup, escape

from rllib_exit.report.figures import rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class Source:
    """A result file that numbers come from.

    Attributes:
        label: A short name, for a link.
        href: Its copy beside the page, as a link from the page.
        original: Where it was read.
        sha256: Of the original; of a directory, empty.
    """

    label: str
    href: str
    original: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: a text, and where its number comes from."""

    text: str
    sources: tuple[Source, ...] = ()
    span: int = 1

    @property
    def number(self) -> bool:
        """Whether it is set as a number."""
        return bool(re.match(r"^[−+-]?[\d.]+", self.text))


@dataclass(frozen=True, slots=True)
class HtmlTable:
    """A table: the first column holds the rows' names."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    centred: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A step of a self-iteration chain."""

    title: str
    response: str
    feedback: str = ""


@dataclass(frozen=True, slots=True)
class ShownChain:
    """A self-iteration chain, from its first response on."""

    title: str
    prompt: str
    links: Sequence[Link]
    source: Source


@dataclass(slots=True)
class Piece:
    """One table or figure.

    Attributes:
        key: Names its files.
        title: Of the piece.
        paper: What it answers to in the paper.
        caption: What is shown, and how it was computed.
        gap: Why there is nothing to show; empty if there is.
        figure: Drawn.
        table: Shown.
        chains: Shown.
        rows: Its numbers, for a CSV file; each with its columns.
        sources: The files that its numbers come from.
    """

    key: str
    title: str
    paper: str
    caption: str = ""
    gap: str = ""
    figure: Figure | None = None
    table: HtmlTable | None = None
    chains: Sequence[ShownChain] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    sources: Sequence[Source] = ()
    # What is set when it is written.
    image: str = ""
    png: str = ""
    csv: str = ""

    @property
    def own_csv(self) -> Source:
        """The CSV file of its numbers, for links."""
        return Source("CSV", f"tables/{self.key}.csv", "the numbers by run")


@dataclass(slots=True)
class Section:
    """Some pieces under a heading; ``domain`` names theirs."""

    key: str
    title: str
    pieces: list[Piece] = field(default_factory=list)
    domain: str = ""


class Sources:
    """Copies the files that numbers come from beside the page, so that its links lead somewhere wherever it goes.

    Args:
        output: The page's directory.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._by_original: dict[tuple[str, str], Source] = {}

    @property
    def all(self) -> list[Source]:
        """In the order of their links."""
        return sorted(self._by_original.values(), key=lambda source: source.href)

    def add(self, original: Path, name: str, label: str, content: Callable[[], bytes] | None = None) -> Source:
        """A file, or a directory of files too large to copy.

        Args:
            original: The file or directory.
            name: Of the copy, under ``data/``; another one if another original has taken it.
            label: Of the links to it.
            content: Makes what to write, if it is not the file as it is.
        """
        key = str(original), name
        if key not in self._by_original:
            read = original.read_bytes() if original.is_file() else b""
            href = self._free(name)
            file = self._output / "data" / href
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(read if content is None else content())
            sha256 = hashlib.sha256(read).hexdigest() if read else ""
            relative = os.path.relpath(original, self._output)
            self._by_original[key] = Source(label, quote(f"data/{href}"), relative, sha256)
        return self._by_original[key]

    def _free(self, name: str) -> str:
        taken = {source.href for source in self._by_original.values()}
        stem, suffix = os.path.splitext(name)
        number = 1
        while quote(f"data/{name}") in taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        return name


def write_page(output: Path, title: str, lead: Sequence[str], sections: Sequence[Section], **values: Any) -> Path:
    """Writes the page, a PNG file for every figure and a CSV file for every table.

    Args:
        output: The directory.
        title: Of the page.
        lead: The paragraphs before the sections.
        sections: With their pieces.
        **values: What else the template takes.

    Returns:
        The page.
    """
    from jinja2 import Environment, FileSystemLoader

    for folder in ("figures", "tables"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for section in sections:
        for piece in section.pieces:
            if piece.figure is not None:
                piece.png = f"figures/{piece.key}.png"
                (output / piece.png).write_bytes(rendered(piece.figure, "png"))
                encoded = base64.b64encode(rendered(piece.figure, "svg")).decode()
                piece.image = f"data:image/svg+xml;base64,{encoded}"
            if piece.rows:
                piece.csv = f"tables/{piece.key}.csv"
                (output / piece.csv).write_bytes(csv_bytes(piece.rows))
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    templates = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"printable": printable, "code": with_code}
    page = output / PAGE
    html = templates.get_template("report.html").render(title=title, lead=lead, sections=sections, **values)
    page.write_text(html, encoding="utf-8")
    return page


def with_code(text: str) -> Markup:
    """A text as HTML, with what stands between backticks as code."""
    parts = str(escape(text)).split("`")
    return Markup("".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)))


def csv_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as CSV; the columns of all of them, in the order of their first use."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8", "replace")


def json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as JSON, one a line."""
    return "".join(json.dumps(row, default=str) + "\n" for row in rows).encode()


def printable(text: str) -> str:
    """A text without characters that HTML does not take."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "�", text)


def shortened(text: str, limit: int = 1600) -> str:
    """A text's beginning and end, if it is long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]}\n… ({len(text) - limit} characters left out) …\n{text[-(limit // 3) :]}"
