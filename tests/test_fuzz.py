"""Odd inputs to everything that reads texts and files from elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import fuzz


@pytest.mark.slow
@pytest.mark.parametrize("target", fuzz.TARGETS, ids=lambda target: target.__name__)
@pytest.mark.parametrize("inputs", [100, pytest.param(10_000, marks=pytest.mark.full)])
def test_no_input_crashes_or_takes_long(target: Callable[[fuzz.Random], None], inputs: int):
    found = fuzz.play(target, max(1, round(fuzz.TARGETS[target] * inputs)))
    assert not found.crashes and not found.slow, found


def test_a_crash_is_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def target(rng: fuzz.Random) -> None:
        if rng.random() < 0.5:
            raise ZeroDivisionError("odd input")

    assert sum(fuzz.TARGETS.values()) == pytest.approx(1)
    monkeypatch.setattr(fuzz, "TARGETS", {target: 1.0})
    assert fuzz.main(20) == 1
    assert "ZeroDivisionError: odd input" in capsys.readouterr().out
