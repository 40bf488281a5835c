"""Gradient flow: its equation, what it conserves, its tolerances, and what it refuses."""

import warnings
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.integrate import solve_ivp

import alignjax as aj
from alignjax.problems import MomentProblem

TIMES = jnp.array([0.0, 0.3, 1.0, 4.0, 20.0])
WIDTHS = ((4, 3), (4, 5, 3), (4, 3, 6, 3), (4, 5, 2, 4, 3), (4, 4, 4, 4, 4, 3))


def data(seed: int = 0, n: int = 30, k_0: int = 4, k_d: int = 3) -> tuple[jax.Array, jax.Array]:
    return aj.datasets.gaussian_regression(jax.random.key(seed), n, k_0, k_d)


def start(widths: tuple[int, ...], scale: float = 0.5, seed: int = 1) -> tuple[jax.Array, ...]:
    return aj.initializers.gaussian(jax.random.key(seed), widths, scale)


def keep(weights: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return weights


def differences(weights: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """``W_{i+1}^T W_{i+1} - W_i W_i^T``."""
    return tuple(b.T @ b - a @ a.T for a, b in pairwise(weights))


def size(tree: object) -> float:
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def distance(a: object, b: object) -> float:
    return size(jax.tree.map(lambda x, y: x - y, a, b))


def problems() -> dict[str, object]:
    X, Y = data()
    labels = jnp.where(X[:, 0] + 0.5 * Y[:, 0] > 0, 1, -1)
    return {
        "regression": aj.regression(X, Y),
        "fewer samples than inputs": aj.regression(X[:3], Y[:3]),
        "sensing": aj.sensing(jax.random.normal(jax.random.key(5), (6, 3, 4)), Y[:6, 0]),
        "classes": aj.classification(X, Y.argmax(axis=1), loss="cross_entropy"),
        "labels": aj.classification(X, labels, loss="logistic"),
    }


@pytest.mark.parametrize("name", problems())
def test_the_path_has_the_slope_of_minus_the_gradient(name):
    problem = problems()[name]
    weights = start((4, 5, 1 if name == "labels" else 3))
    middle, h = 0.7, 1e-3
    run = aj.gradient_flow(
        problem, weights, times=[middle - h, middle, middle + h], observe=keep, solver="explicit"
    )
    before, at, after = (
        jax.tree.map(lambda leaf, i=i: leaf[i], run.observations) for i in range(3)
    )
    slope = jax.tree.map(lambda a, b: (b - a) / (2 * h), before, after)
    expected = jax.tree.map(jnp.negative, aj.gradient(problem, at))
    assert size(expected) > 1e-2
    assert distance(slope, expected) < 1e-4 * size(expected)


@pytest.mark.parametrize("widths", WIDTHS)
def test_neighbours_keep_their_difference_and_the_risk_falls(widths):
    X, Y = data()
    problem = aj.regression(X, Y)

    def observe(weights):
        return {"kept": differences(weights), "risk": aj.risk(problem, weights)}

    times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-3, 1e3, 20)])
    run = aj.gradient_flow(problem, start(widths), times=times, observe=observe, solver="explicit")
    assert run.status == aj.Status.COMPLETED
    for kept in run.observations["kept"]:
        assert float(jnp.abs(kept - kept[0]).max()) < 1e-9
    risks = np.asarray(run.observations["risk"])
    assert (np.diff(risks) <= 1e-12 * risks[0]).all()
    assert risks[-1] < 0.9 * risks[0]


def test_one_layer_follows_the_exponential():
    X, Y = data()
    problem = aj.regression(X, Y)
    (weights,) = start((4, 3))
    sxx, syx = np.asarray(X.T @ X / len(X)), np.asarray(Y.T @ X / len(X))
    best = syx @ np.linalg.inv(sxx)
    run = aj.gradient_flow(
        problem, (weights,), times=TIMES, observe=keep, rtol=1e-13, solver="explicit"
    )
    for time, found in zip(TIMES, run.observations[0], strict=True):
        exact = best + (weights - best) @ scipy.linalg.expm(-float(time) * sxx)
        assert float(jnp.abs(found - exact).max()) < 1e-12


@pytest.mark.parametrize("rtol", [1e-5, 1e-7, 1e-9, 1e-11, 1e-13])
def test_the_error_keeps_to_the_tolerance(rtol):
    target = jnp.array([3.0, 1.0, 0.4])
    problem = aj.from_moments(jnp.eye(3), jnp.diag(target), 100.0)
    p = 1e-4
    run = aj.gradient_flow(
        problem,
        aj.initializers.identity((3, 3, 3), p**0.5),
        times=TIMES,
        observe=aj.end_to_end,
        rtol=rtol,
        solver="explicit",
    )
    # eq. 16 of Gidel et al. 2019
    decay = jnp.exp(-2 * target * TIMES[:, None])
    exact = target * p / (decay * (target - p) + p)
    found = jnp.diagonal(run.observations, axis1=1, axis2=2)
    # a mode of growth e^{2 sigma t} carries an early error up to where it saturates
    assert float(jnp.abs(found - exact).max()) < 20 * rtol + 1e-14


def test_a_vanishing_start_keeps_its_digits():
    target = jnp.array([2.0, 1.0])
    problem = aj.from_moments(jnp.eye(2), jnp.diag(target), 100.0)
    scale = 1e-15  # delta about 34 in w(0) = e^{-2 delta}
    run = aj.gradient_flow(
        problem,
        aj.initializers.identity((2, 2, 2), scale),
        times=[1.0, 10.0, 15.0, 30.0],
        observe=aj.end_to_end,
        solver="explicit",
    )
    p = scale**2
    decay = jnp.exp(-2 * target * run.time[:, None])
    exact = target * p / (decay * (target - p) + p)
    found = jnp.diagonal(run.observations, axis1=1, axis2=2)
    assert float(jnp.abs(found / exact - 1).max()) < 1e-8


def test_it_starts_again_where_it_was():
    problem, weights = aj.regression(*data()), start((4, 5, 3))
    flow = partial(aj.gradient_flow, problem, solver="explicit")
    whole = flow(weights, times=[5.0]).weights
    half = flow(weights, times=[2.0]).weights
    assert distance(flow(half, times=[3.0]).weights, whole) < 1e-9


def test_more_times_change_nothing():
    problem, weights = aj.regression(*data()), start((4, 5, 3))
    flow = partial(aj.gradient_flow, problem, weights, solver="explicit")
    few = flow(times=[1.0, 3.0]).observations["risk"]
    many = flow(times=jnp.linspace(0, 3, 31)).observations["risk"]
    assert float(jnp.abs(few - many[jnp.array([10, 30])]).max()) < 1e-10


def test_descent_comes_to_the_flow_at_first_order():
    problem, weights = aj.regression(*data()), start((4, 5, 3))
    limit = aj.gradient_flow(problem, weights, times=[2.0], solver="explicit").weights
    errors = []
    for steps in (400, 800, 1600, 3200):
        run = aj.gradient_descent(problem, weights, 2.0 / steps, steps=steps)
        errors.append(distance(run.weights, limit))
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert np.abs(ratios - 2).max() < 0.02
    # Richardson's extrapolation removes the first order, so the limits are the same.
    orders = np.log2(np.abs(ratios - 2)[:-1] / np.abs(ratios - 2)[1:])
    assert np.abs(orders - 1).max() < 0.3


def test_what_the_data_do_not_span_never_moves():
    X, Y = data(n=3)
    problem = aj.regression(X, Y)
    assert problem.basis is not None
    weights = start((4, 5, 3))
    moved = aj.gradient_flow(problem, weights, times=[5.0], solver="explicit").weights
    outside = scipy.linalg.null_space(np.asarray(X))
    assert float(jnp.abs((moved[0] - weights[0]) @ outside).max()) < 1e-14
    assert distance(moved, weights) > 0.1


def stiff() -> tuple[MomentProblem, tuple[jax.Array, ...], jax.Array, jax.Array]:
    """Curvatures from 1e4 down to 1e-4, up to the time in which the last mode is learned."""
    inputs = jnp.array([1e4, 1.0, 1e-2, 1e-4])
    target = inputs * jnp.array([1.0, 2.0, 0.5, 0.3])
    problem = aj.from_moments(jnp.diag(inputs), jnp.diag(target), 1e5)
    times = jnp.array([1e-3, 0.1, 1.0, 10.0, 1e3, 1e5, 1e6])
    decay = jnp.exp(-2 * target * times[:, None])
    exact = target * 0.01 / (decay * (target - 0.01 * inputs) + 0.01 * inputs)
    return problem, aj.initializers.identity((4, 4, 4), 0.1), times, exact


@pytest.mark.parametrize("solver", ["auto", "implicit"])
def test_a_stiff_problem_is_carried_to_its_end(solver):
    problem, weights, times, exact = stiff()
    run = aj.gradient_flow(
        problem, weights, times=times, observe=aj.end_to_end, solver=solver, max_steps=20_000
    )
    assert run.status == aj.Status.COMPLETED
    assert (run.time == times).all()
    assert float(jnp.abs(jnp.diagonal(run.observations, axis1=1, axis2=2) - exact).max()) < 1e-9


def test_a_stiff_problem_without_common_bases_agrees_with_another_solver():
    rng = np.random.default_rng(0)
    inputs = np.diag([1e4, 1.0, 1e-2])
    mixed = np.linalg.qr(rng.standard_normal((3, 3)))[0] @ np.diag([1.0, 1e-2, 1e-4])
    problem = aj.from_moments(inputs, inputs @ mixed, 1e9)
    weights = start((3, 4, 3), scale=0.3)
    times = jnp.array([0.1, 1.0])

    def observe(now):
        return aj.end_to_end(now), differences(now)

    run = aj.gradient_flow(problem, weights, times=times, observe=observe)
    assert run.status == aj.Status.COMPLETED
    assert run.stopped_at > 10_000  # the explicit method gave up on the way

    def slope(_, y):
        first, second = y[:12].reshape(4, 3), y[12:].reshape(3, 4)
        excess = second @ first @ inputs - inputs @ mixed
        return -np.concatenate([(second.T @ excess).ravel(), (excess @ first.T).ravel()])

    begin = np.concatenate([np.ravel(w) for w in weights])
    other = solve_ivp(slope, (0, 1), begin, "Radau", t_eval=times, rtol=1e-10, atol=1e-12).y.T
    for found, y in zip(run.observations[0], other, strict=True):
        expected = y[12:].reshape(3, 4) @ y[:12].reshape(4, 3)
        assert float(jnp.abs(found - expected).max()) < 1e-6 * np.abs(expected).max()
    kept = run.observations[1][0]
    assert float(jnp.abs(kept - differences(weights)[0]).max()) < 1e-8


def test_the_derivative_of_a_stiff_run_is_right():
    target, inputs = jnp.array([1e3, 0.5]), jnp.array([1e6, 1.0])
    problem = aj.from_moments(jnp.diag(inputs), jnp.diag(target), 1e3)
    weights = aj.initializers.identity((2, 2, 2), 0.01)

    def last(scale):
        begin = tuple(scale * w for w in weights)
        run = aj.gradient_flow(
            problem, begin, times=[1.0, 5.0], observe=aj.end_to_end, max_steps=1000
        )
        return run.observations[-1, 1, 1]

    def exact(scale):
        return aj.closed_forms.mode_flow(5.0, (scale * 0.01) ** 2, target[1], inputs[1])

    found, expected = (float(jax.grad(f)(1.0)) for f in (last, exact))
    assert found == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1e-300), ("float32", 1e-36)])
def test_the_smallest_starts_move(dtype, scale):
    problem = aj.from_moments(
        jnp.eye(2, dtype=dtype), jnp.diag(jnp.array([2.0, 1.0], dtype)), jnp.asarray(5.0, dtype)
    )
    weights = tuple(w.astype(dtype) for w in aj.initializers.identity((2, 2, 2), scale))
    run = aj.gradient_flow(problem, weights, times=[900.0], solver="explicit")
    assert run.status == aj.Status.COMPLETED
    assert float(run.observations["risk"][0]) < 1e-9
    with pytest.raises(ValueError, match="weights start below the smallest normal"):
        aj.gradient_flow(problem, tuple(np.asarray(w) * 1e-9 for w in weights), times=[1.0])


def test_too_stiff_for_explicit_steps_is_said_and_stands_still():
    problem, weights, times, exact = stiff()
    with pytest.warns(UserWarning, match=r"t = .* of 1e\+06 in 3000 explicit steps"):
        run = aj.gradient_flow(
            problem, weights, times=times, observe=keep, solver="explicit", max_steps=3000
        )
    assert run.status == aj.Status.UNFINISHED
    assert run.stopped_at == 3000
    reached = run.time[-1]
    assert 0.1 < reached < 1e3
    assert (run.time == jnp.minimum(times, reached)).all()
    assert distance(jax.tree.map(lambda leaf: leaf[-1], run.observations), run.weights) == 0
    seen = jax.vmap(aj.end_to_end)(run.observations)
    good = np.asarray(times <= reached)
    found = jnp.diagonal(seen, axis1=1, axis2=2)
    assert float(jnp.abs(found - exact)[good].max()) < 1e-9


def test_too_many_parameters_for_an_implicit_solver_is_said():
    k = 40
    problem = aj.from_moments(
        jnp.diag(jnp.geomspace(1, 1e8, k)), jnp.diag(jnp.geomspace(1, 1e8, k)), 1e9
    )
    weights = aj.initializers.identity((k, k, k), 0.5)
    with pytest.warns(UserWarning, match=r"3200 parameters are more than the 2000"):
        run = aj.gradient_flow(problem, weights, times=[1e3], max_steps=50)
    assert run.status == aj.Status.UNFINISHED
    with pytest.raises(ValueError, match=r"at most 2000 of them, and weights have 3200"):
        aj.gradient_flow(problem, weights, times=[1.0], solver="implicit")


def test_a_batch_is_its_runs_one_by_one():
    problem = aj.regression(*data())
    scales = jnp.array([0.05, 0.3, 1.0])
    weights = start((4, 3, 3))

    def run(scale, end):
        begin = jax.tree.map(lambda w: scale * w, weights)
        times = jnp.array([0.0, 0.5, 1.0]) * end
        return aj.gradient_flow(problem, begin, times=times, solver="explicit")

    together = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(scales, jnp.array([1.0, 5.0]))
    assert together.observations["risk"].shape == (3, 2, 3)
    for i, scale in enumerate(scales):
        alone = run(scale, 5.0)
        found = jax.tree.map(lambda leaf, i=i: leaf[i, 1], together.weights)
        assert distance(found, alone.weights) < 1e-10
        assert together.stopped_at[i, 1] == alone.stopped_at


def test_a_lane_that_cannot_start_harms_no_other():
    problem = aj.regression(*data())
    weights = start((4, 3, 3))

    def run(scale):
        begin = jax.tree.map(lambda w: scale * w, weights)
        return aj.gradient_flow(problem, begin, times=[1.0], solver="explicit")

    both = jax.vmap(run)(jnp.array([1.0, 1e160]))
    assert both.status.tolist() == [aj.Status.COMPLETED, aj.Status.DIVERGED]
    assert both.time[1, 0] == 0
    assert both.stopped_at[1] == 0
    assert float(jnp.abs(both.weights[0][0] - run(1.0).weights[0]).max()) < 1e-12


def test_the_derivative_in_the_start_is_that_of_differences():
    problem = aj.regression(*data())
    weights = start((4, 3, 3))

    def final(scale):
        begin = jax.tree.map(lambda w: scale * w, weights)
        run = aj.gradient_flow(problem, begin, times=[0.5, 2.0], solver="explicit")
        return run.observations["risk"].sum()

    h = 1e-5
    numeric = (final(1 + h) - final(1 - h)) / (2 * h)
    assert abs(numeric) > 1e-2
    assert float(jnp.abs(jax.grad(final)(1.0) - numeric)) < 1e-7


def test_float32_keeps_its_own_tolerance():
    X, Y = (array.astype(jnp.float32) for array in data())
    weights = jax.tree.map(lambda w: w.astype(jnp.float32), start((4, 5, 3)))
    run = aj.gradient_flow(
        aj.regression(X, Y), weights, times=TIMES, observe=differences, solver="explicit"
    )
    assert run.weights[0].dtype == run.time.dtype == run.observations[0].dtype == jnp.float32
    kept = run.observations[0]
    assert float(jnp.abs(kept - kept[0]).max()) < 3e-5
    exact = aj.gradient_flow(aj.regression(*data()), start((4, 5, 3)), times=TIMES).weights
    assert distance(run.weights, exact) < 1e-4


def test_observations_keep_their_kind():
    def observe(weights):
        return {"sign": weights[0][0, 0] > 0, "count": jnp.int32(7), "layers": len(weights)}

    run = aj.gradient_flow(
        aj.regression(*data()), start((4, 3)), times=TIMES, observe=observe, solver="explicit"
    )
    assert run.observations["sign"].dtype == bool
    assert run.observations["count"].tolist() == [7] * len(TIMES)
    assert run.observations["layers"].tolist() == [1] * len(TIMES)


def test_a_finished_flow_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = aj.gradient_flow(aj.regression(*data()), start((4, 3, 3)), times=[0.0, 1.0])
    assert run.status == aj.Status.COMPLETED
    assert run.step is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"times": [1.0, 0.5]}, ValueError, r"times must be strictly increasing .* 1.0 before 0.5"),
        ({"times": [1.0, 1.0]}, ValueError, "times must be strictly increasing"),
        ({"times": [-1.0, 1.0]}, ValueError, "times must be at least 0"),
        ({"times": [0.0, np.nan]}, ValueError, "times must be finite"),
        ({"times": 1.0}, ValueError, r"times must have 1 dimension"),
        ({"times": []}, ValueError, "times must not be empty"),
        ({"times": ["now"]}, TypeError, "times must hold real numbers"),
        ({"rtol": 0.0}, ValueError, "rtol must be positive"),
        ({"atol": -1e-3}, ValueError, "atol must be positive"),
        ({"rtol": [1e-3, 1e-4]}, ValueError, "rtol must have 0 dimension"),
        ({"solver": "euler"}, ValueError, "solver must be one of auto, explicit, implicit"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1"),
        ({"observe": 3}, TypeError, "observe must be callable"),
        ({"observe": lambda weights: "risk"}, TypeError, "observe must return a pytree of arrays"),
        ({"weights": start((5, 3))}, ValueError, r"takes 5 inputs, but the problem has k_0 = 4"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, error, message):
    arguments = {"weights": start((4, 3)), "times": [1.0]} | change
    with pytest.raises(error, match=message):
        aj.gradient_flow(aj.regression(*data()), **arguments)
