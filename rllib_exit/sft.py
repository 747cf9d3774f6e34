"""A supervised warm start: fine-tunes a model on the demonstrations of its environment.

It is no part of the paper's algorithm. It is for a base model that never solves a task: all its groups have the same
return, so that GRPO has nothing to learn from. ``rllib sft`` makes a model of it, and a config's ``warm_start`` has it
come before training.

A demonstration is played as an episode, with the demonstrated responses in place of generated ones. So prompts,
tool results and the ends of responses are, token for token, those of training.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from envs.base import Message, SelfImprovementEnv, TaskInstance
from envs.workers import usable_cpus
from rllib_exit.chat import ChatTokenizer, replace_surrogates
from rllib_exit.env_runners.environments import make_env
from rllib_exit.env_runners.generator import Generation, SamplingParams
from rllib_exit.env_runners.player import Player
from rllib_exit.files import make_once
from rllib_exit.memory import keep_freed_memory, release_freed_memory
from rllib_exit.models import cache_dir, save_model
from rllib_exit.objective import packing
from rllib_exit.objective.packing import Row
from rllib_exit.rollouts import Rollout, Segment
from rllib_exit.settings import WarmStartSettings

if TYPE_CHECKING:
    from rllib_exit.learner.module import CausalLMRLModule

GRAD_CLIP = 1.0
WARMUP_FRACTION = 0.1
# What a warm start writes beside the model.
RECORD = "sft.json"


# Demonstrations.


def demonstrations(config: Any, limit: int | None = None) -> tuple[list[Rollout], dict[str, str]]:
    """Plays the demonstrations of a config's environment.

    Args:
        config: A GRPOConfig.
        limit: Of the first so many tasks; None for all.

    Returns:
        The episodes, and for every task that has none the reason.

    Raises:
        ValueError: If no demonstration can be used.
    """
    env = make_env(config.env, {**config.env_config, **config.warm_start_env_config})
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
    return list(played.values()), skipped


def mean_quality(episodes: Sequence[Rollout]) -> float:
    """Of the demonstrations."""
    return sum(episode.quality for episode in episodes) / len(episodes)


async def play_demonstrations(
    env: SelfImprovementEnv,
    task_ids: Iterable[str],
    *,
    chat: ChatTokenizer,
    sampling: SamplingParams,
    max_model_len: int,
) -> tuple[dict[str, Rollout], dict[str, str]]:
    """Plays the demonstrations of tasks.

    A demonstration is left out if it raises an error, if it is shorter or longer than its episode, if it does not fit
    the context, or if it has a response that the environment calls invalid or that the engine would have ended earlier.

    Args:
        env: The environment.
        task_ids: The tasks to play.
        chat: The model's tokenizer.
        sampling: ``max_tokens`` and ``stop``, as in training.
        max_model_len: The context's length; as in training, every prompt must leave room for ``max_tokens``.

    Returns:
        The episodes by task, and for every other task the reason why it has none.
    """
    end_of_turn = _end_of_turn(chat)
    played: dict[str, Rollout] = {}
    skipped: dict[str, str] = {}
    for task_id in task_ids:
        try:
            responses = env.demonstration(env.tasks[task_id])
            replay = _Replay(responses, chat, end_of_turn, max_model_len)
            player = Player(lambda: env, generator=replay, chat=chat, sampling=sampling)
            episode = await player.play_once(env, TaskInstance(task_id), seed=0)
            if episode.truncated:
                raise ValueError(
                    f"after {replay.given} of {len(responses)} responses, max_model_len ({max_model_len}) has no room "
                    f"for another prompt and response (max_response_tokens: {sampling.max_tokens})"
                )
            if replay.given < len(responses):
                raise ValueError(f"the episode ends after {replay.given} of {len(responses)} responses")
            if any(segment.ended_mask is not None for segment in episode.segments):
                raise ValueError("the environment calls a response invalid")
        except Exception as error:
            skipped[task_id] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        else:
            played[task_id] = episode
    return played, skipped


@dataclass
class _Replay:
    """Gives the responses of a demonstration, ended as an engine ends them."""

    responses: Sequence[str]
    chat: ChatTokenizer
    end_of_turn: int
    max_model_len: int
    given: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.responses, str):
            raise TypeError(f"demonstration() returned the string {self.responses[:40]!r}: return a list of responses")

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        if self.given == len(self.responses):
            raise ValueError(f"it has {self.given} responses and the episode goes on")
        text = replace_surrogates(self.responses[self.given])
        self.given += 1
        # It is tokenised as plain text: a response cannot spell a special token. Added tokens that are not special,
        # such as <think>, are what the policy is to write.
        ids: list[int] = self.chat.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ends = [end for stop in sampling.stop if (end := text.find(stop) + len(stop)) >= len(stop)]
        if ends and min(ends) < len(text):
            raise ValueError(f"response {self.given} goes on after the stop string {text[: min(ends)][-20:]!r}")
        if not ends:
            ids = [*ids, self.end_of_turn]
        if len(ids) > sampling.max_tokens:
            raise ValueError(
                f"response {self.given} has {len(ids)} tokens, over max_response_tokens ({sampling.max_tokens})"
            )
        return Generation(tuple(ids), np.zeros(len(ids), np.float32))


def _end_of_turn(chat: ChatTokenizer) -> int:
    """The token with which an engine ends a response: the one that the template writes after it, if that is an end."""
    user, response = Message(role="user", content="a"), Message(role="assistant", content="a")
    ids: list[int] = chat.tokenizer("a", add_special_tokens=False)["input_ids"]
    following = chat.encode([user, response, user], {1: ids})[len(chat.encode([user])) + len(ids)]
    return following if following in chat.eos_token_ids else chat.tokenizer.eos_token_id


# Training.


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer step of :func:`fine_tune`.

    Attributes:
        epoch: The number of the epoch, from 1.
        number: The number of the update, from 1, over all epochs.
        total: How many updates there are in all.
        loss: The mean cross-entropy of the batch's trained tokens, before the step.
        trained_tokens: How many trained tokens the batch has.
        tokens_per_s: How many of its tokens, those of prompts included, were processed in a second.
    """

    epoch: int
    number: int
    total: int
    loss: float
    trained_tokens: int
    tokens_per_s: float


def train_model(
    config: Any,
    episodes: Sequence[Rollout],
    directory: Path,
    *,
    dtype: str,
    threads: int | None = None,
    tell: Callable[[Update], object],
    **options: Any,
) -> list[float]:
    """Trains a config's model on demonstrations and writes it, in Hugging Face format.

    Args:
        config: A GRPOConfig.
        episodes: The demonstrations.
        directory: Where the model is written.
        dtype: In which it is written.
        threads: The CPU threads; by default the learner's.
        tell: Called after each update.
        **options: ``epochs``, ``lr``, ``batch_size`` and ``seed`` of :func:`fine_tune`.

    Returns:
        The mean loss of every epoch.
    """
    from rllib_exit.learner.module import CausalLMRLModule

    torch.set_num_threads(threads or config.learner_threads or usable_cpus())
    keep_freed_memory()
    # It is the learner's module, but at temperature 1 and without a reference policy or adapters.
    plain = config.copy(copy_frozen=False)
    plain.kl_coeff, plain.lora_r, plain.temperature = 0.0, None, 1.0
    module = CausalLMRLModule(model_config=plain.get_default_rl_module_spec().model_config)
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    by_epoch: dict[int, list[Update]] = defaultdict(list)
    conversations = [episode.segments for episode in episodes]
    max_tokens = config.max_tokens_per_micro_batch
    for update in fine_tune(module, conversations, max_tokens_per_micro_batch=max_tokens, **options):
        by_epoch[update.epoch].append(update)
        tell(update)
    module.model.config.use_cache = True  # the module trains without a cache
    save_model(module.model, config.model_path, dtype, directory)
    return [_mean_loss(updates) for updates in by_epoch.values()]


def _mean_loss(updates: Sequence[Update]) -> float:
    return sum(u.loss * u.trained_tokens for u in updates) / sum(u.trained_tokens for u in updates)


def fine_tune(
    module: CausalLMRLModule,
    conversations: Sequence[Sequence[Segment]],
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    max_tokens_per_micro_batch: int,
    seed: int,
) -> Iterator[Update]:
    """Trains on the masked tokens of conversations, in place; one step for every update that is taken.

    AdamW without weight decay; the learning rate rises over the first tenth of the updates and falls to 0 along a
    cosine; gradients are clipped to norm 1. The loss of a batch is the mean over its trained tokens, however they
    are packed.

    Args:
        module: The model.
        conversations: The segments of every conversation.
        epochs: The number of passes over the conversations, each in an order of its own.
        lr: The highest learning rate.
        batch_size: The number of conversations in an update; an epoch's last update may have fewer.
        max_tokens_per_micro_batch: The tokens of one forward and backward pass; they change only memory and speed.
        seed: The seed of the order, and of a model's dropout.

    Raises:
        ValueError: If an argument is out of range, or an update's loss or gradient is not finite.
    """
    for name, value in [("conversations", len(conversations)), ("epochs", epochs), ("batch_size", batch_size)]:
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr is {lr}: use a number above 0")
    from rllib_exit.learner.module import LOGPROBS, PACK

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, fused=True)
    share_prefixes = not module.model_config["attn_implementation"].startswith("flash")
    total = epochs * math.ceil(len(conversations) / batch_size)
    number = 0
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(conversations))
        for batch in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
            start = time.perf_counter()
            number += 1
            segments = [segment for i in batch for segment in conversations[i]]
            trained = int(sum(segment.loss_mask.sum() for segment in segments))
            rows = [Row(s.token_ids, s.loss_mask, s.logprobs, 1.0, 1 / trained) for s in segments]
            optimizer.zero_grad(set_to_none=True)
            loss = 0.0
            for pack in packing.pack(rows, max_tokens_per_micro_batch, share_prefixes):
                pack = pack.to(module.model.device)
                pack_loss = -(module.forward_train({PACK: pack})[LOGPROBS] * pack.weights_N).sum()
                pack_loss.backward()
                loss += float(pack_loss.detach())
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, GRAD_CLIP))
            if not math.isfinite(loss + norm):
                raise ValueError(f"update {number}: the loss is {loss} and the gradient's norm {norm}: lower lr ({lr})")
            for group in optimizer.param_groups:
                group["lr"] = lr * _schedule(number, total)
            optimizer.step()
            tokens = sum(len(segment.token_ids) for segment in segments)
            yield Update(epoch, number, total, loss, trained, tokens / (time.perf_counter() - start))


def _schedule(number: int, total: int) -> float:
    """The learning rate of an update, as a fraction of the highest one."""
    warmup = math.ceil(total * WARMUP_FRACTION)
    if number <= warmup:
        return number / warmup
    return 0.5 * (1 + math.cos(math.pi * (number - warmup) / (total - warmup + 1)))


# The warm start of a run.


def warm_start(config: Any, tell: Callable[[str], object]) -> tuple[Path, dict[str, Any]]:
    """The model after the supervised phase that a config asks for.

    It is made once for the same model, demonstrations and settings, and is then in the cache.

    Args:
        config: A GRPOConfig whose ``warm_start_epochs`` is above 0.
        tell: Called with lines that say how far it is.

    Returns:
        The model's directory, and what to report: the number of ``demonstrations``, their ``quality_mean``, the
        ``epochs``, and ``loss_first`` and ``loss_last``, the mean losses of the first and of the last epoch.

    Raises:
        ValueError: If no demonstration can be used.
    """
    settings = WarmStartSettings.of(config)
    episodes, skipped = demonstrations(config)
    options = {
        "epochs": settings.warm_start_epochs,
        "lr": settings.warm_start_lr,
        "batch_size": settings.warm_start_batch_size,
        "seed": config.seed or 0,
    }
    directory = cache_dir() / "warm-start" / _digest(config, episodes, options)

    def make(staging: Path) -> None:
        tell(f"warm start: {len(episodes)} demonstrations, {len(skipped)} skipped")

        def tell_update(update: Update) -> None:
            tell(f"warm start: update {update.number}/{update.total}  loss {update.loss:.4f}")

        # The learner's weights are float32, whatever it computes in.
        losses = train_model(config, episodes, staging, dtype="float32", tell=tell_update, **options)
        (staging / RECORD).write_text(json.dumps({"options": options, "loss_by_epoch": losses, "skipped": skipped}))

    make_once(directory, make)
    release_freed_memory()
    losses = json.loads((directory / RECORD).read_text())["loss_by_epoch"]
    report = {
        "demonstrations": len(episodes),
        "quality_mean": mean_quality(episodes),
        "epochs": len(losses),
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }
    tell(f"warm start: {len(episodes)} demonstrations, loss {losses[0]:.4f} to {losses[-1]:.4f}, from {directory}")
    return directory, report


def _digest(config: Any, episodes: Sequence[Rollout], options: dict[str, Any]) -> str:
    """Names what a warm start depends on: the model's files, the demonstrations' tokens, the settings."""
    digest = hashlib.sha256(json.dumps([options, config.dtype, config.attn_implementation]).encode())
    for file in sorted(file for file in Path(config.model_path).iterdir() if file.is_file()):
        with open(file, "rb") as stream:
            digest.update(f"{file.name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    for segment in (segment for episode in episodes for segment in episode.segments):
        digest.update(segment.token_ids.tobytes() + b"/" + segment.loss_mask.tobytes() + b"\n")
    return digest.hexdigest()[:32]
