"""What ``rllib train file`` shows of a run: its stages, its iterations, and what was learned. Imports Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ray.exceptions import RayError
from ray.tune import Callback
from ray.tune.utils import flatten_dict
from rich import progress
from rich.table import Table

from rllib_exit.cli.console import duration, out, visible
from rllib_exit.stages import stages

RETURN = "env_runners/episode_return_mean"
SILENT = "curriculum/zero_variance_fraction"
GAIN = "evaluation/improvement"
ACCURACY = "evaluation/accuracy/step_"
# How a number of an iteration is shown, by its key in the result.
SHOWN = {
    RETURN: "return {:.3f}",
    "curriculum/buffer_size": "buffer {:.0f}",
    "rollouts/tokens_per_s": "{:.0f} tokens/s",
}
# Time left is told from so many iterations, and so many values make a sparkline.
RECENT, SPARKS = 5, 16


class Progress(Callback):
    """Shows the stages and iterations as a live line in a terminal, else as one line each.

    ``signal`` is the share of the groups whose rollouts differ in quality: those from which something can be learned.

    Args:
        total: The number of iterations, if it is known.
        may_end_earlier: Whether something else may end the run before that.
        evaluation_interval: The iterations from one evaluation to the next, if there are any.
        clock: What tells the time, in seconds.
    """

    def __init__(
        self,
        total: int | None,
        *,
        may_end_earlier: bool = False,
        evaluation_interval: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._results: list[dict[str, Any]] = []
        self._times: list[tuple[float, bool]] = []  # of all iterations but the first: seconds, whether it evaluated
        self._total, self._may_end_earlier = total, may_end_earlier
        self._evaluation_interval = evaluation_interval
        self._clock, self._last = clock, clock()
        self._told: dict[str, float | None] = {}
        self._watcher = threading.Thread(target=self._watch, name="stages", daemon=True)
        self._ended = threading.Event()
        self._bar = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeElapsedColumn(),
            console=out,
            disable=not out.is_terminal,
        )
        self._task = self._bar.add_task("start processes", total=total, numbers="")

    def __enter__(self) -> Progress:
        self._bar.start()
        self._watcher.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._watcher.join()
        self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line above the live one."""
        self._bar.console.print(visible(text), markup=False, soft_wrap=True)

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            with suppress(RayError):  # where Ray is gone, the run itself says so
                self.show_stages(stages())

    def show_stages(self, now: Mapping[str, float | None]) -> None:
        """Shows what the run is at; a stage of loading that has ended becomes a line.

        Args:
            now: See :func:`rllib_exit.stages.stages`.
        """
        for name, seconds in now.items():
            if seconds is not None and self._told.get(name) != seconds and name != "evaluation":
                self.say(f"{name}: {duration(seconds)}")
        self._told = dict(now)
        under_way = [name for name, seconds in now.items() if seconds is None]
        rest = "iteration" if now else "start processes"
        self._bar.update(self._task, description=", ".join(under_way) or rest)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        flat = {key: value for key, value in flatten_dict(result).items() if value is not None}
        steps, now = _steps(flat), self._clock()
        if self._results:
            self._times.append((now - self._last, bool(steps)))
        self._last = now
        self._results.append(flat)

        parts = [text.format(flat[key]) for key, text in SHOWN.items() if key in flat]
        if SILENT in flat:
            parts.insert(1, f"signal {1 - flat[SILENT]:.0%}")
        if steps:
            parts.append("evaluation " + " → ".join(f"{flat[f'{ACCURACY}{k}']:.3f}" for k in sorted({0, steps[-1]})))
        done = flat["training_iteration"]
        if self._total:
            parts.append(self._left(done))
        if self._bar.disable:
            self.say(f"iteration {done}{f'/{self._total}' if self._total else ''}  {'  '.join(parts)}")
        for key in (RETURN, GAIN):
            if sparks := sparkline(self._values(key)):
                parts.append(f"{self._names()[key]} {sparks}")
        self._bar.update(self._task, completed=done, numbers="  ".join(parts))
        if "warning" in flat:
            self.say(f"warning: {flat['warning']}")

    def _left(self, done: int) -> str:
        """The time left, as the last iterations have it.

        The first iteration waits for the engine: it tells no more than a bound. Iterations with an evaluation are
        counted apart from the others.
        """
        left, every = (self._total or 0) - done, self._evaluation_interval
        evaluations = (done + left) // every - done // every if every else 0
        plain = [seconds for seconds, evaluated in self._times if not evaluated][-RECENT:]
        with_evaluation = [seconds for seconds, evaluated in self._times if evaluated][-RECENT:]
        bound = self._may_end_earlier
        if not self._times:
            plain, bound = [self._results[0]["time_this_iter_s"]], True
        if not plain:
            plain = with_evaluation
        seconds = left * _mean(plain)
        unknown = ""
        if with_evaluation:
            seconds += evaluations * max(0.0, _mean(with_evaluation) - _mean(plain))
        elif evaluations and (self._times or not _steps(self._results[0])):
            unknown = f" and {evaluations} evaluation{'s' * (evaluations > 1)}"
        return f"{'at most ' * bound}{duration(seconds)}{unknown} left"

    @property
    def seconds(self) -> float:
        """How long the iterations took."""
        return sum(result["time_this_iter_s"] for result in self._results)

    def _values(self, key: str) -> list[float]:
        return [result[key] for result in self._results if key in result]

    def _names(self) -> dict[str, str]:
        """What the summary shows, by its key in the result."""
        last = max((k for result in self._results for k in _steps(result)), default=0)
        steps = {f"{ACCURACY}{k}": f"accuracy after {k} steps" for k in (0, last)}
        return {RETURN: "return", **steps, GAIN: f"gain by {last} steps"}

    def summary(self) -> Table:
        """What was learned: the first, last and best return, and the accuracies of evaluations."""
        table = Table("", title="What was learned", title_justify="left")
        for column in ("first", "last", "best", "at iteration", "course"):
            table.add_column(column, justify="left" if column == "course" else "right")
        for key, name in self._names().items():
            if rows := [result for result in self._results if key in result]:
                best = max(rows, key=lambda row: row[key])
                values = (f"{row[key]:.4g}" for row in (rows[0], rows[-1], best))
                table.add_row(name, *values, str(best["training_iteration"]), sparkline([row[key] for row in rows]))
        return table

    def signal(self) -> str | None:
        """How much of the rollouts there was something to learn from, in a sentence; None if no result says it."""
        silent = self._values(SILENT)
        if not silent:
            return None
        text = f"{1 - _mean(silent):.0%} of the groups had rollouts of different quality, to learn from"
        if len(silent) > 1:
            text += f"; {1 - silent[0]:.0%} in the first iteration, {1 - silent[-1]:.0%} in the last"
        return text


def sparkline(values: Sequence[float]) -> str:
    """The last values as bars of eight heights; empty if they are no course, or the output knows only ASCII."""
    if len(values) < 2 or out.options.ascii_only:
        return ""
    values = values[-SPARKS:]
    low, high = min(values), max(values)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / (high - low))] if high > low else "▄" for value in values)


def _steps(result: Mapping[str, Any]) -> list[int]:
    """The steps of self-improvement that an evaluation took, from 0; none without an evaluation."""
    return sorted(int(key.removeprefix(ACCURACY)) for key in result if key.startswith(ACCURACY))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
