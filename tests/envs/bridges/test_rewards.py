from __future__ import annotations

import math

import pytest

from envs.bridges.rewards import RewardRange, quality_of
from envs.options import validate


def test_the_least_and_the_greatest_reward_are_0_and_1() -> None:
    assert [quality_of(reward, (-1.0, 3.0), "it") for reward in (-1, 0, 3)] == [0, 0.25, 1]


@pytest.mark.parametrize("reward", [-1.5, 3.5, math.nan])
def test_a_reward_outside_of_its_range_is_named(reward: float) -> None:
    with pytest.raises(ValueError, match=rf"^the sum is {reward}, outside of reward_range \(-1\.0, 3\.0\): set"):
        quality_of(reward, (-1.0, 3.0), "the sum")


def test_a_range_is_in_order() -> None:
    with pytest.raises(ValueError, match="give the least, then the greatest"):
        validate(RewardRange, (1, 1), "reward_range")  # type: ignore[arg-type]
