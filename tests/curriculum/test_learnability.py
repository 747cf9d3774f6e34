import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_exit.curriculum.learnability import learnability


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


@pytest.mark.parametrize("qualities", [[0, 1.1], [-0.1, 0], [0.5, np.nan], [], [[0, 1]]])
def test_rejects_what_is_no_group_of_qualities(qualities):
    with pytest.raises(ValueError):
        learnability(qualities)
