"""Layers in a subspace: the counts, the probe that tests them, and the networks that escape."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax.metrics import alignment, chain_alignment
from alignjax.structures import Dense, Toeplitz
from alignjax.theory import aligned_probe
from alignjax.theory.aligned_probe import aligned_interpolation, layer_bases
from alignjax.theory.subspaces import (
    architectures,
    dimension_test,
    element_bound,
    least_depth,
    outer_alignment,
    printed_element_bound,
)

pytest.importorskip("matplotlib")
from experiments.alignment import _subspace_networks as built
from experiments.alignment.theorem_3 import descend


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def dense(rows, columns):
    return jnp.eye(rows * columns).reshape(-1, rows, columns)


def aligned_network(seed, widths):
    values = jax.random.uniform(jax.random.key(seed), (len(widths) - 1, min(widths)), minval=0.5)
    return aj.initializers.aligned(jax.random.key(seed + 1), None, widths, values)


# Proposition 3


def test_outer_layers_of_an_aligned_interpolating_network_align_with_the_data():
    weights, X = aligned_network(0, (4, 6, 5, 3)), normal(2, 7, 4)
    both = outer_alignment(weights, X, X @ aj.end_to_end(weights).T)
    np.testing.assert_allclose(both, 1.0, atol=1e-12)


def test_outer_layers_of_a_random_network_do_not():
    weights, X = (normal(0, 4, 4), normal(1, 4, 4)), normal(2, 7, 4)
    assert outer_alignment(weights, X, X @ aj.end_to_end(weights).T).max() < 0.99


# Proposition 4


def codimension(m_1, m_2, n_1, n_2, key):
    """Of the matrices with ``M_1 M_2^T = 0``, blocks of ranks ``n_1`` and ``n_2``."""
    n = n_1 + n_2
    frame = jax.random.orthogonal(key, n)
    one = jax.random.normal(key, (m_1, n_1)) @ frame[:n_1]
    two = jax.random.normal(jax.random.fold_in(key, 1), (m_2, n_2)) @ frame[n_1:]
    slopes = jax.jacobian(lambda a, b: a @ b.T, argnums=(0, 1))(one, two)
    flat = np.hstack([np.asarray(s).reshape(m_1 * m_2, -1) for s in slopes])
    return np.linalg.matrix_rank(flat) if flat.size else 0


@pytest.mark.parametrize(("k", "n"), [(4, 2), (5, 3), (5, 4), (4, 4), (5, 5)])
def test_bound_is_the_least_codimension_of_aligning_with_two_eigenspaces(k, n):
    found = []
    for m_1 in range(1, k):
        for n_1 in range(max(0, n - k + m_1), min(m_1, n) + 1):
            m_2, n_2 = k - m_1, n - n_1
            cost = codimension(m_1, m_2, n_1, n_2, jax.random.key(m_1))
            assert cost == n_1 * m_2 + n_2 * m_1 - n_1 * n_2
            found.append(cost)
    assert min(found) == element_bound(k, n) - 1


@pytest.mark.parametrize(("k", "n"), [(5, 2), (5, 4), (5, 5), (5, 9)])
def test_at_the_bound_a_subspace_exists_whose_elements_align_with_every_matrix(k, n):
    matrix, r = normal(0, k, n), element_bound(k, n)
    span = np.linalg.qr(normal(1, k, r))[0]  # S = {e q^T : q in this span}
    left = np.linalg.svd(matrix)[0]
    # q is a left singular vector of the matrix, or orthogonal to it, inside the span.
    q = left[:, 0] if r == k else span @ np.linalg.svd(matrix.T @ span)[2][-1]
    element = jnp.outer(normal(2, k), q)
    np.testing.assert_allclose(span @ (span.T @ q), q, atol=1e-12)
    np.testing.assert_allclose(alignment((matrix, element)), 1.0, atol=1e-12)


def test_printed_bound_is_smaller_than_it_need_be():
    values = {(k, n): printed_element_bound(k, n) for k in range(2, 9) for n in range(1, 12)}
    assert all(values[k, n] < element_bound(k, n) for k, n in values)
    assert values[8, 8] == values[8, 7] == 7
    assert values[8, 5] == 7 - 3
    assert printed_element_bound(8, 1) < 0


def test_multiples_of_orthogonal_matrices_align_with_everything():
    rotation = jax.random.orthogonal(jax.random.key(0), 5)
    np.testing.assert_allclose(alignment((normal(1, 5, 5), 3 * rotation)), 1.0, atol=1e-12)


# Theorem 3


@pytest.mark.parametrize(
    ("r", "depth", "verdict"),
    [
        (5, None, "only with orthogonal outer layers"),
        (5, 2, "impossible"),
        (5, 3, "only with orthogonal outer layers"),
        (4, 4, "impossible"),
        (7, 2, "impossible"),
        (8, 2, "not excluded"),
        (1, 1000, "impossible"),
        (5, 1, "silent"),
    ],
)
def test_verdicts_at_width_8(r, depth, verdict):
    found = dimension_test(r, width=8, samples=8, depth=depth)
    assert found.verdict == verdict
    assert (found.printed_bound, found.bound) == (7, 8)
    assert found.printed_excludes == (r < 7)


def test_dimensions_may_differ_by_layer():
    stacks = [normal(i, r, 4, 4) for i, r in enumerate((2, 9, 3))]
    found = dimension_test(stacks, samples=4)
    assert found.dimensions == (2, 9, 3)
    assert found.depth == 3
    assert found.verdict == "only with orthogonal outer layers"
    assert found.parameters == 1 + 8 + 2 + 1
    assert dimension_test(stacks[::2], samples=4).verdict == "impossible"
    assert dimension_test([stacks[1], stacks[0]], samples=4).verdict == "not excluded"


def test_dependent_matrices_count_once():
    stack = normal(0, 3, 4, 4)
    assert dimension_test(jnp.concatenate([stack, 2 * stack]), samples=4).dimensions == (3,)


@pytest.mark.parametrize(
    ("X", "Y", "words"),
    [
        (normal(0, 4, 4), None, "repeat"),
        (normal(0, 3, 4), normal(1, 3, 4), "3 samples"),
        (normal(0, 6, 4), normal(1, 6, 4), "no linear map"),
        (jnp.ones((4, 4)), jnp.ones((4, 4)), "rank 1"),
    ],
)
def test_data_that_are_not_generic_are_named(X, Y, words):
    found = dimension_test(normal(2, 2, 4, 4), X, Y, depth=2)
    assert found.verdict == "silent"
    assert words in found.reason


def test_gaussian_data_are_generic():
    found = dimension_test(normal(2, 2, 4, 4), normal(0, 4, 4), normal(1, 4, 4), depth=2)
    assert found.verdict == "impossible"


def test_counts_are_those_of_the_numerical_ranks():
    k, r = 4, 5
    span = normal(0, r, k, k)
    for d in (2, 3, 4):
        c = normal(d, d, r)
        slope = jax.jacobian(lambda c: built.outputs(built.layers_of(c, span), jnp.eye(k)))(c)
        count = dimension_test(span, samples=k, depth=d)
        rank = np.linalg.matrix_rank(np.asarray(slope).reshape(k * k, -1))
        assert rank == min(count.parameters, count.equations)
        assert count.interpolates_generic_data == (d >= least_depth(r, k, k))


def test_architectures_have_the_numbers_of_the_paper():
    assert architectures(28)["convolution"].dimension == 9
    assert architectures(28)["convolution"].width == 784
    assert architectures(2, kernel_size=1)["Toeplitz"].dimension == 7  # 4 x 4, section 6
    assert [m for m in range(3, 9) if architectures(m)["convolution"].printed_applies] == [
        *range(4, 9)
    ]
    others = [a for n, a in architectures(5).items() if n != "convolution"]
    assert not any(a.applies for a in others)


def test_architectures_have_the_dimensions_of_the_structures():
    counts, s = architectures(3), aj.structures
    assert s.Conv2d(3, 3).dim == counts["convolution"].dimension
    for name, kind in (("Toeplitz", s.Toeplitz), ("circulant", s.Circulant)):
        assert kind(9).dim == counts[name].dimension
    assert s.Diagonal(9).dim == counts["diagonal"].dimension
    band = np.abs(np.subtract.outer(range(9), range(9))) <= 1
    assert s.Sparse(band).dim == counts["tridiagonal"].dimension
    assert s.Dense((9, 9)).dim == counts["dense"].dimension


def test_no_depth_makes_one_dimension_fit():
    assert least_depth(1, 4, 4) is None
    assert least_depth(1, 1, 1) == 1


# The probe


def teacher_data(seed, span, depth, samples):
    """Data of a random network with layers in the span."""
    keys = jax.random.split(jax.random.key(seed), 2)
    X = jax.random.normal(keys[0], (samples, span.shape[2]))
    c = jax.random.normal(keys[1], (depth, span.shape[0]))
    return X, built.outputs(built.layers_of(c, span), X)


search = partial(aligned_interpolation, jax.random.key(0), starts=16, steps=200)


def test_probe_finds_aligned_networks_from_the_predicted_dimension_on_and_not_before():
    span = normal(5, 9, 3, 3)
    for r, found in ((6, False), (7, True)):
        X, Y = teacher_data(0, span[:r], 2, 3)
        assert dimension_test(span[:r], X, Y, depth=2).aligns_generically is found
        probe = search(span[:r], X, Y, depth=2, starts=64)
        assert probe.interpolates
        assert probe.best_fit < 1e-12
        assert (probe.best_defect < 1e-12) == found
        assert found or probe.best_defect > 1e-8


def test_probe_reports_what_its_weights_are():
    span = normal(1, 5, 3, 3)
    X, Y = teacher_data(1, span, 3, 5)
    probe = search(span, X, Y, depth=3, starts=4)
    assert [w.shape for w in probe.weights] == [(4, 3, 3)] * 3
    basis = np.linalg.qr(np.asarray(span).reshape(5, 9).T)[0]
    for start in range(4):
        weights = tuple(w[start] for w in probe.weights)
        error = jnp.linalg.norm(X @ aj.end_to_end(weights).T - Y) / jnp.linalg.norm(Y)
        np.testing.assert_allclose(probe.fits[start], error, rtol=1e-6, atol=1e-14)
        for w in weights:
            flat = np.asarray(w).ravel()
            np.testing.assert_allclose(basis @ (basis.T @ flat), flat, atol=1e-12)
        worst = max(np.linalg.cond(w) for w in weights)
        np.testing.assert_allclose(probe.conditions[start], worst, rtol=1e-6)
    assert int(probe.best) == int(np.where(probe.fits <= 1e-8, probe.defects, np.inf).argmin())


def test_defect_is_zero_exactly_for_aligned_chains():
    weights = aligned_network(0, (4, 3, 5, 2))
    pairs = aligned_probe._pair_defects(weights, True)
    assert max(np.abs(p).max() for p in pairs) < 1e-13
    # neighbours of the middle layer commute with it, and the outer two layers do not fit
    turn = jax.random.orthogonal(jax.random.key(1), 3)
    stretch = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    middle = jnp.diag(jnp.array([1.0, 1.0, 2.0]))
    plane = turn.at[2, :].set(0.0).at[:, 2].set(0.0).at[2, 2].set(1.0)
    q, _ = jnp.linalg.qr(plane)
    chain = (stretch, middle, stretch @ q.T)
    neighbours = alignment(chain)
    np.testing.assert_allclose(neighbours, 1.0, atol=1e-12)
    assert chain_alignment(chain).min() < 0.99
    assert max(np.abs(p).max() for p in aligned_probe._pair_defects(chain, True)) > 1e-3


def test_defect_has_no_scale_and_does_not_fall_towards_orthogonal_layers():
    tilt = jax.random.orthogonal(jax.random.key(0), 3)
    stretch = jnp.diag(jnp.array([1.0, 2.0, 4.0]))

    def size(weights):
        return float(jnp.linalg.norm(aligned_probe._pair_defects(weights, True)[0]))

    reference = size((stretch, stretch @ tilt))
    assert reference > 0.1
    np.testing.assert_allclose(size((1e-3 * stretch, 1e4 * stretch @ tilt)), reference, rtol=1e-9)
    slight = jnp.eye(3) + 1e-3 * stretch
    assert size((slight, slight @ tilt)) > 0.5 * reference
    assert 1 - alignment((slight, slight @ tilt))[0] < 1e-4


def quaternions():
    """A 4-dimensional subspace of multiples of orthogonal matrices."""
    i = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]])
    j = np.array([[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]])
    return jnp.asarray(np.stack([np.eye(4), i, j, i @ j]), float)


def test_orthogonal_layers_are_aligned_and_excluded():
    X, Y = teacher_data(3, quaternions(), 2, 6)
    allowed = search(quaternions(), X, Y, depth=2, exclude_orthogonal=False)
    assert allowed.interpolates
    assert allowed.best_defect < 1e-12
    assert allowed.spreads.max() < 1e-12
    excluded = search(quaternions(), X, Y, depth=2)
    assert not excluded.interpolates
    assert excluded.best_defect == 1.0


def test_probe_takes_structures_and_layers_of_their_own():
    structures = (aj.structures.Toeplitz(4), aj.structures.Dense((2, 4)))
    X, Y = normal(0, 3, 4), normal(1, 3, 2)
    probe = search(structures, X, Y)
    assert [w.shape for w in probe.weights] == [(16, 4, 4), (16, 2, 4)]
    assert probe.best_fit < 1e-12
    first = probe.best_weights[0]
    np.testing.assert_allclose(first[1:, 1:], first[:-1, :-1], atol=1e-12)


def test_probe_works_in_single_precision():
    span = normal(1, 6, 3, 3).astype(jnp.float32)
    X, Y = (a.astype(jnp.float32) for a in teacher_data(1, span, 2, 2))
    probe = search(span, X, Y, depth=2)
    assert probe.defects.dtype == jnp.float32
    assert probe.interpolates
    assert probe.best_fit < 1e-5
    assert probe.best_defect < 1e-5


def test_autoencoding_is_the_default():
    X = normal(0, 4, 3)
    found = search(dense(3, 3), X, depth=2)
    same = search(dense(3, 3), X, X, depth=2)
    np.testing.assert_array_equal(found.defects, same.defects)
    assert found.best_defect < 1e-10


def test_zero_matrices_and_zero_rows_change_nothing_but_the_starts():
    span = normal(1, 6, 3, 3)
    X, Y = teacher_data(1, span, 2, 2)
    padded = search(
        jnp.concatenate([span, jnp.zeros((3, 3, 3))]),
        jnp.pad(X, ((0, 2), (0, 0))),
        jnp.pad(Y, ((0, 2), (0, 0))),
        depth=2,
    )
    assert padded.best_fit < 1e-12
    assert padded.best_defect < 1e-12
    assert search(span, X, Y, depth=2).best_defect < 1e-12


def test_probe_runs_under_vmap_and_compiles_once():
    span = normal(1, 3, 5, 3, 3)
    X, Y = normal(2, 3, 2, 3), normal(3, 3, 2, 3)
    run = jax.vmap(lambda s, x, y: search(s, x, y, depth=2, starts=4).defects)
    together = run(span, X, Y)
    before = aligned_probe._probe._cache_size()
    alone = [search(span[i], X[i], Y[i], depth=2, starts=4).defects for i in range(3)]
    assert aligned_probe._probe._cache_size() == before + 1
    assert together.shape == (3, 4)
    # A start that ends aligned ends at roundoff, elsewhere the paths agree to what chaos leaves.
    np.testing.assert_allclose(together.min(1), np.min(alone, 1), rtol=1e-3, atol=1e-9)


# Networks that the printed statements exclude


def test_counterexample_fits_gaussian_data_and_is_aligned():
    for seed in range(3):
        network = built.gaussian_counterexample(jax.random.key(seed))
        assert network.basis.shape == (5, 8, 8)
        test = dimension_test(
            network.basis, network.inputs, network.targets, depth=len(network.coefficients)
        )
        assert test.printed_excludes
        assert test.verdict == "only with orthogonal outer layers"
        assert built.fit_error(network) < 1e-12
        assert built.defect(network) < 1e-12
        turned = jnp.einsum("iab,iac->ibc", network.bases, network.bases)
        np.testing.assert_allclose(turned, jnp.broadcast_to(jnp.eye(8), turned.shape), atol=1e-12)
        shapes = built.anisotropy(network.weights)
        assert max(shapes[0], shapes[-1]) < 1e-12
        assert shapes.max() > 0.5


def test_counterexample_is_for_its_own_data():
    first, second = (built.gaussian_counterexample(jax.random.key(s)) for s in range(2))
    np.testing.assert_allclose(jnp.abs(first.basis), jnp.abs(second.basis), atol=1e-12)
    swapped = built.SubspaceNetwork(
        first.basis, first.coefficients, first.bases, second.inputs, second.targets
    )
    assert built.fit_error(swapped) > 0.1


def test_descent_keeps_the_counterexample():
    network = built.gaussian_counterexample(jax.random.key(0))
    data = network.basis, network.inputs, network.targets
    after, rate = descend(network.coefficients, *data, steps=500)
    assert rate > 0
    assert built.fit_error(network, after) < 1e-12
    assert built.defect(network, after) < 1e-12
    # the descent is one: from a start beside the solution the error falls
    start = network.coefficients * (1 + 1e-4 * normal(1, *network.coefficients.shape))
    near, _ = descend(start, *data, steps=500)
    assert built.fit_error(network, near) < 0.5 * built.fit_error(network, start)


@pytest.mark.parametrize("size", [4, 5])
def test_vertical_filters_are_an_aligned_autoencoder(size):
    network = built.vertical_filters(jax.random.key(0), size, size**2 + 3)
    assert network.basis.shape[0] == 9
    assert built.fit_error(network) < 1e-12
    assert built.defect(network) < 1e-12
    assert built.anisotropy(network.weights).min() > 0.1
    weights = network.weights
    assert chain_alignment(tuple(weights[:4])).min() > 1 - 1e-12


def test_polynomials_with_real_roots_take_any_values():
    nodes = np.cos(np.arange(6, 0, -1) * np.pi / 7)
    values = np.array([-2.0, 0.1, 3.0, 3.0, 1e-3, 50.0])
    roots, lead = built.real_rooted(nodes, values)
    found = lead * np.subtract.outer(nodes, roots).prod(axis=1)
    np.testing.assert_allclose(found, values, atol=1e-12 * 50)


def test_rotations_are_products_of_shifted_turns():
    k = 5
    rotation = np.array(jax.random.orthogonal(jax.random.key(1), k))
    rotation[0] *= np.sign(np.linalg.det(rotation))
    shift, product = np.roll(np.eye(k), -1, axis=0), np.eye(k)
    for t in built.rotation_angles(rotation):
        turn = np.eye(k)
        turn[:2, :2] = [[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]
        product = product @ shift @ turn
    np.testing.assert_allclose(product, rotation, atol=1e-13)


# Refusals

SPAN, DATA = normal(0, 2, 3, 3), normal(1, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((SPAN, DATA), {}, ValueError, "depth must say"),
        ((SPAN, DATA), {"depth": 1}, ValueError, "at least two layers"),
        (([SPAN, normal(2, 2, 3, 4)], DATA), {}, ValueError, "do not chain"),
        (([SPAN, SPAN], DATA), {"depth": 3}, ValueError, "depth is 3"),
        (([], DATA), {}, ValueError, "at least one layer"),
        ((SPAN, normal(1, 4, 2)), {"depth": 2}, ValueError, "inputs must have 3 columns"),
        ((SPAN, DATA, normal(1, 4, 2)), {"depth": 2}, ValueError, "targets must have 3 columns"),
        ((SPAN, DATA, DATA[:3]), {"depth": 2}, ValueError, "as many rows"),
        ((SPAN, DATA, 0 * DATA), {"depth": 2}, ValueError, "targets are zero"),
        ((0 * SPAN, DATA), {"depth": 2}, ValueError, "only zero matrices"),
        ((SPAN, DATA), {"depth": 2, "starts": 0}, ValueError, "starts"),
        ((SPAN, DATA), {"depth": 2, "steps": 0}, ValueError, "steps"),
        ((SPAN, DATA), {"depth": 2, "tolerance": 0.0}, ValueError, "tolerance"),
        ((SPAN, DATA), {"depth": 2, "exclude_orthogonal": 1}, TypeError, "exclude_orthogonal"),
        ((3, DATA), {"depth": 2}, TypeError, "structure must be"),
        ((SPAN[0], DATA), {"depth": 2}, ValueError, "structure must have 3"),
    ],
)
def test_probe_refuses(arguments, options, error, words):
    with pytest.raises(error, match=words):
        aligned_interpolation(jax.random.key(0), *arguments, **options)


def test_probe_needs_a_key():
    with pytest.raises(TypeError, match="key"):
        aligned_interpolation(0, SPAN, DATA, depth=2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dimension_test(5, samples=8), ValueError, "width"),
        (lambda: dimension_test(5, width=8), ValueError, "inputs or samples"),
        (lambda: dimension_test(5, DATA, width=3, samples=3), ValueError, "inputs or samples"),
        (lambda: dimension_test(5, None, DATA, width=3, samples=3), ValueError, "targets need"),
        (lambda: dimension_test(10, width=3, samples=3), ValueError, "exceeds all 3x3"),
        (lambda: dimension_test(0, width=3, samples=3), ValueError, "structure"),
        (lambda: dimension_test(SPAN, width=3, samples=3), ValueError, "width is known"),
        (lambda: dimension_test(normal(0, 2, 3, 4), samples=3), ValueError, "square"),
        (lambda: dimension_test([SPAN, SPAN], samples=3, depth=3), ValueError, "depth is 3"),
        (lambda: dimension_test(SPAN, normal(0, 3, 4)), ValueError, "inputs must have 3"),
        (lambda: element_bound(0, 3), ValueError, "width"),
        (lambda: printed_element_bound(3, 2.5), TypeError, "samples"),
        (lambda: least_depth(0, 3, 3), ValueError, "dimension"),
        (lambda: architectures(2), ValueError, "kernel_size"),
        (lambda: outer_alignment([SPAN[0]], DATA[:2]), ValueError, "at least as many samples"),
        (lambda: outer_alignment([SPAN[0]], normal(0, 4, 4)), ValueError, "columns"),
        (lambda: layer_bases("S", 2), TypeError, "structure"),
    ],
)
def test_counts_refuse(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_dimension_test_runs_on_the_host():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda s: dimension_test(s, samples=3).width)(SPAN)


def test_the_best_of_a_batch_of_searches_is_each_search_s_own():
    structure = Dense((3, 3))
    X = jax.random.normal(jax.random.key(0), (3, 3))
    Y = jax.random.normal(jax.random.key(1), (3, 3))
    keys = jax.random.split(jax.random.key(2), 3)

    def search(key):
        return aligned_interpolation(key, structure, X, Y, depth=2, starts=4, steps=20)

    batch = jax.vmap(search)(keys)
    alone = [search(key) for key in keys]
    assert batch.best_defect.shape == batch.best_fit.shape == (3,)
    assert batch.best_weights[0].shape == (3, 3, 3)
    for i, one in enumerate(alone):
        assert one.best_fit == one.fits[one.best]
        assert (batch.best_fit[i] == batch.fits[i, batch.best[i]]).all()
        assert (batch.best_weights[1][i] == batch.weights[1][i, batch.best[i]]).all()
        assert one.best_weights[0].shape == (3, 3)


def test_exceptional_data_are_seen_in_float32_too():
    X = jax.random.normal(jax.random.key(0), (8, 8))
    Y = X @ jax.random.orthogonal(jax.random.key(1), 8).T
    for dtype in (jnp.float64, jnp.float32):
        found = dimension_test(5, width=8, inputs=X.astype(dtype), targets=Y.astype(dtype), depth=2)
        assert found.verdict == "silent"


def test_outer_alignment_refuses_inputs_that_leave_the_map_open():
    X = np.array([[1.0, 1.0], [2, 2], [3, 3]])
    with pytest.raises(ValueError, match=r"^inputs must be of full rank.*rank 1 of 2"):
        outer_alignment((np.eye(2), np.eye(2)), X, X)


def test_large_structures_are_counted_without_their_matrices():
    assert dimension_test(Toeplitz(4096), samples=4096, depth=2).verdict
