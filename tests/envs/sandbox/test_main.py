from __future__ import annotations

import subprocess
import sys

import pytest

from envs.sandbox import __main__ as probe
from envs.sandbox import sandbox as module
from envs.sandbox.sandbox import Run, SandboxUnavailableError, Status
from tests.envs.sandbox.callers import ROOT


@pytest.mark.full
@pytest.mark.slow
def test_all_that_it_tries_is_held_here():
    result = subprocess.run([sys.executable, "-m", "envs.sandbox"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "NOT HELD" not in result.stdout and result.stdout.count("held: buffers of sockets") >= 1


def test_what_is_not_held_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(script: str, *, tier: str, limits: object = None) -> Run:
        if tier == "landlock":
            raise SandboxUnavailableError("no Landlock")
        return Run(Status.OK, 0, "", {}, 0.1, tier, bounds={"memory_bytes": "hard"})

    monkeypatch.setattr(probe, "run_script", run)
    assert probe.main() == 1
    said = capsys.readouterr().out
    assert "landlock: does not work here\n  no Landlock" in said and "memory_bytes hard" in said
    assert said.count("NOT HELD") == len(probe.ATTEMPTS) - 1 and "held: an ordinary script" in said
    assert module.LACKS.keys() == {"bubblewrap", "landlock"}
