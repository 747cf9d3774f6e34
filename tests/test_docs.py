"""The pages name what is there, and what is made from the code or from another file is as that file has it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from docs import cli_page, hooks, metrics_page, notebook_run
from tests import test_architecture

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
# NAME stands for a name that the reader chooses.
PATH = re.compile(r"`((?:envs|rllib_exit|tuned_examples|benchmarks|docs|tests)/[\w/.-]*)(?:::\w+)?`")
MODULE = re.compile(r"`((?:envs|rllib_exit)(?:\.\w+)+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_exists(page: Path) -> None:
    for path in PATH.findall(page.read_text()):
        assert "NAME" in path or (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_includes_is_there(page: Path) -> None:
    for name in re.findall(r'^--8<-- "(.+)"$', page.read_text(), re.MULTILINE):
        file, _, section = name.partition(":")
        text = (ROOT / file).read_text()
        assert not section or all(f"--8<-- [{end}:{section}]" in text for end in ("start", "end")), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_exists(page: Path) -> None:
    for name in MODULE.findall(page.read_text()):
        # A module, or something in one.
        parent, _, attribute = name.rpartition(".")
        found = name in test_architecture.MODULES or attribute in test_architecture.MODULES[parent].read_text()
        assert found, f"{page.name} names {name}"


def test_the_architecture_page_shows_the_layers_that_are_tested() -> None:
    assert f"```text{test_architecture.LAYERS}```" in (ROOT / "docs" / "architecture.md").read_text()


def test_the_site_has_every_page_once_and_no_other() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]  # above it are tags of MkDocs' own
    listed = re.findall(r"[\w/]+\.md", json.dumps(yaml.safe_load(nav)))
    pages = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert sorted(listed) == sorted([*pages, *(f"notebooks/{file.stem}.md" for file in NOTEBOOKS)])


def test_the_reference_of_commands_is_what_they_say() -> None:
    """If it fails: ``python docs/cli_page.py``."""
    assert cli_page.PAGE.read_text() == cli_page.page()


def test_the_reference_of_metrics_lists_them_all() -> None:
    """If it fails: ``python docs/metrics_page.py``."""
    text = metrics_page.page()
    assert metrics_page.PAGE.read_text() == text
    assert text.count("\n| `") == len(metrics_page.METRICS)


def test_every_diagram_has_its_drawing_and_every_drawing_its_diagram() -> None:
    """If it fails, draw it: CONTRIBUTING.md says how."""
    diagrams = [diagram for page in DOCS.rglob("*.md") for diagram in hooks.DIAGRAM.findall(page.read_text())]
    assert len(diagrams) > 1 and all("accTitle: " in diagram for diagram in diagrams)
    assert {hooks.drawing(diagram) for diagram in diagrams} == set((DOCS / "diagrams").iterdir())
    assert "mermaid" not in hooks.draw((DOCS / "architecture.md").read_text())


def test_a_diagram_without_a_drawing_ends_the_build() -> None:
    with pytest.raises(FileNotFoundError, match=r"diagrams/\w{8}\.svg is missing: draw the diagram"):
        hooks.draw("```mermaid\nflowchart TD\n    a --> b\n```\n")


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ('<script src="https://a.b/c.js">', True),
        ("<script src=//a.b/c.js>", True),
        ('<link rel="stylesheet" href="https://a.b/c.css">', True),
        ('@import url("https://a.b/c.css")', True),
        ('<img alt="x" src="http://a.b/c.png">', True),
        ('<a href="https://a.b/c">', False),
        ('<link rel="canonical" href="https://a.b/">', False),
        ('<script src="assets/a.js">', False),
    ],
)
def test_what_would_be_loaded_from_elsewhere_is_found(text: str, loads: bool) -> None:
    assert bool(hooks.LOADED.search(text)) == loads


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_run_and_print_what_they_show(notebook: Path) -> None:
    """If it fails: ``python docs/notebook_run.py``."""

    def shown(content: dict) -> list:
        outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
        return [output.get("text") or output["metadata"] for output in outputs]

    stored = json.loads(notebook.read_text())
    assert shown(notebook_run.run(notebook)) == shown(stored)
    page, pictures = hooks.notebook_page(notebook)
    assert page.startswith("# ") and f"[{notebook.name}]" in page
    assert pictures and all(f"({name})" in page for name in pictures)
