"""K-step self-improvement at inference time (paper section 5.3): answer, then improve K times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from envs.base import SelfImprovementEnv, TaskInstance, Turn
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.episodes import PromptTooLongError, run_episode
from rllib_exit.env_runners.generator import Generator, SamplingParams


@dataclass(frozen=True, slots=True)
class Chain:
    """The iterates of one task.

    Attributes:
        task_id: The task.
        qualities: Of the iterate after step 0, 1, …, K. Where the context has no room for a further
            step, the last iterate stands.
        responses: The iterates.
    """

    task_id: str
    qualities: tuple[float, ...]
    responses: tuple[str, ...]


async def self_improve(
    task_ids: Sequence[str],
    steps: int,
    *,
    make_env: Callable[[], SelfImprovementEnv],
    max_concurrent: int,
    generator: Generator,
    chat: ChatTokenizer,
    sampling: SamplingParams,
    seed: int = 0,
) -> list[Chain | None]:
    """Answers every task, then improves on the latest iterate ``steps`` times.

    Returns:
        One chain per task, in order; None where the first prompt does not fit the context.
    """
    idle: list[SelfImprovementEnv] = []
    slots = asyncio.Semaphore(max_concurrent)

    async def chain(index: int, task_id: str) -> Chain | None:
        async with slots:
            env = idle.pop() if idle else await asyncio.to_thread(make_env)
            qualities: list[float] = []
            responses: list[str] = []
            iterate: Turn | None = None
            for k in range(steps + 1):
                instance = TaskInstance(task_id, iterate=iterate, kind="improve" if iterate else "base")
                try:
                    # Seeds of their own for every task and step.
                    step_seed = seed + 1000 * (index * (steps + 1) + k)
                    rollout = await run_episode(
                        env, instance, generator=generator, chat=chat, sampling=sampling, seed=step_seed
                    )
                except PromptTooLongError:
                    if iterate is None:
                        idle.append(env)
                        return None
                    qualities += [qualities[-1]] * (steps + 1 - k)
                    responses += [responses[-1]] * (steps + 1 - k)
                    break
                iterate = rollout.turns[-1]
                qualities.append(rollout.quality)
                responses.append(iterate.response)
            idle.append(env)
            return Chain(task_id, tuple(qualities), tuple(responses))

    return list(await asyncio.gather(*(chain(i, task_id) for i, task_id in enumerate(task_ids))))


def accuracy_by_step(chains: Sequence[Chain]) -> np.ndarray:
    """(K+1,) mean quality after each step."""
    return np.array([chain.qualities for chain in chains]).mean(axis=0)


def net_corrections_by_step(chains: Sequence[Chain]) -> np.ndarray:
    """(K+1,) problems right after step k and wrong after step 0, minus those the other way round.

    A quality of 1 is right, all else wrong.
    """
    right = np.array([chain.qualities for chain in chains]) == 1.0
    return right.sum(axis=0) - right[:, 0].sum()
