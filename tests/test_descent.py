"""Gradient descent: the plain loop, its transformations, where it saves, how it stops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import alignjax as aj
from alignjax.engines.loop import repeat
from tests.jaxprs import inner_jaxprs

WIDTHS = (3, 4, 2)
RATES = np.array([0.02, 0.1, 0.25])


def data(samples=8, widths=WIDTHS, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(samples, widths[0])), rng.normal(size=(samples, widths[-1]))


def network(widths=WIDTHS, seed=1, scale=0.4):
    return aj.initializers.gaussian(jax.random.key(seed), widths, scale)


def plain_loop(X, Y, weights, rates, steps):
    """Radhakrishnan et al. 2020, section 3, in NumPy, on samples."""
    layers = [np.asarray(w, np.float64) for w in weights]
    rates = np.broadcast_to(rates, len(layers))
    path = [layers]
    for _ in range(steps):
        slopes = []
        for i in range(len(layers)):
            below, above = np.eye(layers[0].shape[1]), np.eye(layers[-1].shape[0])
            for w in layers[:i]:
                below = w @ below
            for w in reversed(layers[i + 1 :]):
                above = above @ w
            error = (X @ (above @ layers[i] @ below).T - Y).T @ X / len(X)
            slopes.append(above.T @ error @ below.T)
        layers = [w - r * g for w, r, g in zip(layers, rates, slopes, strict=True)]
        path.append(layers)
    return path


def look(weights):
    return {"weights": weights}


def equal(actual, expected, rtol=1e-12):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("samples", [2, 8], ids=["n < k_0", "n >= k_0"])
@pytest.mark.parametrize("rate", [0.1, [0.02, 0.2]], ids=["one rate", "one rate a layer"])
def test_a_run_is_the_plain_loop_at_uneven_save_points(samples, rate):
    X, Y = data(samples)
    start, save_at = network(), (0, 1, 2, 7, 20)
    run = aj.gradient_descent(
        aj.regression(X, Y), start, rate, steps=23, save_at=save_at, observe=look
    )
    path = plain_loop(X, Y, start, rate, 23)
    for i, step in enumerate(save_at):
        equal([w[i] for w in run.observations["weights"]], path[step])
    equal(run.weights, path[-1])
    assert run.step.tolist() == list(save_at)
    equal(run.time, np.multiply.outer(save_at, np.asarray(rate)))
    assert int(run.status) == aj.Status.COMPLETED
    assert int(run.stopped_at) == 23


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 17])
def test_any_number_of_steps_is_taken_exactly(steps):
    X, Y = data()
    run = aj.gradient_descent(aj.regression(X, Y), network(), 0.1, steps=steps)
    equal(run.weights, plain_loop(X, Y, network(), 0.1, steps)[-1])
    assert int(run.stopped_at) == steps


def test_the_default_observation_is_the_risk():
    problem = aj.regression(*data())
    run = aj.gradient_descent(problem, network(), 0.1, steps=9)
    expected = [aj.risk(problem, network()), aj.risk(problem, run.weights)]
    equal(run.observations["risk"], jnp.stack(expected))


def test_a_run_in_float32_stays_in_float32():
    X, Y = (a.astype(np.float32) for a in data())
    start = aj.initializers.gaussian(jax.random.key(1), WIDTHS, 0.4, dtype=jnp.float32)
    run = aj.gradient_descent(aj.regression(X, Y), start, np.float64(0.1), steps=30)
    assert {leaf.dtype for leaf in run.weights} == {np.dtype(np.float32)}
    assert run.time.dtype == np.float32
    equal(run.weights, plain_loop(X, Y, start, 0.1, 30)[-1], rtol=1e-5)


@pytest.mark.parametrize("max_steps", [1, 2, 5, 16, 30])
def test_the_loop_runs_a_traced_number_of_steps_in_order(max_steps):
    def body(state, index):
        return 3 * state + index

    run = jax.jit(lambda steps: repeat(body, jnp.int64(1), steps, max_steps=max_steps))
    expected = 1
    for steps in range(max_steps + 1):
        assert int(run(steps)) == expected
        expected = 3 * expected + steps


def test_until_stops_on_a_save_point_and_freezes_that_lane_only():
    problem = aj.factorization(np.diag([2.0, 1.0]))
    start = aj.initializers.identity((2, 2, 2), 0.5)
    save_at = aj.every(200, 20)

    def descend(rate):
        return aj.gradient_descent(problem, start, rate, steps=200, save_at=save_at, until=1e-3)

    runs = jax.vmap(descend)(jnp.array([0.001, 0.1, 0.3]))
    free = jax.vmap(
        lambda rate: aj.gradient_descent(problem, start, rate, steps=200, save_at=save_at)
    )(jnp.array([0.001, 0.1, 0.3]))
    assert runs.status.tolist() == [aj.Status.COMPLETED, aj.Status.REACHED, aj.Status.REACHED]
    risks, unstopped = runs.observations["risk"], free.observations["risk"]
    equal(risks[0], unstopped[0])
    for lane in (1, 2):
        first = int(np.argmax(unstopped[lane] <= 1e-3))
        assert int(runs.stopped_at[lane]) == save_at[first]
        equal(risks[lane][: first + 1], unstopped[lane][: first + 1])
        equal(risks[lane][first:], np.full(len(save_at) - first, unstopped[lane][first]))
        equal(runs.time[lane][-1], runs.time[lane][first])


def test_until_may_differ_from_lane_to_lane_and_may_hold_at_the_start():
    problem = aj.factorization(np.diag([2.0, 1.0]))
    start = aj.initializers.identity((2, 2, 2), 0.5)
    runs = jax.vmap(lambda u: aj.gradient_descent(problem, start, 0.1, steps=9, until=u))(
        jnp.array([1e9, 0.0])
    )
    assert runs.stopped_at.tolist() == [0, 9]
    assert runs.status.tolist() == [aj.Status.REACHED, aj.Status.COMPLETED]


def descend(X, Y, start, rate):
    return aj.gradient_descent(aj.regression(X, Y), start, rate, steps=12, save_at=(0, 5, 12))


def stacked(runs):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)


@pytest.mark.parametrize("axis", ["rate", "rate a layer", "start", "problem"])
def test_vmap_equals_single_runs(axis):
    (X, Y), start = data(), network()
    if axis == "rate":
        lanes = jnp.asarray(RATES)
        one = lambda rate: descend(X, Y, start, rate)  # noqa: E731
    elif axis == "rate a layer":
        lanes = jnp.asarray([[0.1, 0.2], [0.3, 0.01], [0.0, 0.1]])
        one = lambda rates: descend(X, Y, start, rates)  # noqa: E731
    elif axis == "start":
        lanes = stacked([network(seed=s) for s in (1, 2, 3)])
        one = lambda weights: descend(X, Y, weights, 0.1)  # noqa: E731
    else:
        lanes = stacked([tuple(map(jnp.asarray, data(seed=s))) for s in (1, 2, 3)])
        one = lambda both: descend(*both, start, 0.1)  # noqa: E731
    single = [one(jax.tree.map(lambda leaf, i=i: leaf[i], lanes)) for i in range(3)]
    equal(jax.vmap(one)(lanes), stacked(single))


def test_nested_vmap_over_starts_and_rates_equals_single_runs():
    X, Y = data()
    starts = stacked([network(seed=s) for s in (1, 2)])
    one = lambda weights, rate: descend(X, Y, weights, rate)  # noqa: E731
    grid = jax.vmap(lambda w: jax.vmap(lambda r: one(w, r))(jnp.asarray(RATES)))(starts)
    rows = [
        stacked([one(jax.tree.map(lambda leaf, i=i: leaf[i], starts), r) for r in RATES])
        for i in range(2)
    ]
    equal(grid, stacked(rows))


def test_a_stack_of_problems_runs_as_an_argument():
    many = [data(seed=s) for s in (1, 2, 3)]
    problems = stacked([aj.regression(*d) for d in many])
    runs = jax.vmap(lambda p: aj.gradient_descent(p, network(), 0.1, steps=12, save_at=(0, 5, 12)))(
        problems
    )
    equal(runs, stacked([descend(*d, network(), 0.1) for d in many]))


@pytest.mark.parametrize("steps", [5, 16])
def test_gradients_through_a_run_equal_finite_differences(steps):
    X, Y = data()

    def final(rates, scale):
        start = jax.tree.map(lambda w: scale * w, network())
        run = aj.gradient_descent(
            aj.regression(X, Y), start, rates, steps=steps, save_at=(1, 4, steps)
        )
        return run.observations["risk"].sum() + sum((w**2).sum() for w in run.weights)

    check_grads(final, (jnp.array([0.1, 0.2]), jnp.array(0.9)), order=1, modes=("rev",), rtol=1e-6)


def test_derivatives_of_healthy_lanes_survive_diverged_neighbours():
    problem = aj.regression(*data())

    def final(rate):
        run = aj.gradient_descent(problem, network(), rate, steps=60)
        return run.observations["risk"][-1], run.status

    rates = jnp.array([0.05, 1e3, 0.1, 50.0])
    slopes, status = jax.vmap(jax.grad(final, has_aux=True))(rates)
    assert status.tolist() == [0, 1, 0, 1]
    alone = [jax.grad(final, has_aux=True)(rates[i])[0] for i in (0, 2)]
    equal(slopes[jnp.array([0, 2])], jnp.stack(alone))
    step = 1e-6
    difference = (final(0.05 + step)[0] - final(0.05 - step)[0]) / (2 * step)
    np.testing.assert_allclose(slopes[0], difference, rtol=1e-5)
    assert bool(jnp.isfinite(slopes).all())


def test_divergence_freezes_the_last_state_whose_risk_is_accepted():
    X, Y = data()
    problem, rate, steps = aj.regression(X, Y), 5.0, 60
    with np.errstate(all="ignore"):
        path = plain_loop(X, Y, network(), rate, steps)
        risks = np.array([0.5 * ((X @ (b @ a).T - Y) ** 2).sum() / len(X) for a, b in path])
    bad = ~(risks <= np.sqrt(np.finfo(np.float64).max))
    last = int(np.argmax(bad)) - 1
    assert 0 < last < steps - 5
    save_at = (0, last - 1, last, last + 3, steps)
    run = aj.gradient_descent(problem, network(), rate, steps=steps, save_at=save_at, observe=look)
    assert int(run.status) == aj.Status.DIVERGED
    assert int(run.stopped_at) == last
    for w, expected in zip(run.weights, path[last], strict=True):
        np.testing.assert_allclose(w, expected, rtol=1e-8)
    equal(run.time, rate * np.minimum(save_at, last))
    for frozen in run.observations["weights"]:
        np.testing.assert_array_equal(frozen[2], frozen[4])
    assert bool(jnp.isfinite(aj.risk(problem, run.weights)))


def test_a_start_that_is_beyond_the_limit_takes_no_step():
    huge = jax.tree.map(lambda w: 1e60 * w, network())
    run = aj.gradient_descent(aj.regression(*data()), huge, 0.1, steps=5)
    assert (int(run.status), int(run.stopped_at)) == (aj.Status.DIVERGED, 0)
    equal(run.weights, huge)


def test_one_trace_serves_a_sweep_and_a_python_loop_over_rates():
    problem, traces = aj.regression(*data()), []

    def counted(weights):
        traces.append(1)
        return aj.risk(problem, weights)

    def one(rate, seed=1):
        return aj.gradient_descent(problem, network(seed=seed), rate, steps=6, observe=counted)

    one(0.1)
    first = len(traces)
    for rate in (0.2, np.float32(0.3), jnp.array(0.4), 0.05):
        one(rate)
    one(0.1, seed=2)
    assert len(traces) == first
    jax.vmap(one)(jnp.linspace(0.01, 0.2, 50))
    assert len(traces) <= 2 * first


def test_a_compiled_sweep_is_traced_once_for_all_rates_starts_and_problems():
    def final_risk(rate, start, targets):
        problem = aj.regression(data()[0], targets)
        run = aj.gradient_descent(problem, start, rate, steps=6)
        return run.observations["risk"][-1]

    chex.clear_trace_counter()
    counted = chex.assert_max_traces(final_risk, n=1)
    sweep = jax.jit(jax.vmap(counted, (0, None, None)))
    targets = data()[1]
    for scale in (1.0, 0.5, 0.1):
        risks = sweep(scale * jnp.linspace(0.01, 0.1, 4), network(seed=1), scale * targets)
        assert risks.shape == (4,)
    per_layer = scale * jnp.ones((4, len(WIDTHS) - 1))
    with pytest.raises(AssertionError, match="traced"):  # another shape: the count counts
        sweep(per_layer, network(seed=1), targets)


def primitives(jaxpr, counts=None):
    counts = {} if counts is None else counts
    for equation in jaxpr.eqns:
        counts[equation.primitive.name] = counts.get(equation.primitive.name, 0) + 1
        for inner in inner_jaxprs(equation):
            primitives(inner, counts)
    return counts


@pytest.mark.parametrize("until", [None, 1e-3])
def test_branches_stay_branches_under_vmap_and_compile_time_does_not_grow_with_steps(until):
    problem = aj.regression(*data())

    def one(rate, steps=50):
        save_at = (1, 30, steps)
        return aj.gradient_descent(
            problem, network(), rate, steps=steps, save_at=save_at, until=until, engine="xla"
        )

    single = primitives(jax.make_jaxpr(one)(0.1).jaxpr)
    many = primitives(jax.make_jaxpr(jax.vmap(jax.vmap(one)))(jnp.ones((2, 3))).jaxpr)
    assert single["cond"] == many["cond"] == 2
    longer = primitives(jax.make_jaxpr(lambda r: one(r, 100_000))(0.1).jaxpr)
    assert longer == single


@pytest.mark.parametrize("loss", ["logistic", "exponential", "cross_entropy"])
def test_descent_on_other_losses_is_the_plain_loop_on_autodiff(loss):
    X, _ = data()
    labels = np.arange(8) % 2
    problem = aj.classification(X, labels if loss == "cross_entropy" else 2 * labels - 1, loss)
    weights = network((3, 4, 2 if loss == "cross_entropy" else 1))
    run = aj.gradient_descent(problem, weights, 0.2, steps=15)
    slope = jax.jit(jax.grad(lambda w: aj.risk(problem, w)))
    for _ in range(15):
        weights = jax.tree.map(lambda w, g: w - 0.2 * g, weights, slope(weights))
    equal(run.weights, weights)


def test_descent_on_measurements_is_the_plain_loop_on_autodiff():
    rng = np.random.default_rng(0)
    problem, weights = aj.sensing(rng.normal(size=(5, 2, 3)), rng.normal(size=5)), network()
    run = aj.gradient_descent(problem, weights, 0.05, steps=15)
    slope = jax.jit(jax.grad(lambda w: aj.risk(problem, w)))
    for _ in range(15):
        weights = jax.tree.map(lambda w, g: w - 0.05 * g, weights, slope(weights))
    equal(run.weights, weights)
