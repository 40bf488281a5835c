"""Roundoff is never taken for data: ranks, floors and zeros are judged by what they come from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax import closed_forms
from alignjax._roundoff import above, cleared, power, relative_roundoff, ties
from alignjax.theory import alignment as theory
from alignjax.theory import margin, sequential, subspaces

DTYPES = [np.float64, np.float32]
# lambda and lambda', modes in the order of a certificate
SPECTRA = {
    "rank-deficient": ([4.0, 1.0, 0.0], [2.0, 1.0, 0.0]),
    "one input": ([3.0, 0.0, 0.0], [1.5, 0.0, 0.0]),
    "white": ([2.0, 2.0, 2.0], [3.0, 1.0, 0.0]),
    "repeated": ([2.0, 2.0, 1.0], [3.0, 3.0, 1.0]),
    "zero targets": ([3.0, 2.0, 0.5], [0.0, 0.0, 0.0]),
    "one target": ([1.0, 2.0, 0.5], [2.0, 0.0, 0.0]),
}


def turned(inputs, target, dtype, seed=0):
    """A problem with these spectra in random bases, whose moments are rounded to a precision."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    moment = ((v * inputs) @ v.T).astype(dtype)
    cross = ((u * target) @ v.T + 1e-17).astype(dtype)
    return aj.from_moments((moment + moment.T) / 2, cross, np.asarray(40.0, dtype))


def flow_limit(inputs, target, depth):
    """The balanced minimum, ``(d, r)``."""
    goal = np.divide(target, inputs, out=np.zeros(3), where=np.asarray(inputs) > 0)
    return np.broadcast_to(goal ** (1 / depth), (depth, 3))


def threshold(inputs, s):
    """``2 / max_{ij} lambda_j sum_l prod_{m>l} s_{m,i}^2 prod_{m<l} s_{m,j}^2``."""
    terms = [np.outer(np.prod(s[i + 1 :] ** 2, 0), np.prod(s[:i] ** 2, 0)) for i in range(len(s))]
    largest = (sum(terms) * inputs).max()
    return 2 / largest if largest else np.inf


def bound(inputs, target, s):
    """``1 / max lambda sum_i prod_{j != i} S_j^2``, mode by mode."""
    d = len(s)
    goal = np.divide(
        np.abs(target), inputs, out=np.zeros(len(inputs)), where=np.asarray(inputs) > 0
    )
    squares = s**2 + np.maximum(goal ** (2 / d) - (s**2).min(0), 0)
    curvature = inputs * sum(np.delete(squares, i, 0).prod(0) for i in range(d))
    return 1 / curvature.max() if curvature.max() else np.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SPECTRA)
def test_theory_is_right_on_degenerate_spectra(kind, dtype):
    inputs, target = (np.array(a) for a in SPECTRA[kind])
    rtol = 1e-12 if dtype == np.float64 else 1e-5
    problem = turned(inputs, target, dtype)
    found = theory.certify(problem)
    assert found.verdict == "yes"
    assert found.target_spectrum.dtype == dtype
    for got, right in ((found.target_spectrum, target), (found.input_spectrum, inputs)):
        np.testing.assert_allclose(got, right, rtol=rtol)
        assert (np.asarray(got)[right == 0] == 0).all()
    assert (np.diff(found.target_spectrum) <= 0).all()

    deep = theory.minimum_singular_values(found, depth=32)
    np.testing.assert_allclose(deep, flow_limit(inputs, target, 32), rtol=rtol)
    s = np.array([[0.5, 0.7, 1.5], [0.6, 1.1, 0.2]], dtype)
    end = theory.minimum_singular_values(found, s)
    for i in range(3):
        if inputs[i] == 0:
            np.testing.assert_array_equal(end[:, i], s[:, i])
        else:
            # Roundoff under the root of a layer that vanishes is that of its square.
            np.testing.assert_allclose(
                end[:, i].prod(), target[i] / inputs[i], rtol=rtol, atol=100 * rtol**0.5 * 1e-3
            )
    at = flow_limit(inputs, target, 8)
    for depth, minimum in ((8, at), (32, deep)):
        np.testing.assert_allclose(
            theory.stability_threshold(found, depth=depth),
            threshold(inputs, np.asarray(minimum, np.float64)),
            rtol=10 * rtol,
        )
    np.testing.assert_allclose(
        theory.learning_rate_bound(found, s), bound(inputs, target, s.astype(float)), rtol=rtol
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        printed = np.log(2) / 2 * np.where(target > 0, s**2 * inputs / target**2, np.inf).min()
    np.testing.assert_allclose(theory.printed_learning_rate_bound(found, s), printed, rtol=rtol)
    safe = theory.safe_learning_rate(found, s)
    assert 0 < safe <= theory.learning_rate_bound(found, s)
    np.testing.assert_allclose(
        theory.predicted_rate(found, s, 0.01),
        1 - 0.01 * inputs * (s.astype(float) ** 2).sum(0),
        rtol=rtol,
    )

    parts = sequential.joint_decomposition(problem)
    np.testing.assert_allclose(parts.target_spectrum, target, rtol=rtol)
    assert (np.asarray(parts.target_spectrum)[target == 0] == 0).all()
    assert parts.epsilon <= 1e3 * np.finfo(dtype).eps
    assert sequential.commutation_gap(problem) <= 1e3 * np.finfo(dtype).eps
    best = np.divide(target, inputs, out=np.zeros(3), where=inputs > 0)
    fit = sequential.reduced_rank_regression(problem, 3)
    np.testing.assert_allclose(
        np.linalg.svd(fit, compute_uv=False), np.sort(best)[::-1], rtol=rtol, atol=10 * rtol
    )
    # The library's own spectra go through the closed forms, and zeros stay zeros.
    times = sequential.transition_times(found.target_spectrum, found.input_spectrum, 30.0)
    assert np.isfinite(times).tolist() == (target > 0).tolist()
    late = closed_forms.mode_flow(1e5, 0.01, found.target_spectrum, found.input_spectrum)
    learned = target > 0
    np.testing.assert_allclose(late[learned], best[learned], rtol=rtol)
    np.testing.assert_allclose(late[inputs == 0], dtype(0.01), rtol=rtol)
    layers = closed_forms.aligned_two_layer_flow(found, jnp.eye(3, dtype=dtype), 30.0, 1e5)
    product = np.asarray(found.U).T @ np.asarray(layers[1] @ layers[0]) @ np.asarray(found.V)
    np.testing.assert_allclose(np.diagonal(product), best, rtol=10 * rtol, atol=10 * rtol)
    end = closed_forms.linear_flow(problem, jnp.zeros((3, 3), dtype), 1e5)
    np.testing.assert_allclose(
        np.asarray(found.U).T @ end @ np.asarray(found.V), np.diag(best), atol=10 * rtol
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_layers_learn_nothing_where_the_targets_are_roundoff(dtype):
    problem = turned([2.0, 2.0, 2.0], [0.0, 0.0, 0.0], dtype)
    start = aj.initializers.identity((3, 3, 3), dtype(1e-3))
    late = closed_forms.two_layer_flow(problem, start, 1e18 if dtype == np.float64 else 1e9)
    assert np.abs(late.product).max() <= 1e-6


def odd_and_even(dtype):
    half = np.random.default_rng(0).standard_normal((40, 3))
    features = np.concatenate([half, -half]).astype(dtype)
    energies = (half**2)[:, :2]
    return features, np.concatenate([energies, energies]).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_that_no_feature_explains_are_aligned_and_zero(dtype):
    X, Y = odd_and_even(dtype)
    data = [
        aj.datasets.aligned_regression(
            jax.random.key(i), np.array([3, 2, 1], dtype), [0, 0], noise=1
        )
        for i in range(3)
    ]
    problems = [aj.regression(X, Y), aj.regression(X, Y[:, 0])]
    problems += [aj.regression(d.inputs, d.targets) for d in data]
    for problem in problems:
        found = theory.certify(problem)
        assert found.verdict == "yes"
        assert not np.asarray(found.target_spectrum).any()
        assert (np.asarray(found.input_spectrum) > 0).all()
        s = np.full((2, len(found.target_spectrum)), 0.5, dtype)
        assert theory.learning_rate_bound(found, s) > 0.05
        assert sequential.commutation_gap(problem) == 0
    reduced = aj.reduce(
        problems[0], aj.initializers.aligned(jax.random.key(0), problems[0], (3, 2, 2), s)
    )
    assert not np.asarray(reduced.target_spectrum).any()


@pytest.mark.parametrize(("dtype", "sizes"), [(np.float64, (-4, -8, -11)), (np.float32, (-2, -3))])
def test_small_cross_moments_are_told_right(dtype, sizes):
    rng = np.random.default_rng(1)
    X = np.linalg.qr(rng.standard_normal((30, 3)))[0] * np.sqrt([90.0, 60.0, 30.0])
    rest = rng.standard_normal((30, 2))
    basis = np.linalg.qr(X)[0]
    rest -= basis @ (basis.T @ rest)
    generic = X @ rng.standard_normal((3, 2))
    v = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    for size in sizes:
        for part, verdict in ((X[:, :2], "yes"), (generic, "no")):
            Y = rest + 10.0**size * part
            found = theory.certify(aj.regression((X @ v).astype(dtype), Y.astype(dtype)))
            assert found.verdict == verdict, size


@pytest.mark.parametrize(("dtype", "sizes"), [(np.float64, (-8, -11)), (np.float32, (-3,))])
@pytest.mark.parametrize("energies", [(90.0, 60.0, 30.0), (60.0, 60.0, 60.0)])
def test_networks_are_reduced_whose_cross_moments_are_small(energies, dtype, sizes):
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.standard_normal((30, 3)))[0] * np.sqrt(energies)
    rest = rng.standard_normal((30, 2))
    basis = np.linalg.qr(X)[0]
    rest -= basis @ (basis.T @ rest)
    v, u = (np.linalg.qr(rng.standard_normal((k, k)))[0] for k in (3, 2))
    for size in sizes:
        targets = rest + 10.0**size * (X[:, :2] * [1.0, 0.5]) @ u
        problem = aj.regression((X @ v).astype(dtype), targets.astype(dtype))
        right = 10.0**size * np.array([1.0, 0.5]) * energies[:2] / 30
        for s in ([[0.5, 0.5]] * 3, [[0.5, 0.7], [0.6, 0.3], [0.9, 0.4]]):
            layers = np.array(s, dtype)
            start = aj.initializers.aligned(jax.random.key(0), problem, (3, 4, 3, 2), layers)
            found = aj.reduce(problem, start)
            np.testing.assert_allclose(found.target_spectrum, right, rtol=1e-2)
        # Layers in other bases are refused, however small the moment is.
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0].astype(dtype)
        with pytest.raises(aj.NotAlignedError):
            aj.reduce(problem, (start[0] @ turn, *start[1:]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_target_spectra_descend_and_their_zeros_are_exact(dtype):
    for seed in range(20):
        problem = turned([3.0, 2.0, 1.0], [2.0, 0.0, 0.0], dtype, seed)
        target = np.asarray(theory.certify(problem).target_spectrum)
        np.testing.assert_allclose(target[0], 2, rtol=10 * np.finfo(dtype).eps)
        assert not target[1:].any()
        assert closed_forms.mode_flow(1.0, 0.1, target, 1.0).shape == (3,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_roots_are_taken_of_real_singular_values_only(dtype):
    ones = np.ones((10, 10), dtype)
    right = 20 * 10**0.1
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(theory.minimum_norm(ones, 20), right, rtol=20 * eps)
    layers = theory.minimum_norm_factorization(ones, 20)
    energy = sum(float((np.asarray(w, np.float64) ** 2).sum()) for w in layers)
    np.testing.assert_allclose(energy, right, rtol=20 * eps)
    slope = jax.grad(lambda m: theory.minimum_norm(m, 3))(jnp.ones((2, 2), dtype))
    np.testing.assert_allclose(slope, 2 ** (2 / 3) / 2, rtol=20 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_margins_count_the_dimensions_of_the_data_only(dtype):
    tolerance = 100 * np.finfo(dtype).eps
    flat = np.array([[1.0, 2.0], [1.0, -1.0], [3.0, 0.5], [4.0, -2.0]])
    for seed in range(4):
        plane = np.linalg.qr(np.random.default_rng(seed).standard_normal((5, 2)))[0].T
        once = (flat @ plane).astype(dtype)
        # Each once, each twice, and in inverse units of a thousand.
        for X, unit in ((once, 1.0), (np.concatenate([once, once]), 1.0), (1000 * once, 1000.0)):
            labels = np.ones(len(X))
            found = margin.max_margin(X, labels)
            late = margin.late_times(X, labels, found)
            # argmin e^{-2v} + e^v across the direction, and its minimum
            right = np.log(2) / 3 * plane[1] / unit
            np.testing.assert_allclose(late.offset, right, atol=tolerance / unit)
            np.testing.assert_allclose(late.level, 0.375 * 2 ** (1 / 3), rtol=tolerance)
            spread = margin.support_spread(X, labels, found)
            np.testing.assert_allclose(spread, unit, rtol=tolerance)
        # One line: nothing lies across it.
        line = (np.array([[1.0], [2.0], [2.0]]) @ plane[:1]).astype(dtype)
        found = margin.max_margin(line, np.ones(3))
        assert margin.support_spread(line, np.ones(3), found) == np.inf
        assert not np.asarray(margin.late_times(line, np.ones(3), found).offset).any()
        # A dimension that the support vectors do not reach is told.
        more = np.concatenate([flat, [[5.0, 1.0]]])
        wide = np.linalg.qr(np.random.default_rng(seed).standard_normal((5, 3)))[0].T
        X = (np.c_[more, [0, 0, 0, 0, 1.0]] @ wide).astype(dtype)
        found = margin.max_margin(X, np.ones(5))
        assert margin.support_spread(X, np.ones(5), found) == 0
        with pytest.raises(ValueError, match="Assumption 3"):
            margin.late_times(X, np.ones(5), found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_of_lower_rank_are_refused_in_their_precision(dtype):
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((20, 2)) @ rng.standard_normal((2, 3))).astype(dtype)
    layers = (np.eye(3, dtype=dtype), np.eye(3, dtype=dtype))
    with pytest.raises(ValueError, match="rank 2 of 3"):
        subspaces.outer_alignment(layers, X, X)


def steps_of_modes(s, target, inputs, rate, steps):
    """Descent of modes, with the largest growth of ``|p - p*|`` in a step and of ``|s_i|``."""
    goal = np.abs(target) / inputs
    off = np.abs(s.prod(0) - target / inputs)
    size = goal + off
    growth, largest = np.zeros_like(off), np.abs(s)
    for _ in range(steps):
        others = np.stack([np.delete(s, i, 0).prod(0) for i in range(len(s))])
        s = s + rate * (target - inputs * s.prod(0)) * others
        after = np.abs(s.prod(0) - target / inputs)
        growth, off = np.fmax(growth, (after - off) / size), after
        largest = np.maximum(largest, np.abs(s))
    return off / size, growth, largest


@pytest.mark.parametrize("depth", range(1, 7))
def test_no_start_moves_away_from_its_minimum_at_the_bound(depth):
    rng = np.random.default_rng(depth)
    count = 400
    s = 10 ** rng.uniform(-1, 1, (depth, count))
    inputs, goal = 10 ** rng.uniform(-2, 2, count), 10 ** rng.uniform(-2, 1.5, count)
    s[0, :50] = 0.0
    s[:, 50:150] *= rng.choice([-1, 1], (depth, 100))
    s[:, 150:200] = s[0, 150:200]  # balanced
    goal[200:250] = 0.0
    goal[250:300] = s[:, 250:300].prod(0) * rng.uniform(0.5, 1.5, 50)
    target = goal * inputs
    one = theory.certify(aj.factorization(jnp.eye(1)))

    @jax.jit
    @jax.vmap
    def bounds(s, target, inputs):
        mode = dataclasses.replace(one, target_spectrum=target, input_spectrum=inputs)
        return theory.learning_rate_bound(mode, s)

    rate = np.asarray(bounds(s.T[..., None], target[:, None], inputs[:, None]))
    right = [bound(inputs[[k]], target[[k]], s[:, [k]]) for k in range(count)]
    np.testing.assert_allclose(rate, right, rtol=1e-12)
    left, growth, largest = steps_of_modes(s, target, inputs, rate, 300)
    assert np.isfinite(left).all()
    assert growth.max() <= 1e-12
    allowed = s**2 + np.maximum(goal ** (2 / depth) - (s**2).min(0), 0)
    assert (largest**2 <= allowed * (1 + 1e-12)).all()
    if depth <= 4:  # deeper unbalanced networks are slower
        assert (left[250:300] < 0.01).all()


def test_starts_above_the_minimum_need_less_than_the_printed_bound():
    spectra = theory.certify(aj.factorization(jnp.eye(1)))
    start = np.full((2, 1), 3.0)
    one = np.ones(1)
    found = float(theory.learning_rate_bound(spectra, start))
    np.testing.assert_allclose(found, 1 / 18, rtol=1e-14)
    with np.errstate(all="ignore"):
        for rate in (float(theory.printed_learning_rate_bound(spectra, start)), 0.9):
            assert not steps_of_modes(start, one, one, rate, 100)[0] < 1
    assert steps_of_modes(start, one, one, found, 300)[0] < 1e-9


def test_bounds_of_modes_without_input_or_target():
    def spectra(inputs, target):
        one = theory.certify(aj.factorization(jnp.eye(2)))
        return dataclasses.replace(
            one, input_spectrum=jnp.array(inputs), target_spectrum=jnp.array(target)
        )

    s = np.full((2, 2), 0.5)
    # Neither: no bound, whatever roundoff made of the zeros.
    only = theory.learning_rate_bound(spectra([1.0, 0.0], [1.0, 0.0]), s)
    for dust in (1e-17, -1e-17):
        assert theory.learning_rate_bound(spectra([1.0, dust], [1.0, abs(dust)]), s) == only
        assert theory.printed_learning_rate_bound(spectra([1.0, dust], [1.0, dust]), s) > 0
    assert theory.learning_rate_bound(spectra([0.0, 0.0], [0.0, 0.0]), s) == np.inf
    # A target without an input has no minimum.
    assert theory.learning_rate_bound(spectra([1.0, 0.0], [1.0, 0.5]), s) == 0
    # A huge mode without inputs does not make the others' bound NaN.
    assert theory.learning_rate_bound(spectra([1.0, 0.0], [1.0, 0.0]), s * [1, 1e200]) == only


def full_training(problem, weights, rate, steps):
    """Descent of full matrices, and the largest entry off the diagonal of the product."""
    moment, cross = (np.asarray(m) for m in problem.full_moments())
    worst = 0.0
    for _ in range(steps):
        first, second = weights
        product = second @ first
        worst = max(worst, np.abs(product - np.diag(np.diagonal(product))).max())
        slope = product @ moment - cross
        weights = (first - rate * second.T @ slope, second - rate * slope @ first.T)
    return worst


def test_the_safe_rate_keeps_full_matrices_diagonal_on_the_way():
    # Above the minimum, entries off the diagonal see more curvature than the modes there.
    problem = aj.from_moments(np.diag([0.01, 60.0]), np.diag([1e-4, 0.0]), 1.0)
    spectra = theory.certify(problem)
    start = np.array([[2.0, 0.05], [1.0, 0.05]])
    noise = 1e-9 * np.array([[0.0, 1.0], [-1.0, 0.0]])
    weights = tuple(np.diag(s) + noise for s in start)
    minimum = theory.minimum_singular_values(spectra, start)
    both = min(
        float(theory.learning_rate_bound(spectra, start)),
        float(theory.stability_threshold(spectra, singular_values=minimum)),
    )
    with np.errstate(all="ignore"):
        assert not full_training(problem, weights, both, 200) < 1e-6
    safe = float(theory.safe_learning_rate(spectra, start))
    assert full_training(problem, weights, safe, 2_000) < 1e-8


def test_the_rule_takes_numpy_and_traced_arrays():
    values = np.array([2.0, 1e-17, -1.0])
    share = relative_roundoff(np.float64, 3)
    assert isinstance(cleared(values, share), np.ndarray)
    assert cleared(values, share).tolist() == [2.0, 0.0, 0.0]
    traced = jax.jit(lambda v: (above(v, share), power(cleared(v, share), 0.5)))(values)
    assert traced[0].tolist() == [True, False, False]
    np.testing.assert_allclose(traced[1], [2**0.5, 0, 0])
    assert jax.grad(lambda v: power(v, 0.5).sum())(jnp.array([4.0, 0.0])).tolist() == [0.25, 0.0]
    assert ties(np.zeros(0), share).tolist() == []
    # By the first of the group, not by chains.
    assert ties(np.array([1.0, 0.94, 0.88, 0.82]), 0.1).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_spans_and_measurements_of_lower_rank_are_told_in_their_own_precision(dtype):
    rng = np.random.default_rng(0)
    # Two measurements of three modes, five times: the least risk is reached by many products.
    u, v = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    modes = rng.standard_normal((5, 2)) @ rng.standard_normal((2, 3))
    values = (modes @ [1.0, 2.0, -1.0]).astype(dtype)
    problem = aj.sensing(np.stack([(u * m) @ v.T for m in modes]).astype(dtype), values)
    reduced = aj.reduce(problem, (v.T.astype(dtype), (u * 0.5).astype(dtype)))
    least = np.linalg.pinv(modes, rcond=1e-10) @ values
    np.testing.assert_allclose(
        np.linalg.norm(reduced.minimizer), np.linalg.norm(least), rtol=1e3 * np.finfo(dtype).eps
    )

    first, second = rng.standard_normal((2, 3, 3)).astype(dtype)
    dependent = np.stack([first, second, dtype(0.1) * first + dtype(0.3) * second])
    with pytest.raises(ValueError, match="numerical rank 2"):
        aj.structures.Basis(dependent)
    assert theory.dimension_test(dependent, samples=3).dimensions == (2,)
    # A small matrix is not a dependent one.
    small = np.stack([first, dtype(1e-20) * second])
    assert aj.structures.Basis(small).dim == 2
    assert theory.dimension_test(small, samples=3).dimensions == (2,)
