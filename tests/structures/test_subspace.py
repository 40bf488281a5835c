"""What every structure promises, in both coordinates and both precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.structures import Basis
from tests.structures.cases import STRUCTURES, elements, normal, raw_elements

EPS = {jnp.float64: 1e-12, jnp.float32: 1e-4}
every = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
both = pytest.mark.parametrize("dtype", EPS)


def close(found, expected, dtype=jnp.float64):
    scale = float(np.abs(expected).max()) + 1e-30
    np.testing.assert_allclose(found, expected, rtol=0, atol=EPS[dtype] * scale)


@both
@every
def test_apply_multiplies_rows_by_the_matrix(structure, dtype):
    c = normal(structure.dim, dtype=dtype)
    weight = structure.matrix(c)
    assert weight.shape == structure.shape
    for lead in ((), (3,), (2, 3)):
        x = normal(*lead, structure.shape[1], dtype=dtype, seed=1)
        y = structure.apply(c, x)
        assert y.dtype == weight.dtype == dtype
        assert y.shape == (*lead, structure.shape[0])
        close(y, np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T, dtype)


@every
def test_the_matrix_is_linear_in_the_coefficients(structure):
    c, d = normal(structure.dim), normal(structure.dim, seed=1)
    close(structure.matrix(2 * c - 3 * d), 2 * structure.matrix(c) - 3 * structure.matrix(d))


@both
@every
def test_coefficients_invert_the_matrix(structure, dtype):
    c = normal(structure.dim, dtype=dtype)
    found = structure.coefficients(structure.matrix(c))
    assert found.dtype == dtype
    close(found, c, dtype)
    close(jax.jit(structure.coefficients)(structure.matrix(c)), c, dtype)


@both
@every
def test_the_projection_is_the_nearest_matrix_of_the_subspace(structure, dtype):
    matrix = normal(*structure.shape, dtype=dtype)
    vectors = elements(structure).reshape(structure.dim, -1).T
    best = np.linalg.lstsq(vectors, np.asarray(matrix, np.float64).ravel(), rcond=None)[0]
    projection = structure.project(matrix)
    assert projection.dtype == dtype
    close(projection, (vectors @ best).reshape(structure.shape), dtype)


@every
def test_the_projection_is_idempotent_and_self_adjoint(structure):
    m, n = normal(*structure.shape), normal(*structure.shape, seed=1)
    close(structure.project(structure.project(m)), structure.project(m))
    left, right = (structure.project(m) * n).sum(), (m * structure.project(n)).sum()
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-12 * float(jnp.abs(m * n).sum()))


@every
def test_orthonormal_coordinates_keep_norms(structure):
    c = normal(structure.dim)
    taps = c if structure.coordinates == "orthonormal" else structure.raw(c)
    np.testing.assert_allclose(
        jnp.linalg.norm(structure.matrix(taps)), jnp.linalg.norm(c), rtol=1e-13
    )


@every
def test_norms_are_those_of_the_raw_elements(structure):
    assert structure.norms.shape == (structure.dim,)
    expected = np.linalg.norm(raw_elements(structure), axis=(1, 2))
    np.testing.assert_allclose(structure.norms, expected, rtol=1e-13)


@every
def test_raw_and_orthonormal_coefficients_convert(structure):
    c = normal(structure.dim)
    close(structure.raw(structure.orthonormal(c)), c)
    raw = np.tensordot(c, raw_elements(structure), 1)
    own = structure.orthonormal(c) if structure.coordinates == "orthonormal" else c
    close(structure.matrix(own), raw)


@both
@every
def test_the_gradient_in_a_coefficient_is_that_of_the_matrix_along_its_element(structure, dtype):
    c = normal(structure.dim, dtype=dtype)
    x = normal(3, structure.shape[1], dtype=dtype, seed=1)
    g = normal(3, structure.shape[0], dtype=dtype, seed=2)
    _, pullback = jax.vjp(structure.apply, c, x)
    by_c, by_x = pullback(g)
    slope = np.asarray(g, np.float64).T @ np.asarray(x, np.float64)
    close(by_c, np.tensordot(elements(structure), slope, 2), dtype)
    close(by_x, np.asarray(g, np.float64) @ np.asarray(structure.matrix(c), np.float64), dtype)


@every
def test_derivatives_of_second_order_agree_with_those_of_matrices(structure):
    c, d = normal(structure.dim), normal(structure.dim, seed=1)
    x, dx = normal(2, structure.shape[1], seed=2), normal(2, structure.shape[1], seed=3)

    def by_matrix(c, x):
        return x @ structure.matrix(c).T

    def derivatives(apply):
        def energy(c, x):
            return (apply(c, jnp.sin(x)) ** 3).sum()

        def along(c, x):
            return jax.jvp(energy, (c, x), (d, dx))[1]

        def slopes(c, x):
            return jax.grad(energy, (0, 1))(c, x)

        forward_over_reverse = jax.jvp(slopes, (c, x), (d, dx))[1]
        reverse_over_reverse = jax.vjp(slopes, c, x)[1]((d, dx))
        return (along(c, x), jax.grad(along, (0, 1))(c, x)), (
            forward_over_reverse,
            reverse_over_reverse,
        )

    found, expected = (
        jax.jit(derivatives, static_argnums=0)(apply) for apply in (structure.apply, by_matrix)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        close(a, b)


@every
def test_vmap_over_coefficients_inputs_and_both_nested(structure):
    cs, xs = normal(2, 3, structure.dim), normal(3, 2, 4, structure.shape[1], seed=1)
    weights = jax.vmap(jax.vmap(structure.matrix))(cs)

    def value(c, x):
        return (structure.apply(c, x) ** 2).sum()

    def plain(w, x):
        return ((x @ w.T) ** 2).sum()

    @jax.jit
    def mapped(cs, xs):
        return (
            jax.vmap(jax.vmap(jax.grad(value, (0, 1))), (0, 1))(cs, xs),
            jax.vmap(jax.vmap(structure.apply, (0, None)), (0, None))(cs, xs[0, 0]),
            jax.vmap(structure.apply, (None, 1), 1)(cs[0, 0], xs[:, 0]),
            jax.grad(lambda c: jax.vmap(value, (None, 0))(c, xs[:, 0]).sum())(cs[0, 0]),
            jax.vmap(jax.grad(value), (None, 0))(cs[0, 0], xs[:, 0]),
        )

    (by_c, by_x), shared, one, total, each = mapped(cs, xs)
    slopes, expected = jax.vmap(jax.vmap(jax.grad(plain, (0, 1))), (0, 1))(weights, xs)
    close(by_c, np.einsum("jab,uvab->uvj", elements(structure), slopes))
    close(by_x, expected)
    close(shared, np.einsum("ni,uvoi->uvno", xs[0, 0], weights))
    close(one, np.einsum("bni,oi->bno", xs[:, 0], weights[0, 0]))
    close(total, each.sum(0))


@every
def test_float32_constants_do_not_widen_and_mixed_dtypes_promote(structure):
    c, x = normal(structure.dim, dtype=jnp.float32), normal(2, structure.shape[1])
    assert structure.apply(c, x).dtype == jnp.float64
    assert structure.apply(c, x.astype(jnp.float32)).dtype == jnp.float32
    assert structure.raw(c).dtype == structure.orthonormal(c).dtype == jnp.float32
    assert jax.grad(lambda c: structure.matrix(c).sum())(c).dtype == jnp.float32


@pytest.mark.parametrize(
    "structure", [s for s in STRUCTURES.values() if s.dim < np.prod(s.shape)], ids=repr
)
def test_a_matrix_outside_is_refused_with_its_distance(structure):
    matrix = np.asarray(normal(*structure.shape))
    distance = float(np.linalg.norm(matrix - structure.project(matrix)))
    with pytest.raises(ValueError, match=rf"^matrix .*{distance:.4g}"[:-1]):
        structure.coefficients(matrix)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_a_basis_is_judged_by_its_directions_and_not_its_scale(scale):
    structure = Basis(np.stack([np.eye(2), scale * np.ones((2, 2))]), coordinates="raw")
    c = jnp.array([1.0, 2.0 / scale])
    np.testing.assert_allclose(structure.matrix(c), np.eye(2) + 2, rtol=1e-13)
    np.testing.assert_allclose(structure.coefficients(structure.matrix(c)), c, rtol=1e-12)


def test_an_ill_conditioned_basis_keeps_its_orthonormal_coordinates():
    near = np.stack([np.eye(3), np.eye(3) + 1e-9 * np.ones((3, 3))])
    structure = Basis(near)
    vectors = elements(structure).reshape(2, -1)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(2), atol=1e-14)
