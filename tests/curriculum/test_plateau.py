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


def brute_force(y_T):
    """The level of the best of all fits, each by least squares."""
    t_T = np.arange(len(y_T))
    fits = []
    for knot in range(1, len(y_T)):
        design = np.stack([np.ones(len(y_T)), np.minimum(t_T - knot, 0)], axis=1)
        coefficients = np.linalg.lstsq(design, y_T)[0]
        fits.append((((y_T - design @ coefficients) ** 2).sum(), coefficients[0]))
    least = min(error for error, _ in fits)
    return [level for error, level in fits if error < least + 1e-9]


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_best_fit_of_all_knots(seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(2, 30))
    curve = rise_then_flat(rng.integers(1, length + 1), rng.normal(), length) + rng.normal(0, 0.2, length)
    assert min(abs(plateau(curve) - level) for level in brute_force(curve)) < 1e-6


def test_a_plateau_from_the_second_value_on():
    assert plateau([0.0, 1.0, 1.0, 1.0]) == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")], [1.0, None]])
def test_rejects_what_is_no_curve(values):
    with pytest.raises(ValueError, match="finite"):
        plateau(values)
