"""Plays episodes: the loop between an environment and a generator.

Every episode is a coroutine, so that the engine batches whatever requests are open and no episode waits
for another. An environment's ``reset`` and ``step`` run in threads: grading or a sandboxed script holds
up nobody. Those of an ``instant`` environment are called at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from envs.base import InfrastructureError, Message, SelfImprovementEnv, TaskInstance, Turn
from rllib_exit.chat import ChatTokenizer
from rllib_exit.compaction import compactions
from rllib_exit.env_runners.environments import make_env
from rllib_exit.env_runners.generator import EngineError, Generation, Sampler, SamplingParams
from rllib_exit.env_runners.threads import call_in_thread
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, Segment

logger = logging.getLogger(__name__)

T = TypeVar("T")


class PromptTooLongError(ValueError):
    """The first prompt of an episode leaves no room for a response."""


class EpisodeError(RuntimeError):
    """An episode failed twice; the message names the task and the cause."""


class NotJudgedError(EpisodeError):
    """An episode's environment broke down twice: it is left out of its group."""


class _Segments:
    """Collects an episode's tokens; begins a new segment where a prompt does not extend the last one."""

    def __init__(self) -> None:
        self.done: list[Segment] = []
        self._begin([])

    def _begin(self, prompt: list[int]) -> None:
        self._ids, self._mask, self._logprobs = list(prompt), [False] * len(prompt), [0.0] * len(prompt)
        self._last = slice(0, 0)  # the last response
        self._unended: list[slice] = []

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
        self._last = slice(len(self._ids), len(self._ids) + len(generation.token_ids))
        self._ids += generation.token_ids
        self._mask += [True] * len(generation.token_ids)
        self._logprobs += generation.logprobs.tolist()

    def unended(self) -> None:
        """The last response lacks a valid ending."""
        self._unended.append(self._last)

    def close(self) -> tuple[Segment, ...]:
        if any(self._mask):
            ids, mask = np.array(self._ids, np.int32), np.array(self._mask, bool)
            ended = mask.copy()
            for response in self._unended:
                ended[response] = False
            logprobs = np.array(self._logprobs, np.float32)
            self.done.append(Segment(ids, mask, logprobs, ended if self._unended else None))
        self._begin([])
        return tuple(self.done)


class Player:
    """Plays episodes: owns the environments, and all that a response depends on besides the prompt.

    At most ``size`` episodes are under way at once; others wait. An episode that raises, or whose environment hangs,
    is played once more, in another environment.

    Args:
        make_env: Makes one more environment.
        size: The most environments in use.
        generator: The engine.
        chat: The model's tokenizer.
        sampling: How to sample a response.
        env_timeout_s: The longest that making, resetting or stepping an environment may take.
        generation_timeout_s: The longest that a response may take.
        compact_history_chars: Where a chat leaves no room for a response, its old messages are cut to so many
            characters, until it does; None to cut none.
    """

    def __init__(
        self,
        make_env: Callable[[], SelfImprovementEnv],
        size: int = 1,
        *,
        generator: Sampler,
        chat: ChatTokenizer,
        sampling: SamplingParams,
        env_timeout_s: float | None = None,
        generation_timeout_s: float | None = None,
        compact_history_chars: int | None = None,
    ) -> None:
        self._make_env = make_env
        self._generator = generator
        self._chat = chat
        self._sampling = sampling
        self._env_timeout_s = env_timeout_s
        self._generation_timeout_s = generation_timeout_s
        self._compact_history_chars = compact_history_chars
        self._idle: list[SelfImprovementEnv] = []
        self._slots = asyncio.Semaphore(size)

    @classmethod
    def from_config(cls, config: Any, generator: Sampler, env_config: Mapping[str, Any] | None = None) -> Player:
        """The player that a GRPOConfig describes.

        Args:
            config: The config.
            generator: The engine.
            env_config: The environment's options; by default the config's.
        """
        options = config.env_config if env_config is None else env_config
        return cls(
            lambda: make_env(config.env, options),
            config.num_envs_per_env_runner,
            generator=generator,
            chat=ChatTokenizer(config.model_path, template_kwargs=config.chat_template_kwargs),
            sampling=SamplingParams.from_config(config),
            env_timeout_s=config.env_timeout_s,
            generation_timeout_s=config.generation_timeout_s,
            compact_history_chars=config.compact_history_chars,
        )

    async def roll_out(self, request: RolloutRequest, group_size: int, *, policy_version: int = 0) -> RolloutGroup:
        """Plays G episodes for a request. If the prompt does not fit the context, the group is empty.

        An episode that could not be judged is left out.

        Args:
            request: Where the episodes start.
            group_size: G.
            policy_version: The version of the engine's weights at the start; newer ones may come while the group is
                under way.

        Raises:
            EpisodeError: If one of the episodes failed twice for another reason.
            EngineError: If the engine died, or hangs.
        """
        # Turns of one rollout take consecutive seeds: leave room between rollouts.
        episodes = (self.play(request.instance, seed=request.seed + 1000 * g) for g in range(group_size))
        results = await asyncio.gather(*episodes, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        if any(isinstance(error, PromptTooLongError) for error in errors):
            return RolloutGroup(request, (), policy_version)
        rollouts = tuple(result for result in results if isinstance(result, Rollout))
        failures = [error for error in errors if not isinstance(error, NotJudgedError)]
        if failures:
            raise next((error for error in failures if isinstance(error, EngineError)), failures[0])
        for error in errors:
            logger.warning("left out of its group: %s", error)
        return RolloutGroup(request, rollouts, policy_version, num_dropped=len(errors))

    async def play(self, instance: TaskInstance, *, seed: int, steps: int = 0) -> Rollout:
        """Plays one episode; see :meth:`play_once`.

        Raises:
            PromptTooLongError: If the first prompt leaves no room for a response.
            EpisodeError: If the episode failed twice.
            EngineError: If the engine died, or hangs.
        """
        async with self._slots:
            for attempt in (1, 2):
                try:
                    rollout = await self._attempt(instance, seed=seed, steps=steps)
                except (PromptTooLongError, EngineError):
                    raise
                except Exception as error:
                    cause = error
                else:
                    return replace(rollout, attempts=attempt)
            message = f"an episode of task {instance.task_id!r} failed twice: {type(cause).__name__}: {cause}"
            raise (NotJudgedError if isinstance(cause, InfrastructureError) else EpisodeError)(message) from cause

    async def _attempt(self, instance: TaskInstance, *, seed: int, steps: int) -> Rollout:
        env = self._idle.pop() if self._idle else await call_in_thread(self._make_env, self._env_timeout_s)
        try:
            rollout = await self.play_once(env, instance, seed=seed, steps=steps)
        except PromptTooLongError:
            self._idle.append(env)  # nothing is wrong with it
            raise
        self._idle.append(env)
        return rollout

    async def play_once(self, env: SelfImprovementEnv, instance: TaskInstance, *, seed: int, steps: int = 0) -> Rollout:
        """Plays one episode in a given environment, without another try.

        An episode whose context runs out after its first turn ends there, truncated, with the quality it has.

        Args:
            env: The environment, used by this episode alone.
            instance: Where the episode starts.
            seed: The first response's seed; every further one takes the next.
            steps: Improvement steps on the response to every turn but the first, whose step the instance
                says. Only the last iterate goes to the environment. An iterate that leaves no room for
                another step stands.

        Raises:
            PromptTooLongError: If the first prompt leaves no room for a response of the longest length.
            TimeoutError: If the environment takes too long. It must not be used again.
            EngineError: If the engine died, or takes too long.
        """
        await self._call(env, partial(env.reset, options={"instance": instance}))
        segments = _Segments()
        # What the engine generated enters later prompts as the same ids, whatever its text would encode to.
        ids_of: dict[str, tuple[int, ...]] = {}
        seeds = itertools.count(seed)
        truncated, done, outcome = False, False, None

        async def respond(iterate: Turn | None = None) -> tuple[str, bool] | None:
            """The text of a response and whether the token limit cut it; None where the context has no room."""
            prompt = self._prompt(env.messages(iterate), ids_of, env.tools(env.task))
            if not self._has_room(prompt):
                if outcome is None:
                    raise PromptTooLongError(
                        f"task {instance.task_id!r}: a prompt of {len(prompt)} tokens and a response of up to "
                        f"{self._sampling.max_tokens} do not fit the context of {self._generator.max_model_len}"
                    )
                return None
            segments.prompt(prompt)
            generation = await self._generate(prompt, next(seeds))
            segments.generated(generation)
            text = self._chat.decode(generation.token_ids)
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
            _, _, done, _, info = await self._call(env, partial(env.step, response))
            outcome = info["outcome"]
            truncated |= cut
            if cut or not outcome.valid:
                segments.unended()
        assert outcome is not None
        return Rollout(
            segments.close(),
            env.turns,
            env.episode_return(outcome.quality),
            outcome.quality,
            outcome.valid,
            truncated,
            dict(outcome.metrics),
            files=dict(outcome.files),
        )

    async def _call(self, env: SelfImprovementEnv, function: Callable[[], T]) -> T:
        return function() if env.instant else await call_in_thread(function, self._env_timeout_s)

    def _prompt(
        self, messages: list[Message], ids_of: Mapping[str, tuple[int, ...]], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """The tokens of a chat, with old messages cut as far as need be."""
        known = {
            i: ids_of[message["content"]]
            for i, message in enumerate(messages)
            if message["role"] == "assistant" and message["content"] in ids_of
        }
        prompt = self._chat.encode(messages, known, tools)
        if self._compact_history_chars is not None:
            shorter = compactions(messages, self._compact_history_chars)
            while not self._has_room(prompt) and (cut := next(shorter, None)):
                prompt = self._chat.encode(cut[0], {i: ids for i, ids in known.items() if i not in cut[1]}, tools)
        return prompt

    def _has_room(self, prompt: list[int]) -> bool:
        return len(prompt) + self._sampling.max_tokens <= self._generator.max_model_len

    async def _generate(self, prompt: list[int], seed: int) -> Generation:
        timeout_s = self._generation_timeout_s
        try:
            return await asyncio.wait_for(self._generator.generate(prompt, self._sampling, seed), timeout_s)
        except TimeoutError:
            raise EngineError(
                f"no response within generation_timeout_s ({timeout_s} s): the engine hangs, or it has "
                "more to do than it can; raise generation_timeout_s or lower num_envs_per_env_runner"
            ) from None
