from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_exit.objective.advantages import group_advantages

returns = st.lists(st.floats(-10, 10), min_size=1, max_size=32)


def test_equation_3():
    advantages_G = group_advantages([1, 0, 0, 1])
    np.testing.assert_allclose(advantages_G, np.array([0.5, -0.5, -0.5, 0.5]) / (0.5 + 1e-4))


def test_without_division_by_the_deviation():
    np.testing.assert_allclose(group_advantages([1, 0, 0, 0], normalize_std=False), [0.75, -0.25, -0.25, -0.25])


@given(returns, st.booleans())
def test_centred_and_in_the_order_of_the_returns(returns, normalize_std):
    advantages_G = group_advantages(returns, normalize_std=normalize_std)
    assert advantages_G.shape == (len(returns),)
    assert abs(advantages_G.sum()) < 1e-6
    assert (np.diff(advantages_G[np.argsort(returns)]) >= 0).all()
    if normalize_std:
        assert advantages_G.std() <= 1 + 1e-9


@given(returns, st.floats(-100, 100))
def test_a_constant_bonus_changes_nothing(returns, bonus):
    shifted_G = group_advantages(np.array(returns) + bonus)
    np.testing.assert_allclose(shifted_G, group_advantages(returns), atol=1e-8)


@given(st.floats(-1e6, 1e6), st.integers(1, 33))
def test_equal_returns_give_exactly_zero(value, size):
    assert (group_advantages(np.full(size, value)) == 0).all()


def test_float_noise_gives_exactly_zero():
    assert (group_advantages([0.1 + 0.2, 0.3, 0.3], normalize_std=False) == 0).all()
    # Noise is relative to the returns, and to 1 for small ones.
    assert (group_advantages([1e6, 1e6 + 1e-7]) == 0).all() and (group_advantages([0, 1e-12]) == 0).all()
    assert (group_advantages([0, 1.5e-12]) != 0).all() and (group_advantages([1e6, 1e6 + 1e-5]) != 0).all()


@pytest.mark.parametrize("returns", [[1, 1], [0, 1], np.array([0.1, 0.7, 0.1], np.float32)])
def test_advantages_have_double_precision_whatever_the_returns_have(returns: Any):
    advantages_G = group_advantages(returns)
    assert advantages_G.dtype == np.float64
    np.testing.assert_array_equal(advantages_G, group_advantages(np.asarray(returns, np.float64)))


@pytest.mark.parametrize("returns", [[0, np.nan], [np.inf, 0], [], [[1.0]]])
def test_rejects_what_is_no_group_of_returns(returns):
    with pytest.raises(ValueError, match="returns"):
        group_advantages(returns)
