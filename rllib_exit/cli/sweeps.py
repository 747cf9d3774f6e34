"""Sweeps with Ray Tune: what ``rllib train file`` does with search spaces. Imports Ray."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Callback, CheckpointConfig, ResumeConfig, TuneConfig
from ray.tune.analysis import ExperimentAnalysis
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.sample import Categorical, Domain
from ray.tune.search.variant_generator import generate_variants, parse_spec_vars
from ray.tune.utils import flatten_dict
from rich.table import Table

from rllib_exit.cli.config import replaced
from rllib_exit.cli.console import CommandError, error_message, out, say

if TYPE_CHECKING:
    from rllib_exit.grpo.config import GRPOConfig

SWEEP_FILE = "sweep.json"
_RESUME: Any = ResumeConfig.ResumeType.RESUME  # Tune's annotation says str
SCHEDULERS = ("none", "asha", "pbt")
# What may change between two iterations of one run. The size of a buffer that is full may not, nor may kl_coeff
# where no reference policy was kept.
MUTABLE = ("lr", "self_iteration_prob", "divergence_prob", "inverse_temperature", "clip_param", "weight_decay")


# What is swept.


@dataclass(frozen=True)
class Sweep:
    """What a sweep is, as ``sweep.json`` in its directory says it.

    Attributes:
        metric: What trials are ranked by: a key of their results, with slashes.
        mode: ``max`` or ``min``.
        spaces: The swept fields, nested ones with slashes, and their search spaces as text.
        taken: What ``--best-of`` took from another sweep.
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
        if tune_config is None or not (isinstance(tune_config.metric, str) and tune_config.mode in ("min", "max")):
            raise ValueError(
                f"the config has search spaces ({', '.join(search_spaces(config))}), but nothing to rank their values "
                'by: set `tune_config = ray.tune.TuneConfig(metric="evaluation/accuracy/step_0", mode="max")` in the '
                "file"
            )
        spaces = {field: _text(space) for field, space in search_spaces(config).items()}
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


def search_spaces(config: GRPOConfig) -> dict[str, Any]:
    """The fields that hold one of Tune's search spaces, nested ones with slashes, and the spaces."""
    _, domains, grids = parse_spec_vars(config.to_dict())
    return {"/".join(map(str, path)): space for path, space in (*grids, *domains)}


def _text(space: Any) -> str:
    categories = isinstance(space, Categorical) and space.is_grid()
    name = "grid_search" if categories else type(space).__name__.lower()
    # A function's own text would hold its address.
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
    return " ".join(f"{key}={_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
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
    mistakes: dict[str, int] = {}
    possible: list[GRPOConfig] = []
    count = 0
    for resolved, _ in generate_variants({"config": config.to_dict()}, random_state=config.seed):
        values = {"/".join(map(str, path[1:])): value for path, value in resolved.items()}
        count += 1
        if wrong := mistake(config, values):
            mistakes[wrong] = mistakes.get(wrong, 0) + 1
        elif not possible:
            possible.append(with_values(config, values))
    if not possible:
        raise ValueError(next(iter(mistakes)))
    for wrong, times in mistakes.items():
        say(f"left out, {times} of {count} combinations: {wrong}")
    return possible[0]


class PossibleVariants(BasicVariantGenerator):
    """Tune's grid and random search, without the combinations that no run can be trained with.

    Args:
        config: What the values are tried on.
        **kwargs: Of Tune's.
    """

    def __init__(self, config: GRPOConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._config = config

    def next_trial(self) -> Any:
        while (trial := super().next_trial()) is not None and mistake(self._config, trial.evaluated_params):
            self.on_trial_complete(trial.trial_id)
        return trial


def check_metric(config: GRPOConfig, sweep: Sweep, stop: Mapping[str, Any]) -> None:
    """Finds out whether trials are evaluated before they end, where an evaluation ranks them.

    Raises:
        ValueError: If they are not.
    """
    iterations, interval = stop.get("training_iteration"), config.evaluation_interval
    if not sweep.metric.startswith("evaluation/"):
        return
    if not interval:
        raise ValueError(
            f"trials are ranked by {sweep.metric}, but evaluation_interval is {interval}: set it to a number of "
            "iterations"
        )
    if iterations and iterations < interval:
        raise ValueError(
            f"trials are ranked by {sweep.metric}, but they end after {iterations} iterations and evaluation_interval "
            f"is {interval}: raise --stop-iters to {interval}, or set evaluation_interval to {iterations} or less"
        )


def check_directory(directory: Path, sweep: Sweep, resume: bool) -> None:
    """Finds out before anything is started whether a sweep can begin, or go on, in a directory.

    Raises:
        ValueError: If it holds one that this would overwrite, or another one than is to go on.
        FileNotFoundError: If it holds none to go on with.
    """
    if not resume:
        if (directory / SWEEP_FILE).exists():
            raise ValueError(
                f"{directory} holds a sweep: go on with it by --resume {directory}, or name another --results-dir"
            )
        return
    load_rows(directory)  # what Tune cannot read, it would overwrite
    before = Sweep.load(directory)
    for name in ("metric", "mode", "spaces", "taken"):
        if getattr(before, name) != getattr(sweep, name):
            raise ValueError(
                f"{directory} holds a sweep with {name} {getattr(before, name)}, and this command has "
                f"{getattr(sweep, name)}: change it back, or start another sweep with another --results-dir"
            )


# Schedulers.


class RememberingASHA(ASHAScheduler):
    """ASHA that goes on where a resumed sweep was: Tune does not save its schedulers.

    What restored trials have reported, up to their checkpoints if they have not ended, is reported again.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        until = float("inf") if trial.status == "TERMINATED" else _saved_iteration(trial)
        for result in reported(Path(trial.path)) if trial.has_reported_at_least_once else []:
            if result[self._time_attr] <= until:
                self.on_trial_result(tune_controller, trial, flatten_dict(result))


def _saved_iteration(trial: Any) -> int:
    """After which iteration a trial's newest checkpoint was written; 0 without one."""
    checkpoint = trial.latest_checkpoint_result
    return checkpoint.metrics["training_iteration"] if checkpoint else 0


def reported(trial_directory: Path) -> list[dict[str, Any]]:
    """The results in a trial's ``result.json``."""
    file = trial_directory / "result.json"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def mend_results(directory: Path) -> None:
    """Takes a last line that a kill has cut off from every trial's ``result.json``: Tune would write on after it."""
    for file in directory.glob("*/result.json"):
        text = file.read_text()
        if not text.endswith("\n"):
            file.write_text(text[: text.rfind("\n") + 1])


def make_scheduler(name: str, config: GRPOConfig, stop: Mapping[str, Any]) -> Any:
    """One of ``SCHEDULERS``, with what the file says of iterations and search spaces.

    ASHA lets the best third go on at a ninth and at a third of the iterations. PBT replaces the worst quarter by
    copies of the best ones, with other values, ten times in a run. Neither acts before there is an evaluation.

    Raises:
        ValueError: If the name is unknown, or what the scheduler needs is missing.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"--scheduler is {name!r}: use {', '.join(SCHEDULERS)}")
    if name == "none":
        return None
    iterations = stop.get("training_iteration")
    if not isinstance(iterations, int):
        raise ValueError(f"--scheduler {name} needs the number of iterations: give --stop-iters")
    evaluated_every = config.evaluation_interval or 1
    if name == "asha":
        grace_period = min(max(evaluated_every, iterations // 9, 1), iterations)
        return RememberingASHA(
            time_attr="training_iteration", max_t=iterations, grace_period=grace_period, reduction_factor=3
        )
    spaces = search_spaces(config)
    mutations: dict[str, Any] = {field: _mutation(spaces[field]) for field in MUTABLE if field in spaces}
    if not mutations:
        raise ValueError(
            f"--scheduler pbt changes values in mid-run: give a search space to one of {', '.join(MUTABLE)}; "
            f"there are some for {', '.join(spaces)}"
        )
    return PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=max(evaluated_every, iterations // 10, 1),
        hyperparam_mutations=mutations,
        require_attrs=False,  # most iterations have no evaluation
    )


def _mutation(space: Any) -> list[Any] | Domain:
    return list(space.categories) if isinstance(space, Categorical) else space


# The run.


def run_sweep(
    config: GRPOConfig,
    stop: dict[str, Any],
    tune_config: TuneConfig,
    sweep: Sweep,
    *,
    directory: Path,
    scheduler: Any,
    stopper: Any,
    resume: bool,
    checkpoint_freq: int,
) -> None:
    """Runs a sweep with Tune to its end, and tells its ranking. Ray has been started.

    Args:
        config: With search spaces.
        stop: When a trial ends.
        tune_config: The file's.
        sweep: What it asks for.
        directory: Where it goes: the experiment's directory.
        scheduler: Of the trials; None for none.
        stopper: Whether a trial ends with a result: called with the trial's id and the result.
        resume: Go on with the sweep in the directory.
        checkpoint_freq: Iterations between a trial's checkpoints.

    Raises:
        CommandError: If a trial failed.
        KeyboardInterrupt: If Ctrl-C ended it.
    """
    from ray import tune

    # Ctrl-C is Tune's here: it writes down how far the sweep has come. And most iterations have no evaluation.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "0"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    directory.mkdir(parents=True, exist_ok=True)
    mend_results(directory)
    (directory / SWEEP_FILE).write_text(json.dumps(asdict(sweep), indent=2) + "\n")
    search = tune_config.search_alg or PossibleVariants(
        config, max_concurrent=tune_config.max_concurrent_trials or 0, random_state=config.seed
    )
    pbt = isinstance(scheduler, PopulationBasedTraining)
    algorithm: Any = config.algo_class
    analysis = tune.run(
        algorithm,
        name=directory.name,
        storage_path=str(directory.parent),
        config=config.to_dict(),
        stop=stopper,
        num_samples=tune_config.num_samples,
        metric=sweep.metric,
        mode=sweep.mode,
        search_alg=search,
        scheduler=scheduler,
        max_concurrent_trials=tune_config.max_concurrent_trials if tune_config.search_alg else None,
        time_budget_s=tune_config.time_budget_s,
        trial_name_creator=tune_config.trial_name_creator,
        trial_dirname_creator=tune_config.trial_dirname_creator,
        resume_config=ResumeConfig(errored=_RESUME) if resume else None,
        # After a kill, a trial may have to go on from the last but one. PBT copies from trials that have gone on since.
        checkpoint_config=CheckpointConfig(
            num_to_keep=4 if pbt else 2, checkpoint_frequency=checkpoint_freq, checkpoint_at_end=True
        ),
        callbacks=[
            SweepProgress(sweep, stop, config.evaluation_interval or 1),
            *([] if pbt else [NewestCheckpoints()]),
        ],
        verbose=0,
        raise_on_failed_trial=False,
    )
    delete_older_checkpoints([trial for trial in analysis.trials if trial.status == "TERMINATED"], analysis.trials)
    rows = rank(_rows(analysis.trials, sweep), sweep.mode)
    out.print(table(rows, sweep))
    if any(row.state == "unfinished" for row in rows):
        say(f"go on with it: the same command with --resume {directory}")
        raise KeyboardInterrupt
    say_best(rows, sweep, directory)
    if failed := [trial for trial in analysis.trials if trial.status == "ERROR"]:
        lines = [f"{len(failed)} of {len(rows)} trials failed:"]
        for trial in failed:
            error = trial.get_pickled_error()
            lines.append(f"{_name(trial)}: {error_message(error) if error else 'no reason is known'}")
            lines.append(f"  traceback: {trial.path}/error.txt")
        lines.append(f"run these again: the same command with --resume {directory}")
        raise CommandError("\n".join(lines))


class SweepProgress(Callback):
    """Prints a line for every result, and checks that the metric is there."""

    def __init__(self, sweep: Sweep, stop: Mapping[str, Any], evaluation_interval: int) -> None:
        self._sweep = sweep
        self._total = stop.get("training_iteration")
        self._evaluation_interval = evaluation_interval
        self._found = False

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        last = _saved_iteration(trial)
        say(f"{_name(trial)}: {f'goes on after iteration {last}' if last else 'begins'}")

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        flat, metric, done = flatten_dict(result), self._sweep.metric, result["training_iteration"]
        self._found |= metric in flat
        if not self._found and done % self._evaluation_interval == 0:
            there = [key for key in flat if key.split("/")[0] in ("curriculum", "evaluation", "rollouts")]
            raise ValueError(
                f"tune_config.metric is {metric!r}, which the results do not have; they have {', '.join(sorted(there))}"
            )
        of = f"/{self._total}" if self._total else ""
        value = f"  {metric} {_value(flat[metric])}" if metric in flat else ""
        early = "  stopped early" if result.get("done") and self._total and done < self._total else ""
        say(f"{_name(trial)}: iteration {done}{of}{value}{early}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        say(f"{_name(trial)}: failed")


class NewestCheckpoints(Callback):
    """Deletes all but the newest checkpoint of trials that have ended: they hold optimizer states, and are large.

    A kill takes a trial back to what Tune last wrote down, so that it is first left to write down that it ended.
    """

    def __init__(self) -> None:
        self._trials: Sequence[Any] = []
        self._ended: list[Any] = []

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self._trials = trials

    def get_state(self) -> None:
        # Tune asks for it whenever it writes down where the sweep is; what it wrote the last time is on the disk.
        delete_older_checkpoints(self._ended, self._trials)
        self._ended = [trial for trial in self._trials if trial.status == "TERMINATED"]


def delete_older_checkpoints(ended: Iterable[Any], trials: Iterable[Any]) -> None:
    """Deletes the checkpoints of trials that have ended but those that are the newest of any trial, maybe a copy's."""
    newest = {Path(trial.checkpoint.path) for trial in trials if trial.checkpoint}
    for trial in ended:
        for path in set(Path(trial.path).glob("checkpoint_*")) - newest:
            shutil.rmtree(path, ignore_errors=True)


def _name(trial: Any) -> str:
    return f"{trial.trial_id} {describe(trial.evaluated_params)}"


# The ranking.


@dataclass(frozen=True)
class Row:
    """A trial.

    Attributes:
        trial_id: Its id.
        values: Of the swept fields.
        score: The last value of the metric; None without one.
        iterations: How many it was trained for.
        state: ``ended``, ``stopped early``, ``unfinished`` or ``failed``.
        checkpoint: Its newest one.
    """

    trial_id: str
    values: dict[str, Any]
    score: float | None
    iterations: int
    state: str
    checkpoint: str | None = None


def rank(rows: Iterable[Row], mode: str) -> list[Row]:
    """The best first; those without a score, which NaN counts as, after all others; those that failed last."""
    sign = -1 if mode == "max" else 1

    def key(row: Row) -> tuple[bool, bool, float]:
        bad = row.score is None or row.score != row.score
        return row.state == "failed", bad, 0.0 if bad or row.score is None else sign * row.score

    return sorted(rows, key=key)


def _best(rows: Sequence[Row]) -> tuple[Row, float] | None:
    """The best of ranked trials and its score; None if none that did not fail has one."""
    score = rows[0].score if rows and rows[0].state != "failed" else None
    return None if score is None or score != score else (rows[0], score)


def _rows(trials: Sequence[Any], sweep: Sweep) -> list[Row]:
    iterations = [(trial.last_result or {}).get("training_iteration", 0) for trial in trials]
    states = {"ERROR": "failed", "TERMINATED": "ended"}
    rows = []
    for trial, done in zip(trials, iterations, strict=True):
        state = states.get(trial.status, "unfinished")
        rows.append(
            Row(
                trial.trial_id,
                # PBT changes the config, and leaves evaluated_params as they were.
                {field: _get(trial.config, field) for field in sweep.spaces},
                trial.metric_analysis.get(sweep.metric, {}).get("last"),
                done,
                "stopped early" if state == "ended" and done < max(iterations) else state,
                trial.checkpoint.path if trial.checkpoint else None,
            )
        )
    return rows


def _get(config: Any, field: str) -> Any:
    for part in field.split("/"):
        config = config[part]
    return config


def table(rows: Sequence[Row], sweep: Sweep) -> Table:
    """The ranking, as a table."""
    result = Table(title=f"Trials by {sweep.metric} ({sweep.mode})", title_justify="left")
    result.add_column("", justify="right")
    result.add_column("trial")
    for name in (*sweep.spaces, sweep.metric.rpartition("/")[2], "iterations"):
        result.add_column(name, justify="right")
    result.add_column("state")
    for place, row in enumerate(rows, 1):
        score = "" if row.score is None else f"{row.score:.4g}"
        values = [_value(row.values[field]) for field in sweep.spaces]
        result.add_row(str(place), row.trial_id, *values, score, str(row.iterations), row.state)
    return result


def say_best(rows: Sequence[Row], sweep: Sweep, directory: Path) -> None:
    """Tells the best of ranked trials, and how to go on from it."""
    if (found := _best(rows)) is None:
        say("no trial has a score")
        return
    best, score = found
    say(f"best: {describe(best.values)}, {sweep.metric} {_value(score)} after iteration {best.iterations}")
    if best.checkpoint:
        say(f"checkpoint: {best.checkpoint}")
    say(f"train with these values: rllib train file FILE --best-of {directory}")


def load_rows(directory: Path) -> tuple[list[Row], Sweep]:
    """The trials of a sweep, the best first.

    Raises:
        FileNotFoundError: If the directory holds no sweep.
        ValueError: If it has written nothing yet.
    """
    sweep = Sweep.load(directory)
    if not any(directory.glob("experiment_state-*.json")):
        raise ValueError(f"the sweep in {directory} has written nothing yet: if it has ended, remove {directory}")
    return rank(_rows(ExperimentAnalysis(directory.absolute()).trials, sweep), sweep.mode), sweep


def best_values(config: GRPOConfig, directory: Path, settings: Sequence[str]) -> dict[str, Any]:
    """The values of a sweep's best trial, and those that the sweep took from another.

    Args:
        config: What they are for; a field that has a search space here is not taken.
        directory: The sweep's.
        settings: What ``--set`` asks for, which is not taken either.

    Raises:
        ValueError: If the sweep has no trial with a score.
    """
    rows, sweep = load_rows(directory)
    if (found := _best(rows)) is None:
        raise ValueError(f"no trial of the sweep in {directory} has a score: let it come so far, with --resume")
    best, score = found
    kept = [*search_spaces(config), *(setting.partition("=")[0].replace(".", "/") for setting in settings)]
    values = {**sweep.taken, **best.values}
    taken = {name: value for name, value in values.items() if not any(_overlap(name, other) for other in kept)}
    say(f"from {directory}, trial {best.trial_id} ({sweep.metric} {_value(score)}): {describe(taken)}")
    if unfinished := sum(row.state == "unfinished" for row in rows):
        say(f"{unfinished} of its {len(rows)} trials have not ended")
    return taken


def _overlap(field: str, other: str) -> bool:
    """Whether two fields are the same, or one is inside the other."""
    return all(part == of_other for part, of_other in zip(field.split("/"), other.split("/"), strict=False))
