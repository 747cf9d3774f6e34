"""The self-improvement loop at inference time (paper section 5.3): answer, then improve K times.

In a domain of several turns, k steps are taken on every turn and only the last iterate is executed, so that
each k = 0…K is an episode of its own. The first turn's iterates are one chain: episode k starts from one of the
iterates before it. In K-step self-improvement that is the last one. In a greedy search (paper section 5.2,
appendix C) the environment says which one it is, and what counts is the best episode so far.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate

from envs.base import SelfImprovementEnv, TaskInstance, Turn
from rllib_exit.env_runners.player import PromptTooLongError
from rllib_exit.rollouts import Rollout

# Plays episode k from an instance, with k improvement steps on every turn but the first.
Play = Callable[[TaskInstance, int], Awaitable[Rollout]]


@dataclass(frozen=True, slots=True)
class Chain:
    """One task after 0, 1, …, K self-improvement steps on every turn.

    Where the context has no room for a further step on the first turn, the last episode stands.

    Attributes:
        task_id: The task.
        qualities: The qualities of the K+1 episodes; in a greedy search, of the best one so far.
        turns: The turns of the K+1 episodes, last iterates only.
        metrics: The domain's numbers for the K+1 episodes, and ``invalid_fraction`` and ``truncated_fraction``, which
            are 0 or 1 for an episode.
    """

    task_id: str
    qualities: tuple[float, ...]
    turns: tuple[tuple[Turn, ...], ...] = ()
    metrics: tuple[Mapping[str, float], ...] = ()


async def take_steps(
    env: SelfImprovementEnv,
    task_id: str,
    steps: int,
    play: Play,
    *,
    greedy: bool = False,
    taken: Sequence[Turn] = (),
) -> AsyncIterator[tuple[int | None, Rollout]]:
    """Plays the episodes with 0, 1, …, ``steps`` self-improvement steps, one after the other.

    Args:
        env: In a greedy search, its ``next_iterate`` says where each step starts. Nothing is played in it.
        task_id: The task.
        steps: K.
        play: Plays an episode.
        greedy: Whether this is a greedy search.
        taken: The iterates of the first turn, if some steps were taken before: the loop goes on after them.

    Yields:
        The step whose iterate an episode started from, None if it answered afresh, and the episode.

    Raises:
        PromptTooLongError: If the context has no room for the next prompt. In a greedy search a step whose iterate
            does not fit answers afresh.
    """
    iterates = list(taken)
    for k in range(len(iterates), steps + 1):
        iterate = (env.next_iterate(iterates) if greedy else iterates[-1]) if iterates else None
        try:
            episode = await play(_instance(task_id, iterate), k)
        except PromptTooLongError:
            if iterate is None or not greedy:
                raise
            iterate = None
            episode = await play(_instance(task_id, None), k)
        # Iterates with the same text are equal.
        parent = next((i for i, turn in enumerate(iterates) if turn is iterate), None)
        iterates.append(episode.turns[0])
        yield parent, episode


def _instance(task_id: str, iterate: Turn | None) -> TaskInstance:
    return TaskInstance(task_id, iterate=iterate, kind="improve" if iterate else "base")


async def self_improve(
    env: SelfImprovementEnv, task_id: str, steps: int, play: Play, *, greedy: bool = False
) -> Chain | None:
    """Answers a task, and again with 1, 2, … ``steps`` self-improvement steps; see :func:`take_steps`.

    Returns:
        None where the first prompt does not fit the context.
    """
    episodes: list[Rollout] = []
    with suppress(PromptTooLongError):
        async for _, episode in take_steps(env, task_id, steps, play, greedy=greedy):
            episodes.append(episode)
    if not episodes:
        return None
    episodes += [episodes[-1]] * (steps + 1 - len(episodes))
    qualities = [episode.quality for episode in episodes]
    return Chain(
        task_id,
        tuple(accumulate(qualities, max) if greedy else qualities),
        tuple(episode.turns for episode in episodes),
        tuple(
            {
                **episode.metrics,
                "invalid_fraction": float(not episode.valid),
                "truncated_fraction": float(episode.truncated),
            }
            for episode in episodes
        ),
    )
