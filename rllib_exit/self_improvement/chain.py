"""K-step self-improvement at inference time (paper section 5.3): answer, then improve K times.

In a domain of several turns, k steps are taken on every turn and only the last iterate is executed, so that
each k = 0…K is an episode of its own. The first turn's iterates are one chain: iterate k starts episode k.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from envs.base import SelfImprovementEnv, TaskInstance, Turn
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.episodes import EnvPool, PromptTooLongError
from rllib_exit.env_runners.generator import Generator, SamplingParams
from rllib_exit.rollouts import Rollout, means

# The responses of an episode take consecutive seeds: leave room between.
SEEDS_PER_EPISODE = 10_000


@dataclass(frozen=True, slots=True)
class Chain:
    """One task after 0, 1, …, K self-improvement steps on every turn.

    Where the context has no room for a further step on the first turn, the last episode stands.

    Attributes:
        task_id: The task.
        qualities: Of the K+1 episodes.
        turns: Of the K+1 episodes, last iterates only.
        metrics: The domain's numbers for the K+1 episodes.
    """

    task_id: str
    qualities: tuple[float, ...]
    turns: tuple[tuple[Turn, ...], ...] = ()
    metrics: tuple[Mapping[str, float], ...] = ()


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
    env_timeout_s: float | None = None,
    generation_timeout_s: float | None = None,
    compact_history_chars: int | None = None,
    run: Callable[..., Awaitable[Chain | None]] | None = None,
) -> list[Chain | None]:
    """Answers every task, and again with 1, 2, … ``steps`` self-improvement steps on every turn.

    Args:
        task_ids: The tasks.
        steps: K.
        make_env: Makes an environment.
        max_concurrent: So many episodes run at once.
        generator: The engine.
        chat: The model's tokenizer.
        sampling: How to sample.
        seed: Of the sampling.
        env_timeout_s: See :class:`EnvPool`.
        generation_timeout_s: See :class:`EnvPool`.
        compact_history_chars: See :class:`EnvPool`.
        run: What is done on each task: :func:`run_chain`, the default, or a greedy search.

    Returns:
        One chain per task, in order; None where the first prompt does not fit the context.
    """
    envs = EnvPool(
        make_env,
        max_concurrent,
        generator=generator,
        chat=chat,
        sampling=sampling,
        env_timeout_s=env_timeout_s,
        generation_timeout_s=generation_timeout_s,
        compact_history_chars=compact_history_chars,
    )
    run = run or run_chain
    chains = (run(task, steps, envs=envs, seed=chain_seed(seed, i, steps)) for i, task in enumerate(task_ids))
    return list(await asyncio.gather(*chains))


async def run_chain(task_id: str, steps: int, *, envs: EnvPool, seed: int) -> Chain | None:
    """Answers one task, and again with 1, 2, … ``steps`` self-improvement steps on every turn.

    Returns:
        None where the first prompt does not fit the context.
    """
    episodes: list[Rollout] = []
    for k in range(steps + 1):
        iterate = episodes[-1].turns[0] if episodes else None
        instance = TaskInstance(task_id, iterate=iterate, kind="improve" if iterate else "base")
        try:
            episodes.append(await envs.run(instance, seed=seed + SEEDS_PER_EPISODE * k, steps=k))
        except PromptTooLongError:
            break
    if not episodes:
        return None
    episodes += [episodes[-1]] * (steps + 1 - len(episodes))
    return Chain(
        task_id,
        tuple(episode.quality for episode in episodes),
        tuple(episode.turns for episode in episodes),
        tuple(episode.metrics for episode in episodes),
    )


def chain_seed(seed: int, index: int, steps: int) -> int:
    """The seed of the index-th task's chain."""
    return seed + SEEDS_PER_EPISODE * index * (steps + 1)


def accuracy_by_step(chains: Sequence[Chain]) -> np.ndarray:
    """(K+1,) mean quality after each step."""
    return np.array([chain.qualities for chain in chains]).mean(axis=0)


def net_corrections_by_step(chains: Sequence[Chain]) -> np.ndarray:
    """(K+1,) problems right after step k and wrong after step 0, minus those the other way round.

    A quality of 1 is right, all else wrong.
    """
    right = np.array([chain.qualities for chain in chains]) == 1.0
    return right.sum(axis=0) - right[:, 0].sum()


def metrics_by_step(chains: Sequence[Chain]) -> dict[str, np.ndarray]:
    """(K+1,) for every metric of the domain, its mean after each step over the episodes that report it."""
    by_step = [means([chain.metrics[k] for chain in chains]) for k in range(len(chains[0].metrics))]
    names = sorted({name for step in by_step for name in step})
    return {name: np.array([step.get(name, np.nan) for step in by_step]) for name in names}
