"""The pages for people who change the code name what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import test_architecture

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# NAME stands for a name that the reader chooses.
PATH = re.compile(r"`((?:envs|rllib_exit|tuned_examples|benchmarks|docs|tests)/[\w/.-]*)(?:::\w+)?`")
MODULE = re.compile(r"`((?:envs|rllib_exit)(?:\.\w+)+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    for path in PATH.findall(page.read_text()):
        assert "NAME" in path or (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_exists(page: Path) -> None:
    for name in MODULE.findall(page.read_text()):
        # A module, or something in one.
        parent, _, attribute = name.rpartition(".")
        found = name in test_architecture.MODULES or attribute in test_architecture.MODULES[parent].read_text()
        assert found, f"{page.name} names {name}"


def test_the_architecture_page_shows_the_layers_that_are_tested() -> None:
    assert f"```text{test_architecture.LAYERS}```" in (ROOT / "docs" / "architecture.md").read_text()
