"""Starts: shapes, scales, dtypes, and the property each one is named for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj

WIDTHS = (5, 3, 6, 4)
KEY = jax.random.key(0)


@pytest.mark.parametrize("dtype", [None, jnp.float32])
@pytest.mark.parametrize("name", ["gaussian", "orthogonal", "identity", "balanced"])
def test_layers_have_the_stated_shapes_and_dtype_and_are_homogeneous_in_the_scale(name, dtype):
    make = getattr(aj.initializers, name)
    keys = () if name == "identity" else (KEY,)
    one, two = (make(*keys, WIDTHS, scale, dtype=dtype) for scale in (1.0, 2.0))
    assert [w.shape for w in one] == [(3, 5), (6, 3), (4, 6)]
    assert {w.dtype for w in one} == {np.dtype(dtype or np.float64)}
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(b, 2 * a, rtol=1e-6)


def test_gaussian_entries_have_the_stated_deviation_and_layers_differ():
    a, b = aj.initializers.gaussian(KEY, (300, 300, 300), 0.2)
    for w in (a, b):
        np.testing.assert_allclose((w.mean(), w.std()), (0.0, 0.2), atol=2e-3)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02


def test_orthogonal_layers_have_one_singular_value():
    for w in aj.initializers.orthogonal(KEY, WIDTHS, 0.3):
        np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False), 0.3, rtol=1e-12)


def test_identity_layers_are_rectangular_identities():
    for w in aj.initializers.identity(WIDTHS, 0.3):
        np.testing.assert_array_equal(w, 0.3 * np.eye(*w.shape))


@pytest.mark.parametrize("widths", [WIDTHS, (4, 4, 4), (5, 1, 3), (3, 2)])
def test_balanced_chains_are_balanced(widths):
    weights = aj.initializers.balanced(KEY, widths, 0.5)
    for below, above in itertools.pairwise(weights):
        np.testing.assert_allclose(above.T @ above, below @ below.T, atol=1e-14)
    assert np.linalg.matrix_rank(weights[0]) == min(widths)


def test_aligned_starts_are_diagonal_in_the_bases_of_the_data():
    M = np.random.default_rng(0).normal(size=(4, 5))
    problem = aj.factorization(M)
    values = np.array([[0.1, -0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])
    weights = aj.initializers.aligned(KEY, problem, WIDTHS, values)
    u, _s, vt = np.linalg.svd(M)
    W = u.T @ np.asarray(aj.end_to_end(weights)) @ vt.T
    np.testing.assert_allclose(np.diagonal(W)[:3], values.prod(0), atol=1e-12)
    np.testing.assert_allclose(W - np.diag(np.diagonal(W)) @ np.eye(4, 5), 0, atol=1e-12)
    for w, expected in zip(weights, values, strict=True):
        found = np.linalg.svd(w, compute_uv=False)[:3]
        np.testing.assert_allclose(np.sort(found), np.sort(np.abs(expected)), rtol=1e-12)


def test_keys_vmap_and_reproduce():
    keys = jax.random.split(KEY, 3)
    stack = jax.vmap(lambda key: aj.initializers.balanced(key, (3, 2, 4), 1.0))(keys)
    alone = aj.initializers.balanced(keys[1], (3, 2, 4), 1.0)
    for a, b in zip(stack, alone, strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-12)
