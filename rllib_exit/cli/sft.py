"""``rllib sft``: a supervised warm start on the environment's demonstrations."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rllib_exit.cli.config import Scale, Settings, check, load_file, override
from rllib_exit.cli.console import Verbose, clear_errors, duration, quiet, say, take_scale
from rllib_exit.files import atomic_directory, new_directory
from rllib_exit.models import save_model
from rllib_exit.versions import versions

if TYPE_CHECKING:
    from rllib_exit.grpo.config import GRPOConfig
    from rllib_exit.learner.module import CausalLMRLModule
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
        episodes, skipped = _demonstrations(config, limit)
        options = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
        module, loss_by_epoch = _train(config, episodes, threads, options)
        record = {
            "file": str(file.absolute()),
            "model": config.model_name,
            "env": getattr(config.env, "__name__", str(config.env)),
            "env_config": dict(config.env_config),
            "options": {**options, "limit": limit},
            "demonstrations": len(episodes),
            "quality_mean": _mean_quality(episodes),
            "loss_by_epoch": loss_by_epoch,
            "skipped": skipped,
            "versions": versions(),
        }
        with atomic_directory(output) as staging:
            module.model.config.use_cache = True  # the module trains without a cache
            save_model(module.model, config.model_path, config.dtype, staging)
            (staging / "sft.json").write_text(json.dumps(record, indent=1, default=str))
        say(f"loss by epoch: {'  '.join(f'{loss:.4f}' for loss in loss_by_epoch)}")
        say(f"written: {output}")
        say(f"train it: rllib train file {file} --set model_name={output}")


def _demonstrations(config: GRPOConfig, limit: int | None) -> tuple[list[Rollout], dict[str, str]]:
    """The episodes, and the reasons why other tasks have none, by task; says both."""
    from rllib_exit.chat import ChatTokenizer
    from rllib_exit.env_runners.environments import make_env
    from rllib_exit.env_runners.generator import SamplingParams
    from rllib_exit.sft import play_demonstrations

    env = make_env(config.env, config.env_config)
    played, skipped = asyncio.run(
        play_demonstrations(
            env,
            list(env.tasks)[:limit],
            chat=ChatTokenizer(config.model_path, template_kwargs=config.chat_template_kwargs),
            sampling=SamplingParams.from_config(config),
            max_model_len=config.max_model_len,
        )
    )
    if not played:
        task_id, reason = next(iter(skipped.items()))
        raise ValueError(f"none of {len(skipped)} demonstrations can be used; that of task {task_id!r}: {reason}")
    episodes = list(played.values())
    trained = sum(int(segment.loss_mask.sum()) for episode in episodes for segment in episode.segments)
    say(f"{len(episodes)} demonstrations, {trained} tokens to learn, mean quality {_mean_quality(episodes):.3f}")
    if skipped:
        say(f"{len(skipped)} demonstrations skipped:")
        for task_id, reason in islice(skipped.items(), SHOWN):
            say(f"  {task_id}: {reason}")
        if len(skipped) > SHOWN:
            say(f"  and {len(skipped) - SHOWN} more; sft.json names them all")
    return episodes, skipped


def _mean_quality(episodes: list[Rollout]) -> float:
    return sum(episode.quality for episode in episodes) / len(episodes)


def _train(
    config: GRPOConfig, episodes: list[Rollout], threads: int | None, options: dict[str, Any]
) -> tuple[CausalLMRLModule, list[float]]:
    """The trained module, and the mean loss of every epoch; shows the updates."""
    import torch

    from envs.workers import usable_cpus
    from rllib_exit.learner.module import CausalLMRLModule
    from rllib_exit.memory import keep_freed_memory
    from rllib_exit.sft import fine_tune

    torch.set_num_threads(threads or config.learner_threads or usable_cpus())
    keep_freed_memory()
    # It is the learner's module, but at temperature 1 and without a reference policy or adapters.
    config = config.copy(copy_frozen=False)
    config.kl_coeff, config.lora_r, config.temperature = 0.0, None, 1.0
    module = CausalLMRLModule(model_config=config.get_default_rl_module_spec().model_config)
    module.to("cuda" if torch.cuda.is_available() else "cpu")

    start = time.perf_counter()
    by_epoch: dict[int, list[Update]] = defaultdict(list)
    conversations = [episode.segments for episode in episodes]
    max_tokens = config.max_tokens_per_micro_batch
    for update in fine_tune(module, conversations, max_tokens_per_micro_batch=max_tokens, **options):
        by_epoch[update.epoch].append(update)
        left = (time.perf_counter() - start) / update.number * (update.total - update.number)
        say(
            f"epoch {update.epoch}/{options['epochs']}  update {update.number}/{update.total}  "
            f"loss {update.loss:.4f}  {update.tokens_per_s:.0f} tokens/s  {duration(left)} left"
        )
    return module, [_mean_loss(updates) for updates in by_epoch.values()]


def _mean_loss(updates: list[Update]) -> float:
    return sum(u.loss * u.trained_tokens for u in updates) / sum(u.trained_tokens for u in updates)
