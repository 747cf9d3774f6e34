from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.mle_bench.prompts import GOALS, MAX_FILES, START_SCRIPT, extract_script, prompt, tail


@pytest.mark.parametrize(
    ("response", "script"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Here:\n\n```\nx = 1\n\n\ny = 2\n```\nDone.", "x = 1\n\n\ny = 2\n"),
        ("```python\nx = 1\n```\nor better\n```py\nx = 2\n```", "x = 2\n"),
        ("  ```python\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
        # A block left open in the reasoning does not swallow the answer.
        ("<think>```python\ndraft = 1\nno, wait</think>\n```python\nx = 1\n```", "x = 1\n"),
        ("<think>\n```python\ndraft = 1\n</think>\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\ns = '``` not a fence'\n```", "s = '``` not a fence'\n"),
        ("```python\nx = 1\n```\n```python\nx = 2", "x = 1\n"),
        ("x = 1", None),
        ("", None),
        ("```python\nx = 1", None),
        ("```python\n  \n```", None),
        ("```python```", None),
    ],
)
def test_the_script_is_the_last_closed_block(response: str, script: str | None):
    assert extract_script(response) == script


@given(st.lists(st.text(st.characters(blacklist_characters="`\n"))).filter(lambda lines: "".join(lines).strip()))
def test_what_is_fenced_comes_out(lines: list[str]):
    script = "".join(f"{line}\n" for line in lines)
    assert extract_script(f"Text.\n```python\n{script}```\nMore.") == script


@given(st.text("`\np ~", max_size=200))
def test_any_response_is_read(response: str):
    script = extract_script(response)
    assert script is None or script.strip()


def test_long_responses_are_read_fast():
    start = time.perf_counter()
    assert extract_script("```python\n" * 100_000 + "`" * 100_000) is None
    assert time.perf_counter() - start < 20


def test_the_prompt_has_goal_task_files_script_and_feedback():
    text = prompt(
        "debug",
        description="# Task\n{x}",
        files=["data/a.csv", "data/b.csv"],
        timeout_s=300.0,
        script="x = 1",
        feedback="No.",
    )
    parts = [
        GOALS["debug"],
        "# Task\n{x}",
        "`data/a.csv` and `data/b.csv`",
        "300 seconds",
        "```python\nx = 1\n```\n\nNo.",
    ]
    positions = [text.index(part) for part in parts]
    assert positions == sorted(positions)
    assert extract_script(text) == "x = 1\n"


def test_of_many_files_the_prompt_names_some():
    text = prompt("base", description="", files=[f"f{i}" for i in range(100)], timeout_s=1, script=START_SCRIPT)
    assert f"`f{MAX_FILES - 1}` and 80 more" in text and f"`f{MAX_FILES}`" not in text
    assert "holds `only.csv`." in prompt("base", description="", files=["only.csv"], timeout_s=1, script="")


def test_tail():
    assert tail("  short\n", 10) == "short"
    assert tail("a" * 10 + "b" * 10, 10) == "…" + "b" * 10
