"""Synthetic data have exactly the spectra, the bases and the margin that were asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from alignjax import datasets

KEY = jax.random.key(0)


def spectra(k_0, r, dtype=np.float64):
    rng = np.random.default_rng(k_0 * 100 + r)
    return rng.uniform(0.1, 3, k_0).astype(dtype), rng.uniform(0.1, 3, r).astype(dtype)


@pytest.mark.parametrize("noise", [0.0, 0.7])
@pytest.mark.parametrize(
    ("k_0", "r", "k_d", "n"),
    [(1, 1, 1, 2), (4, 4, 4, 9), (5, 3, 7, 6), (6, 1, 1, 1000)],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_the_moments_have_the_prescribed_spectra_in_common_bases(
    k_0, r, k_d, n, noise, dtype, tolerance
):
    lam, lam_target = spectra(k_0, r, dtype)
    data = datasets.aligned_regression(KEY, lam, lam_target, n=n, k_d=k_d, noise=noise)
    assert all(array.dtype == dtype for array in data)
    x, y, u, v = (np.asarray(array, np.float64) for array in data)
    assert x.shape == (n, k_0)
    assert y.shape == (n, k_d)
    diagonal = np.zeros((k_d, k_0))
    diagonal[range(r), range(r)] = lam_target
    np.testing.assert_allclose(u.T @ u, np.eye(k_d), atol=tolerance)
    np.testing.assert_allclose(v.T @ v, np.eye(k_0), atol=tolerance)
    input_moment, cross_moment = x.T @ x / n, y.T @ x / n
    expected = v @ np.diag(lam) @ v.T
    assert np.linalg.norm(input_moment - expected) <= tolerance * np.linalg.norm(expected)
    expected = u @ diagonal @ v.T
    assert np.linalg.norm(cross_moment - expected) <= tolerance * np.linalg.norm(expected)


def test_the_noise_is_what_the_best_linear_map_leaves():
    lam, lam_target = spectra(4, 3)
    n, deviation = 2000, 0.5
    x, y, *_ = datasets.aligned_regression(KEY, lam, lam_target, n=n, noise=deviation)
    best, *_ = np.linalg.lstsq(x, y)
    left = np.asarray(y - x @ best)
    # 6000 Gaussian entries: the deviation is known to 1 %, three standard errors are 2.8 %.
    assert abs(left.std() / deviation - 1) < 0.03
    clean, target, *_ = datasets.aligned_regression(KEY, lam, lam_target, n=n)
    best, *_ = np.linalg.lstsq(clean, target)
    np.testing.assert_allclose(clean @ best, target, atol=1e-12)


def test_a_zero_eigenvalue_is_allowed_where_nothing_is_to_be_learned_and_has_a_derivative():
    data = datasets.aligned_regression(KEY, [2.0, 0.0, 1.0], [1.0, 0.0, 0.5], n=6)
    moment = data.inputs.T @ data.inputs / 6
    np.testing.assert_allclose(np.linalg.eigvalsh(moment), [0, 1, 2], atol=1e-14)

    def energy(targets):
        data = datasets.aligned_regression(KEY, jnp.array([2.0, 0.0, 1.0]), targets, n=6)
        return jnp.sum(data.targets**2) / 6

    # Σ λ'²/λ, whose derivative is 2λ'/λ where λ > 0.
    gradient = jax.grad(energy)(jnp.array([1.0, 0.0, 0.5]))
    np.testing.assert_allclose(gradient, [1.0, 0.0, 1.0], atol=1e-13)


def test_integer_spectra_become_the_default_float():
    data = datasets.aligned_regression(KEY, [2, 1], [1, 1])
    assert data.inputs.shape == (4, 2)
    assert data.inputs.dtype == jnp.float64


def test_gaussian_data_are_standard_normal_and_independent():
    x, y = datasets.gaussian_regression(KEY, 100_000, 2, 1)
    together = np.hstack([x, y])
    # Five standard errors of a mean of 100,000 entries.
    np.testing.assert_allclose(together.mean(axis=0), 0, atol=5 / np.sqrt(1e5))
    np.testing.assert_allclose(np.cov(together.T), np.eye(3), atol=5 * np.sqrt(2 / 1e5))


@pytest.mark.parametrize(("n", "k_0"), [(2, 1), (2, 3), (7, 2), (60, 10)])
@pytest.mark.parametrize("margin", [0.2, 3.0])
def test_the_margin_is_the_maximum_and_the_direction_attains_it(n, k_0, margin):
    data = datasets.separable_pair(KEY, n, k_0, margin=margin)
    signed = np.asarray(data.labels[:, None] * data.inputs)
    assert data.inputs.shape == (n, k_0)
    assert set(np.asarray(data.labels)) == {-1, 1}
    np.testing.assert_allclose(np.linalg.norm(data.direction), 1, rtol=1e-14)
    np.testing.assert_allclose((signed @ data.direction).min(), margin, rtol=1e-12)
    # Duality: the maximum margin is the distance from 0 to the hull of the signed points. A point
    # of the hull at distance `margin` therefore proves that no direction does better.
    hull = linprog(
        np.zeros(n),
        A_eq=np.vstack([signed.T, np.ones(n)]),
        b_eq=np.append(margin * np.asarray(data.direction), 1.0),
    )
    assert hull.success


def test_the_support_vectors_span_the_space_where_there_are_enough_points():
    data = datasets.separable_pair(KEY, 40, 3, margin=0.5)
    signed = np.asarray(data.labels[:, None] * data.inputs)
    support = signed[signed @ data.direction < 0.5 * (1 + 1e-9)]
    assert len(support) == 6
    assert np.linalg.matrix_rank(support) == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda key: datasets.gaussian_regression(key, 5, 3, 2),
        lambda key: datasets.aligned_regression(key, jnp.ones(3), jnp.ones(2), noise=0.1),
        lambda key: datasets.separable_pair(key, 9, 3),
    ],
)
def test_the_key_alone_decides_also_under_vmap_and_jit(make):
    keys = jax.random.split(KEY, 3)
    batch = jax.jit(jax.vmap(make))(keys)
    for i, key in enumerate(keys):
        for one, many in zip(make(key), batch, strict=True):
            np.testing.assert_allclose(one, many[i], rtol=1e-12, atol=1e-14)
    assert not np.array_equal(batch[0][0], batch[0][1])


@pytest.mark.parametrize(
    ("call", "error", "complaint"),
    [
        (lambda: datasets.gaussian_regression(KEY, 0, 1, 1), ValueError, "n: .*at least 1, got 0"),
        (lambda: datasets.gaussian_regression(KEY, 3, 2.5, 1), TypeError, "k_0: .*integer.*2.5"),
        (
            lambda: datasets.aligned_regression(KEY, [1j], [1.0]),
            TypeError,
            "input_spectrum.*real.*complex",
        ),
        (lambda: datasets.aligned_regression(KEY, [], []), ValueError, "input_spectrum.*shape"),
        (
            lambda: datasets.aligned_regression(KEY, [[1.0]], [1.0]),
            ValueError,
            r"input_spectrum.*shape.*\(1, 1\)",
        ),
        (
            lambda: datasets.aligned_regression(KEY, [-1.0], [1.0]),
            ValueError,
            "input_spectrum.*>= 0",
        ),
        (
            lambda: datasets.aligned_regression(KEY, [1.0], [np.nan]),
            ValueError,
            "target_spectrum.*finite.*nan",
        ),
        (
            lambda: datasets.aligned_regression(KEY, [1.0], [1.0, 1.0]),
            ValueError,
            "target_spectrum.*at most.*1.*got 2",
        ),
        (
            lambda: datasets.aligned_regression(KEY, [1.0, 0.0], [1.0, 1.0]),
            ValueError,
            "target_spectrum.*zero where",
        ),
        (
            lambda: datasets.aligned_regression(KEY, [1.0, 1.0], [1.0, 1.0], k_d=1),
            ValueError,
            "k_d: .*at least 2, got 1",
        ),
        (
            lambda: datasets.aligned_regression(KEY, [1.0, 1.0], [1.0], n=1),
            ValueError,
            "n: .*at least 2, got 1",
        ),
        (
            lambda: datasets.aligned_regression(KEY, [1.0, 1.0], [1.0], n=2, noise=1.0),
            ValueError,
            "n: .*at least 3, got 2",
        ),
        (
            lambda: datasets.aligned_regression(KEY, [1.0], [1.0], noise=-1.0),
            ValueError,
            "noise.*>= 0.*-1",
        ),
        (lambda: datasets.separable_pair(KEY, 1, 3), ValueError, "n: .*at least 2, got 1"),
        (lambda: datasets.separable_pair(KEY, 4, 0), ValueError, "k_0: .*at least 1, got 0"),
        (
            lambda: datasets.separable_pair(KEY, 4, 2, margin=0.0),
            ValueError,
            "margin.*positive.*0.0",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, error, complaint):
    with pytest.raises(error, match=complaint):
        call()
