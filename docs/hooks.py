"""What MkDocs does for this site besides (`hooks` of ``mkdocs.yml``).

Diagrams are shown by drawings that were made before, notebooks become pages, and the name of a page in the text,
such as `docs/config.md`, becomes a link. Needs nothing but the standard library, but for MkDocs itself.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGE = re.compile(r"<code>docs/([\w/]+)\.(?:md|ipynb)</code>")
# Docstrings' names of objects, as in :class:`Rollout`.
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):(?=<code>)")
# What a browser would load by itself.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*\bhref=["']?(?:https?:)?//"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//"""
)


def drawing(diagram: str) -> Path:
    """The drawing of a diagram, whose name is a digest of the text: another text needs another drawing."""
    return DOCS / "diagrams" / f"{hashlib.sha256(diagram.encode()).hexdigest()[:8]}.svg"


def draw(markdown: str) -> str:
    """A page with drawings in place of diagrams; only for pages directly in this folder.

    Raises:
        FileNotFoundError: If a diagram has none.
    """

    def image(match: re.Match[str]) -> str:
        file = drawing(match[1])
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing: draw the diagram, as CONTRIBUTING.md says")
        title = re.search(r"accTitle: (.+)", match[1])
        return f"![{title[1] if title else 'Diagram'}](diagrams/{file.name})"

    return DIAGRAM.sub(image, markdown)


def notebook_page(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page of Markdown, and its pictures by the name that the page calls them."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", "")))
            if "image/png" in data:
                name = f"{notebook.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![{output['metadata']['alt']}]({name})")
            elif text:
                parts.append(f"```text\n{text.rstrip()}\n```")
    file = notebook.name
    parts.insert(1, f"This page is a notebook, [{file}]({file}): open it with Jupyter to run it.")
    return "\n\n".join(parts) + "\n", pictures


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the notebooks."""
    from mkdocs.structure.files import File

    for notebook in sorted(DOCS.glob("notebooks/*.ipynb")):
        page, pictures = notebook_page(notebook)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=page))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Shows diagrams."""
    return draw(markdown)


def on_page_content(content: str, page: Any, files: Any, **kwargs: Any) -> str:
    """Links the pages that the text names."""

    def link(match: re.Match[str]) -> str:
        file = files.get_file_from_path(f"{match[1]}.md")
        if file is None:
            raise FileNotFoundError(f"{page.file.src_path} names docs/{match[1]}.md, which is not on the site")
        return f'<a href="{file.url_relative_to(page.file)}">{html.escape(file.page.title or match[1])}</a>'

    return PAGE.sub(link, ROLE.sub("", content))


def on_post_build(config: Any) -> None:
    """Checks that pages load nothing from elsewhere.

    Raises:
        ValueError: If one does.
    """
    for file in Path(config.site_dir).rglob("*"):
        if file.suffix in (".html", ".css") and (found := LOADED.search(file.read_text())):
            raise ValueError(f"{file} loads from elsewhere: {found[0]}")
