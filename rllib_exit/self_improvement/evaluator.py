"""Evaluates a policy on env runners: for training, ``rllib evaluate`` and ``rllib search``, on one engine or on many.

Every step of every chain is a piece of work of its own for the dispatcher: the load is even, and of a lost env runner
only the steps under way are taken again. The steps of a chain may run on different engines, each of which has to
compute the shared part of their prompts anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future
from typing import Any

from envs.base import SelfImprovementEnv, TaskInstance
from rllib_exit.env_runners.dispatcher import Dispatcher
from rllib_exit.env_runners.llm_env_runner import remote_call
from rllib_exit.rollouts import Rollout
from rllib_exit.self_improvement.chain import Chain, Play, self_improve

# The responses of an episode take consecutive seeds, and so do the chains of all tasks: leave room between.
SEEDS_PER_EPISODE = 10_000
SEEDS_PER_EVALUATION = 10**9


def start_chains(
    env_runners: Dispatcher,
    env: SelfImprovementEnv,
    task_ids: Sequence[str],
    config: Any,
    *,
    steps: int | None = None,
    seed: int = 0,
    split: str | None = None,
) -> list[Future[Chain | None]]:
    """Starts self-improvement on tasks of an evaluation.

    Args:
        env_runners: They play the episodes.
        env: An environment like those of the env runners.
        task_ids: The tasks.
        config: A GRPOConfig: K steps of self-improvement, or of greedy search.
        steps: K, if it is not the config's.
        seed: The number of the evaluation, from 0: each has seeds of its own.
        split: See :meth:`LLMEnvRunner.play`.

    Returns:
        A chain for each task; None where the prompt does not fit the context. Each raises what
        :meth:`LLMEnvRunner.play` raises, or EnvRunnersLostError.
    """
    num_steps: int = config.self_improvement_steps if steps is None else steps
    first = seed * SEEDS_PER_EVALUATION
    chains = (
        self_improve(
            env,
            task_id,
            num_steps,
            play_on(env_runners, seed=chain_seed(first, i, num_steps), split=split),
            greedy=config.greedy_search,
        )
        for i, task_id in enumerate(task_ids)
    )
    return [env_runners.run(chain) for chain in chains]


def steps_after(iteration: int, config: Any) -> int:
    """K of the evaluation after an iteration of training: in every ``self_improvement_interval``-th all, else 0."""
    number = iteration // (config.evaluation_interval or 1)
    return 0 if number % config.self_improvement_interval else config.self_improvement_steps


def play_on(
    env_runners: Dispatcher, *, seed: int, seeds_per_episode: int = SEEDS_PER_EPISODE, split: str | None = None
) -> Play:
    """Plays the episodes of one chain on env runners.

    Args:
        env_runners: They play the episodes.
        seed: The seed of episode 0.
        seeds_per_episode: So far apart are the seeds of episodes.
        split: See :meth:`LLMEnvRunner.play`.
    """

    def play(instance: TaskInstance, k: int) -> Awaitable[Rollout]:
        call = remote_call("play", instance, seed + seeds_per_episode * k, k, split)
        return asyncio.wrap_future(env_runners.submit(call))

    return play


def chain_seed(seed: int, index: int, steps: int) -> int:
    """The seed of the index-th task's chain."""
    return seed + SEEDS_PER_EPISODE * index * (steps + 1)
