"""Reduced-rank regression: the best end-to-end matrix of each rank."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._roundoff import above, relative_roundoff
from alignjax._validation import as_count
from alignjax.linalg import matmul
from alignjax.theory.sequential.moments import checked_moments

__all__ = ["reduced_rank_regression"]


def reduced_rank_regression(problem: Any, rank: int) -> Float[Array, "k_d k_0"]:
    """The end-to-end matrix of least risk among those of rank at most ``k``, of least norm.

        W_k = P_k Sigma_yx Sigma_xx^+

    with ``P_k`` the projector on the first k left singular vectors of
    ``Sigma_yx (Sigma_xx^+)^{1/2}``, whose singular values are ``s_1 >= s_2 >= ...``. The risk is
    ``1/2 sum_{i > k} s_i^2`` above its minimum. The inputs may lack ranks; where they lie in a span
    of few directions, no ``(k_0, k_0)`` matrix is formed.

    Where ``s_k = s_{k+1}`` there are many minimizers, and this is one of them, not always that of
    least norm. Derivatives in the moments are exact, ties among the first k included. They are NaN
    where none exist: for a tie at the cut, or inputs that lack a rank.

    Args:
        problem: a problem with the squared loss, or :class:`alignjax.Moments`.
        rank: k, at least 0, static; from the full rank on, the result is least squares.

    Returns:
        ``W_k``, shape ``(k_d, k_0)``.

    Raises:
        TypeError: for another problem, or a rank that is traced or no integer.
        ValueError: for a negative rank, or moments that are not symmetric and positive
            semidefinite.

    Source: Izenman 1975; Gidel et al. 2019, eq. 4. Descent from small starts passes these matrices
    only where learning and regression take up the modes in one order, unlike what the printed
    Corollary 2 says: see :func:`regression_order`.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> problem = aj.factorization(jnp.diag(jnp.array([3.0, 2.0])))
        >>> aj.theory.sequential.reduced_rank_regression(problem, 1).round(6).tolist()
        [[3.0, 0.0], [0.0, 0.0]]
    """
    moments = checked_moments(problem, "reduced_rank_regression")
    k = as_count(rank, "rank")
    fit = _fit(moments.input_moment, moments.cross_moment, k)
    return fit if moments.basis is None else matmul(fit, moments.basis.T)


def _spectral_parts(inputs: Array, cross: Array) -> tuple[Array, ...]:
    """``Sigma_xx^+``'s square root ``V r V^T`` and the thin SVD of ``Sigma_yx V r``."""
    values, vectors = jnp.linalg.eigh(inputs)
    keep = above(values, relative_roundoff(values.dtype, *inputs.shape))
    root = jnp.where(keep, 1 / jnp.sqrt(jnp.where(keep, values, 1.0)), 0.0)
    left, sizes, _ = jnp.linalg.svd(matmul(cross, vectors) * root[None], full_matrices=False)
    return vectors, root, left, sizes, keep.all()


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _fit(inputs: Array, cross: Array, rank: int) -> Array:
    vectors, root, left, _, _ = _spectral_parts(inputs, cross)
    least_squares = matmul(matmul(cross, vectors) * root[None] ** 2, vectors.T)
    if rank >= left.shape[1]:
        return least_squares
    first = left[:, :rank]
    return matmul(first, matmul(first.T, least_squares))


@_fit.defjvp
def _fit_jvp(rank: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # dW_k = dP_k W + P_k dW, with W = Sigma_yx Sigma_xx^{-1} and P_k a projector on eigenvectors of
    # G = W Sigma_yx^T: only gaps across the cut enter, so that ties on one side do no harm.
    (inputs, cross), (d_inputs, d_cross) = primals, tangents
    if rank == 0:
        return jnp.zeros_like(cross), jnp.zeros_like(cross)
    vectors, root, left, sizes, full = _spectral_parts(inputs, cross)

    def solve(rows: Array) -> Array:
        return matmul(matmul(rows, vectors) * root[None] ** 2, vectors.T)

    least_squares = solve(cross)
    d_inputs = 0.5 * (d_inputs + d_inputs.T)
    slope = solve(d_cross - matmul(least_squares, d_inputs))
    honest = jnp.where(full, 1.0, jnp.nan).astype(sizes.dtype)
    if rank >= left.shape[1]:
        return least_squares, slope * honest
    first, rest = left[:, :rank], left[:, rank:]
    d_gram = matmul(slope, cross.T) + matmul(least_squares, d_cross.T)
    # Rows of `first`^T dG in the directions beyond the cut, those outside of the thin SVD included.
    row = matmul(first.T, d_gram)
    inside = matmul(row, rest)
    outside = row - matmul(matmul(row, left), left.T)
    squares = sizes**2
    gaps = squares[:rank, None] - squares[None, rank:]
    apart = above(gaps, relative_roundoff(sizes.dtype, *cross.shape), squares[0]).all()
    honest = jnp.where(apart, honest, jnp.nan)
    turn = matmul(inside / gaps, rest.T) + outside / squares[:rank, None]
    half = matmul(first, turn)
    d_projector = half + half.T
    fit = matmul(first, matmul(first.T, least_squares))
    tangent = matmul(d_projector, least_squares) + matmul(first, matmul(first.T, slope))
    return fit, tangent * honest
