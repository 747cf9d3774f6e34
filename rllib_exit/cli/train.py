"""``rllib train file``: trains with Tune what a Python file configures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rllib_exit.cli.config import Scale, Settings, load_file, override
from rllib_exit.cli.console import Verbose, clear_errors, quiet, take_scale


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
        quiet(verbose)
        # Ray is imported from here on.
        import ray

        from rllib_exit.cli import sweeps
        from rllib_exit.cli.runs import init_ray
        from rllib_exit.cli.sweep_run import train_sweep
        from rllib_exit.cli.training import Training, train_run

        try:
            if "RAY_ADDRESS" in os.environ:
                init_ray(verbose)
            take_scale(scale)
            config, stop, tune_config = load_file(file)
            config = override(config, settings or [])
            taken = {} if best_of is None else sweeps.best_values(config, best_of, settings or [])
            config = sweeps.with_values(config, taken)
            if log_rollouts:
                config.reporting(log_rollouts=True)
            if stop_iters is not None:
                stop = {**stop, "training_iteration": stop_iters}
            training = Training(config, stop, (results_dir / file.stem).absolute(), checkpoint_freq, verbose)
            if tune_config is not None or sweeps.search_spaces(config):
                train_sweep(training, tune_config, taken, scheduler, resume)
            elif scheduler is not None:
                raise ValueError(f"--scheduler is for sweeps, and the config of {file} has no search space")
            else:
                train_run(training, resume)
        finally:
            ray.shutdown()
