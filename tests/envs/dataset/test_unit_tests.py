from __future__ import annotations

from typing import Any

import pytest

from envs.base import InfrastructureError
from envs.dataset import unit_tests
from envs.dataset.rewards import code_reward
from envs.dataset.unit_tests import run_tests
from envs.sandbox.sandbox import Run, SandboxError, SandboxUnavailableError, Status, available_tier

try:
    available_tier()
except SandboxUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0, 'not zero'"]
RIGHT = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("program", "quality", "feedback"),
    [
        (RIGHT, 1, "All tests pass."),
        ("def add(a, b):\n    return 3\n", 0.5, "1 of 2 tests pass. The first that fails:\n" + TESTS[1]),
        ("def add(a, b):\n    return 3\n", 0.5, "AssertionError: not zero"),
        ("def add(a, b):", 0, "IndentationError"),
        ("", 0, "NameError: name 'add' is not defined"),
        (RIGHT + "if __name__ == '__main__':\n    raise ValueError\n", 1, ""),
        ("1 / 0", 0, "ZeroDivisionError"),
        ("\ud800", 0, "0 of 2 tests pass"),
    ],
)
def test_the_quality_is_the_share_of_tests_that_pass(program: str, quality: float, feedback: str) -> None:
    got, said = run_tests(program, TESTS)
    assert got == quality and feedback in said


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "print('All tests pass.')",
        "import os; open('results', 'w').write('\\n\\n'); os._exit(0)",
        "import os; open('results', 'w').write(open('script.py').read()); os._exit(0)",
        "import builtins; builtins.exec = builtins.compile = builtins.open = builtins.type = lambda *a: ''",
        "class E(Exception):\n    def __str__(self): raise E\nraise E",
        "import traceback; traceback.format_exception_only = lambda *a: []; raise ValueError",
        "def add(*a): raise SystemExit(0)",
        "open('results', 'w').close(); import os; os.chmod('results', 0); add = None",
    ],
)
def test_a_program_does_not_pass_by_ending_or_by_writing_the_result(program: str) -> None:
    assert run_tests(program, TESTS)[0] == 0


def test_a_program_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = unit_tests.Limits(wall_s=1, memory_bytes=1 << 30, processes=16)
    monkeypatch.setattr(unit_tests, "LIMITS", limits)
    assert run_tests("while True: pass", TESTS) == (0, "The tests were stopped after 1 seconds.")


def test_the_reward_takes_a_fenced_program_and_one_text_of_tests() -> None:
    assert code_reward(f"So:\n```python\n{RIGHT}```\n", TESTS) == (1, "All tests pass.")
    assert code_reward(RIGHT, "\n".join(TESTS))[0] == 1


@pytest.mark.parametrize("tests", [[], None, [3]])
def test_a_row_without_tests_is_an_error(tests: Any) -> None:
    with pytest.raises(ValueError, match=r"tests is .*: it must be Python statements"):
        code_reward(RIGHT, tests)


def test_a_sandbox_that_breaks_down_is_no_fault_of_the_response(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Run:
        raise SandboxError("lost its guard")

    monkeypatch.setattr(unit_tests, "run_script", broken)
    with pytest.raises(InfrastructureError, match="lost its guard"):
        run_tests(RIGHT, TESTS)
    monkeypatch.setattr(unit_tests, "run_script", lambda *a, **k: Run(Status.OUT_OF_MEMORY, None, "", {}, 1.0, "x"))
    assert run_tests(RIGHT, TESTS) == (0, "The program ended before its tests did (out_of_memory).")
