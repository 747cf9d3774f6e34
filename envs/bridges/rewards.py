"""Rewards of other libraries, which may be any numbers, as qualities from 0 to 1."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError("give the least, then the greatest")
    return bounds


RewardRange = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""The least and the greatest reward, which become the qualities 0 and 1."""


def quality_of(reward: float, reward_range: tuple[float, float], what: str) -> float:
    """The quality that a reward stands for.

    Args:
        reward: The reward.
        reward_range: See :data:`RewardRange`.
        what: What the reward is, as the beginning of the error's sentence.

    Raises:
        ValueError: If the reward is outside of the range, or NaN.
    """
    low, high = reward_range
    if not low <= reward <= high:
        raise ValueError(f"{what} is {reward}, outside of reward_range {low, high}: set reward_range to what it can be")
    return (reward - low) / (high - low)
