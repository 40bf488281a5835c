"""When modes are learned: transition times, the limit of vanishing starts, and separation."""

import numpy as np
import pytest

from alignjax.closed_forms import mode_descent
from alignjax.theory import sequential as theory


def flow(time, delta, target, inputs):
    """The product of a two-layer mode from e^{-2δ}, by its solution."""
    decay = np.exp(-2 * target * time)
    start = np.exp(-2 * delta)
    return target * start / (target * decay + inputs * start * (1 - decay))


# Times ---------------------------------------------------------------------------------------


def test_the_flow_is_at_half_height_at_the_transition_time():
    target, inputs, delta = np.array([2.0, 1.0, 0.1]), np.array([0.5, 3.0, 1.0]), 2.0
    times = theory.transition_times(target, inputs, delta)
    np.testing.assert_allclose(flow(times, delta, target, inputs), target / inputs / 2, rtol=1e-14)
    short = theory.transition_times(target, inputs, 1e6, exact=False)
    np.testing.assert_allclose(short, theory.transition_times(target, inputs, 1e6), rtol=1e-5)
    printed = delta / target * np.log(target)
    assert np.abs(printed / times - 1).min() > 0.4


@pytest.mark.parametrize("delta", [3.0, 8.0, 40.0])
def test_descent_is_at_half_height_no_later_than_the_number_of_steps_says(delta):
    gain, inputs = np.linspace(0.02, 0.5, 13), np.array([0.05, 0.3, 1.0, 3.0])[:, None]
    path = np.asarray(mode_descent(np.exp(-2 * delta), gain, inputs, 1.0, steps=2200))
    measured = (path >= gain / inputs / 2).argmax(0)
    predicted = theory.transition_steps(gain, inputs, delta, 1.0, exact=True)
    assert (measured <= np.ceil(predicted)).all()
    # The last stretch is faster than the first: at most a step or two are gained by it.
    assert (predicted - measured).max() < 2.0
    early = theory.transition_steps(gain, inputs, 1e6, 1.0)
    np.testing.assert_allclose(
        early, theory.transition_steps(gain, inputs, 1e6, 1.0, exact=True), rtol=1e-5
    )


def test_the_measured_example_of_the_number_of_steps():
    path = np.asarray(mode_descent(np.exp(-16.0), 1.0, 0.01, 0.1, steps=200))
    assert (path >= 50.0).argmax() == 108
    predicted = float(theory.transition_steps(1.0, 0.01, 8.0, 0.1, exact=True))
    np.testing.assert_allclose(predicted, 108.09, atol=0.01)
    # The printed δ/(ησ) is far too early: the mode is below a hundredth of its height.
    assert path[80] < 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_starts_close_to_their_height_or_far_below_any_keep_their_times(dtype):
    one, tolerance = dtype(1), 32 * np.finfo(dtype).eps
    near = theory.transition_times(one, one, dtype(1e-9))
    np.testing.assert_allclose(near, 1e-9 + 0.5 * np.log(-np.expm1(-2e-9)), rtol=tolerance)
    low = theory.transition_times(one, dtype(1e30), dtype(40.0))
    expected = 40.0 + 0.5 * np.log(1e-30 - np.exp(-80.0))
    np.testing.assert_allclose(low, expected, rtol=tolerance)


def test_a_start_that_rounding_lifts_to_its_height_is_refused():
    # Float32 takes this delta for 40, and so the start for more than 28 of its roundings above.
    delta = 40 + 1.7e-6
    input = float(np.exp(2 * delta) * (1 - 1e-9))
    expected = delta - 0.5 * np.log(input) + 0.5 * np.log(1e-9)
    assert theory.transition_times(1.0, input, delta) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ValueError, match=r"^delta must be so large .* in float32 too, got .* 40"):
        theory.transition_times(np.float32(1.0), input, delta)


def test_modes_without_target_or_height_are_never_learned():
    for exact in (True, False):
        assert theory.transition_times(0.0, 1.0, 3.0, exact=exact) == np.inf
        assert theory.transition_steps(0.0, 1.0, 3.0, 0.1, exact=exact) == np.inf
    assert theory.transition_times(1.0, 0.0, 3.0) == np.inf
    assert theory.limit_of_mode(0.0, 0.0, 9.0) == 0.0


# The limit -----------------------------------------------------------------------------------


def test_the_flow_tends_to_the_limit_as_the_start_vanishes():
    target, inputs = np.array([2.0, 1.0, 0.5]), np.array([0.5, 3.0, 1.0])
    for time in (0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5):
        limit = theory.limit_of_mode(target, inputs, time)
        np.testing.assert_allclose(flow(300 * time, 300.0, target, inputs), limit, atol=1e-12)


def test_from_the_printed_start_modes_are_learned_in_half_the_time():
    # e^{-δ} is e^{-2 (δ/2)}: at time 0.75 δ the first mode should still be out of sight.
    assert theory.limit_of_mode(1.0, 1.0, 0.75) == 0.0
    assert flow(0.75 * 300, 150.0, 1.0, 1.0) > 0.999


def test_norms_of_the_limit_are_staircases():
    target, inputs = np.array([2.0, 1.0, 0.5]), np.array([1.0, 1.0, 2.0])
    times = np.array([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 9.0])
    w = np.array(
        [
            [0, 0, 0],
            [2 / 3, 0, 0],
            [2, 0, 0],
            [2, 0.5, 0],
            [2, 1, 0],
            [2, 1, 0.2],
            [2, 1, 0.25],
        ]
    )
    np.testing.assert_allclose(theory.limiting_norm(target, inputs, times), (w**2).sum(1))
    nuclear = theory.limiting_norm(target, inputs, times, norm="nuclear")
    np.testing.assert_allclose(nuclear, w.sum(1))
    # Where σ = λ, and only there, the nuclear norm counts the modes.
    counted = theory.limiting_norm(target, target, times + 1e-3, norm="nuclear")
    np.testing.assert_array_equal(counted, [0, 1, 1, 2, 2, 3, 3])
    assert theory.limiting_norm(np.ones((4, 3)), 1.0, times[:, None]).shape == (7, 4)


# Separation ----------------------------------------------------------------------------------

DELTA = 1e4


def after(gain, steps):
    """``λw/σ`` after so many steps of gain ``ησ`` from ``e^{-2δ}``, and one step later.

    Until a mode is at 1e-20 of its height it grows by a constant factor, to roundoff, so that a
    start like e^{-20000} is no obstacle.
    """
    growth = 2 * np.log1p(gain)
    ready = np.floor((2 * DELTA + np.log(1e-20)) / growth)
    start = np.exp(-2 * DELTA + ready * growth)
    path = np.asarray(mode_descent(start, gain, gain, 1.0, steps=3001))
    index = np.clip(steps - ready, 0, 3000).astype(int)
    here = np.take_along_axis(path, index[None], 0)[0]
    then = np.take_along_axis(path, index[None] + 1, 0)[0]
    return np.where(steps < ready, 0.0, here), np.where(steps < ready, 0.0, then)


def learned_one_by_one(gain, clock):
    """Whether modes before j are learned, and those after j are not, at ``δT_j`` for every j."""
    gain, clock = np.broadcast_arrays(gain[:, None, :], clock[:, :, None])
    steps = np.floor(DELTA * clock)
    here, then = after(gain, steps)
    j, i = np.indices(gain.shape[1:])
    done = np.maximum(np.abs(here - 1), np.abs(then - 1)) < 1e-3
    return (np.where(i > j, here < 1e-3, True) & np.where(i < j, done, True)).all((1, 2))


def spectra_and_clock(seed, count=400):
    """Random descending gains ησ, away from the edges of the conditions, and paper's clock."""
    rng = np.random.default_rng(seed)
    gain = -np.sort(-rng.uniform(0.05, 1.3, (count, 3)), axis=1)
    margins = theory.separation_margins(gain, 1.0)
    margins = np.concatenate([margins.gaps, margins.stability[:, None]], axis=1)
    distinct = (np.diff(-gain, axis=1) > 0.02).all(1)
    gain = gain[distinct & (np.abs(margins) > 0.02).all(1)]
    # A last clock at infinity sees whether all modes come to rest.
    return gain, np.concatenate([1 / gain, np.full((len(gain), 1), 1e3)], axis=1)


def test_modes_separate_exactly_where_the_sharp_condition_holds():
    gain, clock = spectra_and_clock(0)
    predicted = np.asarray(theory.separates(gain, 1.0))
    assert 30 < predicted.sum() < len(gain) - 30
    np.testing.assert_array_equal(learned_one_by_one(gain, clock), predicted)


def test_the_printed_condition_is_sufficient_and_not_necessary():
    gain, clock = spectra_and_clock(1, 2000)
    printed = np.asarray(theory.printed_separates(gain, 1.0))
    sharp = np.asarray(theory.separates(gain, 1.0))
    assert printed.any()
    assert not (printed & ~sharp).any()
    beyond = sharp & ~printed
    assert beyond.sum() > 3 * printed.sum()
    assert learned_one_by_one(gain[beyond], clock[beyond]).all()


def test_on_their_own_clock_distinct_modes_always_separate_while_stable():
    gain, _ = spectra_and_clock(2)
    stable = gain[gain[:, 0] < 1]
    clock = np.concatenate([1 / np.log1p(stable), np.full((len(stable), 1), 1e3)], axis=1)
    assert not np.asarray(theory.separates(stable, 1.0)).all()
    assert learned_one_by_one(stable, clock).all()


def test_the_margins_name_the_gap_that_fails():
    margins = theory.separation_margins([2.0, 1.8, 0.2, 0.0, 0.0], 0.25)
    np.testing.assert_array_equal(margins.gaps > 0, [False, True, True, True])
    # There the first mode has not begun when the printed clock calls the second: w_1 is still 0.
    here, _ = after(np.array([0.5]), np.floor(DELTA / np.array([0.45])))
    assert here < 1e-20
    np.testing.assert_allclose(theory.separation_margins([1.0, 0.1], 1.1).stability, -0.1)


def test_at_a_gain_of_one_the_height_still_attracts_slowly():
    off = np.asarray(mode_descent(1e-3, 1.0, 1.0, 1.0, steps=40_000))[[10_000, 40_000]] - 1
    np.testing.assert_allclose(off[0] / off[1], 2.0, rtol=1e-2)
    assert theory.separates([1.0, 0.1], 1.0)
    assert not theory.separates([1.0, 0.1], 1.0 + 1e-12)
