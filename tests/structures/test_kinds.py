"""Each structure against another implementation of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.signal
from jax.test_util import check_grads

from alignjax.structures import Circulant, Conv2d, Diagonal, Sparse, Toeplitz
from alignjax.structures.correlation import _sum_over_taps, correlate, correlate_taps
from alignjax.structures.fourier import fast_length
from tests.structures.cases import normal


@pytest.mark.parametrize(
    ("image", "kernel"),
    [((7, 7), (3, 3)), ((5, 9), (3, 5)), ((4, 6), (1, 5)), ((9, 9), (9, 9)), ((1, 1), (1, 1))],
)
@pytest.mark.parametrize(("padding", "boundary"), [("zeros", "fill"), ("circular", "wrap")])
def test_a_convolution_is_the_cross_correlation_of_frameworks(image, kernel, padding, boundary):
    structure = Conv2d(image, kernel, padding=padding, coordinates="raw")
    taps, x = normal(*kernel), normal(*image, seed=1)
    expected = scipy.signal.correlate2d(x, taps, mode="same", boundary=boundary)
    y = structure.apply(taps.ravel(), x.ravel()).reshape(image)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)
    by_matrix = structure.matrix(taps.ravel()) @ x.ravel()
    np.testing.assert_allclose(by_matrix.reshape(image), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", [3, 5, 9])
def test_a_convolution_is_the_one_of_xla(kernel):
    structure = Conv2d((10, 12), kernel, coordinates="raw")
    taps, x = normal(structure.dim), normal(4, 120, seed=1)

    def convolve(taps, x):
        margins = [(kernel // 2, kernel // 2)] * 2
        images = x.reshape(-1, 1, 10, 12)
        window = taps.reshape(1, 1, kernel, kernel)
        out = jax.lax.conv_general_dilated(images, window, (1, 1), margins, precision="highest")
        return out.reshape(x.shape)

    y, pullback = jax.vjp(structure.apply, taps, x)
    expected, expected_pullback = jax.vjp(convolve, taps, x)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    for a, b in zip(pullback(y), expected_pullback(y), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_conv_taps_differ_in_scale_with_zero_padding_only():
    corner, edge, centre = 27 * 27, 27 * 28, 28 * 28
    expected = [corner, edge, corner, edge, centre, edge, corner, edge, corner]
    np.testing.assert_allclose(Conv2d(28, 3).norms ** 2, expected, rtol=1e-15)
    np.testing.assert_allclose(Conv2d(28, 3, padding="circular").norms, 28.0, rtol=1e-15)


@pytest.mark.parametrize("size", [(4, 4), (3, 6), (6, 3), (1, 5), (5, 1), (70, 50)])
def test_toeplitz_coefficients_run_from_the_top_right_corner_to_the_bottom_left(size):
    structure = Toeplitz(size, coordinates="raw")
    t = normal(structure.dim)
    ahead = size[1] - 1
    np.testing.assert_array_equal(
        structure.matrix(t), scipy.linalg.toeplitz(t[ahead:], t[ahead::-1])
    )


@pytest.mark.parametrize("k", [1, 5, 64, 97])
def test_circulant_coefficients_are_the_first_column(k):
    t, x = normal(k), normal(k, seed=1)
    structure = Circulant(k, coordinates="raw")
    np.testing.assert_array_equal(structure.matrix(t), scipy.linalg.circulant(t))
    np.testing.assert_allclose(
        structure.apply(t, x), scipy.linalg.circulant(t) @ x, rtol=0, atol=1e-12
    )


def test_diagonal_and_sparse_hold_their_entries_where_they_should():
    np.testing.assert_array_equal(Diagonal(3).matrix([1, 2, 3]), np.diag([1.0, 2, 3]))
    mask = np.array([[0, 1], [1, 1]])
    np.testing.assert_array_equal(Sparse(mask).matrix([1, 2, 3]), [[0, 1], [2, 3]])
    np.testing.assert_array_equal(Sparse(mask).project(np.ones((2, 2))), mask)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 4), (8, 9), (6, 7)])
def test_the_two_correlations_are_each_others_derivatives(kernel):
    w, x = normal(*kernel), normal(2, 9, 10, seed=1)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x), kernel, (1, 2))
    y = correlate(w, x)
    np.testing.assert_allclose(y, np.einsum("nabij,ij->nab", windows, w), rtol=0, atol=1e-12)
    taps = correlate_taps(x, y)
    np.testing.assert_allclose(taps, np.einsum("nabij,nab->ij", windows, y), rtol=1e-12)
    # <y, correlate(w, x)> = <w, correlate_taps(x, y)>, and derivatives of all orders follow.
    np.testing.assert_allclose((y * y).sum(), (w * taps).sum(), rtol=1e-12)
    check_grads(correlate, (w, x), 2, rtol=1e-6)
    check_grads(correlate_taps, (x, y), 2, rtol=1e-5)


@pytest.mark.parametrize("kernel", [(3, 5), (9, 9)])
def test_the_sum_over_taps_of_accelerators_equals_the_convolution_of_cpus(kernel):
    w, x = normal(2, *kernel), normal(2, 3, 12, 11, seed=1)
    np.testing.assert_allclose(_sum_over_taps(w, x), jax.vmap(correlate)(w, x), rtol=0, atol=1e-12)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x), kernel, (2, 3))
    expected = np.einsum("lnabij,lij->lnab", windows, w)
    np.testing.assert_allclose(_sum_over_taps(w, x), expected, rtol=0, atol=1e-12)


def test_fast_lengths_have_small_factors():
    assert [fast_length(n) for n in (1, 7, 11, 64, 127, 1567)] == [1, 8, 12, 64, 128, 1600]


@pytest.mark.parametrize("structure", [Toeplitz(80), Circulant(97)])
def test_the_fourier_path_keeps_float32(structure):
    c = normal(structure.dim, dtype=jnp.float32)
    x = normal(2, structure.shape[1], dtype=jnp.float32)
    exact = np.asarray(x, float) @ np.asarray(structure.matrix(c), float).T
    y = structure.apply(c, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
