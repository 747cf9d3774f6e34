"""The report's page: pieces with their numbers, figures and sources, rendered to one self-contained HTML file."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from rllib_exit.report.figures import rendered
from rllib_exit.report.sources import Source, to_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"


class GapError(Exception):
    """A piece has nothing to show. The message says why, and what makes the piece."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One table or figure.

    Attributes:
        caption: What is shown, and how it was computed.
        rows: The numbers, for a CSV file; a column ``files`` holds tuples of sources.
        sources: The files that the numbers come from.
        figure: Drawn.
        table: Of cells, see :func:`cell`; the index holds the names of the rows, and its name is the header's first.
        texts: Whether the table has texts, not numbers; the only cell of a row then stands for all columns.
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
    texts: bool = False
    chains: Sequence[tuple[str, str, Source, Sequence[Mapping[Any, Any]]]] = ()
    key: str = ""
    title: str = ""
    paper: str = ""
    gap: str = ""

    @property
    def narrow(self) -> bool:
        """Whether half of a printed page's width is enough."""
        figure = self.figure is None or self.figure.get_figwidth() < 6.2
        return figure and (self.table is None or len(self.table.columns) < 5)

    @classmethod
    def make(cls, key: str, title: str, paper: str, content: Callable[..., Piece], *arguments: Any) -> Piece:
        """A piece with a heading and a content, or with the gap that making the content raises.

        Files from elsewhere may hold anything in place of what a piece needs: then it is a gap, and others are made.
        """
        try:
            return replace(content(*arguments), key=key, title=title, paper=paper)
        except GapError as gap:
            return cls(key=key, title=title, paper=paper, gap=str(gap))
        except Exception as error:
            gap = f"the files do not hold what this needs ({type(error).__name__}: {error})"
            return cls(key=key, title=title, paper=paper, gap=gap)


def cell(text: str, sources: Sequence[Source]) -> Markup:
    """A text of a table that is a link to its file, or is followed by links to its files."""
    if len(sources) == 1:
        link = Markup('<a class="n" href="{}" title="{}">{}</a>')
        return link.format(sources[0].href, sources[0].original, text)
    link = Markup('<a href="{0.href}" title="{0.label}: {0.original}">{1}</a>')
    links = Markup(" ").join(link.format(source, number) for number, source in enumerate(sources, 1))
    return Markup('{} <span class="from">{}</span>').format(text, links)


def cells(rows: pd.DataFrame, columns: Mapping[str, tuple[str, ...]], *, index: str, name: str) -> pd.DataFrame:
    """A table of some rows that have a column ``files``.

    Args:
        rows: The rows.
        columns: By header, the column of the numbers, their format and, if there is one, that of their errors.
        index: The column of the rows' names.
        name: Its header.
    """

    def number(row: Mapping[Any, Any], column: str, spec: str, error: str = "") -> Markup:
        text = "—" if math.isnan(row[column]) else f"{row[column]:{spec}}".replace("-", "−")
        text += f" ± {row[error]:{spec.lstrip('+')}}" if error and not math.isnan(row[error]) else ""
        return cell(text, row["files"])

    table = {header: [number(row, *of) for row in rows.to_dict("records")] for header, of in columns.items()}
    # As objects: pandas would make plain strings of the HTML.
    return pd.DataFrame(table, pd.Index(rows[index], name=name), dtype=object)


def write_page(output: Path, sections: Sequence[Mapping[str, Any]], **values: Any) -> Path:
    """Writes the page, a PNG file for every figure and a CSV file for the numbers of every piece.

    A section has ``key``, ``title`` and ``pieces``; the template also takes the values.
    """
    for folder in ("figures", "tables"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for piece in (piece for section in sections for piece in section["pieces"] if not piece.gap):
        (output / "tables" / f"{piece.key}.csv").write_bytes(to_csv(piece.rows))
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
    return Markup(re.sub("`(.*?)`", r"<code>\1</code>", str(escape(text))))


def printable(text: str) -> str:
    """A text without characters that HTML does not take."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "�", text)


def shortened(text: str, limit: int = 1600) -> str:
    """A text's beginning and end, if it is long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]}\n… ({len(text) - limit} characters left out) …\n{text[-(limit // 3) :]}"
