"""Draws of tasks that are the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from envs.base import Task


def stable_hash(text: str) -> int:
    """A hash of 64 bits that does not change between processes, unlike ``hash``."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def subset(
    tasks: tuple[Task, ...], size: int | None, seed: int = 0, key: Callable[[Task], str] = lambda task: task.prompt
) -> tuple[Task, ...]:
    """Draws tasks by a hash, in their old order.

    Args:
        tasks: The tasks to draw from.
        size: How many to draw; None for all.
        seed: The seed of the draw.
        key: What of a task is hashed: equal keys are drawn alike on every machine.
    """
    if size is None:
        return tasks
    drawn = sorted(range(len(tasks)), key=lambda i: stable_hash(f"{seed}:{key(tasks[i])}"))[:size]
    return tuple(tasks[i] for i in sorted(drawn))
