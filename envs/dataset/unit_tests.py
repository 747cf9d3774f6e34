"""Runs unit tests on a program in the sandbox.

Program and tests share a process. So what is not kept out is a program that is made for these tests: one whose objects
claim to equal everything, or which searches the interpreter's frames. What ends the process, prints "passed" or writes
the result itself gains nothing: a result counts only with a key that is drawn for each run.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from envs.base import InfrastructureError
from envs.sandbox.job import Limits, default_slots
from envs.sandbox.sandbox import Run, SandboxError, SandboxUnavailableError, Status, run_script

LIMITS = Limits(wall_s=10, memory_bytes=1 << 30, processes=16, file_bytes=16 << 20, disk_bytes=64 << 20)
_RESULT = "results"
_SHOWN_CHARS = 1000  # of a test, and of its error

_SCRIPT = """
import os

def run(key, program, tests, compile=compile, exec=exec, open=open, type=type):  # what the program may replace
    os.remove(__file__)  # it has the key

    def error_of(source, name):
        try:
            exec(compile(source, name, "exec"), module)
            return ""
        except BaseException as error:  # SystemExit too
            name = type(error).__name__
            try:
                return f"{{name}}: {{error}}"
            except BaseException:
                return name

    module = {{"__name__": "program"}}
    error = error_of(program, "program.py")
    lines = [key] + [(error or error_of(test, "test.py")).encode("unicode_escape") for test in tests]
    with open({result!r}, "wb") as file:
        file.write(b"\\n".join(lines))

run(*{arguments!r})
"""


def run_tests(program: str, tests: Sequence[str]) -> tuple[float, str]:
    """Runs a program, then each test in its namespace.

    Args:
        program: Python source. Its ``__name__`` is not ``"__main__"``.
        tests: Python source each. A test fails if it raises.

    Returns:
        The share of the tests that pass, and the first failure in words.

    Raises:
        ValueError: If there is no test, or one is no text.
        InfrastructureError: If the sandbox broke down.
        SandboxUnavailableError: If no sandbox works on this machine.
    """
    if not tests or not all(isinstance(test, str) for test in tests):
        raise ValueError(f"tests is {tests!r}: it must be Python statements, as a text or as a list of texts")
    key = secrets.token_hex(16).encode()
    script = _SCRIPT.format(arguments=(key, program, list(tests)), result=_RESULT)
    try:
        run = run_script(script, files=[_RESULT], limits=LIMITS, slots=default_slots(LIMITS.threads))
    except SandboxUnavailableError:
        raise  # no program will ever run here
    except SandboxError as error:
        raise InfrastructureError(str(error)) from error
    errors = _errors(run, key, len(tests))
    if errors is None:
        if run.status is Status.TIMED_OUT:
            return 0.0, f"The tests were stopped after {LIMITS.wall_s:g} seconds."
        return 0.0, f"The program ended before its tests did ({run.status.value})."
    failures = [(test, error) for test, error in zip(tests, errors, strict=True) if error]
    if not failures:
        return 1.0, "All tests pass."
    test, error = failures[0]
    passed = len(tests) - len(failures)
    first = f"{test.strip()[:_SHOWN_CHARS]}\n{error[-_SHOWN_CHARS:]}"
    return passed / len(tests), f"{passed} of {len(tests)} tests pass. The first that fails:\n{first}"


def _errors(run: Run, key: bytes, number: int) -> list[str] | None:
    """What each test raised, empty where it passed; None if the run did not come to its end."""
    found, *errors = run.files.get(_RESULT, b"").split(b"\n")
    if found != key or len(errors) != number:
        return None
    return [error.decode("unicode_escape", errors="replace") for error in errors]
