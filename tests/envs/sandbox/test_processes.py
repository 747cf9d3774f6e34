from __future__ import annotations

import os
import signal

import pytest

from envs.sandbox import processes


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError])
def test_a_process_that_ends_while_it_is_looked_at_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError]
):
    child = os.fork()
    if child == 0:
        os.execlp("sleep", "sleep", "60")
    listdir = os.listdir

    def ended(path: str) -> list[str]:
        if path == f"/proc/{child}/task":
            raise error(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", ended)
    try:
        assert child in processes.descendants()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
