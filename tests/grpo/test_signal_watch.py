from __future__ import annotations

from typing import Any

import pytest

from rllib_exit.grpo.signal_watch import PATIENCE, SignalWatch


def result(silent: float, quality: float = 0.0, invalid: float = 0.0, truncated: float = 0.0) -> dict[str, Any]:
    rollouts = {"quality_mean": quality, "invalid_fraction": invalid, "truncated_fraction": truncated}
    return {"curriculum": {"zero_variance_fraction": silent}, "rollouts": rollouts}


@pytest.mark.parametrize(
    ("last", "cause", "mend"),
    [
        (result(1.0, invalid=0.9), "90% of the rollouts have a response without a valid ending", "warm_start"),
        (result(1.0, truncated=0.8), "80% of the rollouts", "max_response_tokens"),
        (result(1.0, quality=1.0), "every rollout solves its task", "harder tasks"),
        (result(0.96), "no rollout solves its task", "easier tasks"),
        (result(1.0, quality=0.4), "all alike", "temperature"),
    ],
)
def test_one_warning_names_the_cause_and_the_mend(last: dict[str, Any], cause: str, mend: str) -> None:
    watch = SignalWatch()
    warnings = [watch.look(last) for _ in range(3 * PATIENCE)]
    [warning] = filter(None, warnings)
    assert warnings[PATIENCE - 1] == warning and cause in warning and mend in warning


def test_iterations_with_a_signal_begin_the_count_anew() -> None:
    watch = SignalWatch()
    silent = [1.0] * (PATIENCE - 1) + [0.9] + [1.0] * PATIENCE
    assert [watch.look(result(s)) is not None for s in silent] == [False] * (2 * PATIENCE - 1) + [True]
