"""``rllib train``: trains with Tune what a Python file configures, or on a data set."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from envs.tables import FILE_SUFFIXES
from rllib_exit.cli.config import Scale, Settings, check_file, load_file, override
from rllib_exit.cli.console import Verbose, clear_errors, installed, quiet, take_scale

if TYPE_CHECKING:
    from ray.tune import TuneConfig

    from rllib_exit.grpo.config import GRPOConfig


class TrainGroup(TyperGroup):
    """``rllib train``, which says what is missing in ``rllib train FILE``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As click has it."""
        if args[0] not in self.commands and Path(args[0]).suffix:
            how = "file" if args[0].endswith(".py") else "--dataset"
            ctx.fail(f"{args[0]!r} is no command: write `rllib train {how} {' '.join(args)}`")
        return super().resolve_command(ctx, args)


StopIters = Annotated[int | None, typer.Option(min=1, help="Stop after this many iterations in all.")]
ResultsDir = Annotated[str, typer.Option(help="Where results and checkpoints go: a directory, or a URI as s3://...")]
Resume = Annotated[
    str | None,
    typer.Option(
        help="Go on from a checkpoint, or from the newest whole one under a directory; or with a sweep's directory."
    ),
]
CheckpointFreq = Annotated[int, typer.Option(min=0, help="Iterations between checkpoints; 0: only at the end.")]
Dashboard = Annotated[bool, typer.Option("--dashboard", help="Start Ray's dashboard too.")]
WandB = Annotated[
    str | None,
    typer.Option("--wandb", metavar="PROJECT", help="Track by Weights & Biases, with samples as of --log-rollouts."),
]
MLflow = Annotated[
    str | None,
    typer.Option("--mlflow", metavar="EXPERIMENT", help="Track by MLflow, with samples as of --log-rollouts."),
]
LogRollouts = Annotated[bool, typer.Option("--log-rollouts", help="Log every rollout, for `rllib rollouts`.")]


def train_file(
    file: Annotated[
        Path,
        typer.Argument(
            help="Python file with `config`, a GRPOConfig or another of RLlib's; maybe `stop`, a dict, and "
            "`tune_config` (sweeps)."
        ),
    ],
    stop_iters: StopIters = None,
    scale: Scale = "auto",
    results_dir: ResultsDir = "results",
    resume: Resume = None,
    checkpoint_freq: CheckpointFreq = 10,
    log_rollouts: LogRollouts = False,
    dashboard: Dashboard = False,
    wandb: WandB = None,
    mlflow: MLflow = None,
    scheduler: Annotated[
        str | None, typer.Option(help="A sweep's scheduler: none, asha or pbt; by default tune_config's.")
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
        check_file(file)
        _train(
            lambda: load_file(file, any_algorithm=True),
            _directory(results_dir, file.stem),
            stop_iters=stop_iters,
            scale=scale,
            resume=resume,
            checkpoint_freq=checkpoint_freq,
            log_rollouts=log_rollouts,
            dashboard=dashboard,
            trackers={"wandb": wandb, "mlflow": mlflow},
            scheduler=scheduler,
            best_of=best_of,
            settings=settings or [],
            verbose=verbose,
        )


def train_dataset(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Option(help="Your data: a JSONL, Parquet or CSV file, a folder, or a data set of the Hugging Face Hub."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Its column of prompts.")] = "prompt",
    answer: Annotated[str, typer.Option(help="Its column of answers; empty if the rewards need none.")] = "answer",
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="What a response is worth: math, exact_match, multiple_choice, json_schema, code, or a function of "
            "yours as module:function. Repeatable: the quality is the mean."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model: a directory, a hub id or bundled:...")] = None,
    strategy: Annotated[str, typer.Option(help="grpo, curriculum, improve, diverge or exit.")] = "exit",
    stop_iters: StopIters = None,
    scale: Scale = "auto",
    results_dir: ResultsDir = "results",
    resume: Resume = None,
    checkpoint_freq: CheckpointFreq = 10,
    log_rollouts: LogRollouts = False,
    dashboard: Dashboard = False,
    wandb: WandB = None,
    mlflow: MLflow = None,
    settings: Settings = None,
    verbose: Verbose = False,
) -> None:
    """Trains on your data; `rllib train file` trains what a Python file configures.

    A tenth of the rows is held out, for `rllib evaluate --split test`. --set changes every other setting, such as
    --set lr=1e-5 or --set env_config.system_prompt='Be brief.'
    """
    if context.invoked_subcommand is not None:
        return
    if dataset is None:
        typer.echo(context.get_help())
        return
    with clear_errors(verbose):
        if Path(dataset).suffix in FILE_SUFFIXES and not Path(dataset).is_file():
            raise FileNotFoundError(f"{dataset} does not exist")
        for option, value in {"--reward": reward, "--model": model}.items():
            if not value:
                raise ValueError(f"{option} is missing: `rllib train --help` says what it takes")

        def make() -> tuple[GRPOConfig, dict[str, Any], TuneConfig | None]:
            from rllib_exit.cli.dataset import dataset_config

            # Rewards are found in the modules of the directory that the command is run in, as Ray's workers do.
            sys.path.insert(0, str(Path.cwd()))
            return dataset_config(dataset, prompt, answer, reward or [], str(model), strategy)

        _train(
            make,
            _directory(results_dir, Path(dataset).stem),
            stop_iters=stop_iters,
            scale=scale,
            resume=resume,
            checkpoint_freq=checkpoint_freq,
            log_rollouts=log_rollouts,
            dashboard=dashboard,
            trackers={"wandb": wandb, "mlflow": mlflow},
            settings=settings or [],
            verbose=verbose,
        )


def _directory(results_dir: str, name: str) -> Path | str:
    return f"{results_dir.rstrip('/')}/{name}" if "://" in results_dir else (Path(results_dir) / name).absolute()


def _train(
    make: Callable[[], tuple[GRPOConfig, dict[str, Any], TuneConfig | None]],
    directory: Path | str,
    *,
    stop_iters: int | None,
    scale: str,
    resume: str | None,
    checkpoint_freq: int,
    log_rollouts: bool,
    dashboard: bool,
    trackers: dict[str, str | None],
    settings: list[str],
    verbose: bool,
    scheduler: str | None = None,
    best_of: Path | None = None,
) -> None:
    """Trains what ``make`` gives: a config, when to stop, and how a sweep ranks its trials."""
    for name, project in trackers.items():
        if project is not None and not installed(name):
            raise ValueError(f"--{name} needs {name}, which is missing: run `pip install 'rllib-exit[{name}]'`")
    quiet(verbose)
    # Ray is imported from here on.
    import ray

    from rllib_exit.cli import sweeps
    from rllib_exit.cli.runs import init_ray
    from rllib_exit.cli.sweep_run import train_sweep
    from rllib_exit.cli.trackers import make_trackers
    from rllib_exit.cli.training import Training, train_other, train_run
    from rllib_exit.grpo.config import GRPOConfig

    try:
        if "RAY_ADDRESS" in os.environ:
            init_ray(verbose)
        take_scale(scale)
        config, stop, tune_config = make()
        config = override(config, settings)
        if stop_iters is not None:
            stop = {**stop, "training_iteration": stop_iters}
        training = Training(
            config,
            stop,
            directory,
            checkpoint_freq,
            verbose,
            dashboard=dashboard,
            trackers=make_trackers(**trackers),
        )
        if not isinstance(config, GRPOConfig):
            if tune_config is not None or scheduler or best_of or log_rollouts:
                raise ValueError("sweeps and logs of rollouts are for a GRPOConfig: sweep by ray.tune.Tuner")
            return train_other(training, resume)
        taken = {} if best_of is None else sweeps.best_values(config, best_of, settings)
        config = sweeps.with_values(config, taken)
        if log_rollouts or training.trackers:
            config.reporting(log_rollouts=True)
        training = replace(training, config=config)
        if tune_config is not None or sweeps.search_spaces(config):
            train_sweep(training, tune_config, taken, scheduler, resume)
        elif scheduler is not None:
            raise ValueError("--scheduler is for sweeps, and the config has no search space")
        else:
            train_run(training, resume)
    finally:
        ray.shutdown()
