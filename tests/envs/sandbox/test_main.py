from __future__ import annotations

import subprocess
import sys

import pytest

from envs.sandbox import __main__ as probe
from envs.sandbox import sandbox as module
from envs.sandbox.attacks import suite
from envs.sandbox.attacks.attack import Attack
from envs.sandbox.sandbox import Run, SandboxError, SandboxUnavailableError, Status
from tests.envs.sandbox.callers import ROOT


@pytest.mark.full
@pytest.mark.slow
def test_all_that_it_tries_is_held_here():
    result = subprocess.run([sys.executable, "-m", "envs.sandbox"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "NOT HELD" not in result.stdout and result.stdout.count("held: fills the buffers of sockets") >= 1


def test_what_is_not_held_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(script: str, *, tier: str, limits: object = None, **_: object) -> Run:
        if tier == "landlock":
            raise SandboxUnavailableError("no Landlock")
        peaks: dict[str, float] = dict.fromkeys(("memory_bytes", "processes", "cpu_s", "disk_bytes"), 0.0)
        return Run(Status.OK, 0, "", {}, 0.1, tier, peaks, {"memory_bytes": "hard"})

    monkeypatch.setattr(probe, "run_script", run)
    monkeypatch.setattr(suite, "run_script", run)
    assert probe.main([]) == 1
    said = capsys.readouterr().out
    assert "landlock: does not work here\n  no Landlock" in said and "memory_bytes hard" in said
    assert said.count("NOT HELD") == len(probe.PROBES) - 1 and "held: hands over a link to a secret" in said
    assert module.LACKS.keys() == {"bubblewrap", "landlock"}


def test_the_exit_code_is_that_of_the_attacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """An attack that succeeds is counted for what it did."""
    attack = Attack("tries", "", lambda run: run.status is Status.FAILED)
    limits = attack.limits
    peaks = {"memory_bytes": 2.0 * limits.memory_bytes, "processes": 100.0, "cpu_s": 0.0, "disk_bytes": 0.0}
    bounds = {"memory_bytes": "watched", "processes": "hard", "cpu_s": "hard", "disk_bytes": "watched"}

    def run(*_: object, **__: object) -> Run:
        return Run(Status.OK, 0, "escaped\n", {}, 30.0, "landlock", peaks, bounds)  # pyright: ignore[reportArgumentType]

    def fail(*_: object, **__: object) -> Run:
        raise SandboxError("no guard")

    monkeypatch.setattr(suite, "ATTACKS", {"tries": attack})
    monkeypatch.setattr(suite, "available_tier", lambda tier: tier)
    monkeypatch.setattr(suite, "play_as_nobody", lambda names: iter(()))
    monkeypatch.setattr(suite, "run_script", run)
    assert probe.main(["--attack", "tries"]) == 1
    said = capsys.readouterr().out
    for line in (
        "2 runs of 1 attacks",
        "2 escapes",
        "0 survivors",
        "0 SandboxErrors",
        "2 hard bounds exceeded by more than 20 %",
        "2 other things that did not hold",
        "memory_bytes by 2.0 times the limit",
    ):
        assert line in said
    assert "processes: 100 of 20" in said and "wall_s: 30.0 of 20" in said
    monkeypatch.setattr(suite, "run_script", fail)
    assert probe.main(["--attack", "tries"]) == 1
    assert "2 SandboxErrors" in capsys.readouterr().out
    assert probe.main(["--attack", "no such attack"]) == 1
