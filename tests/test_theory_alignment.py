"""Conditions, bounds and predictions about alignment hold in training."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax.theory import alignment as theory


def diagonal_problem(inputs, target, outputs=None):
    inputs, target = np.asarray(inputs, float), np.asarray(target, float)
    cross = np.zeros((outputs or len(target), len(inputs)))
    cross[np.arange(len(target)), np.arange(len(target))] = target
    return aj.from_moments(np.diag(inputs), cross, 1.0 + float((cross**2).sum()) * 10)


def hessian(problem, weights):
    """The risk's second derivatives by all entries of all layers, in NumPy."""
    moment, cross = map(np.asarray, problem.full_moments())
    layers = [np.asarray(w) for w in weights]
    widths, d = [layers[0].shape[1], *map(len, layers)], len(layers)

    def product(low, high):
        """What layers low, ..., high - 1 do."""
        return functools.reduce(lambda p, w: w @ p, layers[low:high], np.eye(widths[low]))

    residual = product(0, d) @ moment - cross
    # by entry (a, b) of layer i the end-to-end matrix changes by outer(above[:, a], below[b])
    change = [np.kron(product(i + 1, d), product(0, i).T) for i in range(d)]
    energy = np.kron(np.eye(widths[-1]), moment)
    blocks = [[a.T @ energy @ b for b in change] for a in change]
    for i in range(d):
        for j in range(i + 1, d):
            outer = product(0, i) @ residual.T @ product(j + 1, d)
            # entry (a, b) of layer i and (c, e) of layer j meet in the residual
            both = np.einsum("ea,bc->abce", product(i + 1, j), outer)
            both = both.reshape(layers[i].size, layers[j].size)
            blocks[i][j] = blocks[i][j] + both
            blocks[j][i] = blocks[j][i] + both.T
    return np.block(blocks)


def test_the_hessian_is_that_of_automatic_differentiation():
    problem = diagonal_problem([1.0, 2.0], [1.5, 0.5], 3)
    rng = np.random.default_rng(0)
    weights = tuple(jnp.asarray(rng.normal(size=(b, a))) for a, b in pairwise((2, 4, 2, 3)))
    flat, unravel = jax.flatten_util.ravel_pytree(weights)
    expected = jax.jit(jax.hessian(lambda x: aj.risk(problem, unravel(x))))(flat)
    np.testing.assert_allclose(hessian(problem, weights), expected, rtol=1e-12, atol=1e-12)


def test_the_printed_recursion_is_off_by_tens_of_percent():
    problem = diagonal_problem([1.0, 1.2], [1.0, 0.7])
    start = aj.initializers.identity((2, 2, 2, 2), 0.6)
    reduced = aj.reduce(problem, start)
    s = reduced.singular_values
    true = aj.reduced_descent(reduced, 0.1, steps=1).weights - s
    printed = theory.printed_update(reduced, s, 0.1) - s
    full = aj.gradient_descent(problem, start, 0.1, steps=1).weights
    for a, b in zip(aj.expand(reduced, s + true), full, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-15)
    assert np.abs(printed / true - 1).min() > 0.1


def test_unmatched_eigenvalues_set_the_threshold():
    certificate = theory.certify(diagonal_problem([1.0, 1.0, 60.0], [4.0, 3.0]))
    assert certificate.holds
    matched = 0.07 * 2 * 4.0
    np.testing.assert_allclose(matched, 0.56)
    threshold = theory.stability_threshold(certificate, depth=2)
    np.testing.assert_allclose(0.07 * 2 / threshold, 16.8, rtol=1e-13)


def test_the_threshold_of_thousands_of_layers():
    certificate = theory.certify(diagonal_problem([1.0, 0.5], [1.0, 0.5]))
    threshold = theory.stability_threshold(certificate, depth=2_000)
    np.testing.assert_allclose(threshold, 2 / 2_000, rtol=1e-12)


@pytest.mark.parametrize("widths", [(3, 3, 3), (4, 3, 2), (3, 5, 4, 2)], ids=str)
def test_the_threshold_is_the_largest_curvature_at_the_minimum(widths):
    rng = np.random.default_rng(0)
    r = min(widths)
    problem = diagonal_problem(
        rng.uniform(0.5, 2, widths[0]), rng.uniform(0.5, 2, min(widths[0], widths[-1])), widths[-1]
    )
    start = tuple(
        jnp.zeros((b, a)).at[jnp.arange(r), jnp.arange(r)].set(rng.uniform(0.3, 1, r))
        for a, b in pairwise(widths)
    )
    reduced = aj.reduce(problem, start)
    s = theory.minimum_singular_values(reduced, reduced.singular_values)
    largest = np.linalg.eigvalsh(hessian(problem, aj.expand(reduced, s))).max()
    np.testing.assert_allclose(theory.stability_threshold(reduced), 2 / largest, rtol=1e-11)


def test_the_printed_bound_does_not_keep_full_matrices_stable():
    problem = diagonal_problem([1.0, 100.0], [100.0, 100.0])
    certificate = theory.certify(problem)
    s = theory.minimum_singular_values(certificate, depth=2)
    threshold = theory.stability_threshold(certificate, depth=2)
    for bound in (theory.printed_learning_rate_bound, theory.learning_rate_bound):
        assert bound(certificate, 0.5 * s) > 0
        assert bound(certificate, s) > threshold


@pytest.mark.parametrize("seed", range(5))
def test_below_the_bound_every_mode_converges(seed):
    rng = np.random.default_rng(seed)
    problem = diagonal_problem(rng.uniform(0.5, 2, 3), rng.uniform(0.5, 2, 3))
    start = aj.initializers.identity((3, 3, 3, 3), 0.4)
    reduced = aj.reduce(problem, start)
    bound = theory.learning_rate_bound(reduced, reduced.singular_values)
    run = aj.reduced_descent(reduced, bound, steps=20_000)
    assert run.observations["risk"][-1] - reduced.minimum_risk < 1e-12


def test_the_printed_bound_is_the_formula_and_far_below_what_small_starts_need():
    reduced = aj.reduce(
        diagonal_problem([1.0, 2.0], [3.0, 0.5]), aj.initializers.identity((2, 2, 2), 0.5)
    )
    expected = np.log(2) / 2 * 0.25 * 1.0 / 9.0
    bound = theory.printed_learning_rate_bound(reduced, reduced.singular_values)
    np.testing.assert_allclose(bound, expected, rtol=1e-14)
    assert theory.learning_rate_bound(reduced, reduced.singular_values) > 4 * bound


def test_the_rate_near_the_minimum_is_predicted():
    problem = diagonal_problem([1.0, 1.5], [1.0, 0.8])
    reduced = aj.reduce(problem, aj.initializers.identity((2, 2, 2, 2), 0.9))
    final = aj.reduced_descent(reduced, 0.05, steps=5000).weights
    predicted = theory.predicted_rate(reduced, final, 0.05)
    near = final * 1.00001
    after = aj.reduced_descent(reduced, 0.05, steps=1, singular_values=near).weights
    goal = reduced.target_spectrum / reduced.input_spectrum
    measured = (after.prod(0) - goal) / (near.prod(0) - goal)
    np.testing.assert_allclose(measured, predicted, rtol=1e-4)


def test_the_flow_keeps_differences_of_squares():
    rng = np.random.default_rng(1)
    certificate = theory.certify(diagonal_problem([1.0, 2.0, 0.5], [1.5, 1.0, 0.7]))
    start = rng.uniform(0.3, 1.0, (4, 3))
    s = theory.minimum_singular_values(certificate, start)
    goal = certificate.target_spectrum / certificate.input_spectrum[:3]
    np.testing.assert_allclose(s.prod(axis=0), goal, rtol=1e-13)
    np.testing.assert_allclose(
        np.diff(s**2, axis=0), np.diff(start**2, axis=0), rtol=1e-12, atol=1e-13
    )


def flow(target, inputs, s, time=40.0, steps=20_000):
    """The modes' gradient flow by Runge-Kutta, in NumPy."""

    def speed(s):
        others = np.stack([np.delete(s, i, axis=0).prod(axis=0) for i in range(len(s))])
        return others * (target - inputs * s.prod(axis=0))

    h = time / steps
    for _ in range(steps):
        k1 = speed(s)
        k2 = speed(s + h / 2 * k1)
        k3 = speed(s + h / 2 * k2)
        s = s + h / 6 * (k1 + 2 * k2 + 2 * k3 + speed(s + h * k3))
    return s


@pytest.mark.parametrize(
    ("start", "stuck"),
    [
        ([0.5, -0.5], True),
        ([0.5, -0.6], False),
        ([1.0, 0.5, -0.5], True),
        ([1.0, -0.5, 0.5, 0.8], True),
        ([0.5, 1.0, -1.0], False),
        ([0.5, 0.5, 0.8], False),
        ([0.0, 0.0], True),
        ([0.0, 0.7, 0.0], True),
        ([0.0, 0.7, -0.9], False),
        ([-0.3], False),
    ],
    ids=str,
)
def test_the_flow_ends_where_it_is_said_to(start, stuck):
    target, inputs = np.array([1.5]), np.array([1.2])
    spectra = theory.certify(diagonal_problem(inputs, target))
    start = np.array(start)[:, None]
    end = flow(target, inputs, start)
    np.testing.assert_allclose(
        theory.minimum_singular_values(spectra, start), np.abs(end), rtol=1e-8, atol=1e-8
    )
    assert (abs(end.prod() - 1.25) > 0.1) == stuck


def test_modes_without_input_or_target_end_where_the_flow_ends():
    target, inputs = np.array([1.0, 0.0, 0.0]), np.array([2.0, 1.0, 0.0])
    spectra = theory.certify(diagonal_problem(inputs, target))
    start = np.array([[0.7, -0.6, 0.4], [0.9, 0.8, -0.3]])
    end = np.abs(flow(target, inputs, start, time=100.0))
    np.testing.assert_allclose(
        theory.minimum_singular_values(spectra, start), end, rtol=1e-8, atol=1e-8
    )


def test_limits_that_hang_on_roundoff_are_refused():
    spectra = theory.certify(diagonal_problem([1.0, 1.0], [2.0, 1.0]))
    nearly = np.array([[0.5, 0.5], [0.5, -0.5 * (1 + 1e-15)]])
    with pytest.raises(ValueError, match=r"^singular_values of mode 1.*tie up to roundoff"):
        theory.minimum_singular_values(spectra, nearly)
    with pytest.raises(ValueError, match="tie up to roundoff"):
        theory.minimum_singular_values(spectra, np.array([[1e-17, 0.5], [2e-17, 0.5], [1.0, 0.5]]))
    # On the right side of 0 the tie does not matter.
    theory.minimum_singular_values(spectra, np.abs(nearly))


def test_the_threshold_at_a_saddle_is_refused():
    problem = diagonal_problem([1.0, 1.2], [1.0, 0.7])
    stuck = (jnp.diag(jnp.array([0.5, 0.6])), jnp.diag(jnp.array([0.8, -0.6])))
    reduced = aj.reduce(problem, stuck)
    with pytest.raises(ValueError, match=r"^spectra start where the flow ends at a saddle"):
        theory.stability_threshold(reduced)
    assert theory.stability_threshold(reduced, depth=2) > 0


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 1)])
def test_minimum_norm_is_reached_and_not_undercut(depth, shape):
    rng = np.random.default_rng(2)
    P = jnp.asarray(rng.standard_normal(shape))
    layers = theory.minimum_norm_factorization(P, depth)
    np.testing.assert_allclose(aj.end_to_end(layers), P, rtol=1e-12, atol=1e-13)
    cost = sum(float((w**2).sum()) for w in layers)
    np.testing.assert_allclose(cost, theory.minimum_norm(P, depth), rtol=1e-12)
    if depth > 1:
        change = jnp.asarray(np.eye(min(shape)) + 0.1 * rng.standard_normal((min(shape),) * 2))
        other = (jnp.linalg.solve(change, layers[0]), layers[1] @ change, *layers[2:])
        np.testing.assert_allclose(aj.end_to_end(other), P, rtol=1e-11, atol=1e-12)
        assert sum(float((w**2).sum()) for w in other) > cost


def test_two_layers_cost_twice_the_nuclear_norm():
    P = jnp.asarray(np.random.default_rng(3).standard_normal((4, 3)))
    np.testing.assert_allclose(theory.minimum_norm(P, 2), 2 * jnp.linalg.norm(P, "nuc"), rtol=1e-13)


def test_factorizations_that_are_too_narrow_are_refused():
    with pytest.raises(ValueError, match="allow rank 1"):
        theory.minimum_norm_factorization(jnp.eye(2), 2, (2, 1, 2))
    with pytest.raises(ValueError, match="widths must be"):
        theory.minimum_norm_factorization(jnp.eye(2), 2, (2, 2))


@pytest.mark.parametrize("loss", ["squared", "logistic", "exponential"])
def test_one_output_stays_aligned_for_any_loss(loss):
    rng = np.random.default_rng(4)
    X, labels = rng.standard_normal((20, 5)), rng.choice([-1, 1], 20)
    problem = aj.classification(X, labels, loss=loss)
    start = theory.one_dimensional_start(jax.random.key(0), (5, 4, 3, 1), 0.7)
    trained = aj.gradient_descent(problem, start, 0.02, steps=300).weights
    outs = [w / jnp.linalg.norm(w) for w in start]
    for i, w in enumerate(trained):
        u, s, vt = jnp.linalg.svd(w)
        if len(s) > 1:
            assert s[1] < 1e-13 * s[0]
        u0, _, v0 = jnp.linalg.svd(outs[i])
        np.testing.assert_allclose(jnp.abs(u[:, 0] @ u0[:, 0]), 1.0, rtol=1e-13)
        if i > 0:
            np.testing.assert_allclose(jnp.abs(vt[0] @ v0[0]), 1.0, rtol=1e-13)
    assert float(jnp.abs(start[0] - trained[0]).max()) > 1e-3


def test_one_dimensional_starts_need_one_output():
    with pytest.raises(ValueError, match="k_d = 1"):
        theory.one_dimensional_start(jax.random.key(0), (3, 2), 1.0)


def test_the_weak_condition_is_weaker_for_low_rank_targets_only():
    rng = np.random.default_rng(5)
    root = rng.standard_normal((4, 4))
    sxx = root @ root.T / 4
    rank_one = aj.from_moments(sxx, np.outer(rng.standard_normal(3), rng.standard_normal(4)), 90.0)
    assert theory.weak_condition(rank_one).holds
    assert theory.certify(rank_one).verdict == "no"
    generic = aj.from_moments(sxx, rng.standard_normal((3, 4)), 90.0)
    assert not theory.weak_condition(generic).holds
    assert theory.weak_condition(diagonal_problem([1.0, 2.0, 3.0], [3.0, 1.0])).holds
    with pytest.raises(TypeError, match="moments"):
        theory.weak_condition(aj.sensing(np.eye(2)[None], np.ones(1)))


def test_formulas_for_modes_refuse_what_has_none():
    sensing = theory.certify(aj.sensing(np.eye(2)[None], np.ones(1)))
    with pytest.raises(TypeError, match="sensing"):
        theory.stability_threshold(sensing, depth=2)
    certificate = theory.certify(diagonal_problem([1.0, 1.0], [1.0, 1.0]))
    with pytest.raises(ValueError, match="either"):
        theory.stability_threshold(certificate)
    with pytest.raises(TypeError, match="spectra"):
        theory.learning_rate_bound(3, jnp.ones((2, 2)))


def bottleneck(widths, inputs, target):
    rng = np.random.default_rng(0)
    v, u = (np.linalg.qr(rng.normal(size=(k, k)))[0] for k in (widths[0], widths[-1]))
    moment = (v * inputs) @ v.T
    cross = (u[:, : len(target)] * target) @ v[:, : len(target)].T
    return aj.from_moments((moment + moment.T) / 2, cross, 20.0)


@pytest.mark.parametrize(
    ("widths", "target"),
    [
        # a dropped mode of nearly the same target and more input energy decides
        ((6, 3, 4), (1.0, 0.9, 0.85, 0.84)),
        ((6, 3, 5, 4), (1.0, 0.9, 0.85, 0.84)),
        ((6, 2, 2, 2, 4), (1.0, 0.9, 0.85, 0.84)),
        ((6, 1, 4), (1.0, 0.9, 0.0, 0.0)),
    ],
)
def test_the_threshold_at_a_bottleneck_is_the_largest_hessian_eigenvalue(widths, target):
    inputs = np.array([0.8, 0.85, 0.9, 1.1, 1.15, 1.2])
    problem = bottleneck(widths, inputs, np.array(target))
    certificate, depth = theory.certify(problem), len(widths) - 1
    s = theory.minimum_singular_values(certificate, depth=depth)[:, : min(widths)]
    weights = aj.initializers.aligned(jax.random.key(1), certificate, widths, s)
    largest = np.linalg.eigvalsh(hessian(problem, weights))[-1]
    for spectra in (certificate, aj.reduce(problem, weights)):
        found = theory.stability_threshold(spectra, singular_values=s)
        np.testing.assert_allclose(found, 2 / largest, rtol=1e-11)


@pytest.mark.parametrize("widths", [(5, 2, 4), (5, 2, 3, 4), (5, 4, 2, 2, 4)])
def test_no_rate_keeps_a_bottleneck_that_drops_a_mode_of_more_gain(widths):
    # The two kept modes have gains 0.83 and 0.68, a dropped one 0.90.
    problem = bottleneck(widths, np.array([1.2, 1.2, 0.8, 0.8, 0.8]), np.array([1, 0.9, 0.85, 0.8]))
    certificate, depth = theory.certify(problem), len(widths) - 1
    s = theory.minimum_singular_values(certificate, depth=depth)[:, :2]
    assert theory.stability_threshold(certificate, singular_values=s) == 0
    weights = aj.initializers.aligned(jax.random.key(1), certificate, widths, s)
    assert np.linalg.eigvalsh(hessian(problem, weights))[0] < -1e-2


@pytest.mark.parametrize("seed", range(24))
def test_the_threshold_is_the_hessian_s_with_entries_beyond_the_bottleneck_too(seed):
    rng = np.random.default_rng(seed)
    depth = 1 + seed % 4
    widths = tuple(int(k) for k in rng.integers(1, 6, size=depth + 1))
    bases = [np.linalg.qr(rng.normal(size=(k, k)))[0] for k in widths]
    modes = min(widths[0], widths[-1])
    inputs = np.sort(rng.uniform(0.5, 3, widths[0]))
    target = np.sort(rng.uniform(0.2, 1.5, modes))[::-1]
    moment = (bases[0] * inputs) @ bases[0].T
    cross = (bases[-1][:, :modes] * target) @ bases[0][:, :modes].T
    problem = aj.from_moments((moment + moment.T) / 2, cross, 100.0)
    start = []
    for below, above in pairwise(bases):
        rank = min(len(below), len(above))
        start.append((above[:, :rank] * rng.uniform(0.3, 1.5, rank)) @ below[:, :rank].T)
    reduced = aj.reduce(problem, tuple(start))
    signs = jnp.sign(reduced.singular_values)
    s = signs * theory.minimum_singular_values(reduced, jnp.abs(reduced.singular_values))
    values = np.linalg.eigvalsh(hessian(problem, aj.expand(reduced, s)))
    expected = 0.0 if values[0] < -1e-9 * values[-1] else 2 / values[-1]
    found = theory.stability_threshold(reduced, singular_values=s)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
