from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.base import TaskInstance, Turn
from rllib_exit.objective.scoring import score
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest


def make_group(returns: Sequence[float], history: tuple[Turn, ...] = ()) -> RolloutGroup:
    """Rollouts of two new turns each, with solutions that name the rollout."""
    rollouts = tuple(
        Rollout((), (*history, Turn("…", solution=f"a{g}"), Turn("…", solution=f"b{g}")), return_, 0.5)
        for g, return_ in enumerate(returns)
    )
    return RolloutGroup(RolloutRequest("0", TaskInstance("t", history)), rollouts)


def test_advantages_are_of_returns_with_or_without_their_deviation() -> None:
    group = make_group([1, 0, 0, 1])
    np.testing.assert_allclose(score(group, None).advantages_G, np.array([0.5, -0.5, -0.5, 0.5]) / (0.5 + 1e-4))
    np.testing.assert_allclose(score(group, None, normalize_std=False).advantages_G, [0.5, -0.5, -0.5, 0.5])


def test_the_diversity_bonus_scales_advantages_by_what_the_rollouts_wrote_themselves() -> None:
    seen: list[list[str]] = []

    def diversity(solutions: Sequence[str]) -> np.ndarray:
        seen.append(list(solutions))
        return np.array([0.0, 0.5, 1.0])

    history = (Turn("of the instance"), Turn("and this"))
    scored = score(make_group([0, 0, 3], history), diversity, normalize_std=False)
    np.testing.assert_allclose(scored.advantages_G, [0, -0.5, 2])
    assert seen == [["a0\nb0", "a1\nb1", "a2\nb2"]]


def test_nothing_is_embedded_where_nothing_is_to_be_scaled() -> None:
    def diversity(solutions: Sequence[str]) -> np.ndarray:
        raise AssertionError(solutions)

    assert score(make_group([1, 1]), diversity).advantages_G.tolist() == [0, 0]
    assert score(make_group([1]), diversity).advantages_G.tolist() == [0]
