"""Products of layers, and bases that several matrices share."""

import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax import linalg


@pytest.mark.parametrize("widths", [(3, 2), (4, 3, 5, 2), (3, 6, 1, 6, 4), (5, 4, 3, 1), (1, 4, 1)])
def test_the_end_to_end_matrix_is_the_product_of_all_layers(widths):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=s) for s in zip(widths[1:], widths, strict=False)]
    expected = np.eye(widths[0])
    for w in weights:
        expected = w @ expected
    np.testing.assert_allclose(aj.end_to_end(weights), expected, rtol=1e-12, atol=1e-14)


def test_leave_one_out_products_are_exact_with_zeros():
    factors = np.array([[2.0, 0.0], [3.0, 5.0], [7.0, 0.0]])
    found = linalg.leave_one_out_products(jnp.asarray(factors))
    expected = [np.delete(factors, i, axis=0).prod(0) for i in range(3)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (5, 2)])
def test_ussvd_factors_are_square_orthogonal_and_multiply_to_the_matrix(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    u, s, v = linalg.ussvd(matrix)
    np.testing.assert_allclose(u @ s @ v.T, matrix, atol=1e-14)
    np.testing.assert_allclose(u.T @ u, np.eye(shape[0]), atol=1e-14)
    np.testing.assert_allclose(v.T @ v, np.eye(shape[1]), atol=1e-14)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_commuting_matrices_with_repeated_eigenvalues_are_diagonalized_together(size):
    rng = np.random.default_rng(size)
    q = np.linalg.qr(rng.normal(size=(size, size)))[0]
    spectra = rng.integers(0, 2, size=(4, size)).astype(float)
    v = linalg.joint_diagonalize([q @ np.diag(s) @ q.T for s in spectra])
    np.testing.assert_allclose(v.T @ v, np.eye(size), atol=1e-13)
    for s in spectra:
        found = v.T @ q @ np.diag(s) @ q.T @ v
        np.testing.assert_allclose(found, np.diag(np.diagonal(found)), atol=1e-13)
