import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.base import TaskInstance, Turn
from rllib_exit.curriculum.learnability import (
    expected_improvement,
    group_score,
    learnability,
    maximum,
    puct,
    regret,
    top_quantile,
)
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest

groups = st.lists(st.floats(0, 1), min_size=1, max_size=32)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=32))
def test_is_the_population_variance(qualities):
    mean = sum(qualities) / len(qualities)
    expected = sum((q - mean) ** 2 for q in qualities) / len(qualities)
    assert learnability(qualities) == pytest.approx(expected, abs=1e-12)
    assert 0 <= learnability(qualities) <= 0.25


def test_half_solved_is_the_most_learnable():
    assert learnability([0, 1, 0, 1]) == 0.25


@given(st.floats(0, 1), st.integers(1, 33))
def test_equal_qualities_score_exactly_zero(quality, size):
    assert learnability(np.full(size, quality)) == 0.0


@given(groups, st.floats(0, 1))
def test_expected_improvement_is_the_mean_gain_over_the_iterate(qualities, previous):
    expected = sum(max(q - previous, 0) for q in qualities) / len(qualities)
    assert expected_improvement(qualities, previous) == pytest.approx(expected)
    assert 0 <= expected_improvement(qualities, previous) <= 1


def test_expected_improvement_ignores_what_got_worse_and_variance_does_not():
    assert expected_improvement([0.2, 0.5, 0.5], previous=0.5) == 0.0 < learnability([0.2, 0.5, 0.5])
    assert expected_improvement([0.5, 0.9], previous=0.5) == pytest.approx(0.2)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=16))
def test_without_an_iterate_expected_improvement_of_right_and_wrong_is_the_variance(qualities):
    assert expected_improvement(qualities) == pytest.approx(learnability(qualities))


@given(groups)
def test_regret_is_the_best_less_the_mean(qualities):
    assert regret(qualities) == pytest.approx(max(qualities) - sum(qualities) / len(qualities), abs=1e-12)
    assert 0 <= regret(qualities) <= 1


def test_regret_prefers_what_succeeds_rarely_and_variance_what_succeeds_half_of_the_time():
    rare, half, always = [0, 0, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]
    assert regret(rare) > regret(half) > regret(always) == 0
    assert learnability(half) > learnability(rare)


@given(groups)
def test_the_best_quarter_lies_between_the_mean_and_the_best(qualities):
    best = sorted(qualities, reverse=True)
    quarter = [quality for i, quality in enumerate(best) if 4 * i < len(qualities)]
    assert top_quantile(qualities) == pytest.approx(sum(quarter) / len(quarter), abs=1e-12)
    assert sum(best) / len(best) - 1e-12 <= top_quantile(qualities) <= maximum(qualities) + 1e-12
    assert maximum(qualities) == best[0]


def test_one_lucky_rollout_of_eight_is_the_maximum_and_half_of_the_best_quarter():
    lucky = [0, 0, 1, 0, 0, 0, 0, 0]
    assert (maximum(lucky), top_quantile(lucky), top_quantile(lucky[:4])) == (1.0, 0.5, 1.0)


def slow_puct(scores, num_draws, total_draws, coeff):
    """One instance at a time, as the paper writes it; equal scores share the mean of their ranks."""
    result = []
    for score, n in zip(scores, num_draws, strict=True):
        below, equal = sum(other < score for other in scores), scores.count(score)
        rank = sum(range(below + 1, below + equal + 1)) / equal
        prior = rank / sum(range(1, len(scores) + 1))
        scale = max(scores) - min(scores)
        result.append(score + coeff * scale * prior * (1 + total_draws) ** 0.5 / (1 + n))
    return result


instances = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 1.0]) | st.floats(0, 1), st.integers(0, 9)), min_size=1)


@given(instances, st.integers(0, 99), st.floats(0, 10))
def test_puct_is_the_papers_formula(pairs, gone, coeff):
    scores, num_draws = [score for score, _ in pairs], [n for _, n in pairs]
    total = sum(num_draws) + gone
    raised = puct(scores, num_draws, total, coeff)
    np.testing.assert_allclose(raised, slow_puct(scores, num_draws, total, coeff), rtol=1e-9)
    assert (raised >= scores).all()
    if coeff == 0 or len(set(scores)) == 1:
        assert raised.tolist() == scores


@given(instances, st.data())
def test_a_draw_raises_the_others_and_lowers_its_own_bonus(pairs, data):
    scores, num_draws = [score for score, _ in pairs], np.array([n for _, n in pairs])
    total, i = int(num_draws.sum()), data.draw(st.integers(0, len(pairs) - 1))
    before = puct(scores, num_draws, total, 1.0)
    drawn = num_draws + (np.arange(len(pairs)) == i)
    after = puct(scores, drawn, total + 1, 1.0)
    others = np.arange(len(pairs)) != i
    assert (after[others] >= before[others]).all()
    # √((2 + T) / (1 + T)) is less than (2 + n) / (1 + n), as n is at most T.
    assert after[i] <= before[i]


@given(st.floats(0, 1), st.integers(1, 33), st.sampled_from(["variance", "expected_improvement", "regret"]))
def test_scores_of_what_differs_are_exactly_zero_for_a_base_task_with_equal_qualities(quality, size, name):
    assert group_score(group([quality] * size, TaskInstance("t")), name) == 0.0


def test_scores_see_the_groups_iterate():
    iterate = TaskInstance("t", iterate=Turn("x", quality=0.5), kind="improve")
    assert group_score(group([0.5, 1.0], iterate), "expected_improvement") == 0.25
    assert group_score(group([0.5, 1.0], iterate), "variance") == 0.0625
    assert group_score(group([0.5, 1.0], iterate), "regret") == 0.25
    assert group_score(group([0.5, 0.75], iterate), "maximum") == 0.75
    assert group_score(group([0.5, 0.75], iterate), "top_quantile") == 0.75


def group(qualities, instance, returns=None):
    pairs = zip(returns or qualities, qualities, strict=True)
    rollouts = tuple(Rollout((), (), return_, quality) for return_, quality in pairs)
    return RolloutGroup(RolloutRequest("0", instance), rollouts)


@pytest.mark.parametrize("score", [learnability, expected_improvement, regret, maximum, top_quantile])
@pytest.mark.parametrize(
    ("qualities", "message"),
    [
        *(
            ([*bad], r"^qualities lie in .*: rescale them to")
            for bad in ([0, 1.1], [-0.1, 0], [0.5, np.nan], [1.0, None])
        ),
        *((bad, r"^qualities have shape .*: give one per rollout") for bad in ([], [[0, 1]])),
    ],
)
def test_rejects_what_is_no_group_of_qualities(qualities, message, score):
    with pytest.raises(ValueError, match=message):
        score(qualities)


def test_the_score_is_of_qualities_or_of_returns_brought_to_the_unit_interval():
    # Two scripts of MLE-bench that follow one of quality 0.8: one fails, which is clipped to -1, the other is perfect.
    iterate = TaskInstance("t", iterate=Turn("x", quality=0.8), kind="improve")
    gains = group([0.0, 1.0, 0.8, 0.8], iterate, returns=[-1.0, 1.0, 0.0, 0.0])
    assert group_score(gains) == pytest.approx(np.var([0, 1, 0.8, 0.8]))
    assert group_score(gains, of="return") == pytest.approx(np.var([-1, 1, 0, 0]) / 4)
    # 0.04 of what was left to gain is much of it.
    small = group([0.98, 0.98, 0.94, 0.94], TaskInstance("t"), returns=[0.5, 0.5, -0.5, -0.5])
    assert group_score(small, of="return") == pytest.approx(0.0625)
    assert group_score(small) == pytest.approx(0.0004)
    assert group_score(gains, "regret", "return") == 0.5
    assert group_score(group([0.5, 0.5], iterate, returns=[0.0, 0.5]), "maximum", "return") == 0.75


@pytest.mark.parametrize("returns", [[0.0, 1.5], [-1.1, 0.0], [0.0, np.nan]])
def test_returns_that_cannot_be_rescaled_are_refused(returns):
    with pytest.raises(
        ValueError, match=r"learnability_of='return' needs them in \[-1, 1\].*environment's reward, or use 'quality'$"
    ):
        group_score(group([0.0, 1.0], TaskInstance("t"), returns), of="return")
