"""Whatever reads model text, tool results or data needs time in proportion to its length, also in the worst case."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envs.competition_math import restatement
from envs.competition_math.grading import MAX_ANSWER_CHARS, MAX_SEARCHED_CHARS, last_boxed
from envs.competition_math.tasks import solution_steps
from envs.countdown.expressions import _TOKEN
from envs.dataset.rewards import _FENCED, exact_match, multiple_choice
from envs.mle_bench.env import _judge
from envs.mle_bench.prompts import extract_script
from envs.reasoning_gym.worker import _FUNCTIONS
from envs.sandbox.sandbox import Run, Status
from envs.tool_use.calls import parse_native, parse_response
from rllib_exit.chat import _PLACEHOLDER, replace_surrogates
from rllib_exit.report.page import printable, with_code
from rllib_exit.report.runs import slug
from rllib_exit.report.sources import _PART

ROOT = Path(__file__).parent.parent
LENGTH = 1 << 20
# CPU seconds. What is linear takes one at most on a slow and busy machine; a quadratic search takes hours.
LIMIT_S = 30.0

# How many calls of `re` a module has that this file covers, or that see no text from outside. If you add one: bound
# it, give it a case below, and count it here.
COVERED = {
    "envs/competition_math/grading.py": 2,
    "envs/competition_math/restatement.py": 16,
    "envs/competition_math/tasks.py": 3,
    "envs/countdown/expressions.py": 1,
    "envs/dataset/rewards.py": 2,
    "envs/mle_bench/prompts.py": 1,
    "envs/reasoning_gym/worker.py": 1,
    "envs/tool_use/calls.py": 1,
    "rllib_exit/chat.py": 3,  # one of them is any of some literal texts
    "rllib_exit/cli/examples.py": 1,  # our own files
    "rllib_exit/metrics.py": 1,  # names of our metrics
    "rllib_exit/models.py": 1,  # what the user gives as a model
    "rllib_exit/report/page.py": 2,
    "rllib_exit/report/runs.py": 1,
    "rllib_exit/report/sources.py": 1,
}


def judge(output: str) -> Any:
    return _judge(Run(Status.FAILED, 1, output, {}, 1.0, "bubblewrap"))


def arithmetic(problem: str) -> Any:
    return restatement._ARITHMETIC.findall(problem), restatement.without_expressions(problem, "", "1")


def sought(response: str) -> str:
    return restatement.without_expressions("What is 1 + 1 + 1 - 12 / 5?", response, "1")


def contained(text: str) -> bool:
    return any(
        restatement._contains(text, part) for part in (text[:MAX_ANSWER_CHARS] + "x", text[:MAX_SEARCHED_CHARS] + "2")
    )


CASES: list[tuple[Callable[[str], Any], list[str]]] = [
    (parse_response, ["<tool>", "<", "<tool>[", "<TASK_", "</tool"]),
    (parse_native, ["<tool_call>", "<tool_call>{", "{", '{"name": ', "[", "</tool_call>", "<|python_tag|>"]),
    (last_boxed, [r"\boxed", r"\boxed ", r"\boxed{", r"\boxed{ ", "\\", "{"]),
    (arithmetic, ["1", "1.", "1 ", "1+", "1 + ", " "]),
    (sought, ["1", "1 ", "1+", "1 + 1 + ", " "]),
    (lambda text: list(restatement._formulas(text)), ["$", "$ ", "$$a", r"\[", r"\(", r"\[\(", r"\(\[ ", "1", "="]),
    (restatement.compact, ["\\", r"\left", r"\quad", "{", "{a", "{a}", r"\frac", " ", ".", r"\l"]),
    (lambda text: restatement._is_value(text, set()), ["1", "1,", "1.1", "a", "1/", r"\frac", r"\frac{1", "{"]),
    (contained, ["1", "1a", ".", "a", "1.", "ab"]),
    (restatement._DOLLAR.findall, ["$", r"\$", "\\"]),
    (solution_steps, [".", ". ", "\n", " ", ".\n", "! "]),
    (lambda text: _TOKEN.findall(text), ["1", " ", "1234567 ", "("]),
    (lambda text: _FENCED.search(text), ["```", "```\n", "```json", "```json \n", "\n", "` ", "``` "]),
    (lambda text: multiple_choice(text, "A"), ["A", "A'", "A ", "a"]),
    (lambda text: exact_match(text, "a"), [" ", ".", "a "]),
    (judge, ["SyntaxError:", "SyntaxError: ", "TabError:\n", "\n", "SyntaxError"]),
    (extract_script, ["`", "```", "```\n", " ", "```python\n", "``` `", " `"]),
    (_FUNCTIONS.fullmatch, ["Abs", "a", "cos", "E"]),
    (_PLACEHOLDER.findall, ["\ue0001", "\ue000", "\u2003", '\u2003\ue0001"\ue001', "\ue0001\\"]),
    (replace_surrogates, ["\ud800", "a"]),
    (with_code, ["`", "`a", "` \n", "a"]),
    (printable, ["\0", "a", "\ud800"]),
    (slug, ["-", "a", "- a", " "]),
    (_PART.fullmatch, ["-", "a", "a.", "."]),
]
WORST = [
    pytest.param(function, text, id=f"{number}-{seed!r}-{end!r}")
    for number, (function, seeds) in enumerate(CASES)
    for seed in seeds
    # After a long run comes nothing, or what lets a match that began in it fail.
    for end in ("", "\n!")
    for text in [(seed * (LENGTH // len(seed)) + end)]
]


@pytest.mark.parametrize(("function", "text"), WORST)
def test_time_is_linear(function: Callable[[str], Any], text: str) -> None:
    begin = time.process_time()
    function(text)
    assert time.process_time() - begin < LIMIT_S


def test_one_run_of_each_kind_before_another_is_linear() -> None:
    """What opens, then what fills: a search that begins at an opening must not pass over all the filling each time."""
    for opening, filling in ((r"\boxed", " "), ("```", "\n"), ("1", " "), (r"\[", "a"), ("SyntaxError:", " ")):
        text = opening * (LENGTH // 8 // len(opening)) + filling * (LENGTH // 8) + "\n!"
        begin = time.process_time()
        for function, _ in CASES:
            function(text)
        assert time.process_time() - begin < LIMIT_S


def test_no_regular_expression_is_left_out() -> None:
    calls: dict[str, int] = {}
    for package in ("envs", "rllib_exit"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                match node:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=attribute)) if attribute != "escape":
                        calls[str(file.relative_to(ROOT))] = calls.get(str(file.relative_to(ROOT)), 0) + 1
    assert calls == COVERED
