from __future__ import annotations

from typing import Any

import pytest

from rllib_exit.cli.console import out
from rllib_exit.cli.progress import Progress


def result(iteration: int, return_mean: float, **rollouts: float) -> dict[str, Any]:
    env_runners = {"episode_return_mean": return_mean}
    return {"training_iteration": iteration, "time_this_iter_s": 30.0, "env_runners": env_runners, "rollouts": rollouts}


def test_every_iteration_is_a_line_and_the_summary_names_the_best(capsys: pytest.CaptureFixture[str]):
    with Progress(total=4) as progress:
        progress.on_trial_result(
            1,
            [],
            None,
            result(1, return_mean=0.5, tokens_per_s=12.3)
            | {"curriculum": {"buffer_size": 7, "zero_variance_fraction": 0.25}},
        )
        accuracy = {"accuracy": {"step_0": 0.25, "step_1": 0.5}}
        progress.on_trial_result(2, [], None, result(2, return_mean=0.75) | {"evaluation": accuracy})
        progress.on_trial_result(3, [], None, result(3, return_mean=0.25) | {"warning": "nothing was learned"})
    assert capsys.readouterr().out.splitlines() == [
        "iteration 1/4  return 0.500  signal 75%  buffer 7  12 tokens/s  1 min 30 s left",
        "iteration 2/4  return 0.750  evaluation 0.250 → 0.500  1 min 00 s left",
        "iteration 3/4  return 0.250  30 s left",
        "warning: nothing was learned",
    ]
    assert progress.seconds == 90
    out.print(progress.summary())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row] == [
        ["return", "0.5", "0.25", "0.75", "2"],
        ["evaluation step_0", "0.25", "0.25", "0.25", "2"],
        ["evaluation step_1", "0.5", "0.5", "0.5", "2"],
    ]


def test_without_a_known_end_no_time_is_left(capsys: pytest.CaptureFixture[str]):
    with Progress(total=None) as progress:
        progress.on_trial_result(1, [], None, result(1, return_mean=0.5))
    assert capsys.readouterr().out == "iteration 1  return 0.500\n"
