"""``rllib train file``: trains with Tune what a Python file configures."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from rllib_exit import checkpoints
from rllib_exit.cli.config import Scale, Settings, check, load_file, override
from rllib_exit.cli.console import CommandError, Verbose, clear_errors, duration, err, error_message, out, quiet, say
from rllib_exit.cli.runs import load_iteration
from rllib_exit.scale import SCALE_VARIABLE, scale_and_reason

if TYPE_CHECKING:
    from ray.tune import TuneConfig

    from rllib_exit.grpo.config import GRPOConfig


def train_file(
    file: Annotated[
        Path,
        typer.Argument(
            help="Python file with `config`, a GRPOConfig, maybe `stop`, a dict, and `tune_config` (sweeps)."
        ),
    ],
    stop_iters: Annotated[int | None, typer.Option(min=1, help="Stop after this many iterations in all.")] = None,
    scale: Scale = "auto",
    results_dir: Annotated[Path, typer.Option(help="Where results and checkpoints go.")] = Path("results"),
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on from a checkpoint, or from the newest whole one under a directory; or with a sweep's directory."
        ),
    ] = None,
    checkpoint_freq: Annotated[
        int, typer.Option(min=0, help="Iterations between checkpoints; 0: only at the end.")
    ] = 10,
    log_rollouts: Annotated[
        bool, typer.Option("--log-rollouts", help="Log every rollout, for `rllib rollouts`.")
    ] = False,
    scheduler: Annotated[
        str | None, typer.Option(help="Of a sweep: none, asha or pbt; by default tune_config's.")
    ] = None,
    best_of: Annotated[
        Path | None,
        typer.Option(help="Take the values of this sweep's best trial, but for what is swept now or given by --set."),
    ] = None,
    settings: Settings = None,
    verbose: Verbose = False,
) -> None:
    """Trains what a Python file configures; sweeps, if its config has Tune's search spaces.

    Runs on this machine, or on the Ray cluster that RAY_ADDRESS names ("auto": the one this machine is part of).
    result.json, progress.csv and TensorBoard's events appear under --results-dir, beside the checkpoints. Ctrl-C
    stops after the current iteration and saves; a second one stops at once. SIGTERM saves and stops without waiting
    for rollouts. If a learner fails, training goes on from the last checkpoint. A sweep ends with the first Ctrl-C or
    SIGTERM, and goes on with --resume from its trials' checkpoints.
    """
    with clear_errors(verbose):
        os.environ[SCALE_VARIABLE] = scale
        quiet(verbose)
        cluster = "RAY_ADDRESS" in os.environ
        try:
            if cluster:
                _init_ray(verbose)
            taken, reason = scale_and_reason()
            say(f"scale: {taken} ({reason})")
            config, stop, tune_config = load_file(file)
            config = override(config, settings or [])
            from rllib_exit.cli import sweeps

            taken = sweeps.best_values(config, best_of, settings or []) if best_of is not None else {}
            config = sweeps.with_values(config, taken)
            if log_rollouts:
                config.reporting(log_rollouts=True)
            if stop_iters is not None:
                stop = {**stop, "training_iteration": stop_iters}
            if tune_config is not None or sweeps.search_spaces(config):
                directory = (resume or results_dir / file.stem).absolute()
                _sweep(
                    config,
                    stop,
                    tune_config,
                    taken,
                    directory,
                    resume is not None,
                    scheduler,
                    checkpoint_freq,
                    cluster,
                    verbose,
                )
                return
            if scheduler is not None:
                raise ValueError(f"--scheduler is for sweeps, and the config of {file} has no search space")
            checkpoint = checkpoints.newest(resume) if resume else None
            if checkpoint is not None:
                done = load_iteration(checkpoint)
                if done >= stop.get("training_iteration", float("inf")):
                    raise ValueError(
                        f"{checkpoint} has {done} iterations done and training stops at "
                        f"{stop['training_iteration']}: raise --stop-iters"
                    )
                say(f"resuming after iteration {done}, from {checkpoint}")
            check(config)
            _train_with_tune(config, stop, file, results_dir.absolute(), checkpoint, checkpoint_freq, cluster, verbose)
        finally:
            # Not `import ray` at the top: errors above may come before Ray is loaded.
            if (ray := sys.modules.get("ray")) is not None:
                ray.shutdown()


def _train_with_tune(
    config: GRPOConfig,
    stop: dict[str, Any],
    file: Path,
    results_dir: Path,
    checkpoint: Path | None,
    checkpoint_freq: int,
    cluster: bool,
    verbose: bool,
) -> None:
    from ray import tune

    from envs.workers import usable_cpus

    needed = _needed_resources(config)
    if not cluster:
        # Logical CPUs: one for the algorithm and one for each actor, which take turns on the cores there are.
        _init_ray(verbose, num_cpus=max(usable_cpus(), int(needed.get("CPU", 0))))
    _check_resources(needed)

    say(f"results: {results_dir / file.stem}")
    progress = _Progress(total=stop.get("training_iteration"))
    with progress, _stop_on_signals(progress) as signals:
        while True:
            # tune.run, not Tuner.fit: it alone can begin a trial from a checkpoint.
            analysis = tune.run(
                _algorithm(config),
                name=file.stem,
                storage_path=str(results_dir),
                config=config.to_dict(),
                restore=str(checkpoint) if checkpoint else None,
                stop=lambda trial_id, result: bool(signals) or _reached(stop, result),
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=2, checkpoint_frequency=checkpoint_freq, checkpoint_at_end=True
                ),
                callbacks=[_tune_callback(progress)],
                verbose=0,
                raise_on_failed_trial=False,
            )
            (trial,) = analysis.trials
            directory = Path(str(trial.path))
            checkpoint = _after_learner_error(trial, directory, checkpoint)
            if checkpoint is None or signals:
                break
            progress.say(f"a learner failed; going on after iteration {load_iteration(checkpoint)}, from {checkpoint}")
    if signal.SIGTERM in signals:
        say(f"stopped by SIGTERM; go on with the same command and --resume {checkpoints.newest(directory)}")
        raise typer.Exit(128 + signal.SIGTERM)
    if trial.status != "TERMINATED":
        _raise_trial_error(trial, directory, verbose)
    _say_summary(progress, directory)


def _after_learner_error(trial: Any, directory: Path, begun_from: Path | None) -> Path | None:
    """Where to go on after a learner failed; None if none did, or if nothing was saved since the trial began."""
    from rllib_exit.learner.learner_group import LearnerError

    if not isinstance(trial.get_pickled_error(), LearnerError):
        return None
    try:
        checkpoint = checkpoints.newest(directory)
    except checkpoints.CheckpointError:
        return None
    return checkpoint if begun_from is None or load_iteration(checkpoint) > load_iteration(begun_from) else None


def _sweep(
    config: GRPOConfig,
    stop: dict[str, Any],
    tune_config: TuneConfig | None,
    taken: Mapping[str, Any],
    directory: Path,
    resume: bool,
    scheduler: str | None,
    checkpoint_freq: int,
    cluster: bool,
    verbose: bool,
) -> None:
    from envs.workers import usable_cpus
    from rllib_exit.cli import sweeps

    sweep = sweeps.Sweep.of(config, tune_config, taken)
    assert tune_config is not None
    sweeps.check_directory(directory, sweep, resume)
    trial_scheduler = tune_config.scheduler if scheduler is None else sweeps.make_scheduler(scheduler, config, stop)
    first = sweeps.check_variants(config)
    sweeps.check_metric(first, sweep, stop)
    check(first)
    for name in {"model_name", "embedding_model"} - sweep.spaces.keys():
        setattr(config, name, getattr(first, name))
    needed = _needed_resources(first)
    if not cluster:
        num_trials = tune_config.max_concurrent_trials or 1
        _init_ray(verbose, num_cpus=max(usable_cpus(), num_trials * int(needed.get("CPU", 0))))
    _check_resources(needed)
    say(f"sweep: {directory}")
    sweeps.run_sweep(
        config,
        stop,
        tune_config,
        sweep,
        directory=directory,
        scheduler=trial_scheduler,
        stopper=lambda trial_id, result: _reached(stop, result),
        resume=resume,
        checkpoint_freq=checkpoint_freq,
    )


def _needed_resources(config: GRPOConfig) -> dict[str, float]:
    return _algorithm(config).default_resource_request(config.to_dict()).required_resources


def _algorithm(config: GRPOConfig) -> Any:
    return config.algo_class


def _init_ray(verbose: bool, **kwargs: Any) -> None:
    import ray

    # The environment variable is Ray's own way to a cluster; without it, never join one by chance.
    address = None if "RAY_ADDRESS" in os.environ else "local"
    level = logging.INFO if verbose else logging.ERROR
    context = ray.init(address=address, log_to_driver=verbose, logging_level=level, **kwargs)
    if url := context.dashboard_url:
        say(f"Ray dashboard: http://{url}")


def _check_resources(needed: dict[str, float]) -> None:
    # Without this, Tune waits for what never comes.
    import ray

    there = ray.cluster_resources()
    for name, amount in needed.items():
        if amount > there.get(name, 0):
            raise ValueError(
                f"the run needs {amount:g} {name} and Ray has {there.get(name, 0):g}: lower num_env_runners, "
                f"num_learners or their num_gpus_..., or start Ray on more nodes and set RAY_ADDRESS"
            )


def _reached(stop: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    for key, limit in stop.items():
        value: Any = result
        for part in key.split("/"):
            if not isinstance(value, Mapping) or part not in value:
                raise ValueError(f"stop has {key!r}, which is not in the results")
            value = value[part]
        if value >= limit:
            return True
    return False


@contextmanager
def _stop_on_signals(progress: _Progress) -> Iterator[list[int]]:
    """The signals that ask to stop; a second Ctrl-C raises KeyboardInterrupt."""
    signals: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_interrupt(number: int, _: Any) -> None:
        signals.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        progress.say("stopping after this iteration; Ctrl-C again stops at once")

    def on_termination(number: int, _: Any) -> None:
        from rllib_exit.grpo.stopping import request_stop

        signals.append(number)
        progress.say("SIGTERM: saving and stopping")
        # Not here: a signal handler may interrupt Ray while it holds its locks.
        threading.Thread(target=request_stop).start()

    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, on_termination)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Progress:
    """Shows a run's iterations: a live line in a terminal, else one line each."""

    total: int | None
    results: list[dict[str, float]] = field(default_factory=list)

    def __enter__(self) -> _Progress:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=out,
            disable=not out.is_terminal,
        )
        self._task = self._bar.add_task("loading models, first iteration", total=self.total, numbers="")
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, soft_wrap=True)

    def add(self, result: Mapping[str, Any]) -> None:
        """Shows one more iteration's result."""
        rollouts, curriculum = result.get("rollouts", {}), result.get("curriculum", {})
        values = {
            "iteration": result["training_iteration"],
            "seconds": result["time_this_iter_s"],
            "return": rollouts.get("return_mean"),
            "buffer": curriculum.get("buffer_size"),
            "tokens/s": rollouts.get("tokens_per_s"),
        }
        for k, accuracy in result.get("evaluation", {}).get("accuracy", {}).items():
            values[f"evaluation {k}"] = accuracy
        self.results.append({name: float(value) for name, value in values.items() if value is not None})
        numbers = self._numbers(self.results[-1])
        iteration = result["training_iteration"]
        self._bar.update(self._task, description="iteration", completed=iteration, numbers=numbers)
        if self._bar.disable:
            of = f"/{self.total}" if self.total else ""
            self.say(f"iteration {iteration}{of}  {numbers}")

    def _numbers(self, values: Mapping[str, float]) -> str:
        parts = []
        if "return" in values:
            parts.append(f"return {values['return']:.3f}")
        if "buffer" in values:
            parts.append(f"buffer {values['buffer']:.0f}")
        if "tokens/s" in values:
            parts.append(f"{values['tokens/s']:.0f} tokens/s")
        if accuracies := [values[name] for name in values if name.startswith("evaluation ")]:
            parts.append(f"evaluation {accuracies[0]:.3f} → {accuracies[-1]:.3f}")
        if self.total:
            recent = [result["seconds"] for result in self.results[-5:]]
            left = (self.total - values["iteration"]) * sum(recent) / len(recent)
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)


def _tune_callback(progress: _Progress) -> Any:
    from ray import tune

    class ProgressCallback(tune.Callback):
        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            progress.add(result)

    return ProgressCallback()


def _say_summary(progress: _Progress, directory: Path) -> None:
    results = progress.results
    table = Table(title="Training", title_justify="left", show_header=True)
    for column in ("", "first", "last", "best", "at iteration"):
        table.add_column(column, justify="left" if not column else "right")
    names = list(dict.fromkeys(name for result in results for name in result))
    for name in names:
        if name in ("iteration", "seconds", "buffer", "tokens/s"):
            continue
        rows = [result for result in results if name in result]
        best = max(rows, key=lambda row: row[name])
        values = [f"{row[name]:.4g}" for row in (rows[0], rows[-1], best)]
        table.add_row(name, *values, f"{best['iteration']:.0f}")
    out.print(table)
    seconds = sum(result["seconds"] for result in results)
    last = results[-1]["iteration"] if results else 0
    say(f"iteration {last:.0f} after {duration(seconds)}")
    checkpoint = checkpoints.newest(directory)
    say(f"checkpoint: {checkpoint}")
    say(f"evaluate it: rllib evaluate {checkpoint} --baseline")


def _raise_trial_error(trial: Any, directory: Path, verbose: bool) -> NoReturn:
    error = trial.get_pickled_error()
    if verbose and error is not None:
        err.print(str(error), markup=False, soft_wrap=True)
    lines = [f"training failed: {error_message(error) if error is not None else trial.status}"]
    if (directory / "error.txt").is_file():
        lines.append(f"traceback: {directory / 'error.txt'}")
    try:
        checkpoint = checkpoints.newest(directory)
        lines.append(f"saved: {checkpoint}, after iteration {load_iteration(checkpoint)}")
        lines.append(f"go on from it: the same command with --resume {checkpoint}")
    except checkpoints.CheckpointError:
        lines.append("no checkpoint was written before that")
    raise CommandError("\n".join(lines))
