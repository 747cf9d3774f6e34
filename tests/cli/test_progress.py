from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from rllib_exit.cli import progress as module
from rllib_exit.cli.console import out
from rllib_exit.cli.progress import Progress, sparkline


def result(iteration: int, return_mean: float, **more: Any) -> dict[str, Any]:
    env_runners = {"episode_return_mean": return_mean}
    return {"training_iteration": iteration, "time_this_iter_s": 30.0, "env_runners": env_runners, **more}


def evaluated(*accuracies: float) -> dict[str, Any]:
    by_step = {f"step_{k}": accuracy for k, accuracy in enumerate(accuracies)}
    return {"evaluation": {"accuracy": by_step, "improvement": accuracies[-1] - accuracies[0]}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def report(progress: Progress, clock: Clock, seconds: float, result: dict[str, Any]) -> None:
    clock.now += seconds
    progress.on_trial_result(result["training_iteration"], [], None, result)


def cells(text: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    return [row for row in rows if row]


def test_every_iteration_is_a_line_and_the_summary_says_what_was_learned(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    with Progress(total=4, clock=clock) as progress:
        curriculum = {"buffer_size": 7, "zero_variance_fraction": 0.25}
        report(progress, clock, 90, result(1, 0.5, rollouts={"tokens_per_s": 12.3}, curriculum=curriculum))
        report(progress, clock, 20, result(2, 0.75, **evaluated(0.25, 0.3, 0.5)))
        report(progress, clock, 10, result(3, 0.25, warning="nothing was learned", **evaluated(0.375)))
    assert capsys.readouterr().out.splitlines() == [
        "iteration 1/4  return 0.500  signal 75%  buffer 7  12 tokens/s  at most 1 min 30 s left",
        "iteration 2/4  return 0.750  evaluation 0.250 → 0.500  40 s left",
        "iteration 3/4  return 0.250  evaluation 0.375  15 s left",
        "warning: nothing was learned",
    ]
    assert progress.seconds == 90
    assert progress.signal() == "75% of the groups had rollouts of different quality, to learn from"
    out.print(progress.summary())
    assert cells(capsys.readouterr().out) == [
        ["return", "0.5", "0.25", "0.75", "2", "▅█▁"],
        ["accuracy after 0 steps", "0.25", "0.375", "0.375", "3", "▁█"],
        ["accuracy after 2 steps", "0.5", "0.5", "0.5", "2", ""],
        ["gain by 2 steps", "0.25", "0", "0.25", "2", "█▁"],
    ]


def left(seconds: list[tuple[float, bool]], **options: Any) -> str:
    """What is told after iterations that took so long, each with or without an evaluation."""
    clock, said = Clock(), io.StringIO()
    progress = Progress(clock=clock, **options)
    progress.say = lambda text: print(text, file=said)
    for i, (took, evaluates) in enumerate(seconds, start=1):
        report(progress, clock, took, result(i, 0.5, **(evaluated(0.5) if evaluates else {})))
    return said.getvalue().splitlines()[-1].split("  ")[-1]


def test_the_time_left_counts_evaluations_apart_from_the_rest():
    plain, with_evaluation = (10.0, False), (40.0, True)
    assert left([(99.0, False)], total=11) == "at most 5 min 00 s left"
    assert left([(99.0, False), plain], total=12, evaluation_interval=4) == "1 min 40 s and 3 evaluations left"
    assert left([(99.0, False), plain], total=4, evaluation_interval=4) == "20 s and 1 evaluation left"
    seen = [(99.0, False), plain, plain, with_evaluation]
    assert left(seen, total=8, evaluation_interval=4) == "1 min 10 s left"  # 4 · 10 + 30
    assert left(seen, total=8, evaluation_interval=4, may_end_earlier=True) == "at most 1 min 10 s left"
    assert left([(99.0, True), with_evaluation], total=4, evaluation_interval=1) == "1 min 20 s left"
    assert left([(99.0, True), plain], total=6, evaluation_interval=3) == "40 s and 2 evaluations left"
    assert left([(99.0, True)], total=4, evaluation_interval=1) == "at most 1 min 30 s left"


def test_without_a_known_end_no_time_is_left(capsys: pytest.CaptureFixture[str]):
    with Progress(total=None) as progress:
        progress.on_trial_result(1, [], None, result(1, return_mean=0.5))
    assert capsys.readouterr().out == "iteration 1  return 0.500\n"
    assert progress.signal() is None


def test_a_stage_of_loading_is_a_line_when_it_has_ended(capsys: pytest.CaptureFixture[str]):
    with Progress(total=4) as progress:
        progress.show_stages({"load engine": None, "load learner": None})
        progress.show_stages({"load engine": None, "load learner": 8.2})
        progress.show_stages({"load engine": 21.0, "load learner": 8.2, "evaluation": None})
        progress.show_stages({"load engine": 21.0, "load learner": 8.2, "evaluation": 3.0})
    assert capsys.readouterr().out.splitlines() == ["load learner: 8 s", "load engine: 21 s"]


def test_a_terminal_shows_one_line_with_the_course(monkeypatch: pytest.MonkeyPatch):
    terminal = Console(file=(screen := io.StringIO()), force_terminal=True, width=200, highlight=False)
    monkeypatch.setattr(module, "out", terminal)
    clock = Clock()
    with Progress(total=4, clock=clock) as progress:
        progress.show_stages({"load engine": None, "load learner": 8.2})
        progress._bar.refresh()
        progress.show_stages({"load engine": 21.0, "load learner": 8.2})
        for i, value in enumerate((0.5, 0.75, 0.25), start=1):
            report(progress, clock, 10, result(i, value, **evaluated(0.5, 0.5 + i / 8)))
        progress._bar.refresh()
    shown = screen.getvalue()
    assert "load engine" in shown and "load learner: 8 s" in shown
    assert "return ▅█▁" in shown and "gain by 1 steps ▁▅█" in shown and "10 s left" in shown
    assert "iteration 3/4  return" not in shown  # lines are for pipes


def test_a_sparkline_is_of_the_last_values():
    assert sparkline([1.0]) == ""
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([2.0, 2.0, 2.0]) == "▄▄▄"
    assert sparkline([9.0, *range(16)])[0] == "▁"
