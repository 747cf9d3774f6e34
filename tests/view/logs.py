"""Logs of rollouts for the viewer's tests, written by their writer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel as Bytes

from envs.base import Message, Outcome, SelfImprovementEnv, Task, TaskInstance, Turn
from rllib_exit.curriculum.exit import STRATEGIES, ExIt
from rllib_exit.objective.scoring import score
from rllib_exit.rollout_log import RolloutLog
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, Segment

GROUP_SIZE = 4


class AnyEnv(SelfImprovementEnv):
    """Has tasks, and nothing that the log does not read."""

    def __init__(self, tasks: dict[str, str]) -> None:
        super().__init__([Task(name, prompt, {"answer": f"gold of {prompt}"}) for name, prompt in tasks.items()])

    def prompt(self, task: Task) -> list[Message]:
        raise NotImplementedError

    def respond(self, task: Task, response: str) -> Outcome:
        raise NotImplementedError


def write_run(
    directory: Path,
    tasks: dict[str, str],
    answer: Callable[[RolloutRequest, int], str],
    *,
    iterations: int = 6,
    prompts: int = 4,
    first: int = 1,
) -> ExIt:
    """A run of ExIt whose responses are made up, with tokens and task buffer; each response is a turn of its own."""
    model = make_tokenizer(directory.parent / "model")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    log = RolloutLog(directory, env=AnyEnv(tasks), tokenizer=model)
    rng = np.random.default_rng(0)
    curriculum = ExIt(STRATEGIES["exit"].replace(min_buffer_size=2, buffer_size=16), list(tasks), rng)
    for iteration in range(first, first + iterations):
        scored, logprobs = [], {}
        for request in curriculum.select(prompts):
            rollouts = tuple(
                _rollout(request.instance, answer(request, g), tokenizer, tasks, rng) for g in range(GROUP_SIZE)
            )
            group = RolloutGroup(request, rollouts, policy_version=iteration - 1)
            scored.append(score(group, lambda solutions: np.linspace(0, 1, len(solutions))))
            for g, rollout in enumerate(rollouts[:-1]):  # the learner was not asked for the last
                of = rollout.segments[0]
                logprobs[request.group_id, g, 0] = np.where(of.loss_mask, of.logprobs + 0.01 * (g - 1), np.nan)
        curriculum.update([of.group for of in scored])
        log.write(iteration, scored, curriculum, logprobs)
    return curriculum


def _rollout(
    instance: TaskInstance, text: str, tokenizer: Tokenizer, tasks: dict[str, str], rng: np.random.Generator
) -> Rollout:
    quality = float(rng.integers(5)) / 4
    turn = Turn(text, f"feedback to {text}", quality, instance.depth + 1 if instance.iterate else 0)
    context = tokenizer.encode(tasks[instance.task_id].encode("utf-8", "replace").decode()).ids
    response = tokenizer.encode(text.encode("utf-8", "replace").decode()).ids
    ids = np.array([*context, *response], np.int32)
    mask = np.arange(len(ids)) >= len(context)
    segment = Segment(ids, mask, np.where(mask, -rng.exponential(size=len(ids)), 0).astype(np.float32))
    valid = bool(rng.random() < 0.9)
    return Rollout(
        (segment,), (*instance.history, turn), quality, quality, valid=valid, truncated=not valid, metrics={text: 1.0}
    )


def make_tokenizer(directory: Path) -> Path:
    """A model's directory with a tokenizer of bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {character: number for number, character in enumerate(sorted(Bytes.alphabet()))}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = Bytes(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = ByteLevel()  # type: ignore[assignment]
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def numbered() -> Callable[[RolloutRequest, int], str]:
    """Responses that differ: "answer 0 of t1" and so on."""
    numbers = itertools.count()
    return lambda request, g: f"answer {next(numbers)} of {request.instance.task_id}"
