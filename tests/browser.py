"""Chromium for the tests that look at pages as people do, and axe. `make browser` loads it as a plugin of pytest."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver  # pyright: ignore[reportMissingImports]
from selenium.common.exceptions import (  # pyright: ignore[reportMissingImports]
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver.chrome.service import Service  # pyright: ignore[reportMissingImports]
from selenium.webdriver.common.by import By  # pyright: ignore[reportMissingImports]
from selenium.webdriver.support.ui import WebDriverWait  # pyright: ignore[reportMissingImports]

SIZES = {"phone": (390, 844), "desktop": (1440, 900)}


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    # Chromium's own sandbox does not start for root; the pages here are ours, and their text is what is tested.
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def show(browser: webdriver.Chrome, size: str = "desktop", scheme: str = "light") -> None:
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def until(browser: webdriver.Chrome, condition: Callable[[], Any]) -> Any:
    """What the condition has at last; an element that is drawn anew meanwhile is looked for again."""
    wait = WebDriverWait(browser, 10, 0.05, (NoSuchElementException, StaleElementReferenceException))
    return wait.until(lambda _: condition())


def text(browser: webdriver.Chrome, selector: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).text


def every(browser: webdriver.Chrome, selector: str) -> list[Any]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def picture(browser: webdriver.Chrome, folder: Path, name: str) -> None:
    """Leaves a picture of what is seen, for people to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(folder / f"{name}.png"))


def assert_usable(browser: webdriver.Chrome, size: str) -> None:
    """The page is no wider than the screen, axe finds nothing, and the browser had nothing to complain of."""
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= SIZES[size][0], "the page is wider than the screen"
    assert accessibility(browser) == []
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def accessibility(browser: webdriver.Chrome) -> list[tuple[str, list[str]]]:
    """What axe finds, of any weight."""
    spec = importlib.util.find_spec("axe_playwright_python")
    assert spec and spec.origin
    browser.execute_script((Path(spec.origin).parent / "axe.min.js").read_text())
    result = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    return [(of["id"], [node["html"][:200] for node in of["nodes"]]) for of in result["violations"]]
