"""Descent on one mode: the recursion is that of full matrices, and its bounds hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import alignjax as aj
from alignjax.closed_forms import (
    layer_update,
    mode_descent,
    mode_descent_bounds,
    printed_mode_descent_bounds,
    printed_zero_target_bound,
    product_update,
    zero_target_bound,
)

TARGET, INPUT, START = np.array([2.0, 1.0, 0.3]), np.array([1.5, 0.5, 1.0]), np.full(3, 1e-3)


def grid():
    """Modes over six decades, with gains up to the last one allowed and starts up to the minimum.

    Axes: target, input, gain ησ, start λw_0/σ; the path comes first.
    """
    target = np.geomspace(1e-3, 1e3, 10)[:, None, None, None]
    inputs = np.geomspace(1e-3, 1e3, 10)[:, None, None]
    gain = np.append(np.linspace(0.005, 0.49, 11), 0.5)[:, None]
    filled = np.array([1e-12, 1e-6, 1e-3, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999999, 1.0])
    return filled * target / inputs, target, inputs, gain / target


def whole_grid(bounds, steps=60, **options):
    arguments = grid()
    path = np.asarray(mode_descent(*arguments, steps=steps))
    time = np.arange(steps + 1).reshape(-1, 1, 1, 1, 1)
    lower, upper = bounds(*arguments, time, **options)
    assert path.size >= 500_000
    return path, np.asarray(lower), np.asarray(upper)


def test_the_bounds_hold_on_805200_points_up_to_roundoff():
    path, lower, upper = whole_grid(mode_descent_bounds)
    assert path.size == 805_200
    slack = 8 * np.finfo(float).eps
    assert ((lower - path) / path).max() < slack
    assert ((path - upper) / path).max() < slack


def test_the_bounds_are_sharp_in_the_rate_of_growth_and_of_convergence():
    # Far below σ/λ the lower bound is the path, and near it the upper one is, to first order.
    path = mode_descent(1e-200, 1.0, 1.0, 0.4, steps=500)
    lower, _ = mode_descent_bounds(1e-200, 1.0, 1.0, 0.4, np.arange(501))
    np.testing.assert_allclose(path, lower, rtol=1e-11)
    path = mode_descent(1 - 1e-7, 1.0, 1.0, 0.1, steps=10)
    _, upper = mode_descent_bounds(1 - 1e-7, 1.0, 1.0, 0.1, np.arange(11))
    np.testing.assert_allclose((1 - path) / (1 - upper), 1.0, rtol=1e-6)


def test_the_printed_bounds_fail_and_the_upper_one_also_with_its_missing_factor():
    path, lower, upper = whole_grid(printed_mode_descent_bounds)
    clearly = 1 + 1e-9
    assert (lower > path * clearly).sum() == 353_370
    assert (path > upper * clearly).sum() == 390_230
    path, lower, upper = whole_grid(printed_mode_descent_bounds, restored=True)
    assert (lower > path * clearly).sum() == 0
    assert (path > upper * clearly).sum() == 249_700


def test_one_step_beyond_the_printed_upper_bound():
    _, upper = printed_mode_descent_bounds(0.9, 1.0, 1.0, 0.4, 1, restored=True)
    reached = product_update(0.9, 1.0, 1.0, 0.4)
    np.testing.assert_allclose([reached, upper], [0.97344, 0.95920], atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1, 1_000_000])
def test_both_bounds_start_at_the_start_and_end_at_the_minimum(steps):
    lower, upper = mode_descent_bounds(START, TARGET, INPUT, 0.5 / TARGET, steps)
    expected = START if steps == 0 else TARGET / INPUT
    np.testing.assert_allclose(upper, expected, rtol=1e-15)
    if steps != 1:
        np.testing.assert_allclose(lower, expected, rtol=1e-15)


def test_large_powers_keep_their_digits():
    # A gain of 1e-9 over 1e9 steps: (1 + a)^{-2t} and (1 - 2a)^t are e^{-2} up to 2e-9.
    lower, upper = mode_descent_bounds(1e-3, 1.0, 1.0, 1e-9, 10**9)
    flow = 1e-3 / ((1 - 1e-3) * np.exp(-2 + np.array([1e-9, -2e-9])) + 1e-3)
    np.testing.assert_allclose([lower, upper], flow, rtol=1e-14)


def test_modes_without_a_target_decay_at_least_like_the_flow_and_the_printed_bound_is_loose():
    share = np.linspace(0.01, 1.5, 150)[:, None]  # ηλw_0, up to the last one for which it is true
    inputs, rate = 2.0, np.array([0.1, 1.0])
    start, time = share / (inputs * rate), np.arange(501)[:, None, None]
    path = mode_descent(start, 0.0, inputs, rate, steps=500)
    bound = zero_target_bound(start, inputs, rate, time)
    assert ((path - bound) / bound).max() < 1e-14
    printed = printed_zero_target_bound(start, inputs, rate, time)
    assert (bound[1:] < printed[1:]).all()
    # At late times the path is twice below the printed bound, and close to the other one.
    np.testing.assert_allclose((printed / path)[-1, 10:70], 2.0, rtol=0.05)


def test_beyond_three_halves_the_decay_of_modes_without_a_target_is_slower():
    share = 1.51
    assert mode_descent(share, 0.0, 1.0, 1.0, steps=1)[1] > share / (1 + 2 * share)
    assert mode_descent(1.7, 0.0, 1.0, 1.0, steps=1)[1] > 1.7 / (1 + 1.7)  # beyond the printed too


def test_the_recursion_is_descent_on_full_matrices():
    rng = np.random.default_rng(0)
    U, V, Q = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(3))
    problem = aj.from_moments((V * INPUT) @ V.T, (U * TARGET) @ V.T, 100.0)
    s = np.sqrt(START)
    weights = (Q * s) @ V.T, (U * s) @ Q.T
    run = aj.gradient_descent(
        problem, weights, 0.1, steps=60, save_at=range(61), observe=aj.end_to_end
    )
    path = mode_descent(START, TARGET, INPUT, 0.1, steps=60)
    modes = np.einsum("ja,tjk,ka->ta", U, run.observations, V)
    np.testing.assert_allclose(modes, path, rtol=1e-11)
    # The layers' recursion is the same one, and the product does not follow the layers' rule.
    layers = [s]
    for _ in range(60):
        layers.append(layer_update(layers[-1], TARGET, INPUT, 0.1))
    np.testing.assert_allclose(np.square(layers), path, rtol=1e-12)
    assert np.abs(layer_update(path[10], TARGET, INPUT, 0.1) / path[11] - 1).max() > 0.05


def test_above_one_the_height_gives_way_to_a_two_cycle():
    # With a = ησ the cycle is (1 + a ± sqrt((1 + a)^2 - 4)) / 2 in units of 1/(ηλ).
    path = np.asarray(mode_descent(np.exp(-10.0), np.array([1.0, 0.1]), 1.0, 1.1, steps=4000))
    expected = (2.1 + np.array([-1, 1]) * np.sqrt(2.1**2 - 4)) / 2 / 1.1
    np.testing.assert_allclose(np.sort(path[-2:, 0]), expected, rtol=1e-12)
    np.testing.assert_allclose(path[-2:, 1], 0.1, rtol=1e-12)


def test_paths_that_diverge_become_infinite_and_harm_no_neighbour():
    path = mode_descent(1.0, np.array([1.0, 1.0]), 1.0, np.array([0.1, 30.0]), steps=50)
    assert np.isfinite(path[:, 0]).all()
    assert mode_descent(2.0, 1.0, 1.0, 30.0, steps=50)[-1] == np.inf


def test_iterates_come_with_the_start_and_broadcast():
    path = mode_descent(np.full((4, 1), 0.1), TARGET, INPUT, 0.1, steps=5)
    assert path.shape == (6, 4, 3)
    np.testing.assert_array_equal(path[0], np.full((4, 3), 0.1))
    np.testing.assert_array_equal(mode_descent(0.1, 1.0, 1.0, 0.1, steps=0), [0.1])


def test_single_precision_stays_single_and_is_as_good():
    one = [np.float32(x) for x in (0.01, 1.0, 2.0)]
    path = mode_descent(*one, 0.1, steps=100)
    assert path.dtype == jnp.float32
    np.testing.assert_allclose(path, mode_descent(0.01, 1.0, 2.0, 0.1, steps=100), rtol=1e-5)
    lower, upper = mode_descent_bounds(*one, 0.1, np.arange(101, dtype=np.float32))
    assert lower.dtype == upper.dtype == jnp.float32
    assert (lower <= path * (1 + 1e-6)).all()
    assert (path <= upper * (1 + 1e-6)).all()
    assert zero_target_bound(one[0], one[2], 0.1, 3).dtype == jnp.float32


def test_a_start_at_the_minimum_as_rounded_in_single_precision_is_inside():
    target, inputs = np.float32(1.1), np.float32(0.7)
    mode_descent_bounds(np.float32(target / inputs), target, inputs, np.float32(0.5) / target, 3)


def test_everything_compiles_maps_and_differentiates():
    def last(w, rate):
        return mode_descent(w, 1.0, 0.5, rate, steps=20)[-1]

    rates = jnp.linspace(0.05, 0.4, 5)
    mapped = jax.jit(jax.vmap(last, (None, 0)))(0.01, rates)
    np.testing.assert_allclose(mapped, last(0.01, rates), rtol=1e-14)
    check_grads(last, (0.01, 0.1), 1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-6)

    def bounds(w, sigma, lam, rate):
        return mode_descent_bounds(w, sigma, lam, rate, 7)

    for rate in (0.1, 0.4):
        arguments = (0.2, 1.0, 0.5, rate)
        np.testing.assert_allclose(jax.jit(bounds)(*arguments), bounds(*arguments), rtol=1e-14)
        check_grads(bounds, arguments, 1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-6)


def of(function, arguments, **changes):
    """The call with named arguments changed."""
    return lambda: function(**{**arguments, **changes})


MODE = {"start": 0.1, "target": 1.0, "input": 1.0, "learning_rate": 0.1}
BOUND = {**MODE, "step": 3}
ZERO = {"start": 0.1, "input": 1.0, "learning_rate": 0.1, "step": 3}

CASES = [
    ("start 0", of(mode_descent_bounds, BOUND, start=0.0), ValueError, r"^start must lie in \(0,"),
    (
        "start above",
        of(mode_descent_bounds, BOUND, start=[0.5, 1.01]),
        ValueError,
        r"^start must lie in \(0, target / input\].*got start = 1\.01, target = 1",
    ),
    (
        "printed start above",
        of(printed_mode_descent_bounds, BOUND, start=1.01),
        ValueError,
        r"^start must lie in",
    ),
    ("start negative", of(mode_descent, MODE, start=-0.1, steps=3), ValueError, r"^start .*-0\.1"),
    ("start NaN", of(mode_descent, MODE, start=np.nan, steps=3), ValueError, r"^start .*finite"),
    ("start text", of(mode_descent, MODE, start="a", steps=3), TypeError, r"^start must hold real"),
    ("target 0", of(mode_descent_bounds, BOUND, target=0.0), ValueError, r"^target .*zero_target"),
    ("input negative", of(mode_descent, MODE, input=-1.0, steps=3), ValueError, r"^input .*-1"),
    (
        "rate large",
        of(mode_descent_bounds, BOUND, learning_rate=0.51),
        ValueError,
        r"^learning_rate must be at most 1 / \(2 target\).*got .*learning_rate = 0\.51",
    ),
    (
        "rate negative",
        of(mode_descent, MODE, learning_rate=-0.1, steps=3),
        ValueError,
        r"^learning_rate must be at least 0, got -0\.1",
    ),
    ("step negative", of(mode_descent_bounds, BOUND, step=-1), ValueError, r"^step .*-1"),
    ("steps float", of(mode_descent, MODE, steps=3.0), TypeError, r"^steps must be an integer"),
    ("steps negative", of(mode_descent, MODE, steps=-1), ValueError, r"^steps must be at least 0"),
    (
        "shapes",
        of(mode_descent, MODE, start=np.ones(2), target=np.ones(3), steps=1),
        ValueError,
        r"^shapes must broadcast, got .*'start': \(2,\), 'target': \(3,\)",
    ),
    ("zero start", of(zero_target_bound, ZERO, start=0.0), ValueError, r"^start must be positive"),
    (
        "zero rate",
        of(zero_target_bound, ZERO, start=16.0),
        ValueError,
        r"^learning_rate must be at most 1\.5 / \(input \* start\).*start = 16",
    ),
    (
        "layer target",
        lambda: layer_update(-0.5, -1.0, 1.0, 0.1),
        ValueError,
        r"^target must be at least 0, got -1",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_layer_may_be_negative():
    assert layer_update(-0.5, 1.0, 1.0, 0.5) == -layer_update(0.5, 1.0, 1.0, 0.5)
