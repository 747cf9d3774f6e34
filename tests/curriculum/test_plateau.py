import numpy as np
import pytest

from rllib_exit.curriculum.plateau import plateau


def rise_then_flat(knot, level, length, start=0.0):
    return np.interp(np.arange(length), [0, knot], [start, level])


@pytest.mark.parametrize("knot", [1, 5, 20, 59])
@pytest.mark.parametrize("level", [0.5, 4.0])
def test_a_rise_to_a_plateau_has_its_level(knot, level):
    assert plateau(rise_then_flat(knot, level, 60)) == pytest.approx(level)


def test_a_curve_that_still_rises_has_the_value_it_has_come_to():
    assert plateau(np.linspace(0, 3, 40)) == pytest.approx(3)
    assert plateau([0, 2]) == pytest.approx(2)


@pytest.mark.parametrize("values", [[2.0], [2.0] * 30])
def test_a_constant_is_its_own_plateau(values):
    assert plateau(values) == pytest.approx(2.0)


def test_noise_and_a_single_outlier_hardly_move_it():
    rng = np.random.default_rng(0)
    curve = rise_then_flat(40, 3.0, 200) + rng.normal(0, 0.3, 200)
    assert plateau(curve) == pytest.approx(3.0, abs=0.1)
    curve[-1] += 5
    assert plateau(curve) == pytest.approx(3.0, abs=0.15)


def test_a_saturating_curve_plateaus_near_its_limit():
    assert plateau(4 * (1 - np.exp(-np.arange(200) / 20))) == pytest.approx(4, abs=0.1)


def test_a_collapse_counts():
    collapsed = np.concatenate([rise_then_flat(20, 4.0, 60), np.zeros(60)])
    assert plateau(collapsed) < 1.5
    assert plateau([4.0] * 10 + [0.0] * 90) == pytest.approx(0.0, abs=0.2)


def test_the_higher_of_two_plateaus_ranks_first_whatever_its_pace():
    slow_and_high, fast_and_low = rise_then_flat(150, 3.0, 300), rise_then_flat(10, 2.0, 300)
    assert plateau(slow_and_high) > plateau(fast_and_low)


def test_long_curves_are_fitted_on_fewer_knots():
    assert plateau(rise_then_flat(700, 5.0, 5000)) == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_rejects_what_is_no_curve(values):
    with pytest.raises(ValueError, match="finite"):
        plateau(values)
