"""``rllib sft``: a supervised warm start on the environment's demonstrations."""

from __future__ import annotations

import json
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rllib_exit.cli.config import Scale, Settings, check, load_file, override
from rllib_exit.cli.console import Verbose, clear_errors, duration, quiet, say, take_scale
from rllib_exit.files import atomic_directory, new_directory
from rllib_exit.versions import versions

if TYPE_CHECKING:
    from rllib_exit.grpo.config import GRPOConfig
    from rllib_exit.rollouts import Rollout
    from rllib_exit.sft import Update

SHOWN = 10  # skipped demonstrations that are named


def sft(
    file: Annotated[Path, typer.Argument(help="Python file with `config`, as `rllib train file` takes it.")],
    output: Annotated[Path, typer.Option(help="New or empty directory for the model.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the demonstrations.")] = 3,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 2e-5,
    batch_size: Annotated[int, typer.Option(min=1, help="Demonstrations per update.")] = 16,
    seed: Annotated[int, typer.Option(help="The seed of the demonstrations' order.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Train on the first N tasks.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; by default the file's learner_threads, or all.")
    ] = None,
    scale: Scale = "auto",
    settings: Settings = None,
    verbose: Verbose = False,
) -> None:
    """Fine-tunes the model on demonstrations of the env, where it is too weak for `rllib train` to begin with.

    Trains on what `demonstration(task)` of the file's env returns, in one process, on a GPU if there is one. Writes
    a Hugging Face model and sft.json, a record of the training.
    """
    with clear_errors(verbose):
        output = new_directory(output)
        quiet(verbose)
        take_scale(scale)
        config = override(load_file(file)[0], settings or [])
        check(config)
        from rllib_exit.sft import RECORD, mean_quality, train_model

        episodes, skipped = _demonstrations(config, limit)
        options = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
        with atomic_directory(output) as staging:
            tell = partial(_say_update, time.perf_counter(), epochs)
            loss_by_epoch = train_model(
                config, episodes, staging, dtype=config.dtype, threads=threads, tell=tell, **options
            )
            record = {
                "file": str(file.absolute()),
                "model": config.model_name,
                "env": getattr(config.env, "__name__", str(config.env)),
                "env_config": dict(config.env_config),
                "options": {**options, "limit": limit},
                "demonstrations": len(episodes),
                "quality_mean": mean_quality(episodes),
                "loss_by_epoch": loss_by_epoch,
                "skipped": skipped,
                "versions": versions(),
            }
            (staging / RECORD).write_text(json.dumps(record, indent=1, default=str))
        say(f"loss by epoch: {'  '.join(f'{loss:.4f}' for loss in loss_by_epoch)}")
        say(f"written: {output}")
        say(f"train it: rllib train file {file} --set model_name={output}")


def _demonstrations(config: GRPOConfig, limit: int | None) -> tuple[list[Rollout], dict[str, str]]:
    """The episodes, and the reasons why other tasks have none, by task; says both."""
    from rllib_exit.sft import demonstrations, mean_quality

    episodes, skipped = demonstrations(config, limit)
    trained = sum(int(segment.loss_mask.sum()) for episode in episodes for segment in episode.segments)
    say(f"{len(episodes)} demonstrations, {trained} tokens to learn, mean quality {mean_quality(episodes):.3f}")
    if skipped:
        say(f"{len(skipped)} demonstrations skipped:")
        for task_id, reason in islice(skipped.items(), SHOWN):
            say(f"  {task_id}: {reason}")
        if len(skipped) > SHOWN:
            say(f"  and {len(skipped) - SHOWN} more; sft.json names them all")
    return episodes, skipped


def _say_update(start: float, epochs: int, update: Update) -> None:
    left = (time.perf_counter() - start) / update.number * (update.total - update.number)
    say(
        f"epoch {update.epoch}/{epochs}  update {update.number}/{update.total}  "
        f"loss {update.loss:.4f}  {update.tokens_per_s:.0f} tokens/s  {duration(left)} left"
    )
