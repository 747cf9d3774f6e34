"""The report in a real browser: what a person sees on a phone, on a desk and on paper. `make browser` runs it."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from selenium import webdriver  # pyright: ignore[reportMissingImports]
from selenium.webdriver.common.by import By  # pyright: ignore[reportMissingImports]

from rllib_exit.curriculum.exit import STRATEGIES
from rllib_exit.report import page, report
from rllib_exit.report.figures import rendered
from tests.browser import SIZES, assert_usable, every, picture, show, text
from tests.report.runs_on_disk import evaluate, search, train
from tests.report.test_report import FirstTwo, Hashed


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of all strategies, three seeds each, and of a search."""
    root = tmp_path_factory.mktemp("runs")
    for strategy in STRATEGIES:
        for seed in range(3):
            evaluate(train(root / "runs" / f"{strategy}-seed{seed}", strategy, seed, iterations=20), splits=["add1"])
    search(root / "runs" / "search", "one")
    embedder: Any = Hashed()
    umap: Any = SimpleNamespace(UMAP=FirstTwo)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", umap)
        patch.setattr(page, "rendered", rendered)
        return report.write_report([root / "runs"], root / "report", embedder=embedder)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_report_is_usable(
    browser: webdriver.Chrome, written: Path, size: str, scheme: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    show(browser, size, scheme)
    browser.get(written.as_uri())
    for place in ("top", "results", "arithmetic", "arithmetic-curriculum", "arithmetic-chains", "files"):
        if place != "top":
            browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", place)
        picture(browser, tmp_path_factory.getbasetemp() / "pictures", f"report-{place}-{size}-{scheme}")
    assert_usable(browser, size)


def test_the_conclusion_is_what_is_seen_first(browser: webdriver.Chrome, written: Path) -> None:
    show(browser, "phone")
    browser.get(written.as_uri())
    sentences = every(browser, ".conclusion")
    assert len(sentences) == 3 and all(any(c.isdigit() for c in sentence.text) for sentence in sentences)
    assert sentences[-1].rect["y"] + sentences[-1].rect["height"] < SIZES["phone"][1]


def test_the_list_of_files_opens(browser: webdriver.Chrome, written: Path) -> None:
    show(browser)
    browser.get(written.as_uri())
    assert not browser.find_element(By.CSS_SELECTOR, ".files-list").is_displayed()
    browser.find_element(By.CSS_SELECTOR, "summary").click()
    assert "evaluation.json" in text(browser, ".files-list")


def test_a_report_of_fifteen_runs_prints_on_few_pages(browser: webdriver.Chrome, written: Path) -> None:
    browser.get(written.as_uri())
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": False})
    file = written.parent / "report.pdf"
    file.write_bytes(base64.b64decode(printed["data"]))
    assert 1 < file.read_bytes().count(b"/Type /Page\n") <= 8
