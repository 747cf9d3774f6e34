"""Rolls out episodes: the loop between an environment and a generator.

Every episode is a coroutine, so that the engine batches whatever requests are open and no episode waits
for another. An environment's ``reset`` and ``step`` run in threads: grading or a sandboxed script holds
up nobody.
"""

from __future__ import annotations

import asyncio
import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from envs.base import SelfImprovementEnv, TaskInstance, Turn
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.generator import Generation, Generator, SamplingParams
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, Segment


class PromptTooLongError(ValueError):
    """The first prompt of an episode leaves no room for a response."""


@dataclass(frozen=True, slots=True)
class RolloutFailure:
    """An episode that failed twice; what an env runner returns instead of its group.

    Attributes:
        request: The group's request.
        message: What happened, for the user.
        details: The traceback.
    """

    request: RolloutRequest
    message: str
    details: str


class _Segments:
    """Collects an episode's tokens; begins a new segment where a prompt does not extend the last one."""

    def __init__(self) -> None:
        self.done: list[Segment] = []
        self._begin([])

    def _begin(self, prompt: list[int]) -> None:
        self._ids, self._mask, self._logprobs = list(prompt), [False] * len(prompt), [0.0] * len(prompt)

    def prompt(self, ids: list[int]) -> None:
        known = len(self._ids)
        if ids[:known] == self._ids:
            added = ids[known:]
            self._ids += added
            self._mask += [False] * len(added)
            self._logprobs += [0.0] * len(added)
        else:
            self.close()
            self._begin(ids)

    def generated(self, generation: Generation) -> None:
        self._ids += generation.token_ids
        self._mask += [True] * len(generation.token_ids)
        self._logprobs += generation.logprobs.tolist()

    def close(self) -> tuple[Segment, ...]:
        if any(self._mask):
            ids, mask = np.array(self._ids, np.int32), np.array(self._mask, bool)
            self.done.append(Segment(ids, mask, np.array(self._logprobs, np.float32)))
        self._begin([])
        return tuple(self.done)


async def run_episode(
    env: SelfImprovementEnv,
    instance: TaskInstance,
    *,
    generator: Generator,
    chat: ChatTokenizer,
    sampling: SamplingParams,
    seed: int,
    steps: int = 0,
) -> Rollout:
    """Rolls out one episode from an instance.

    An episode whose context runs out after its first turn ends there, truncated, with the quality it has.

    Args:
        env: The environment, used by this episode alone.
        instance: Where the episode starts.
        generator: The engine.
        chat: The model's tokenizer.
        sampling: How to sample a response.
        seed: Of the first response; every further one takes the next.
        steps: Improvement steps on the response to every turn but the first, whose step the instance
            says. Only the last iterate goes to the environment. An iterate that leaves no room for
            another step stands.

    Raises:
        PromptTooLongError: If the first prompt leaves no room for ``sampling.max_tokens``.
    """
    await asyncio.to_thread(env.reset, options={"instance": instance})
    segments = _Segments()
    # What the engine generated enters later prompts as the same ids, whatever its text would encode to.
    ids_of: dict[str, tuple[int, ...]] = {}
    seeds = itertools.count(seed)
    valid, truncated, done, outcome = True, False, False, None

    async def respond(iterate: Turn | None = None) -> tuple[str, bool] | None:
        """The text of a response and whether the token limit cut it; None where the context has no room."""
        messages = env.messages(iterate)
        known = {
            i: ids_of[m["content"]]
            for i, m in enumerate(messages)
            if m["role"] == "assistant" and m["content"] in ids_of
        }
        prompt = chat.encode(messages, known)
        if len(prompt) + sampling.max_tokens > generator.max_model_len:
            if outcome is None:
                raise PromptTooLongError(
                    f"task {instance.task_id!r}: a prompt of {len(prompt)} tokens and a response of up to "
                    f"{sampling.max_tokens} do not fit the context of {generator.max_model_len}"
                )
            return None
        segments.prompt(prompt)
        generation = await generator.generate(prompt, sampling, next(seeds))
        segments.generated(generation)
        text = chat.decode(generation.token_ids)
        ids_of[text] = generation.token_ids
        return text, generation.truncated

    while not done:
        answer = await respond()
        if answer is None:
            truncated = True
            break
        for k in range(steps if outcome else 0):
            answer = await respond(Turn(answer[0], depth=k)) or answer
        response, cut = answer
        _, _, done, _, info = await asyncio.to_thread(env.step, response)
        outcome = info["outcome"]
        valid &= outcome.valid
        truncated |= cut
    assert outcome is not None
    return_ = env.episode_return(outcome.quality)
    return Rollout(segments.close(), env.turns, return_, outcome.quality, valid, truncated, dict(outcome.metrics))


async def roll_out(
    requests: Sequence[RolloutRequest],
    group_size: int,
    *,
    make_env: Callable[[], SelfImprovementEnv],
    max_concurrent: int,
    generator: Generator,
    chat: ChatTokenizer,
    sampling: SamplingParams,
    policy_version: int,
) -> list[RolloutGroup | RolloutFailure]:
    """Rolls out G episodes for every request, at most ``max_concurrent`` at once.

    An episode that raises is run once more, in a new environment; if it raises again its group becomes a
    :class:`RolloutFailure`. A request whose prompt does not fit the context becomes an empty group.
    """
    idle: list[SelfImprovementEnv] = []
    slots = asyncio.Semaphore(max_concurrent)

    async def attempt(request: RolloutRequest, g: int) -> Rollout:
        env = idle.pop() if idle else await asyncio.to_thread(make_env)
        rollout = await run_episode(
            env,
            request.instance,
            generator=generator,
            chat=chat,
            sampling=sampling,
            # Turns of one rollout take consecutive seeds: leave room between rollouts.
            seed=request.seed + 1000 * g,
        )
        idle.append(env)
        return rollout

    async def episode(request: RolloutRequest, g: int) -> Rollout:
        async with slots:
            try:
                return await attempt(request, g)
            except PromptTooLongError:
                raise
            except Exception:
                return await attempt(request, g)

    async def group(request: RolloutRequest) -> RolloutGroup | RolloutFailure:
        results = await asyncio.gather(*(episode(request, g) for g in range(group_size)), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in errors:
            if isinstance(error, PromptTooLongError):
                return RolloutGroup(request, (), policy_version)
            if not isinstance(error, Exception):
                raise error
            message = f"an episode of task {request.instance.task_id!r} failed twice: {type(error).__name__}: {error}"
            return RolloutFailure(request, message, "".join(traceback.format_exception(error)))
        return RolloutGroup(request, tuple(r for r in results if isinstance(r, Rollout)), policy_version)

    return list(await asyncio.gather(*(group(request) for request in requests)))
