"""What ``rllib train file`` shows of a run's iterations. Imports Ray."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback
from ray.tune.utils import flatten_dict
from rich import progress
from rich.table import Table

from rllib_exit.cli.console import duration, out, visible

RETURN = "env_runners/episode_return_mean"
# How a number of an iteration is shown, by its key in the result.
SHOWN = {
    RETURN: "return {:.3f}",
    "curriculum/buffer_size": "buffer {:.0f}",
    "rollouts/tokens_per_s": "{:.0f} tokens/s",
}
ACCURACY = "evaluation/accuracy/"


class Progress(Callback):
    """Shows the iterations as a live line in a terminal, else as one line each.

    ``signal`` is the share of the groups whose rollouts differ in quality: those from which something can be learned.

    Args:
        total: The number of iterations, if it is known.
    """

    def __init__(self, total: int | None) -> None:
        self._results: list[dict[str, Any]] = []
        self._total = total
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
        self._task = self._bar.add_task("loading models, first iteration", total=total, numbers="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line above the live one."""
        self._bar.console.print(visible(text), markup=False, soft_wrap=True)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        flat = {key: value for key, value in flatten_dict(result).items() if value is not None}
        self._results.append(flat)
        parts = [text.format(flat[key]) for key, text in SHOWN.items() if key in flat]
        if accuracies := [value for key, value in flat.items() if key.startswith(ACCURACY)]:
            parts.append(f"evaluation {accuracies[0]:.3f} → {accuracies[-1]:.3f}")
        if "curriculum/zero_variance_fraction" in flat:
            parts.insert(1, f"signal {1 - flat['curriculum/zero_variance_fraction']:.0%}")
        done = flat["training_iteration"]
        if self._total:
            recent = [earlier["time_this_iter_s"] for earlier in self._results[-5:]]
            parts.append(f"{duration((self._total - done) * sum(recent) / len(recent))} left")
        numbers = "  ".join(parts)
        self._bar.update(self._task, description="iteration", completed=done, numbers=numbers)
        if self._bar.disable:
            self.say(f"iteration {done}{f'/{self._total}' if self._total else ''}  {numbers}")
        if "warning" in flat:
            self.say(f"warning: {flat['warning']}")

    @property
    def seconds(self) -> float:
        """How long the iterations took."""
        return sum(result["time_this_iter_s"] for result in self._results)

    def summary(self) -> Table:
        """The first, last and best returns and accuracies."""
        table = Table("", title="Training", title_justify="left")
        for column in ("first", "last", "best", "at iteration"):
            table.add_column(column, justify="right")
        names = {RETURN: "return"}
        names |= {
            key: f"evaluation {key.removeprefix(ACCURACY)}" for r in self._results for key in r if ACCURACY in key
        }
        for key, name in names.items():
            if rows := [result for result in self._results if key in result]:
                best = max(rows, key=lambda row: row[key])
                values = (f"{row[key]:.4g}" for row in (rows[0], rows[-1], best))
                table.add_row(name, *values, str(best["training_iteration"]))
        return table
