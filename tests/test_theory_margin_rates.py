"""The predicted rates of gradient flow on separable data, against the flow itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

import alignjax as aj
from alignjax.theory.margin import (
    LateTimes,
    balancedness_constant,
    first_layer_growth,
    late_times,
    max_margin,
    norm_gap,
    predicted_angle,
    predicted_layer_norm,
    predicted_log_risk,
    predicted_norm,
    predicted_ratio_exponent,
)

TIMES = 10.0 ** jnp.array([100.0, 200.0, 300.0])
# two support vectors at different distances across the first axis, and samples far behind them
INPUTS = jnp.array([[0.5, 0.6], [-0.5, 0.1], [0.8, -0.4], [-0.9, 0.3]])
LABELS = jnp.array([1, -1, 1, -1])
FOUND = max_margin(INPUTS, LABELS)
LATE = late_times(INPUTS, LABELS, FOUND)


def start(depth: int) -> tuple[jax.Array, ...]:
    weights = aj.initializers.gaussian(jax.random.key(5), (2,) + (4,) * (depth - 1) + (1,), 0.2)
    problem = aj.classification(INPUTS, LABELS, loss="exponential")
    return weights if aj.risk(problem, weights) <= 1 else (-weights[0], *weights[1:])


def flow(depth: int, loss: str = "exponential"):
    problem = aj.classification(INPUTS, LABELS, loss=loss)

    def observe(now):
        energies = jnp.stack([(w**2).sum() for w in now])
        return aj.end_to_end(now)[0], aj.metrics.log_risk(problem, now), energies, norm_gap(now)

    run = aj.gradient_flow(
        problem, start(depth), times=TIMES, observe=observe, log_time=True, solver="explicit"
    )
    assert run.status == aj.Status.COMPLETED
    return run.observations


def test_the_limit_across_the_direction_is_the_minimizer():
    rng = np.random.default_rng(0)
    for k in (2, 3, 5):
        data = aj.datasets.separable_pair(jax.random.key(k), 40, k, margin=0.4)
        # the pairs of that data lie symmetrically about the direction
        late = late_times(data.inputs, data.labels, max_margin(data.inputs, data.labels))
        assert float(jnp.linalg.norm(late.offset)) < 1e-11
        assert late.margin == pytest.approx(0.4)
        # moved away from symmetry, one support vector a dimension still there
        u = np.asarray(data.direction)
        shape = np.vstack([np.eye(k), -np.ones(k)]) * rng.uniform(0.5, 2, (k + 1, 1))
        z = shape - np.outer(shape @ u, u) + 0.3 * u
        found = max_margin(z, np.ones(k + 1))
        late = late_times(z, np.ones(k + 1), found)
        points = z[found.support]

        u = np.asarray(found.direction)
        points = points - np.outer(points @ u, u)

        def total(v, points=points):
            return np.log(np.exp(-points @ v).sum())

        other = minimize(total, np.zeros(k), method="BFGS", options={"gtol": 1e-12})
        assert np.log(late.level * (k + 1)) == pytest.approx(other.fun, abs=1e-12)
        assert total(np.asarray(late.offset)) == pytest.approx(other.fun, abs=1e-13)
        assert abs(np.asarray(late.offset) @ np.asarray(found.direction)) < 1e-12


def test_two_supports_have_the_limit_of_the_formula():
    # across the direction they lie at a and -b: v = ln(a / b) / (a + b)
    a, b = 0.6, 0.1
    X = jnp.array([[0.5, a], [0.5, -b]])
    late = late_times(X, [1, 1], max_margin(X, [1, 1]))
    v = np.log(a / b) / (a + b)
    np.testing.assert_allclose(late.offset, [0, v], atol=1e-13)
    assert late.level == pytest.approx((np.exp(-a * v) + np.exp(b * v)) / 2, rel=1e-13)
    # the Hessian of ln(e^{-av} + e^{bv}) is a b, since the weights are b and a over a + b
    np.testing.assert_allclose(late.lag, [0, 0.25 * v / (a * b)], atol=1e-12)


def test_what_the_data_decide_scales_with_them():
    for scale in (1e-200, 1e200):
        X = scale * INPUTS
        late = late_times(X, LABELS, max_margin(X, LABELS))
        assert late.margin == pytest.approx(scale * LATE.margin, rel=1e-12)
        assert late.level == pytest.approx(LATE.level, rel=1e-12)
        np.testing.assert_allclose(scale * late.offset, LATE.offset, atol=1e-12)
        np.testing.assert_allclose(scale * late.lag, LATE.lag, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_norm_risk_and_angle_at_a_time_of_1e300(depth):
    w, log_risk, energies, _ = flow(depth)
    norms = jnp.linalg.norm(w, axis=1)
    x = LATE.margin * norms
    errors = jnp.stack(
        [
            LATE.margin * predicted_norm(TIMES, LATE, depth) - x,
            predicted_log_risk(TIMES, LATE, depth) - log_risk,
        ]
    )
    # x^{-2} of the path and x^{-4/L} of the imbalance; one layer has neither
    order = min(2.0, 4 / depth)
    assert float(jnp.abs(errors[:, -1]).max()) < (0.01 if depth > 1 else 1e-8)
    falls = jnp.abs(errors[:, -1]) <= 1.1 * jnp.abs(errors[:, 0]) * (x[0] / x[-1]) ** order
    assert depth == 1 or falls.all()
    across = w - jnp.outer(w @ FOUND.direction, FOUND.direction)
    angle = jnp.arctan2(jnp.linalg.norm(across, axis=1), w @ FOUND.direction)
    ratio = angle / predicted_angle(TIMES, LATE, depth)
    assert float(jnp.abs(ratio - 1)[-1]) < 0.01
    layers = predicted_layer_norm(TIMES, LATE, depth)[:, None]
    slack = float(balancedness_constant(start(depth)))
    # squared norms differ from each other by at most D, from their mean too
    assert (jnp.abs(energies - layers**2) <= slack + 1e-3 * layers**2).all()


def test_the_logistic_loss_has_the_same_constants():
    _, log_risk, _, _ = flow(2, "logistic")
    assert float(jnp.abs(log_risk - predicted_log_risk(TIMES, LATE, 2)).max()) < 1e-3


@pytest.mark.parametrize("depth", [2, 4])
def test_layers_approach_rank_one_at_the_predicted_exponent(depth):
    w, _, energies, gap = flow(depth)
    lack = (gap / energies / (1 + jnp.sqrt(1 - gap / energies)))[:, :-1]
    growth = jnp.log(jnp.linalg.norm(w, axis=1))
    slope = (jnp.log(lack[-1]) - jnp.log(lack[0])) / (growth[-1] - growth[0])
    assert float(jnp.abs(slope - predicted_ratio_exponent(depth)).max()) < 0.03
    assert float(jnp.abs(gap[:, -1]).max()) == 0


def test_the_prediction_solves_the_equation_of_late_times():
    late = LateTimes(0.3, jnp.array([0.0, 1.0]), jnp.zeros(2), 0.2)
    for depth in (2, 3, 5):
        power = 2 - 2 / depth
        k = depth * late.margin ** (2 / depth) * late.level
        times = np.exp(np.array([60.0, 100.0, 600.0]))
        norm = np.asarray(predicted_norm(times, late, depth))
        x = late.margin * np.sqrt(norm**2 - 1)
        # dx/ds = K x^m e^{s-x} in s = ln t, from one time to the others; the remainder of the
        # expansion is m (m+1) (m+2) / x^3
        solution = solve_ivp(
            lambda s, y, k=k, power=power: k * y**power * np.exp(s - y),
            (60, 600),
            [x[0]],
            method="Radau",
            t_eval=[100, 600],
            rtol=1e-12,
            atol=1e-12,
        )
        remainder = power * (power + 1) * (power + 2) / x[1:] ** 3
        assert (np.abs(solution.y[0] - x[1:]) <= 1.1 * remainder + 1e-9).all()


def test_one_layer_needs_no_expansion():
    t = jnp.array([1e20, 1e200])
    x = jnp.log(t) + jnp.log(LATE.margin**2 * LATE.level)
    assert float(jnp.abs(predicted_log_risk(t, LATE, 1) - (jnp.log(LATE.level) - x)).max()) < 1e-12


def test_early_times_have_no_prediction_and_late_ones_run_under_jit():
    assert jnp.isnan(predicted_norm(jnp.array([1.0, 3.0]), LATE, 3)).all()
    together = jax.jit(lambda t: predicted_angle(t, LATE, 3))(TIMES)
    assert float(jnp.abs(together - predicted_angle(TIMES, LATE, 3)).max()) < 1e-15


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_first_layer_grows_as_the_corrected_equations_say(depth):
    problem = aj.classification(INPUTS, LABELS)
    weights, u = start(depth), FOUND.direction
    slope = aj.gradient(problem, weights)

    def energy(w):
        off = w - jnp.outer(w @ u, u)
        return jnp.stack([(w**2).sum(), (off**2).sum()])

    _, change = jax.jvp(energy, (weights[0],), (-slope[0],))
    found = [first_layer_growth(problem, weights, direction=d) for d in (None, u)]
    assert float(jnp.abs(change - jnp.stack(found)).max()) < 1e-15
    traced = jax.jit(lambda w: first_layer_growth(problem, w, direction=u))(weights)
    assert float(jnp.abs(traced - found[1])) < 1e-15


def test_bad_arguments_are_refused_by_name():
    problem = aj.classification(INPUTS, LABELS)
    with pytest.raises(TypeError, match="found must come from max_margin"):
        late_times(INPUTS, LABELS, 1.0)
    with pytest.raises(TypeError, match="late must come from late_times"):
        predicted_norm(TIMES, FOUND, 2)
    with pytest.raises(ValueError, match="times must be positive"):
        predicted_norm(jnp.array([0.0]), LATE, 2)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        predicted_ratio_exponent(0)
    with pytest.raises(ValueError, match=r"direction must have shape \(2,\)"):
        first_layer_growth(problem, start(2), direction=jnp.ones(3))
    with pytest.raises(ValueError, match=r"direction must have norm 1, got 1\.41421"):
        first_layer_growth(problem, start(2), direction=jnp.ones(2))
    # one support vector, another sample far off
    X = jnp.array([[1.0, 0.0], [5.0, 3.0]])
    with pytest.raises(ValueError, match="span less than the samples"):
        late_times(X, [1, 1], max_margin(X, [1, 1]))
    # the second is on the margin and has no dual weight
    X = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="do not surround its direction"):
        late_times(X, [1, 1], max_margin(X, [1, 1]))
    outputs = aj.classification(INPUTS, jnp.array([0, 1, 0, 1]), loss="cross_entropy")
    with pytest.raises(ValueError, match="one output"):
        first_layer_growth(outputs, (jnp.ones((2, 2)),))


def test_a_flow_that_cannot_go_on_asks_whether_the_samples_are_separable():
    both = aj.classification(jnp.ones((2, 1)), [1, -1], loss="exponential")
    with pytest.warns(UserWarning, match="not separable: theory.margin.max_margin"):
        aj.gradient_flow(
            both,
            (jnp.full((1, 1), 0.5),),
            times=[1e300],
            log_time=True,
            solver="explicit",
            max_steps=200,
        )
