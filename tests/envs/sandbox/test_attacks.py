"""Every attack of the suite, in every tier that works here, as every user that there is."""

from __future__ import annotations

import pytest

from envs.sandbox.attacks.outcomes import chaos
from envs.sandbox.attacks.suite import ATTACKS
from tests.envs.sandbox.conftest import Sandbox

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param(a.name, marks=[pytest.mark.full] if a.slow else []) for a in ATTACKS.values()]
)
def test_an_attack_fails(sandbox: Sandbox, name: str):
    outcome = sandbox.caller.play(name, sandbox.tier)
    assert outcome.held, outcome.problems


def test_the_suite_is_large():
    assert len(ATTACKS) >= 200


@pytest.mark.full
@pytest.mark.parametrize("seed", range(12, 150))
def test_chaos_is_an_outcome(sandbox: Sandbox, seed: int):
    attack = chaos(seed)
    run = sandbox.run(attack.source({"calls": {}}), files=attack.files, limits=attack.limits)
    assert attack.holds(run) and run.seconds < 10
