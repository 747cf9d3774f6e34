from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from envs.base import TaskInstance, Turn
from rllib_exit.objective.scoring import num_to_refill, score, to_train_on
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup


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


def test_how_long_it_took_is_part_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5])
    monkeypatch.setattr("rllib_exit.objective.scoring.time.perf_counter", lambda: next(clock))
    scored = score(make_group([0, 1]), None)
    monkeypatch.undo()
    assert scored.seconds == 2.5


def test_nothing_is_embedded_where_nothing_is_to_be_scaled() -> None:
    def diversity(solutions: Sequence[str]) -> np.ndarray:
        raise AssertionError(solutions)

    assert score(make_group([1, 1]), diversity).advantages_G.tolist() == [0, 0]
    assert score(make_group([1]), diversity).advantages_G.tolist() == [0]


def scored(pattern: str) -> list[ScoredGroup]:
    """For each letter a group: ``x`` has a signal, ``=`` has equal returns, ``1`` has a single rollout."""
    returns = {"x": [0, 1], "=": [1, 1], "1": [1]}
    return [score(make_group(returns[letter]), None) for letter in pattern]


@pytest.mark.parametrize(
    ("pattern", "refill", "expected"),
    [
        ("", 0, 4),
        ("", 2, 4),
        ("xxxx", 2, 0),
        ("x=1=", 0, 0),  # without refill what was selected is all
        ("x=1=", 1, 3),
        ("x=1=xx", 1, 1),
        ("x=1====", 1, 1),  # three are missing, but only one more may be selected
        ("x=1=====", 1, 0),
        ("x=1=====", 2, 3),
        ("xxxxxx", 1, 0),  # a resumed run may have more than it needs
    ],
)
def test_an_iteration_refills_what_is_missing_up_to_a_bound(pattern: str, refill: int, expected: int) -> None:
    assert num_to_refill(scored(pattern), 4, refill) == expected


def test_groups_that_can_be_compared_are_trained_on_and_with_refill_those_with_a_signal() -> None:
    groups = scored("x=1x")
    assert to_train_on(groups, 0) == [groups[0], groups[1], groups[3]]
    assert to_train_on(groups, 1) == [groups[0], groups[3]]
