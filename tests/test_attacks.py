"""Attacks on graders, tools, chats, checkpoints and report. Those on the sandbox are in ``envs/sandbox``."""

from __future__ import annotations

from collections import Counter

import pytest

from envs.sandbox.attacks.suite import ATTACKS
from tests import attacks


@pytest.mark.slow
@pytest.mark.parametrize("attack", list(attacks.attacks()), ids=lambda attack: f"{attack.target}: {attack.name}")
def test_an_attack_fails(attack: attacks.Attack):
    outcome = attacks.outcome(attack)
    assert outcome.held, outcome.problems


def test_the_suite_is_large():
    counts = Counter(attack.target for attack in attacks.attacks())
    assert counts.total() + len(ATTACKS) >= 300 and min(counts.values()) >= 6


def test_an_attack_that_succeeds_is_counted():
    def fail() -> str:
        raise ZeroDivisionError

    won = attacks.outcome(attacks.Attack("grader", "wins", lambda: "right", ("wrong",)))
    broken = attacks.outcome(attacks.Attack("grader", "breaks it", fail, ("wrong",)))
    assert won.failures == ["right, not wrong"] and broken.errors == ["ZeroDivisionError: "] and not broken.held
