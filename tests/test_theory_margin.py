"""Maximum margin and the bounds of Ji & Telgarsky 2019."""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import null_space
from scipy.optimize import linprog, minimize

import alignjax as aj
from alignjax.theory.margin import (
    MaximumMargin,
    NotSeparableError,
    UndecidedError,
    alignment_bound,
    balance_drift,
    balancedness_constant,
    first_layer_threshold,
    max_margin,
    neighbour_alignment,
    norm_gap,
    smoothness,
    support_spread,
)


def labelled(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Data that some direction separates, with a margin nobody knows."""
    rng = np.random.default_rng(seed)
    X, u = rng.normal(size=(n, k)), rng.normal(size=k)
    return X, np.where(X @ u > 0, 1, -1)


def starts(count: int, widths: tuple[int, ...], scale: float) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(3), count)
    return jax.vmap(lambda key: aj.initializers.gaussian(key, widths, scale))(keys)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (20, 2), (60, 10), (400, 30), (30, 100)])
def test_the_direction_satisfies_the_conditions_of_optimality(n, k):
    X, labels = labelled(n + k, n, k)
    found = max_margin(X, labels)
    z = X * labels[:, None]
    direction, dual = np.asarray(found.direction), np.asarray(found.dual)
    scale = np.linalg.norm(X, axis=1).max()
    assert abs(np.linalg.norm(direction) - 1) < 1e-14
    assert (z @ direction).min() == pytest.approx(float(found.margin), abs=1e-14 * scale)
    assert (dual >= 0).all()
    assert dual.sum() == pytest.approx(1, abs=1e-14)
    # A convex combination of the samples whose norm is the margin: no direction does better.
    assert np.linalg.norm(dual @ z) - float(found.margin) < 1e-12 * scale
    assert set(np.flatnonzero(dual)) <= set(found.support)
    assert found.gap < 1e-12 * scale


def test_it_agrees_with_an_independent_solver():
    X, labels = labelled(0, 40, 4)
    z = X * labels[:, None]
    # any separating direction, from a linear program, and then SLSQP on the quadratic one
    inside = linprog(np.zeros(4), A_ub=-z, b_ub=-np.ones(len(z)), bounds=(None, None)).x
    other = minimize(
        lambda w: 0.5 * w @ w,
        inside,
        jac=lambda w: w,
        constraints={"type": "ineq", "fun": lambda w: z @ w - 1, "jac": lambda w: z},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    found = max_margin(X, labels)
    assert float(found.margin) == pytest.approx(1 / np.linalg.norm(other.x), rel=1e-8)
    assert np.asarray(found.direction) == pytest.approx(other.x / np.linalg.norm(other.x), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_known_answer_is_found_to_the_last_digits(seed):
    data = aj.datasets.separable_pair(jax.random.key(seed), 200, 5 + 3 * seed, margin=0.3)
    found = max_margin(data.inputs, data.labels)
    assert float(jnp.abs(found.direction - data.direction).max()) < 1e-13
    assert float(found.margin) == pytest.approx(0.3, abs=1e-13)


def test_scale_of_the_inputs_is_the_scale_of_the_margin():
    X, labels = labelled(1, 30, 3)
    margin = float(max_margin(X, labels).margin)
    for scale in (1e-150, 1e150):
        assert float(max_margin(scale * X, labels).margin) == pytest.approx(scale * margin)


@pytest.mark.parametrize("seed", range(4))
def test_without_a_margin_the_error_carries_the_proof(seed):
    rng = np.random.default_rng(seed)
    X, labels = rng.normal(size=(80, 4)), rng.choice([-1, 1], 80)
    with pytest.raises(NotSeparableError, match="not separable by a hyperplane") as caught:
        max_margin(X, labels)
    q = caught.value.combination
    assert q.shape == (80,)
    assert (q >= 0).all()
    assert q.sum() == pytest.approx(1)
    assert np.linalg.norm(q @ (X * labels[:, None])) < 1e-11


def test_the_smallest_cases_of_no_margin():
    for X in ([[0.0, 0.0]], [[1.0, 2.0], [1.0, 2.0]]):
        with pytest.raises(NotSeparableError):
            max_margin(np.array(X), np.array([1, -1][: len(X)]))


def test_a_sample_far_shorter_than_others_is_no_proof_against_a_margin():
    # all lie on one side of the first axis, but the first as good as at 0
    X = np.array([[1e-9, 0.0], [1e9, 1e9], [1e9, -1e9]])
    with pytest.raises(UndecidedError, match=r"separable by less than 1\.0e-09, if at all"):
        max_margin(X, np.ones(3))
    assert float(max_margin(X * [[1e9], [1], [1]], np.ones(3)).margin) == pytest.approx(1)


@pytest.mark.parametrize(
    ("X", "labels", "error", "message"),
    [
        (np.ones((2, 1)), [0, 1], ValueError, r"labels must be -1 or \+1, got values \[0, 1\]"),
        (np.ones((2, 1)), [1, 1, 1], ValueError, r"labels must have shape \(2,\)"),
        (np.ones((2, 1)), [[1], [1]], ValueError, r"labels must have shape \(2,\)"),
        (np.ones(2), [1, 1], ValueError, "X must have 2 dimension"),
        (np.array([[np.nan]]), [1], ValueError, "X must be finite"),
        (np.ones((2, 1)), ["a", "b"], TypeError, "labels must hold real numbers"),
    ],
)
def test_bad_data_are_refused_by_name(X, labels, error, message):
    with pytest.raises(error, match=message):
        max_margin(X, labels)


def test_it_says_that_it_runs_on_the_host():
    with pytest.raises(TypeError, match="max_margin runs on the host"):
        jax.jit(lambda X: max_margin(X, jnp.ones(2)).margin)(jnp.ones((2, 1)))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_spread_of_the_support_is_the_least_over_directions(k):
    data = aj.datasets.separable_pair(jax.random.key(k), 30, k)
    found = max_margin(data.inputs, data.labels)
    alpha = support_spread(data.inputs, data.labels, found)
    u = np.asarray(found.direction)
    z = np.asarray(data.inputs * data.labels[:, None])[found.support]
    xi = np.random.default_rng(0).normal(size=(200_000, k - 1))
    xi = (xi / np.linalg.norm(xi, axis=1)[:, None]) @ null_space(u[None]).T
    reached = (xi @ z.T).max(axis=1)
    assert alpha > 0
    assert (reached >= alpha * (1 - 1e-12)).all()
    assert reached.min() < alpha * (1 + {2: 1e-9, 3: 1e-3, 4: 0.05}[k])


def test_the_spread_vanishes_where_the_support_does_not_surround_the_direction():
    # one support vector, another sample far off
    X, labels = np.array([[1.0, 0.0], [5.0, 3.0]]), np.ones(2)
    found = max_margin(X, labels)
    assert found.support.tolist() == [0]
    assert support_spread(X, labels, found) == 0
    # nothing is orthogonal to the direction
    alone = max_margin(X[:1], labels[:1])
    assert support_spread(X[:1], labels[:1], alone) == np.inf
    with pytest.raises(TypeError, match="found must come from max_margin"):
        support_spread(X, labels, "direction")
    with pytest.raises(ValueError, match=r"found is for X of shape \(1, 2\), got shape \(2, 2\)"):
        support_spread(X, labels, alone)
    # two support vectors, three and four on a line, and 0 across the direction beside it
    for count in (2, 3, 4):
        across = np.stack([np.ones(count), np.linspace(-1, 2, count)], axis=1)
        X = np.hstack([np.ones((count, 1)), across @ [[0.8, 0.6], [-0.6, 0.8]]])
        everything = np.vstack([X, [9.0, 5.0, -7.0], [9.0, -8.0, 2.0]])
        found = max_margin(everything, np.ones(len(everything)))
        found = dataclasses.replace(found, direction=np.eye(3)[0], support=np.arange(count))
        assert support_spread(everything, np.ones(len(everything)), found) == 0


def test_a_sample_far_longer_than_others_puts_none_of_them_on_the_margin():
    X = np.array([[1.0, 0.3], [1.0, -0.2], [1.5, 0.1], [1e10, 1e10]])
    found = max_margin(X, np.ones(4))
    assert found.support.tolist() == [0, 1]
    assert float(found.margin) == pytest.approx(1, rel=1e-14)


def test_outside_of_the_span_of_the_samples_the_threshold_says_nothing():
    X, labels, _ = separable_problem("exponential")
    found = max_margin(X, labels)
    threshold = first_layer_threshold("exponential", len(X), support_spread(X, labels, found))
    wide = jnp.pad(X, ((0, 0), (0, 1)))
    u = jnp.append(found.direction, 0.0)
    slope = aj.gradient(aj.classification(wide, labels, loss="exponential"), (u[None],))[0][0]
    # a small step outwards, and far off where there is no sample
    across = -1e-3 * (slope - jnp.vdot(slope, u) * u) + 10 * threshold * jnp.eye(4)[3]
    problem = aj.classification(wide, labels, loss="exponential")
    slope = aj.gradient(problem, ((u + across)[None],))[0][0]
    assert float(jnp.vdot(across, slope)) < 0


def test_the_spread_has_the_scale_and_the_digits_of_the_inputs():
    X, labels = labelled(1, 30, 3)
    alpha = support_spread(X, labels, max_margin(X, labels))
    assert alpha > 0.01
    for scale in (1e-300, 1e300):
        found = max_margin(scale * X, labels)
        assert support_spread(scale * X, labels, found) == pytest.approx(scale * alpha, rel=1e-12)
    # a direction of seven digits makes no dimension of its own rounding
    short = X.astype(np.float32)
    found = support_spread(short, labels, max_margin(short, labels))
    assert found == pytest.approx(alpha, rel=1e-4)


def test_a_spread_that_takes_too_long_is_refused():
    rng = np.random.default_rng(0)
    X = np.hstack([np.ones((60, 1)), rng.normal(size=(60, 16))])
    found = max_margin(X, np.ones(60))
    with pytest.raises(ValueError, match=r"60 support vectors in 16 dimensions .* facets"):
        support_spread(X, np.ones(60), found)


def separable_problem(loss: str, scale: float = 1.0) -> tuple[jax.Array, jax.Array, object]:
    """Inputs of norm at most `scale`, labels and the problem."""
    data = aj.datasets.separable_pair(jax.random.key(2), 12, 3, margin=0.4)
    length = jnp.linalg.norm(data.inputs, axis=1).max() / scale
    X = data.inputs / length
    return X, data.labels, aj.classification(X, data.labels, loss=loss)


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
def test_beyond_the_threshold_the_slope_points_inwards(loss):
    X, labels, problem = separable_problem(loss)
    found = max_margin(X, labels)
    alpha = support_spread(X, labels, found)
    threshold = first_layer_threshold(loss, len(X), alpha)
    u = found.direction
    keys = jax.random.split(jax.random.key(0), 500)

    def slack(key):
        one, two, three = jax.random.split(key, 3)
        across = jax.random.normal(one, u.shape)
        across = across - jnp.vdot(across, u) * u
        across = across / jnp.linalg.norm(across)
        across = across * threshold * (1 + jax.random.exponential(two))
        w = across + 3 * jax.random.exponential(three) * u
        return jnp.vdot(across, aj.gradient(problem, (w[None],))[0][0])

    assert float(jax.vmap(slack)(keys).min()) >= 0


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("length", [1.0, 2.5])
def test_the_gradient_is_as_smooth_as_the_bound_says(depth, length):
    _, _, problem = separable_problem("logistic", length)
    radius = 1.7
    bound = float(smoothness("logistic", depth, radius, input_norm=length))
    widths = (3,) + (4,) * (depth - 1) + (1,)

    def pair(key):
        ends = []
        for k in jax.random.split(key):
            layers = aj.initializers.gaussian(k, widths, 1.0)
            size = jax.random.uniform(k, (), minval=0.3, maxval=1.0) * radius
            ends.append(tuple(size * w / jnp.linalg.norm(w) for w in layers))
        a, b = ends

        def norm(x, y):
            return jnp.sqrt(sum(((p - q) ** 2).sum() for p, q in zip(x, y, strict=True)))

        return norm(aj.gradient(problem, a), aj.gradient(problem, b)) / norm(a, b)

    quotients = jax.vmap(pair)(jax.random.split(jax.random.key(1), 300))
    assert 0 < float(quotients.max()) <= bound


def test_a_loss_without_constants_has_no_smoothness():
    with pytest.raises(ValueError, match="exponential with smoothness None and lipschitz None"):
        smoothness("exponential", 2, 1.0)
    with pytest.raises(ValueError, match=r"radius must be at least 1, got 0\.5"):
        smoothness("logistic", 2, 0.5)
    with pytest.raises(ValueError, match="input_norm must be at least 0, got -1"):
        smoothness("logistic", 2, 1.0, input_norm=-1)
    own = aj.losses.Loss(lambda z, y: z[0], smoothness=0.5, lipschitz=2.0)
    assert float(smoothness(own, 1, 3.0)) == 5.0


def test_the_constant_of_imbalance_is_the_printed_sum():
    weights = aj.initializers.gaussian(jax.random.key(0), (3, 4, 5, 1), 1.0)
    energies = [float(jnp.linalg.norm(w) ** 2) for w in weights]
    steps = [float(jnp.linalg.norm(a @ a.T - b.T @ b, 2)) for a, b in pairwise(weights)]
    expected = max(energies) - energies[-1] + sum(steps)
    assert float(balancedness_constant(weights)) == pytest.approx(expected, rel=1e-14)
    # layers of rank one on each other's vectors are balanced
    u, v = jnp.ones((4, 1)) / 2, jnp.ones((1, 3)) / 3**0.5
    assert float(balancedness_constant((2 * u @ v, 2 * u.T))) < 1e-14


@pytest.mark.parametrize("widths", [(3, 4, 1), (3, 4, 4, 1), (3, 5, 4, 5, 1)])
def test_flow_keeps_the_bounds_of_lemma_2(widths):
    _, _, problem = separable_problem("exponential")

    def slacks(*weights):
        def observe(now):
            gap = balancedness_constant(weights) - norm_gap(now)
            return gap.min(), (neighbour_alignment(now) - alignment_bound(weights, now)).min()

        run = aj.gradient_flow(
            problem,
            weights,
            times=10.0 ** jnp.array([0, 1, 2, 4, 8, 16, 32]),
            observe=observe,
            log_time=True,
            solver="explicit",
        )
        return run.observations, run.status

    (gaps, alignments), status = jax.vmap(slacks)(*starts(40, widths, 0.4))
    assert (status == aj.Status.COMPLETED).all()
    assert float(gaps.min()) >= -1e-8
    assert float(alignments.min()) >= -1e-8


@pytest.mark.parametrize("widths", [(3, 4, 1), (3, 4, 4, 1)])
def test_descent_keeps_the_bounds_of_lemma_8_and_never_raises_the_risk(widths):
    _, _, problem = separable_problem("logistic")
    zero = jnp.log(2.0)

    def slacks(*weights):
        weights = (jnp.where(aj.risk(problem, weights) < zero, 1, -1) * weights[0], *weights[1:])
        risk = aj.risk(problem, weights)

        def observe(now):
            gap = balancedness_constant(weights) + 2 * risk - norm_gap(now)
            bound = alignment_bound(weights, now, start_risk=risk)
            return gap.min(), (neighbour_alignment(now) - bound).min(), aj.risk(problem, now)

        steps = 2000
        run = aj.adaptive_descent(
            problem, weights, steps=steps, observe=observe, save_at=aj.every(steps, 20)
        )
        return run.observations

    gaps, alignments, risks = jax.vmap(slacks)(*starts(30, widths, 0.4))
    assert float(gaps.min()) >= 0
    assert float(alignments.min()) >= 0
    assert float(jnp.diff(risks, axis=1).max()) < 0


def test_descent_changes_the_balance_by_the_squares_of_its_steps_alone():
    _, _, problem = separable_problem("logistic")
    weights = aj.initializers.gaussian(jax.random.key(0), (3, 4, 4, 1), 0.5)
    rate = 0.1

    def balance(layers):
        return tuple(b.T @ b - a @ a.T for a, b in pairwise(layers))

    def step(carry, _):
        layers, drift = carry
        slope = aj.gradient(problem, layers)
        added = balance_drift(slope, rate)
        drift = jax.tree.map(jnp.add, drift, added)
        return (jax.tree.map(lambda w, g: w - rate * g, layers, slope), drift), None

    nothing = jax.tree.map(jnp.zeros_like, balance(weights))
    (layers, drift), _ = jax.lax.scan(step, (weights, nothing), None, length=2000)
    printed = jax.tree.map(jnp.negative, drift)
    for start, end, right, wrong in zip(
        balance(weights), balance(layers), drift, printed, strict=True
    ):
        assert float(jnp.abs(end - start - right).max()) < 1e-12
        assert float(jnp.abs(end - start - wrong).max()) > 1e-3


def test_bounds_refuse_what_does_not_fit():
    a, b = starts(1, (3, 4, 1), 1.0), starts(1, (3, 5, 1), 1.0)
    a, b = (tuple(w[0] for w in x) for x in (a, b))
    with pytest.raises(ValueError, match="start and weights must have the same shapes"):
        alignment_bound(a, b)
    with pytest.raises(ValueError, match=r"weights must have one output .* got 2"):
        alignment_bound((jnp.eye(2), jnp.eye(2)), (jnp.eye(2), jnp.eye(2)))
    with pytest.raises(ValueError, match="loss must be 'exponential' or 'logistic'"):
        first_layer_threshold("squared", 3, 0.1)
    with pytest.raises(ValueError, match="spread must be positive"):
        first_layer_threshold("logistic", 3, 0.0)


def test_float32_keeps_the_margin_to_its_digits():
    X, labels = labelled(5, 50, 6)
    exact = max_margin(X, labels)
    found = max_margin(X.astype(np.float32), labels)
    assert isinstance(found, MaximumMargin)
    assert found.direction.dtype == jnp.float32
    assert float(jnp.abs(found.direction - exact.direction).max()) < 1e-4


def test_bounds_run_under_vmap_and_jit():
    weights = starts(7, (3, 4, 1), 1.0)
    together = jax.jit(jax.vmap(lambda *w: balancedness_constant(w)))(*weights)
    for i in range(7):
        alone = balancedness_constant(tuple(w[i] for w in weights))
        assert float(together[i]) == pytest.approx(float(alone), rel=1e-13)
