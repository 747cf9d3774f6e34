"""``rllib train file`` with search spaces: a sweep with Tune. Imports Ray."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ray.tune import Callback, ResumeConfig, TuneConfig
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search.sample import Categorical
from ray.tune.utils import flatten_dict

from rllib_exit.cli import sweeps
from rllib_exit.cli.config import check
from rllib_exit.cli.console import CommandError, error_message, say
from rllib_exit.cli.sweeps import Sweep
from rllib_exit.cli.training import Training, check_stop, reserve, run_trials
from rllib_exit.files import whole_lines

SCHEDULERS = ("none", "asha", "pbt")
# What may change between two iterations of one run. The size of a buffer that is full may not, nor may kl_coeff
# where no reference policy was kept.
MUTABLE = ("lr", "self_iteration_prob", "divergence_prob", "inverse_temperature", "clip_param", "weight_decay")


def train_sweep(
    training: Training,
    tune_config: TuneConfig | None,
    taken: Mapping[str, Any],
    scheduler: str | None,
    resume: str | None,
) -> None:
    """Checks a sweep, runs it to its end and tells its ranking.

    Args:
        training: What to train.
        tune_config: What the file says of the sweep.
        taken: The values that the config has from another sweep.
        scheduler: The name of a scheduler to take in place of ``tune_config``'s.
        resume: The directory of a sweep to go on with.

    Raises:
        ValueError: If something is wrong with the file, the command or the directory.
        CommandError: If a trial failed.
        KeyboardInterrupt: If Ctrl-C ended it.
    """
    if "://" in f"{resume} {training.directory}":
        raise ValueError(f"a sweep's results lie on this machine, and {resume or training.directory} does not")
    training = replace(training, directory=Path(resume or training.directory).absolute())
    sweep = Sweep.of(training.config, tune_config, taken)
    assert tune_config is not None
    check_directory(training.path, sweep, resume is not None)
    trial_scheduler = tune_config.scheduler if scheduler is None else make_scheduler(scheduler, training)
    first = sweeps.check_variants(training.config)
    check_metric(training, sweep)
    check_stop(training)
    check(first)
    models = {name: getattr(first, name) for name in ("model_name", "embedding_model") if name not in sweep.spaces}
    training = replace(training, config=sweeps.with_values(training.config, models))
    reserve(replace(training, config=first), tune_config.max_concurrent_trials or 1)
    say(f"sweep: {training.directory}")
    _finish(_run(training, tune_config, sweep, trial_scheduler, resume is not None), sweep, training.path)


def check_directory(directory: Path, sweep: Sweep, resume: bool) -> None:
    """Finds out before anything is started whether a sweep can begin, or go on, in a directory.

    Raises:
        ValueError: If it holds one that this would overwrite, or another one than is to go on.
        FileNotFoundError: If it holds none to go on with.
    """
    if not resume:
        if (directory / sweeps.SWEEP_FILE).exists():
            raise ValueError(
                f"{directory} holds a sweep: go on with it by --resume {directory}, or name another --results-dir"
            )
        return
    _, before = sweeps.load_rows(directory)  # Tune would overwrite what it cannot read
    for name in (field.name for field in fields(Sweep)):
        if getattr(before, name) != getattr(sweep, name):
            raise ValueError(
                f"{directory} holds a sweep with {name} {getattr(before, name)}, and this command has "
                f"{getattr(sweep, name)}: change it back, or start another sweep with another --results-dir"
            )


def check_metric(training: Training, sweep: Sweep) -> None:
    """Finds out whether trials are evaluated before they end, where an evaluation ranks them.

    Raises:
        ValueError: If they are not.
    """
    iterations, interval = training.num_iterations, training.config.evaluation_interval
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


def _run(training: Training, tune_config: TuneConfig, sweep: Sweep, scheduler: Any, resume: bool) -> Sequence[Any]:
    """Runs the trials of a sweep to their end, or until Ctrl-C."""
    # Tune handles Ctrl-C here: it writes down how far the sweep has come. Most iterations have no evaluation.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "0"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    training.path.mkdir(parents=True, exist_ok=True)
    mend_results(training.path)
    (training.path / sweeps.SWEEP_FILE).write_text(json.dumps(asdict(sweep), indent=2) + "\n")
    concurrent = tune_config.max_concurrent_trials
    own_search = sweeps.PossibleVariants(
        training.config, max_concurrent=concurrent or 0, random_state=training.config.seed
    )
    pbt = isinstance(scheduler, PopulationBasedTraining)
    go_on: Any = ResumeConfig.ResumeType.RESUME  # Tune's annotation says str
    trials = run_trials(
        training,
        SweepProgress(sweep, training),
        *([] if pbt else [NewestCheckpoints()]),
        # After a kill, a trial may have to go on from the last but one. PBT copies from trials that have gone on since.
        num_to_keep=4 if pbt else 2,
        num_samples=tune_config.num_samples,
        metric=sweep.metric,
        mode=sweep.mode,
        search_alg=tune_config.search_alg or own_search,
        scheduler=scheduler,
        max_concurrent_trials=concurrent if tune_config.search_alg else None,
        time_budget_s=tune_config.time_budget_s,
        trial_name_creator=tune_config.trial_name_creator,
        trial_dirname_creator=tune_config.trial_dirname_creator,
        resume_config=ResumeConfig(errored=go_on) if resume else None,
    )
    delete_older_checkpoints([trial for trial in trials if trial.status == "TERMINATED"], trials)
    return trials


def mend_results(directory: Path) -> None:
    """Removes a last line that a kill has cut off from every trial's ``result.json``: Tune would write on after it."""
    for file in directory.glob("*/result.json"):
        file.write_text("".join(f"{line}\n" for line in whole_lines(file)))


def _finish(trials: Sequence[Any], sweep: Sweep, directory: Path) -> None:
    """Tells the ranking, the best trial and which trials failed."""
    rows = sweeps.ranking(trials, sweep)
    sweeps.show_rows(rows, sweep)
    if any(row.state == "unfinished" for row in rows):
        say(f"go on with it: the same command with --resume {directory}")
        raise KeyboardInterrupt
    sweeps.say_best(rows, sweep, directory)
    if failed := [trial for trial in trials if trial.status == "ERROR"]:
        lines = [f"{len(failed)} of {len(rows)} trials failed:"]
        for trial in failed:
            error = trial.get_pickled_error()
            lines.append(f"{_name(trial)}: {error_message(error) if error else 'no reason is known'}")
            lines.append(f"  traceback: {trial.path}/error.txt")
        lines.append(f"run these again: the same command with --resume {directory}")
        raise CommandError("\n".join(lines))


# Schedulers.


def make_scheduler(name: str, training: Training) -> Any:
    """One of ``SCHEDULERS``, for what is trained.

    ASHA lets the best third go on at a ninth and at a third of the iterations. PBT replaces the worst quarter by
    copies of the best ones, with other values, ten times in a run. Neither acts before there is an evaluation.

    Raises:
        ValueError: If the name is unknown, or what the scheduler needs is missing.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"--scheduler is {name!r}: use {', '.join(SCHEDULERS)}")
    if name == "none":
        return None
    iterations = training.num_iterations
    if not isinstance(iterations, int):
        raise ValueError(f"--scheduler {name} needs the number of iterations: give --stop-iters")
    evaluated_every = training.config.evaluation_interval or 1
    if name == "asha":
        grace_period = min(max(evaluated_every, iterations // 9, 1), iterations)
        return RememberingASHA(
            time_attr="training_iteration", max_t=iterations, grace_period=grace_period, reduction_factor=3
        )
    spaces = sweeps.search_spaces(training.config)
    # PBT moves along the list of a categorical space, as it does not along the space itself.
    mutations: dict[str, Any] = {
        name: list(space.categories) if isinstance(space := spaces[name], Categorical) else space
        for name in MUTABLE
        if name in spaces
    }
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


class RememberingASHA(ASHAScheduler):
    """ASHA that goes on where a resumed sweep was: Tune does not save its schedulers.

    What restored trials have reported, up to their checkpoints if they have not ended, is reported again.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        until = float("inf") if trial.status == "TERMINATED" else saved_iteration(trial)
        for result in reported(Path(trial.path)) if trial.has_reported_at_least_once else []:
            if result[self._time_attr] <= until:
                self.on_trial_result(tune_controller, trial, flatten_dict(result))


def saved_iteration(trial: Any) -> int:
    """The iteration after which a trial's newest checkpoint was written; 0 without one."""
    checkpoint = trial.latest_checkpoint_result
    return checkpoint.metrics["training_iteration"] if checkpoint else 0


def reported(trial_directory: Path) -> list[dict[str, Any]]:
    """The results in a trial's ``result.json``."""
    return [json.loads(line) for line in whole_lines(trial_directory / "result.json")]


# What is told and tidied while the trials run.


class SweepProgress(Callback):
    """Prints a line for every result, and checks that the metric is there."""

    def __init__(self, sweep: Sweep, training: Training) -> None:
        self._metric = sweep.metric
        self._total = training.num_iterations
        self._evaluation_interval = training.config.evaluation_interval or 1
        self._found = False

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        last = saved_iteration(trial)
        say(f"{_name(trial)}: {f'goes on after iteration {last}' if last else 'begins'}")

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        flat, metric, done = flatten_dict(result), self._metric, result["training_iteration"]
        self._found |= metric in flat
        if not self._found and done % self._evaluation_interval == 0:
            there = [key for key in flat if key.split("/")[0] in ("curriculum", "evaluation", "rollouts")]
            raise ValueError(
                f"tune_config.metric is {metric!r}, which the results do not have; they have {', '.join(sorted(there))}"
            )
        of = f"/{self._total}" if self._total else ""
        value = f"  {metric} {sweeps.value_text(flat[metric])}" if metric in flat else ""
        early = "  stopped early" if result.get("done") and self._total and done < self._total else ""
        say(f"{_name(trial)}: iteration {done}{of}{value}{early}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        say(f"{_name(trial)}: failed")


def _name(trial: Any) -> str:
    return f"{trial.trial_id} {sweeps.describe(trial.evaluated_params)}"


class NewestCheckpoints(Callback):
    """Deletes all but the newest checkpoint of trials that have ended: they hold optimizer states, and are large.

    A kill takes a trial back to what Tune last wrote down. So a trial's checkpoints are deleted only after Tune has
    written down that it ended.
    """

    def __init__(self) -> None:
        self._trials: Sequence[Any] = []
        self._ended: list[Any] = []

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self._trials = trials

    def get_state(self) -> None:
        # Tune asks for it whenever it writes down where the sweep is: what it wrote the last time is on the disk now.
        delete_older_checkpoints(self._ended, self._trials)
        self._ended = [trial for trial in self._trials if trial.status == "TERMINATED"]


def delete_older_checkpoints(ended: Iterable[Any], trials: Iterable[Any]) -> None:
    """Deletes the checkpoints of trials that have ended, but for those from which a trial, maybe a copy, goes on."""
    newest = {Path(trial.checkpoint.path) for trial in trials if trial.checkpoint}
    for trial in ended:
        for path in set(Path(trial.path).glob("checkpoint_*")) - newest:
            shutil.rmtree(path, ignore_errors=True)
