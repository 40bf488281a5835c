"""Descent whose steps follow the risk, and the flow in logarithmic time that it is a limit of."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax.problems import log_risk_and_gradient, smoothness

DATA = aj.datasets.separable_pair(jax.random.key(1), 40, 3, margin=0.5)
X, LABELS = DATA.inputs, DATA.labels


def problem(loss: str = "logistic", dtype: str = "float64"):
    return aj.classification(X.astype(dtype), LABELS, loss=loss)


def start(depth: int, scale: float = 0.3, seed: int = 5) -> tuple[jax.Array, ...]:
    """A start that satisfies Assumption 2."""
    widths = (3,) + (4,) * (depth - 1) + (1,)
    weights = aj.initializers.gaussian(jax.random.key(seed), widths, scale)
    if aj.risk(problem(), weights) > jnp.log(2.0):
        weights = (-weights[0], *weights[1:])
    return weights


def product(weights):
    return aj.end_to_end(weights)[0]


def relative(a, b):
    return float((jnp.linalg.norm(a - b, axis=-1) / jnp.linalg.norm(b, axis=-1)).max())


@pytest.mark.parametrize("loss", ["logistic", "exponential", "cross_entropy"])
def test_the_gradient_in_logarithms_is_the_gradient(loss):
    labels = (LABELS + 1) // 2 if loss == "cross_entropy" else LABELS
    known = aj.classification(X, labels, loss=loss)
    widths = (3, 4, 2 if loss == "cross_entropy" else 1)
    weights = aj.initializers.gaussian(jax.random.key(0), widths, 0.7)
    log_risk, scale, slope = log_risk_and_gradient(known, weights)
    assert float(log_risk) == pytest.approx(float(jnp.log(aj.risk(known, weights))), abs=1e-13)
    for g, expected in zip(slope, aj.gradient(known, weights), strict=True):
        assert float(jnp.abs(jnp.exp(scale) * g - expected).max()) < 1e-13


@pytest.mark.parametrize("loss", ["logistic", "exponential", "cross_entropy"])
def test_what_underflows_keeps_its_digits(loss):
    labels = (LABELS + 1) // 2 if loss == "cross_entropy" else LABELS
    known = aj.classification(X, labels, loss=loss)
    u = DATA.direction[None]
    weights = (jnp.concatenate([-u, u]),) if loss == "cross_entropy" else (u,)
    size = 1e5  # every loss is below e^{-5e4}
    log_risk, scale, slope = log_risk_and_gradient(known, tuple(size * w for w in weights))
    margins = np.asarray(LABELS * (X @ DATA.direction), np.longdouble) * np.longdouble(size)
    margins = margins * (2 if loss == "cross_entropy" else 1)
    least = margins.min()
    exact = -least + np.log(np.exp(least - margins).mean())
    assert float(log_risk) == pytest.approx(float(exact), rel=1e-14)
    assert aj.risk(known, tuple(size * w for w in weights)) == 0
    rows = np.asarray(LABELS[:, None] * X, np.longdouble)
    expected = -(np.exp(least - margins)[:, None] * rows).mean(axis=0)
    found = np.asarray(slope[0][-1] * jnp.exp(scale + float(least)))
    assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_ball_never_raises_the_risk_and_its_steps_are_those_of_assumption_5(depth):
    steps, weights = 3000, start(depth)

    def observe(now):
        largest = jnp.stack([jnp.linalg.norm(w) for w in now]).max()
        return aj.metrics.log_risk(problem(), now), largest

    run = aj.adaptive_descent(
        problem(), weights, steps=steps, observe=observe, save_at=range(steps + 1)
    )
    log_risks, norms = map(np.asarray, run.observations)
    assert run.status == aj.Status.COMPLETED
    assert (np.diff(log_risks) < 0).all()
    length = float(jnp.linalg.norm(X, axis=1).max())
    radius, time = norms[0] + 1, 0.0
    for step in range(steps):
        beta = float(smoothness("logistic", depth, radius, input_norm=length))
        time += min(1 / beta, 1.0)
        if norms[step + 1] > radius - 1:
            radius = norms[step + 1] + 1
    assert float(run.time[-1]) == pytest.approx(time, rel=1e-10)


@pytest.mark.parametrize(("loss", "depth"), [("exponential", 1), ("logistic", 3)])
def test_the_margin_rule_follows_the_flow_at_equal_time(loss, depth):
    steps, known, weights = 4000, problem(loss), start(depth)
    run = aj.adaptive_descent(
        known,
        weights,
        steps=steps,
        rule="margin",
        observe=product,
        save_at=(steps // 2, steps),
        constant=0.002,
    )
    flow = aj.gradient_flow(
        known, weights, times=run.time, observe=product, log_time=True, solver="explicit"
    )
    assert float(run.time[-1]) > 10
    assert relative(run.observations, flow.observations) < 2e-3
    # first order in the constant
    finer = aj.adaptive_descent(
        known, weights, steps=2 * steps, rule="margin", observe=product, constant=0.001
    )
    again = aj.gradient_flow(
        known, weights, times=finer.time[-1:], observe=product, log_time=True, solver="explicit"
    )
    coarse = relative(run.observations[-1:], flow.observations[-1:])
    assert relative(finer.observations[-1:], again.observations) < 0.7 * coarse


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0])
def test_the_margin_rule_takes_the_steps_it_states_and_does_not_leap_from_small_starts(scale):
    known, weights = problem(), start(3, scale)

    def observe(layers):
        largest = jnp.stack([jnp.linalg.norm(w) for w in layers]).max()
        return aj.metrics.log_risk(known, layers), largest, product(layers)

    run = aj.adaptive_descent(
        known, weights, steps=50, rule="margin", save_at=range(51), observe=observe
    )
    log_risk, largest, products = run.observations
    rate = 0.02 / (jnp.exp(log_risk) * jnp.maximum(largest, 1) ** 4)
    np.testing.assert_allclose(jnp.diff(run.time), rate[:-1], rtol=1e-10)
    flow = aj.gradient_flow(known, weights, times=run.time[1:], observe=product, log_time=True)
    assert float(jnp.abs(products[1:] - flow.observations).max()) < 0.02


def test_a_risk_below_the_smallest_float_still_moves_the_weights():
    run = aj.adaptive_descent(
        problem(),
        start(1),
        steps=2000,
        rule="margin",
        constant=5.0,
        save_at=(0, 1000, 2000),
        observe=lambda w: (aj.metrics.log_risk(problem(), w), aj.risk(problem(), w)),
    )
    log_risk, risk = run.observations
    assert run.status == aj.Status.COMPLETED
    assert float(log_risk[1]) < -1000
    assert float(log_risk[2]) < float(log_risk[1]) - 1000
    assert risk[1:].tolist() == [0, 0]
    assert run.time[1:].tolist() == [np.inf, np.inf]


def test_the_margin_rule_reaches_extreme_times_and_follows_the_flow_there():
    known, weights = problem("exponential"), start(2)
    steps = 20_000
    run = aj.adaptive_descent(
        known,
        weights,
        steps=steps,
        rule="margin",
        constant=0.01,
        observe=product,
        save_at=(8000, steps),
    )
    assert float(run.time[0]) > 1e13
    flow = aj.gradient_flow(
        known, weights, times=run.time, observe=product, log_time=True, solver="explicit"
    )
    assert relative(run.observations, flow.observations) < 1e-4


@pytest.mark.parametrize(
    ("loss", "depth"), [("exponential", 1), ("exponential", 2), ("logistic", 2), ("logistic", 4)]
)
def test_logarithmic_time_agrees_with_time(loss, depth):
    known, weights = problem(loss), start(depth)
    times = jnp.array([0.0, 0.1, 1.0, 10.0, 100.0])
    flow = partial(
        aj.gradient_flow, known, weights, times=times, observe=product, solver="explicit"
    )
    plain, in_logarithms = flow(), flow(log_time=True)
    assert (in_logarithms.time == times).all()
    assert float(jnp.abs(plain.observations - in_logarithms.observations).max()) < 1e-9


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_flow_reaches_a_time_of_1e300(depth):
    known, weights = problem("exponential"), start(depth)

    def observe(now):
        return product(now), aj.metrics.log_risk(known, now)

    times = 10.0 ** jnp.array([100, 200, 300])
    run = aj.gradient_flow(
        known, weights, times=times, observe=observe, log_time=True, solver="explicit"
    )
    assert run.status == aj.Status.COMPLETED
    w, log_risk = run.observations
    log_t = jnp.log(times)
    # ln R = -ln t - (2 - 2/L) ln ln t + c, and ||w|| gamma follows it
    constant = log_risk + log_t + (2 - 2 / depth) * jnp.log(log_t)
    assert float(jnp.abs(jnp.diff(constant)).max()) < 0.05
    margin = jnp.linalg.norm(w, axis=1) * DATA.margin + log_risk
    assert float(jnp.abs(jnp.diff(margin)).max()) < 0.05
    cosine = w @ DATA.direction / jnp.linalg.norm(w, axis=1)
    assert float(1 - cosine[-1]) < 1e-10


def test_a_sweep_over_constants_is_its_runs_one_by_one():
    weights = start(2)

    def run(constant):
        return aj.adaptive_descent(
            problem(), weights, steps=300, rule="margin", constant=constant, observe=product
        )

    constants = jnp.array([0.005, 0.02, 0.05])
    together = jax.jit(jax.vmap(run))(constants)
    for i, constant in enumerate(constants):
        alone = run(float(constant))
        assert float(jnp.abs(together.observations[i] - alone.observations).max()) < 1e-11
        assert float(together.time[i, -1]) == pytest.approx(float(alone.time[-1]), rel=1e-11)


def test_too_large_a_constant_freezes_and_harms_no_other():
    def run(constant):
        return aj.adaptive_descent(
            problem("exponential"), start(3), steps=300, rule="margin", constant=constant
        )

    both = jax.vmap(run)(jnp.array([0.02, 1e9]))
    assert both.status.tolist() == [aj.Status.COMPLETED, aj.Status.DIVERGED]
    assert jnp.isfinite(both.weights[0]).all()
    alone = run(0.02)
    assert float(jnp.abs(both.weights[0][0] - alone.weights[0]).max()) < 1e-12


def test_derivatives_are_those_of_differences():
    def final(scale):
        weights = (scale * start(2)[0], start(2)[1])
        run = aj.adaptive_descent(problem(), weights, steps=200, rule="margin")
        return run.observations["risk"][-1]

    h = 1e-6
    numeric = (final(1 + h) - final(1 - h)) / (2 * h)
    assert float(jax.grad(final)(1.0)) == pytest.approx(float(numeric), rel=1e-5)


def test_float32_runs_in_float32():
    weights = tuple(w.astype(jnp.float32) for w in start(2))
    for rule in ("ball", "margin"):
        run = aj.adaptive_descent(problem(dtype="float32"), weights, steps=500, rule=rule)
        exact = aj.adaptive_descent(problem(), start(2), steps=500, rule=rule)
        assert run.weights[0].dtype == run.time.dtype == jnp.float32
        assert float(jnp.abs(run.weights[0] - exact.weights[0]).max()) < 1e-3
    flow = aj.gradient_flow(
        problem(dtype="float32"), weights, times=[1.0, 1e30], log_time=True, solver="explicit"
    )
    assert flow.status == aj.Status.COMPLETED
    assert flow.weights[0].dtype == jnp.float32


def test_fewer_samples_than_inputs():
    known = aj.classification(X[:2], LABELS[:2])
    assert known.basis is not None
    wide = aj.classification(jnp.pad(X[:2], ((0, 2), (0, 0))), jnp.array([*LABELS[:2], 1, 1]))
    assert wide.basis is None
    weights = start(2)
    run = aj.adaptive_descent(known, weights, steps=50, observe=product, save_at=[0, 50])
    flow = aj.gradient_flow(
        known, weights, times=run.time[-1:], log_time=True, observe=product, solver="explicit"
    )
    assert relative(run.observations[-1:], flow.observations) < 0.05


OWN = aj.losses.Loss(
    lambda z, y: jax.nn.softplus(-y * z[0]), targets="signs", smoothness=0.25, lipschitz=1.0
)


def test_a_loss_of_ones_own_has_its_ball_by_its_constants_alone():
    own = aj.adaptive_descent(aj.classification(X, LABELS, loss=OWN), start(2), steps=200)
    logistic = aj.adaptive_descent(problem(), start(2), steps=200)
    np.testing.assert_allclose(own.time, logistic.time, rtol=1e-14)
    assert float(jnp.abs(own.weights[0] - logistic.weights[0]).max()) < 1e-13


def zeros(depth: int) -> tuple[jax.Array, ...]:
    return tuple(jnp.zeros_like(w) for w in start(depth))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rule": "newton"}, ValueError, "rule must be 'ball' or 'margin', got 'newton'"),
        ({"constant": 0.1}, ValueError, "constant belongs to rule='margin'"),
        ({"rule": "margin", "constant": 0.0}, ValueError, "constant must be positive"),
        ({"problem": problem("exponential")}, ValueError, "exponential with smoothness None"),
        ({"problem": aj.regression(X, LABELS)}, ValueError, "decays like an exponential"),
        (
            {"problem": aj.classification(X, LABELS, loss=OWN), "rule": "margin"},
            ValueError,
            "decays like an exponential",
        ),
        (
            {"problem": aj.classification(X, LABELS, loss=lambda z, y: jax.nn.softplus(-y * z[0]))},
            ValueError,
            "smoothness None and lipschitz None",
        ),
        ({"weights": zeros(2)}, ValueError, "must not start where the gradient vanishes"),
        (
            {"weights": tuple(5 * s * w for s, w in zip((-1, 1), start(2), strict=True))},
            ValueError,
            r"risk of at most that of zero weights \(Assumption 2\)",
        ),
        ({"steps": -1}, ValueError, "steps must be at least 0"),
        ({"observe": 1}, TypeError, "observe must be callable"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, error, message):
    arguments = {"problem": problem(), "weights": start(2), "steps": 10} | change
    known, weights = arguments.pop("problem"), arguments.pop("weights")
    with pytest.raises(error, match=message):
        aj.adaptive_descent(known, weights, **arguments)


def test_what_float32_cannot_hold_is_refused():
    known = problem(dtype="float32")
    weights = tuple(w.astype(jnp.float32) for w in start(2))
    with pytest.raises(ValueError, match=r"times must be below the largest float32.* got 1e\+300"):
        aj.gradient_flow(known, weights, times=[1.0, 1e300], log_time=True)
    for constant in (1e-60, 1e60):
        with pytest.raises(ValueError, match="constant must be positive and finite in float32"):
            aj.adaptive_descent(known, weights, steps=1, rule="margin", constant=constant)


def test_several_outputs_have_no_ball():
    known = aj.classification(X, (LABELS + 1) // 2, loss="cross_entropy")
    weights = aj.initializers.gaussian(jax.random.key(0), (3, 2), 0.1)
    with pytest.raises(ValueError, match="networks with one output, got 2"):
        aj.adaptive_descent(known, weights, steps=1)
    run = aj.adaptive_descent(known, weights, steps=100, rule="margin")
    assert run.status == aj.Status.COMPLETED


def test_logarithmic_time_is_for_exponential_tails():
    with pytest.raises(ValueError, match="log_time needs a classification whose loss decays"):
        aj.gradient_flow(aj.regression(X, LABELS), start(2), times=[1.0], log_time=True)
