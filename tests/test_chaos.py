"""A run whose processes are killed and stopped at random ends as one that nobody disturbed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests import chaos


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.full
def test_a_short_run_of_chaos_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code = chaos.main(seed=1, kills=6, iterations=30, directory=tmp_path)
    assert code == 0, capsys.readouterr().out


def test_faults_are_of_all_kinds_at_random_times_that_the_seed_tells():
    faults = chaos.schedule(0, 30, 150)
    assert faults == chaos.schedule(0, 30, 150) != chaos.schedule(1, 30, 150)
    times = [fault.iteration for fault in faults]
    assert len(set(times)) == 30 and times == sorted(times) and min(times) >= 1 and max(times) < 146
    kinds = Counter(fault.kind for fault in faults)
    assert kinds.keys() == chaos.KINDS.keys() and max(kinds.values()) <= 4


def test_what_differs_or_is_missing_is_named():
    one = {"policy": "1.0", "moments": "2.0", "log": "3.0"}
    assert chaos.differences(one, dict(one)) == []
    assert chaos.differences(one, {"policy": "1.0", "moments": "2.0000002"}) == ["log", "moments"]
