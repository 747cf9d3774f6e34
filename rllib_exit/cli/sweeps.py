"""Sweeps: the search spaces of a config, and the ranking of trials. Imports Ray."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from ray.tune import ExperimentAnalysis, TuneConfig
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.sample import Categorical
from ray.tune.search.variant_generator import generate_variants, parse_spec_vars
from rich.table import Table

from rllib_exit.cli.config import replaced
from rllib_exit.cli.console import out, say
from rllib_exit.grpo.config import GRPOConfig

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class Sweep:
    """What a sweep is, as ``sweep.json`` in its directory says it.

    Attributes:
        metric: What trials are ranked by: a key of their results, with slashes.
        mode: ``max`` or ``min``.
        spaces: The swept fields, nested ones with slashes, and their search spaces as text.
        taken: The values that ``--best-of`` took from another sweep, by field.
    """

    metric: str
    mode: str
    spaces: dict[str, str]
    taken: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: GRPOConfig, tune_config: TuneConfig | None, taken: Mapping[str, Any] | None = None) -> Sweep:
        """The sweep that a file asks for, with what it takes from another one.

        Raises:
            ValueError: If it does not say what to rank by.
        """
        spaces = {name: _space_text(space) for name, space in search_spaces(config).items()}
        if tune_config is None or not (isinstance(tune_config.metric, str) and tune_config.mode in ("min", "max")):
            raise ValueError(
                f"the config has search spaces ({', '.join(spaces)}), but nothing to rank their values "
                'by: set `tune_config = ray.tune.TuneConfig(metric="evaluation/accuracy/step_0", mode="max")` in the '
                "file"
            )
        return cls(tune_config.metric, tune_config.mode, spaces, dict(taken or {}))

    @classmethod
    def load(cls, directory: Path) -> Sweep:
        """The sweep in a directory.

        Raises:
            FileNotFoundError: If there is none.
        """
        if not (directory / SWEEP_FILE).is_file():
            raise FileNotFoundError(f"{directory} holds no sweep: it has no {SWEEP_FILE}")
        return cls(**json.loads((directory / SWEEP_FILE).read_text()))


# Search spaces and values.


def search_spaces(config: GRPOConfig) -> dict[str, Any]:
    """The fields that hold one of Tune's search spaces, nested ones with slashes, and the spaces."""
    _, domains, grids = parse_spec_vars(config.to_dict())
    return {"/".join(map(str, path)): space for path, space in (*grids, *domains)}


def _space_text(space: Any) -> str:
    name = "grid_search" if isinstance(space, Categorical) and space.is_grid() else type(space).__name__.lower()
    # The text of a function would hold its address, which no later process has.
    return name if name == "function" else f"{name}({space.domain_str.strip('()')})"


def with_values(config: GRPOConfig, values: Mapping[str, Any]) -> GRPOConfig:
    """A copy of the config with values for fields, nested ones named with slashes."""
    config = config.copy(copy_frozen=False)
    for key, value in values.items():
        name, *path = key.split("/")
        setattr(config, name, replaced(getattr(config, name), path, value, key))
    return config


def describe(values: Mapping[str, Any]) -> str:
    """Values on one line, as ``lr=1e-06 kl_coeff=0.001``."""
    return " ".join(f"{key}={value_text(value)}" for key, value in values.items())


def value_text(value: Any) -> str:
    """A value, with four digits if it is a float."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def mistake(config: GRPOConfig, values: Mapping[str, Any]) -> str | None:
    """Why the config cannot be trained with these values; None if it can."""
    try:
        with_values(config, values).validate()
    except ValueError as error:
        return str(error)
    return None


def check_variants(config: GRPOConfig) -> GRPOConfig:
    """Tries every point of the grid, with one sample of what else is searched; says what cannot be trained.

    Returns:
        The first config that can.

    Raises:
        ValueError: If none can.
    """
    variants = [
        {"/".join(map(str, path[1:])): value for path, value in resolved.items()}
        for resolved, _ in generate_variants({"config": config.to_dict()}, random_state=config.seed)
    ]
    mistakes = [mistake(config, values) for values in variants]
    if None not in mistakes:
        raise ValueError(mistakes[0])
    for wrong, times in Counter(mistakes).items():
        if wrong is not None:
            say(f"left out, {times} of {len(variants)} combinations: {wrong}")
    return with_values(config, variants[mistakes.index(None)])


class PossibleVariants(BasicVariantGenerator):
    """Tune's grid and random search, without the combinations that no run can be trained with.

    Args:
        config: The config that the values are tried on.
        **kwargs: Arguments of ``BasicVariantGenerator``.
    """

    def __init__(self, config: GRPOConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._config = config

    def next_trial(self) -> Any:
        while (trial := super().next_trial()) is not None and mistake(self._config, trial.evaluated_params):
            self.on_trial_complete(trial.trial_id)
        return trial


# The ranking.


@dataclass(frozen=True)
class Row:
    """A trial.

    Attributes:
        trial_id: Tune's id of the trial.
        values: The values of the swept fields.
        score: The last value of the metric; None if there is none.
        iterations: The number of iterations that it was trained for.
        state: ``ended``, ``stopped early``, ``unfinished`` or ``failed``.
        checkpoint: The path of its newest checkpoint.
    """

    trial_id: str
    values: dict[str, Any]
    score: float | None
    iterations: int
    state: str
    checkpoint: str | None = None


def ranking(trials: Sequence[Any], sweep: Sweep) -> list[Row]:
    """The ranked rows of Tune's trials."""
    iterations = [(trial.last_result or {}).get("training_iteration", 0) for trial in trials]
    rows = []
    for trial, done in zip(trials, iterations, strict=True):
        state = {"ERROR": "failed", "TERMINATED": "ended"}.get(trial.status, "unfinished")
        rows.append(
            Row(
                trial.trial_id,
                # PBT changes the config, and leaves evaluated_params as they were.
                {name: reduce(getitem, name.split("/"), trial.config) for name in sweep.spaces},
                trial.metric_analysis.get(sweep.metric, {}).get("last"),
                done,
                "stopped early" if state == "ended" and done < max(iterations) else state,
                trial.checkpoint.path if trial.checkpoint else None,
            )
        )
    return rank(rows, sweep.mode)


def rank(rows: Sequence[Row], mode: str) -> list[Row]:
    """The best first; those without a score, which NaN counts as, after all others; those that failed last."""
    sign = -1 if mode == "max" else 1

    def key(row: Row) -> tuple[bool, bool, float]:
        score = math.nan if row.score is None else row.score
        return row.state == "failed", math.isnan(score), 0.0 if math.isnan(score) else sign * score

    return sorted(rows, key=key)


def best_row(rows: Sequence[Row]) -> Row | None:
    """The best of ranked trials; None if all failed or have no score."""
    good = [row for row in rows if row.state != "failed" and row.score is not None and not math.isnan(row.score)]
    return good[0] if good else None


def load_rows(directory: Path) -> tuple[list[Row], Sweep]:
    """The trials of a sweep, the best first.

    Raises:
        FileNotFoundError: If the directory holds no sweep.
        ValueError: If it has written nothing yet.
    """
    sweep = Sweep.load(directory)
    if not any(directory.glob("experiment_state-*.json")):
        raise ValueError(f"the sweep in {directory} has written nothing yet: if it has ended, remove {directory}")
    return ranking(ExperimentAnalysis(directory.absolute()).trials or [], sweep), sweep


def show_rows(rows: Sequence[Row], sweep: Sweep) -> None:
    """Prints the ranking, as a table."""
    table = Table(title=f"Trials by {sweep.metric} ({sweep.mode})", title_justify="left")
    for name in ("", "trial", *sweep.spaces, sweep.metric.rpartition("/")[2], "iterations", "state"):
        table.add_column(name, justify="left" if name in ("trial", "state") else "right")
    for place, row in enumerate(rows, 1):
        score = "" if row.score is None else f"{row.score:.4g}"
        values = map(value_text, row.values.values())
        table.add_row(str(place), row.trial_id, *values, score, str(row.iterations), row.state)
    out.print(table)


def say_best(rows: Sequence[Row], sweep: Sweep, directory: Path) -> None:
    """Tells the best of ranked trials, and how to go on from it."""
    if (best := best_row(rows)) is None:
        say("no trial has a score")
        return
    say(f"best: {describe(best.values)}, {sweep.metric} {value_text(best.score)} after iteration {best.iterations}")
    if best.checkpoint:
        say(f"checkpoint: {best.checkpoint}")
    say(f"train with these values: rllib train file FILE --best-of {directory}")


def best_values(config: GRPOConfig, directory: Path, settings: Sequence[str]) -> dict[str, Any]:
    """The values of a sweep's best trial, and those that the sweep took from another.

    Args:
        config: The config that they are for; a field that has a search space in it is not taken.
        directory: The sweep's directory.
        settings: What ``--set`` asks for; those fields are not taken either.

    Raises:
        ValueError: If the sweep has no trial with a score.
    """
    rows, sweep = load_rows(directory)
    if (best := best_row(rows)) is None:
        raise ValueError(f"no trial of the sweep in {directory} has a score: let it come so far, with --resume")
    kept = [*search_spaces(config), *(setting.partition("=")[0].replace(".", "/") for setting in settings)]
    values = {**sweep.taken, **best.values}
    taken = {name: value for name, value in values.items() if not any(_overlap(name, other) for other in kept)}
    say(f"from {directory}, trial {best.trial_id} ({sweep.metric} {value_text(best.score)}): {describe(taken)}")
    if unfinished := sum(row.state == "unfinished" for row in rows):
        say(f"{unfinished} of its {len(rows)} trials have not ended")
    return taken


def _overlap(name: str, other: str) -> bool:
    """Whether two fields are the same, or one is inside the other."""
    return f"{name}/".startswith(f"{other}/") or f"{other}/".startswith(f"{name}/")
