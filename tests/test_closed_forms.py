"""The linear model and single modes in closed form, against integration and recursion."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.special import hyp2f1

import alignjax as aj
from alignjax.closed_forms import deep_mode_time, linear_descent, linear_flow, mode_flow

SHAPES = [(20, 5, 3), (4, 7, 3), (3, 3, 1)]  # n, k_0, k_d: with n < k_0 too


def data(n, inputs, outputs, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(n, inputs), (n, outputs), (outputs, inputs)]
    return [rng.standard_normal(shape) for shape in shapes]


def moments(X, Y):
    return X.T @ X / len(X), Y.T @ X / len(X)


def flow_by_expm(X, Y, start, time):
    """The flow of ``[W, I]`` is linear, so one matrix exponential solves it."""
    sxx, syx = moments(X, Y)
    k, m = start.shape
    generator = np.block([[-sxx, np.zeros((m, k))], [syx, np.zeros((k, k))]])
    return (np.hstack([start, np.eye(k)]) @ expm(time * generator))[:, :m]


def descend(X, Y, start, rate, steps):
    sxx, syx = moments(X, Y)
    path = [start]
    for _ in range(steps):
        path.append(path[-1] - rate * (path[-1] @ sxx - syx))
    return path


def integrate_mode(depth, start, target, inputs, times):
    """The logarithm of the product, so that small products keep their digits."""
    a = 2 / depth

    def slope(_, u):
        return depth * np.exp((1 - a) * u) * (target - inputs * np.exp(u))

    run = solve_ivp(
        slope,
        (0, times[-1]),
        [np.log(start)],
        t_eval=times,
        method="DOP853",
        rtol=1e-13,
        atol=1e-14,
    )
    return np.exp(run.y[0])


def difference(function, arguments, i):
    """The derivative in one argument, of fourth order."""
    h = 1e-3 * arguments[i]

    def shifted(by):
        return float(function(*(v + by * (j == i) for j, v in enumerate(arguments))))

    return (8 * (shifted(h) - shifted(-h)) - shifted(2 * h) + shifted(-2 * h)) / (12 * h)


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_flow_solves_the_flow(shape):
    X, Y, start = data(*shape)
    times = np.array([0.0, 0.1, 1.0, 10.0, 100.0])
    path = linear_flow(aj.regression(X, Y), start, times)
    for time, reached in zip(times, path, strict=True):
        np.testing.assert_allclose(reached, flow_by_expm(X, Y, start, time), atol=1e-12)


@pytest.mark.parametrize("rate", [0.1, 1.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_descent_is_the_recursion_also_beyond_stability(shape, rate):
    X, Y, start = data(*shape)
    expected = np.stack(descend(X, Y, start, rate, 12))
    got = linear_descent(aj.regression(X, Y), start, rate, np.arange(13))
    for w, reference in zip(got, expected, strict=True):
        np.testing.assert_allclose(w, reference, atol=1e-12 * max(1, np.abs(reference).max()))


def test_directions_without_input_stay_put_at_any_time():
    X, Y, start = data(4, 7, 3)
    X, Y = X @ np.diag([1, 1, 1, 0, 0, 0, 0]), Y
    sxx, syx = moments(X, Y)
    energy = float((Y**2).sum() / 4)
    for problem in (aj.regression(X, Y), aj.from_moments(sxx, syx, energy)):
        for late in (
            linear_flow(problem, start, 1e15),
            linear_descent(problem, start, 0.1, 10**12),
        ):
            np.testing.assert_allclose(late[:, 3:], start[:, 3:], rtol=0, atol=1e-14)
            best = np.linalg.lstsq(X[:, :3], Y, rcond=None)[0].T
            np.testing.assert_allclose(late[:, :3], best, atol=1e-12)


@pytest.mark.parametrize("x64", [True, False])
def test_descent_of_more_steps_than_integers_hold_is_right(x64):
    """Powers of ``1 - eta lambda``, negative ones with the parity of the step."""
    with jax.enable_x64(x64):
        problem = aj.from_moments(jnp.eye(2), jnp.diag(jnp.array([2.0, 1.0])), 5.0)
        zero, limit = jnp.zeros((2, 2)), np.diag([2.0, 1.0])
        steps = np.array([1, 2**31, 2**33, 2**40])
        share = -np.expm1(steps * np.log1p(-1e-9))
        got = linear_descent(problem, zero, 1e-9, steps)
        np.testing.assert_allclose(got, share[:, None, None] * limit, rtol=1e-6)
        np.testing.assert_array_equal(linear_descent(problem, zero, 1e-9, 2**33), got[2])
        # At a rate of 2 / lambda the error changes its sign in every step, for ever.
        steps = np.array([2**24 + 1, 2**33, 2**33 + 1, 2**64 - 1], np.uint64)
        odd = np.array([1, 0, 1, 1])[:, None, None]
        got = linear_descent(problem, zero, 2.0, steps)
        np.testing.assert_allclose(got, 2 * odd * limit, rtol=1e-6)


def test_flow_composes_and_descent_composes():
    X, Y, start = data(20, 5, 3)
    problem = aj.regression(X, Y)
    half = linear_flow(problem, start, 0.7)
    np.testing.assert_allclose(
        linear_flow(problem, half, 1.6), linear_flow(problem, start, 2.3), atol=1e-14
    )
    half = linear_descent(problem, start, 0.3, 4)
    np.testing.assert_allclose(
        linear_descent(problem, half, 0.3, 9), linear_descent(problem, start, 0.3, 13), atol=1e-13
    )


@pytest.mark.parametrize("rate", [0.1, 1.3])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_derivatives_of_linear_descent_are_those_of_the_recursion(shape, rate):
    X, Y, start = map(jnp.asarray, data(*shape))
    probe = jnp.asarray(data(*shape, seed=1)[2])

    def closed(X, Y, start, rate):
        return jnp.vdot(probe, linear_descent(aj.regression(X, Y), start, rate, 7))

    def recursive(X, Y, start, rate):
        return jnp.vdot(probe, descend(X, Y, start, rate, 7)[-1])

    got = jax.grad(closed, (0, 1, 2, 3))(X, Y, start, rate)
    for g, expected in zip(got, jax.grad(recursive, (0, 1, 2, 3))(X, Y, start, rate), strict=True):
        np.testing.assert_allclose(g, expected, atol=1e-12 * max(1, jnp.abs(expected).max()))


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_derivatives_of_linear_flow_are_those_of_the_matrix_exponential(shape):
    X, Y, start = map(jnp.asarray, data(*shape))
    probe = jnp.asarray(data(*shape, seed=1)[2])

    def closed(X, Y, start, time):
        return jnp.vdot(probe, linear_flow(aj.regression(X, Y), start, time))

    def by_expm(X, Y, start, time):
        sxx, syx = moments(X, Y)
        k, m = start.shape
        generator = jnp.block([[-sxx, jnp.zeros((m, k))], [syx, jnp.zeros((k, k))]])
        wide = jnp.hstack([start, jnp.eye(k)])
        return jnp.vdot(probe, (wide @ jax.scipy.linalg.expm(time * generator))[:, :m])

    for time in (0.01, 0.5, 3.0):
        got = jax.grad(closed, (0, 1, 2, 3))(X, Y, start, time)
        expected = jax.grad(by_expm, (0, 1, 2, 3))(X, Y, start, time)
        for g, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(g, e, atol=1e-12 * max(1, jnp.abs(e).max()))


def test_derivatives_are_right_where_all_eigenvalues_repeat():
    start = jnp.arange(9.0).reshape(3, 3)

    def out(step, path):
        skew = jnp.array([[1.0, 0.4, 0.2], [0.4, -1.0, 0.3], [0.2, 0.3, 0.5]])
        problem = aj.from_moments(jnp.eye(3) + step * skew, 0.3 * jnp.eye(3), 9.0)
        return path(problem)[0].sum()

    for path in (
        lambda problem: linear_flow(problem, start, 2.0),
        lambda problem: linear_descent(problem, start, 0.4, 6),
    ):
        slope = jax.grad(out)(0.0, path)
        difference = float((out(1e-5, path) - out(-1e-5, path)) / 2e-5)
        assert slope == pytest.approx(difference, rel=1e-8, abs=1e-8)


def test_second_derivatives_are_right_in_time_and_refused_in_the_data():
    X, Y, start = data(20, 5, 3)
    problem = aj.regression(X, Y)
    sxx, syx = moments(X, Y)
    at = np.asarray(linear_flow(problem, start, 0.7))
    expected = -((syx - at @ sxx) @ sxx)  # W'' = -W' Sigma_xx
    got = jax.jacfwd(jax.jacfwd(lambda t: linear_flow(problem, start, t)))(0.7)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    with pytest.raises(TypeError, match="second derivatives in the moments"):
        jax.hessian(lambda x: linear_flow(aj.regression(x, Y), start, 0.7).sum())(jnp.asarray(X))


def test_one_program_serves_many_times_rates_and_starts():
    X, Y, start = data(20, 5, 3)
    problem = aj.regression(X, Y)
    rates, starts = jnp.array([0.1, 0.4]), jnp.stack([start, 2 * start])
    mapped = jax.jit(jax.vmap(lambda r, w: linear_descent(problem, w, r, 5)))(rates, starts)
    for i in range(2):
        alone = linear_descent(problem, starts[i], rates[i], 5)
        np.testing.assert_allclose(mapped[i], alone, atol=1e-13)
    times = jnp.array([0.5, 1.5])
    mapped = jax.jit(jax.vmap(lambda t: linear_flow(problem, start, t)))(times)
    np.testing.assert_allclose(mapped, linear_flow(problem, start, times), atol=1e-14)


def test_float32_stays_float32_and_is_accurate():
    X, Y, start = data(20, 5, 3)
    small = [jnp.asarray(a, jnp.float32) for a in (X, Y, start)]
    problem, exact = aj.regression(*small[:2]), aj.regression(X, Y)
    for got, expected in [
        (linear_flow(problem, small[2], 2.0), linear_flow(exact, start, 2.0)),
        (linear_descent(problem, small[2], 0.3, 9), linear_descent(exact, start, 0.3, 9)),
        (mode_flow(np.float32(2.0), 0.1, 1.0, 0.5), mode_flow(2.0, 0.1, 1.0, 0.5)),
        (
            mode_flow(np.float32(2.0), 0.1, 1.0, 0.5, depth=4),
            mode_flow(2.0, 0.1, 1.0, 0.5, depth=4),
        ),
    ]:
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=3e-6)


@pytest.mark.parametrize("depth", [2, 3, 4, 7, 30])
@pytest.mark.parametrize(("target", "inputs"), [(1.0, 1.0), (2.0, 0.3), (0.05, 1.0), (0.0, 1.0)])
def test_a_mode_at_any_depth_solves_its_equation(depth, target, inputs):
    times = np.array([0.1, 1.0, 5.0, 20.0])
    for start in (1e-8, 1e-3, 0.4, 0.999999, 1.0, 3.0):
        got = mode_flow(times, start, target, inputs, depth=depth)
        expected = integrate_mode(depth, start, target, inputs, times)
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_a_mode_without_input_grows_and_without_anything_rests(depth):
    start, times = 0.1, np.array([0.05, 0.2, 0.6])
    got = mode_flow(times, start, 1.0, 0.0, depth=depth)
    expected = integrate_mode(depth, start, 1.0, 0.0, times)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert mode_flow(5.0, start, 0.0, 0.0, depth=depth) == pytest.approx(start, rel=1e-14)
    assert mode_flow(5.0, 0.0, 1.0, 1.0, depth=depth) == 0.0


def test_depth_one_is_the_linear_model():
    times = np.array([0.0, 0.5, 4.0])
    got = mode_flow(times, -0.4, 2.0, 0.7, depth=1)
    problem = aj.from_moments([[0.7]], [[2.0]], 100.0)
    expected = linear_flow(problem, [[-0.4]], times)[:, 0, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_both_cases_of_equation_16_with_the_start_corrected():
    delta, time = 3.0, 0.8
    start = np.exp(-2 * delta)
    sigma, lam = 1.5, 0.6
    grown = np.exp(2 * sigma * time - 2 * delta)
    assert mode_flow(time, start, sigma, lam) == pytest.approx(
        sigma * grown / (lam * (grown - start) + sigma), rel=1e-14
    )
    correct = start / (1 + 2 * start * lam * time)
    printed = start / (1 + 2 * np.exp(-delta) * lam * time)
    assert mode_flow(time, start, 0.0, lam) == pytest.approx(correct, rel=1e-15)
    assert abs(printed / correct - 1) > 0.04


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_no_time_overflows_and_no_derivative_is_lost_there(depth):
    def late(*arguments):
        return mode_flow(*arguments, depth=depth)

    for arguments in [(1e300, 0.1, 2.0, 1.0), (1e300, 5.0, 2.0, 1.0), (1e300, 2.0, 2.0, 1.0)]:
        assert late(*arguments) == pytest.approx(2.0, rel=1e-14)
        slopes = jax.grad(late, (0, 1, 2, 3))(*arguments)
        np.testing.assert_allclose(slopes, [0.0, 0.0, 1.0, -2.0], atol=1e-13)
    tiny = jax.grad(late, (0, 1, 2, 3))(1e300, 1e-300, 1.0, 1.0)
    np.testing.assert_allclose(tiny, [0.0, 0.0, 1.0, -1.0], atol=1e-13)


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_the_largest_times_of_all_are_no_exception(depth):
    def late(*arguments):
        return mode_flow(*arguments, depth=depth)

    arguments = (1.7e308, 0.01, 1.0, 1.0)
    assert late(*arguments) == pytest.approx(1.0, rel=1e-14)
    slopes = jax.grad(late, (0, 1, 2, 3))(*arguments)
    np.testing.assert_allclose(slopes, [0.0, 0.0, 1.0, -1.0], atol=1e-13)
    assert late(1e308, 0.5, 0.0, 0.0) == 0.5
    assert late(1.7e308, 0.01, 0.0, 1.0) == pytest.approx(0.0, abs=1e-150)


def test_at_the_largest_times_a_mode_without_target_is_still_on_its_way():
    assert mode_flow(1.7e308, 1.0, 0.0, 1e-300) == pytest.approx(1 / (1 + 3.4e8), rel=1e-14)


@pytest.mark.parametrize("depth", [3, 4, 5, 9])
def test_deep_mode_time_is_the_hypergeometric_form(depth):
    a, sigma, lam, start, product = 2 / depth - 1, 1.3, 0.6, 0.01, 1.7
    limit = sigma / lam

    def form(x):
        return x**a / a * hyp2f1(1, a, a + 1, x)

    expected = (form(product / limit) - form(start / limit)) / (
        depth * sigma * limit ** (1 - 2 / depth)
    )
    got = deep_mode_time(product, start, sigma, lam, depth=depth)
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("start", "target", "inputs"),
    [(1e-6, 1.0, 0.5), (0.3, 1.0, 0.5), (5.0, 1.0, 0.5), (0.3, 0.0, 1.0), (0.1, 1.0, 0.0)],
)
def test_deep_mode_time_inverts_mode_flow(depth, start, target, inputs):
    times = np.array([0.02, 0.1, 0.3])
    products = mode_flow(times, start, target, inputs, depth=depth)
    got = deep_mode_time(products, start, target, inputs, depth=depth)
    slope = np.abs(depth * products ** (2 - 2 / depth) * (target - inputs * products))
    np.testing.assert_array_less(np.abs(got - times) * slope / products, 1e-12)


def test_deep_mode_time_of_what_is_never_reached():
    for depth in (2, 3):
        assert deep_mode_time(2.0, 0.1, 1.0, 0.5, depth=depth) == np.inf
        assert np.isnan(deep_mode_time(3.0, 0.1, 1.0, 0.5, depth=depth))
        assert deep_mode_time(0.1, 0.1, 1.0, 0.5, depth=depth) == 0.0
        assert deep_mode_time(0.05, 0.1, 1.0, 0.5, depth=depth) < 0


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
def test_derivatives_of_modes_are_those_of_finite_differences(depth):
    for arguments in [
        (1.3, 0.1, 1.0, 0.7),
        (0.4, 2.1, 1.0, 0.7),
        (0.3, 0.3, 0.0, 0.7),
        (0.3, 0.3, 0.7, 0.0),
    ]:
        # Where a spectrum vanishes only the derivatives in the other arguments have two sides.
        inner = [i for i, value in enumerate(arguments) if value > 0]

        slopes = jax.grad(partial(mode_flow, depth=depth), (0, 1, 2, 3))(*arguments)
        for i in inner:
            expected = difference(partial(mode_flow, depth=depth), arguments, i)
            assert slopes[i] == pytest.approx(expected, rel=1e-8, abs=1e-10)
    point = (1.2, 0.1, 1.0, 0.7)
    slopes = jax.grad(partial(deep_mode_time, depth=depth), (0, 1, 2, 3))(*point)
    for i in range(4):
        expected = difference(partial(deep_mode_time, depth=depth), point, i)
        assert slopes[i] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_derivatives_of_deep_mode_time_scale_with_products_and_spectra(depth):
    a = 2 / depth
    slopes = jax.jit(jax.grad(partial(deep_mode_time, depth=depth), (0, 1, 2, 3)))
    for point in [(1.2, 0.1, 1.0, 0.7), (2.0, 3.0, 1.0, 0.7)]:
        plain = np.array(slopes(*point))
        for log_x, log_y in [(0, -100), (0, 100), (-60, 0), (60, 0), (-60, -100), (60, 100)]:
            scales = 10.0 ** np.array([log_x, log_x, log_y, log_y - log_x])
            # The time has the unit x^(a - 1) / y, a slope that over its argument's.
            exponent = (a - 1) * log_x - log_y
            units = 10.0 ** (exponent - np.array([log_x, log_x, log_y, log_y - log_x]))
            found = slopes(*(np.array(point) * scales))
            np.testing.assert_allclose(np.array(found) / units, plain, rtol=1e-10)


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_derivatives_of_deep_mode_time_where_one_spectrum_is_nothing_beside_the_other(depth):
    a = 2 / depth
    slopes = jax.jit(jax.grad(partial(deep_mode_time, depth=depth), (0, 1, 2, 3)))
    p, start = 0.5, 0.1
    for rate in (0.0, 1e-100, 1e-30):
        time = deep_mode_time(p, start, 1.0, rate, depth=depth)
        expected = p ** (a - 2) / depth, -(start ** (a - 2)) / depth, -time
        expected = *expected, (p**a - start**a) / (a * depth)
        np.testing.assert_allclose(slopes(p, start, 1.0, rate), expected, rtol=1e-12)
    p, start = 0.5, 1.0
    for sigma in (0.0, 1e-100, 1e-30):
        time = deep_mode_time(p, start, sigma, 1.0, depth=depth)
        expected = -(p ** (a - 3)) / depth, start ** (a - 3) / depth
        expected = *expected, (p ** (a - 3) - start ** (a - 3)) / ((3 - a) * depth), -time
        np.testing.assert_allclose(slopes(p, start, sigma, 1.0), expected, rtol=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_derivatives_at_a_vanishing_spectrum_are_the_limits(depth):
    def slopes(target, inputs):
        return jax.grad(lambda s, k: mode_flow(0.8, 0.3, s, k, depth=depth), (0, 1))(target, inputs)

    near = 1e-7
    np.testing.assert_allclose(slopes(0.0, 0.7), slopes(near, 0.7), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes(0.7, 0.0), slopes(0.7, near), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes(0.0, 0.0), slopes(near, near), atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_mode_flow_composes(depth):
    for start in (1e-4, 0.5, 4.0):
        half = mode_flow(0.9, start, 1.0, 0.8, depth=depth)
        np.testing.assert_allclose(
            mode_flow(1.7, half, 1.0, 0.8, depth=depth),
            mode_flow(2.6, start, 1.0, 0.8, depth=depth),
            rtol=1e-13,
        )


def test_modes_broadcast_and_map():
    times, starts = np.array([[0.1], [1.0]]), np.array([0.1, 0.2, 0.3])
    got = jax.jit(lambda t: mode_flow(t, starts, 1.0, 0.5, depth=3))(times)
    assert got.shape == (2, 3)
    mapped = jax.vmap(lambda p: mode_flow(1.0, p, 1.0, 0.5, depth=3))(starts)
    np.testing.assert_allclose(mapped, got[1], rtol=1e-14)


def test_bad_arguments_are_refused_by_name():
    X, Y, start = data(20, 5, 3)
    problem = aj.regression(X, Y)
    other = aj.classification(X, np.sign(Y[:, 0]), loss="logistic")
    with pytest.raises(TypeError, match=r"linear_flow .* squared loss"):
        linear_flow(other, start, 1.0)
    with pytest.raises(ValueError, match=r"start must be the matrix .*\(3, 5\)"):
        linear_flow(problem, start.T, 1.0)
    with pytest.raises(ValueError, match=r"times must increase, but times\[1\] = 2.0"):
        linear_flow(problem, start, [1.0, 2.0, 1.5])
    with pytest.raises(ValueError, match="times must be at least 0"):
        linear_flow(problem, start, -1.0)
    with pytest.raises(ValueError, match="times must be finite"):
        linear_flow(problem, start, np.nan)
    with pytest.raises(TypeError, match="steps must be integers"):
        linear_descent(problem, start, 0.1, 1.5)
    with pytest.raises(ValueError, match="steps must increase"):
        linear_descent(problem, start, 0.1, [3, 1])
    with pytest.raises(ValueError, match=r"steps must increase, but steps\[0\] = 3"):
        linear_descent(problem, start, 0.1, np.array([3, 1], np.uint64))
    with pytest.raises(ValueError, match=r"steps must be a scalar or .* not empty, got shape \(0,"):
        linear_descent(problem, start, 0.1, [])
    with pytest.raises(ValueError, match=r"learning_rate must be finite and at least 0, got -0\.1"):
        linear_descent(problem, start, -0.1, 3)
    for rate in ([0.1], [0.1, 0.2]):
        with pytest.raises(ValueError, match=r"learning_rate must be a scalar, got .*jax\.vmap"):
            linear_descent(problem, start, rate, 3)
    with pytest.raises(ValueError, match="start must be at least 0"):
        mode_flow(1.0, -0.1, 1.0, 1.0)
    with pytest.raises(ValueError, match="input must be at least 0"):
        mode_flow(1.0, 0.1, 1.0, -1.0, depth=3)
    with pytest.raises(ValueError, match="time must be at least 0"):
        mode_flow(-1.0, 0.1, 1.0, 1.0)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        mode_flow(1.0, 0.1, 1.0, 1.0, depth=0)
    with pytest.raises(ValueError, match="broadcast"):
        mode_flow(np.ones(2), np.ones(3), 1.0, 1.0)
