"""The viewer in a real browser: what a person sees and does; that hostile text stays text. `make browser` runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver  # pyright: ignore[reportMissingImports]
from selenium.webdriver.common.by import By  # pyright: ignore[reportMissingImports]
from selenium.webdriver.support.expected_conditions import staleness_of  # pyright: ignore[reportMissingImports]

from rllib_exit.view.queries import RunView
from rllib_exit.view.server import make_server
from tests.browser import SIZES, assert_usable, every, picture, show, text, until
from tests.view.logs import numbered, write_run
from tests.view.test_server import HOSTILE, hostile

TASKS = {"sums/3+4": "What is 3 + 4?", "sums/5+9": "What is 5 + 9?"}


def serve(directory: Path) -> Iterator[str]:
    server, address = make_server(RunView(directory))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield address
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    write_run(directory / "rollouts", TASKS, numbered(), iterations=12)
    return directory


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    yield from serve(run)


@pytest.fixture(scope="module")
def hostile_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("hostile")
    write_run(directory / "rollouts", {text: text for text in HOSTILE.values()}, hostile)
    yield from serve(directory)


def open_page(browser: webdriver.Chrome, address: str, query: str = "") -> None:
    browser.get("about:blank")
    browser.get(address.replace("/#", f"/{query}#"))
    until(browser, lambda: "rollouts of" in text(browser, "#status"))


def open_group(browser: webdriver.Chrome) -> None:
    """The newest group that improves on an answer."""
    for summary in every(browser, "#more:not([open]) summary"):
        summary.click()
    # By the keyboard: where WebDriver's Select chooses, the page gets no event "input", as it does from people.
    browser.find_element(By.NAME, "kind").send_keys("improve")
    until(browser, lambda: "kind=improve" in browser.current_url)
    until(browser, lambda: "rollouts" in (count := text(browser, "#count")) and "of 192" not in count)
    until(browser, lambda: browser.find_element(By.CSS_SELECTOR, "#list td a").click() is None)
    until(browser, lambda: len(every(browser, "#group article")) == 4)


def paint(browser: webdriver.Chrome, name: str) -> None:
    before = browser.find_element(By.CSS_SELECTOR, "#group fieldset")
    browser.find_element(By.CSS_SELECTOR, f"#group input[value={name}]").click()
    # The group is drawn anew when the tokens have come.
    until(browser, lambda: staleness_of(before)(browser) and every(browser, "#group .tokens span"))
    assert f"paint={name}" in browser.current_url


VIEWS: dict[str, Callable[[webdriver.Chrome], None]] = {
    "rollouts": lambda browser: until(browser, lambda: every(browser, "#list tbody tr")),
    "group": open_group,
    "advantage": lambda browser: (open_group(browser), paint(browser, "advantage"))[0],
    "difference": lambda browser: (open_group(browser), paint(browser, "difference"))[0],
    "mask": lambda browser: (open_group(browser), paint(browser, "mask"))[0],
    "task": lambda browser: open_task(browser),
    "buffer": lambda browser: open_buffer(browser),
}


def open_task(browser: webdriver.Chrome) -> None:
    open_group(browser)
    browser.find_element(By.CSS_SELECTOR, "#group p a").click()
    until(browser, lambda: every(browser, "#task .tree li"))


def open_buffer(browser: webdriver.Chrome) -> None:
    browser.find_element(By.CSS_SELECTOR, "header a[data-view=buffer]").click()
    until(browser, lambda: every(browser, "#buffer svg path"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_usable(
    browser: webdriver.Chrome, address: str, view: str, size: str, scheme: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    show(browser, size, scheme)
    open_page(browser, address)
    VIEWS[view](browser)
    picture(browser, tmp_path_factory.getbasetemp() / "pictures", f"{view}-{size}-{scheme}")
    assert_usable(browser, size)


def test_the_list_is_filtered_sorted_and_paged(browser: webdriver.Chrome, address: str) -> None:
    show(browser)
    open_page(browser, address)
    until(browser, lambda: text(browser, "#count") == "1 to 50 of 192 rollouts")
    browser.find_element(By.ID, "next").click()
    until(browser, lambda: text(browser, "#count") == "51 to 100 of 192 rollouts")
    browser.back()
    until(browser, lambda: text(browser, "#count") == "1 to 50 of 192 rollouts")
    browser.find_element(By.XPATH, "//th/button[starts-with(., 'quality')]").click()
    until(browser, lambda: [cell.text for cell in every(browser, "#list td:nth-child(7)")][:3] == ["1", "1", "1"])
    browser.find_element(By.NAME, "max_quality").send_keys("0.5")
    until(browser, lambda: text(browser, "#list td:nth-child(7)") == "0.5")
    browser.find_element(By.NAME, "text").send_keys("ANSWER 18 OF")
    until(browser, lambda: 0 < len(every(browser, "#list tbody tr")) < 10)
    assert "max_quality=0.5" in browser.current_url and "text=ANSWER+18+OF" in browser.current_url
    browser.find_element(By.ID, "clear").click()
    until(browser, lambda: "of 192" in text(browser, "#count"))


def test_a_group_stands_side_by_side_with_prompt_and_gold_answer(browser: webdriver.Chrome, address: str) -> None:
    show(browser)
    open_page(browser, address)
    open_group(browser)
    assert "What is" in text(browser, "#group") and "gold of What is" in text(browser, "#group")
    tops = {article.rect["y"] for article in every(browser, "#group article")}
    assert len(tops) == 1 and "Iterate to improve" in text(browser, "#group")


def test_tokens_are_coloured_and_tell_what_they_are(browser: webdriver.Chrome, address: str) -> None:
    show(browser)
    open_page(browser, address)
    open_group(browser)
    paint(browser, "mask")
    assert every(browser, ".tokens .mask") and every(browser, ".tokens .context")
    paint(browser, "difference")
    # The first rollout's learner finds every token less likely, the third's more likely; the last was not trained on.
    colours = [
        {span.get_attribute("class") for span in article.find_elements(By.CSS_SELECTOR, ".tokens span:not(.context)")}
        for article in every(browser, "#group article")
    ]
    assert colours[0] == {"low"} and colours[2] == {"high"}
    every(browser, ".tokens .low")[0].click()
    said = text(browser, "#token")
    assert "log-probability: engine -" in said and "difference -0.01" in said


def test_the_lineage_leads_from_the_base_answer_on(browser: webdriver.Chrome, address: str) -> None:
    show(browser)
    open_page(browser, address)
    open_task(browser)
    assert every(browser, "#task .tree > li > ul > li > ul > li")
    assert text(browser, "#task .tree > li > p").startswith("base")
    assert "improve" in text(browser, "#task .tree > li > ul > li") or "diverge" in text(
        browser, "#task .tree > li > ul > li"
    )
    every(browser, "#task .tree > li > ul > li a")[0].click()
    until(browser, lambda: len(every(browser, "#group article")) == 4)


def test_the_buffer_can_be_looked_at_after_every_iteration(browser: webdriver.Chrome, address: str) -> None:
    show(browser)
    open_page(browser, address)
    open_buffer(browser)
    assert "After iteration 12" in text(browser, "#buffer")
    script = "const r = arguments[0]; r.value = 2; r.dispatchEvent(new Event('change'))"
    browser.execute_script(script, browser.find_element(By.CSS_SELECTOR, "#buffer input"))
    until(browser, lambda: "After iteration 3" in text(browser, "#buffer"))


def test_new_iterations_appear_by_themselves(browser: webdriver.Chrome, tmp_path: Path) -> None:
    write_run(tmp_path / "rollouts", TASKS, numbered(), iterations=1)
    for address in serve(tmp_path):
        show(browser)
        open_page(browser, address)
        until(browser, lambda: "of 16 rollouts" in text(browser, "#count"))
        write_run(tmp_path / "rollouts", TASKS, numbered(), iterations=1, first=2)
        until(browser, lambda: "of 32 rollouts" in text(browser, "#count"))
        assert "iterations 1 to 2" in text(browser, "#status")


def test_hostile_text_is_shown_and_does_nothing(browser: webdriver.Chrome, hostile_address: str) -> None:
    show(browser)
    open_page(browser, hostile_address)
    for view in VIEWS.values():
        open_page(browser, hostile_address)
        view(browser)
        source = browser.execute_script("return document.body.innerText")
        assert "\x1b" not in source and "\u202e" not in source
        inside = browser.execute_script("return document.querySelectorAll('main script, main img, main iframe').length")
        assert browser.title != "owned" and inside == 0
        assert browser.execute_script("return ({}).owned") is None
    shown = browser.execute_script("return document.body.innerText")
    assert HOSTILE["markup"] in shown and "\\u001b" in shown and "\\u202e" in shown


def test_another_site_and_a_page_without_the_token_get_nothing(browser: webdriver.Chrome, address: str) -> None:
    browser.get(address.partition("#")[0])
    until(browser, lambda: "token is missing" in text(browser, "#error"))
    browser.get("about:blank")
    script = "const done = arguments[1]; fetch(arguments[0]).then(() => done('read'), () => done('refused'))"
    assert browser.execute_async_script(script, address.replace("/#", "/api/summary#")) == "refused"
    browser.get_log("browser")  # both are said there
