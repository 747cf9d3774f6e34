"""Training with Tune: what a run and a sweep have in common, and a run. Imports Ray."""

from __future__ import annotations

import difflib
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import typer
from ray import tune
from ray.train._internal.checkpoint_manager import _TrainingResult  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
from ray.tune import Callback
from ray.tune.utils import flatten_dict

from envs.workers import usable_cpus
from rllib_exit import checkpoints
from rllib_exit.checkpoints import Place
from rllib_exit.cli.config import check
from rllib_exit.cli.console import CommandError, duration, err, error_message, out, say, visible
from rllib_exit.cli.progress import Progress
from rllib_exit.cli.runs import init_ray, load_iteration, require
from rllib_exit.grpo.checkpointing import LastCheckpoint
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.grpo.stopping import request_stop
from rllib_exit.learner.learner_group import LearnerError
from rllib_exit.models import sampling_of
from rllib_exit.sft import warm_start


@dataclass(frozen=True)
class Training:
    """What a command is asked to train.

    Attributes:
        config: The config; that of a sweep has search spaces.
        stop: The values of a result at which a trial ends; the keys of nested ones are joined by slashes.
        directory: The absolute path, or the URI, of the directory for results and checkpoints.
        checkpoint_freq: The number of iterations between checkpoints; with 0 there is one only at the end.
        verbose: Whether the workers' logs and the tracebacks of errors are shown.
        dashboard: Whether Ray's dashboard is started.
        trackers: Further callbacks of Tune's.
    """

    config: GRPOConfig
    stop: Mapping[str, Any]
    directory: Path | str
    checkpoint_freq: int
    verbose: bool
    dashboard: bool = False
    trackers: Sequence[Callback] = ()

    @property
    def path(self) -> Path:
        """The directory, on this machine."""
        return Path(self.directory)

    @property
    def num_iterations(self) -> int | None:
        """The iteration that a trial ends with, if ``stop`` says it."""
        return self.stop.get("training_iteration")

    def progress(self) -> Progress:
        """What is shown of a run."""
        return Progress(
            self.num_iterations,
            may_end_earlier=len(self.stop) > 1,
            evaluation_interval=self.config.evaluation_interval,
        )


def check_stop(training: Training) -> None:
    """Finds the mistakes in ``stop`` that need no result.

    Raises:
        ValueError: If a limit is no number, or is one of an evaluation that never takes place.
    """
    for key, limit in training.stop.items():
        if not isinstance(limit, int | float) or isinstance(limit, bool):
            raise ValueError(f"stop has {limit!r} for {key!r}: use a number")
        if key.startswith("evaluation/") and not training.config.evaluation_interval:
            raise ValueError(f"stop has {key!r}, but evaluation_interval is None: set it to a number of iterations")


def reached(stop: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether a result has reached a value of ``stop``."""
    flat = flatten_dict(dict(result))
    return any(key in flat and flat[key] >= limit for key, limit in stop.items())


def unknown_metrics(stop: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """Says which keys of ``stop`` are in no result, with the nearest that are. Those of evaluations may come later."""
    flat = flatten_dict(dict(result))
    later = ("evaluation/",) if "evaluation" not in result else ()
    messages = []
    for key in stop:
        if key not in flat and not key.startswith(later):
            nearest = difflib.get_close_matches(key, flat, n=3, cutoff=0.3)
            messages.append(f"stop has {key!r}, which no result has; the nearest are {', '.join(nearest)}")
    return messages


def reserve(training: Training, num_trials: int = 1) -> None:
    """Starts Ray for trials, unless a cluster was joined."""
    config: Any = training.config
    needed = config.algo_class.default_resource_request(config.to_dict()).required_resources
    if not ray.is_initialized():
        # These are logical CPUs, one for the algorithm and one for each actor: they take turns on the cores.
        num_cpus = max(usable_cpus(), num_trials * int(needed.get("CPU", 0)))
        init_ray(training.verbose, num_cpus=num_cpus, dashboard=training.dashboard)
    require("the run needs", needed, "lower num_env_runners, num_learners or their num_gpus_...")


def run_trials(
    training: Training,
    *callbacks: Callback,
    num_to_keep: int = 2,
    stop_now: Callable[[], bool] = lambda: False,
    **options: Any,
) -> list[Any]:
    """Tune's trials, which have ended or failed.

    They keep ``num_to_keep`` checkpoints, and end early after ``stop_now``; ``options`` are further arguments of
    ``tune.run``. (``Tuner.fit`` cannot begin a trial from a checkpoint.)

    Raises:
        CommandError: After the first results, which are saved, if ``stop`` has what they have not.
    """
    algorithm: Any = training.config.algo_class
    unknown: list[str] = []

    def ends(trial_id: str, result: Mapping[str, Any]) -> bool:
        if isinstance(training.config, GRPOConfig):  # others report some metrics only after a while
            unknown.extend(unknown_metrics(training.stop, result))
        return bool(unknown) or stop_now() or reached(training.stop, result)

    storage_path, _, name = str(training.directory).rpartition("/")
    analysis = tune.run(
        algorithm,
        name=name,
        storage_path=storage_path,
        config=training.config.to_dict(),
        checkpoint_config=tune.CheckpointConfig(
            num_to_keep=num_to_keep, checkpoint_frequency=training.checkpoint_freq, checkpoint_at_end=True
        ),
        verbose=0,
        raise_on_failed_trial=False,
        stop=ends,
        callbacks=[*callbacks, *training.trackers],
        **options,
    )
    trials = analysis.trials or []
    if unknown:
        saved = [f"saved: {path}" for trial in trials if (path := _newest(trial))]
        raise CommandError("\n".join([unknown[0], *saved]))
    return trials


# A run.


class RestoreFrom(Callback):
    """Has a trial begin from a checkpoint anywhere: ``tune.run``'s ``restore`` takes a path of this machine alone."""

    def __init__(self, checkpoint: Place | None) -> None:
        self._checkpoint = checkpoint

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if self._checkpoint is not None:
            begun = tune.Checkpoint(self._checkpoint.path, self._checkpoint.filesystem)
            trial._restore_checkpoint_result = _TrainingResult(begun, {})


def train_run(training: Training, resume: str | None) -> None:
    """Trains, from the newest checkpoint at or under ``resume`` if given; goes on if a learner fails."""
    checkpoint = None if resume is None else _checkpoint(training, resume)
    training.config.fault_tolerance(save_in_background=True)
    check_stop(training)
    check(training.config)
    reserve(training)
    say(f"results: {training.directory}")
    if advised := sampling_of(training.config.model_path):
        wanted = ", ".join(f"{name}={value:g}" for name, value in advised.items())
        say(
            f"the model's generation_config advises {wanted}: training samples at temperature "
            f"{training.config.temperature:g} from the whole distribution, evaluation as evaluation_config says"
        )
    if training.config.warm_start_epochs and checkpoint is None:
        warm_start(training.config, say)  # it is then in the cache, where the algorithm finds it
    progress, last = training.progress(), LastCheckpoint()
    with progress, _stop_on_signals(progress) as signals:
        while True:
            (trial,) = run_trials(training, progress, RestoreFrom(checkpoint), last, stop_now=lambda: bool(signals))
            saved = _newest(trial)
            if signals or saved is None or not isinstance(trial.get_pickled_error(), LearnerError):
                break
            if checkpoint is not None and load_iteration(saved) <= load_iteration(checkpoint):
                break  # nothing was saved since the trial began
            checkpoint = saved
            progress.say(f"a learner failed; going on after iteration {load_iteration(checkpoint)}, from {checkpoint}")
    if signal.SIGTERM in signals and saved is not None:
        say(f"stopped by SIGTERM; go on with the same command and --resume {saved}")
        raise typer.Exit(128 + signal.SIGTERM)
    if trial.status != "TERMINATED" or saved is None or last.error is not None:
        raise _failure(trial, saved or checkpoint, training.verbose, last.error)
    out.print(progress.summary())
    if signal_text := progress.signal():
        say(signal_text)
    say(f"iteration {load_iteration(saved)} after {duration(progress.seconds)}")
    say(f"checkpoint: {saved}")
    say("copy it to this machine, and then:" if "://" in str(saved) else "next:")
    for command in next_commands(training, saved):
        say(f"  {command}")


def next_commands(training: Training, checkpoint: Place) -> list[str]:
    """Three commands that are likely to come next: compare with the model before training, look, keep the model."""
    path, directory = shlex.quote(str(checkpoint)), shlex.quote(str(training.directory))
    held_out = " --split test" if "test" in training.config.splits else ""
    look = f"rollouts {directory}" if training.config.log_rollouts else f"report {directory} --output report"
    return [f"rllib evaluate {path} --baseline{held_out}", f"rllib {look}", f"rllib export {path} my-model"]


def train_other(training: Training, resume: str | None) -> None:
    """Trains another algorithm of RLlib's, as RLlib does, from the checkpoint ``resume`` if given."""
    check_stop(training)
    training.config.copy(copy_frozen=False).validate()
    reserve(training)
    say(f"results: {training.directory}")
    progress = training.progress()
    with progress, _stop_on_signals(progress) as signals:
        restore = str(Path(resume).absolute()) if resume else None
        (trial,) = run_trials(training, progress, restore=restore, stop_now=lambda: bool(signals))
    if trial.status != "TERMINATED" or trial.checkpoint is None:
        raise _failure(trial, None, training.verbose)
    out.print(progress.summary())
    say(f"checkpoint: {trial.checkpoint.path}")


def _checkpoint(training: Training, resume: str) -> Place:
    checkpoint = checkpoints.newest_at(Place.of(resume))
    done, num_iterations = load_iteration(checkpoint), training.num_iterations
    if num_iterations is not None and done >= num_iterations:
        raise ValueError(
            f"{checkpoint} has {done} iterations done and training stops at {num_iterations}: raise --stop-iters"
        )
    say(f"resuming after iteration {done}, from {checkpoint}")
    return checkpoint


def _newest(trial: Any) -> Place | None:
    """A trial's newest whole checkpoint."""
    try:
        return checkpoints.newest_at(Place(trial.storage.storage_filesystem, trial.path))
    except checkpoints.CheckpointError:
        return None


def _failure(trial: Any, saved: Place | None, verbose: bool, last_save: BaseException | None = None) -> CommandError:
    error = trial.get_pickled_error() or last_save
    if verbose and error is not None:
        err.print(visible(str(error)), soft_wrap=True)
    lines = [f"training failed: {error_message(error) if error is not None else trial.status}"]
    if (traceback := Path(str(trial.path)) / "error.txt").is_file():
        lines.append(f"traceback: {traceback}")
    if saved is None:
        lines.append("no checkpoint was written before that")
    else:
        lines.append(f"saved: {saved}, after iteration {load_iteration(saved)}")
        lines.append(f"go on from it: the same command with --resume {saved}")
    return CommandError("\n".join(lines))


@contextmanager
def _stop_on_signals(progress: Progress) -> Iterator[list[int]]:
    """The signals that ask to stop; a second Ctrl-C raises KeyboardInterrupt."""
    signals: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_interrupt(number: int, _: Any) -> None:
        signals.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        progress.say("stopping after this iteration; Ctrl-C again stops at once")

    def on_termination(number: int, _: Any) -> None:
        signals.append(number)
        progress.say("SIGTERM: saving and stopping")
        # Not in this thread: a signal handler may interrupt Ray while it holds its locks.
        threading.Thread(target=request_stop).start()

    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, on_termination)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
