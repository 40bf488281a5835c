"""The span of any matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.lax.linalg import triangular_solve
from jaxtyping import Array, Float

from alignjax._roundoff import row_rank
from alignjax._validation import as_raw, describe, require_concrete
from alignjax.linalg import matmul
from alignjax.structures.base import Coordinates, Structure

__all__ = ["Basis"]


@dataclass(frozen=True, init=False, eq=False)
class Basis(Structure):
    """The span of given matrices: ``W = sum_j c_j A_j``.

    Raw coordinates belong to the matrices as given, orthonormal ones to what Gram-Schmidt makes of
    them in their order, ``vec(A_j) = sum_i Q_i R_ij`` with ``R`` upper triangular and its diagonal
    positive. Descent on raw coefficients with rate ``eta`` is descent in orthonormal coordinates
    with the step ``eta R R^T`` times the gradient; for orthogonal matrices that is the rate ``eta *
    norms[j]**2`` for coefficient ``j``.

    Args:
        matrices: linearly independent real matrices, shape ``(dim, k_out, k_in)``; concrete.
        coordinates: ``"orthonormal"`` or ``"raw"``.

    Raises:
        TypeError: if ``matrices`` are traced or not real.
        ValueError: if they are not of one shape, not finite, or linearly dependent (the message
            holds their numerical rank); for unknown coordinates.

    Source: Radhakrishnan et al. 2020, Definition 4.

    Example:
        >>> layer = Basis([[[1, 0], [0, 1]], [[1, 1], [1, 1]]])
        >>> layer.dim
        2
        >>> layer.matrix(layer.orthonormal([1, 2]))
        Array([[3., 2.],
               [2., 3.]], dtype=float64)
    """

    given: np.ndarray
    orthonormal_matrices: np.ndarray = field(repr=False)
    triangle: np.ndarray = field(repr=False)
    size: tuple[int, ...] = field(repr=False)

    def __init__(
        self,
        matrices: Float[Array, "dim k_out k_in"] | Sequence[Any] | np.ndarray,
        *,
        coordinates: Coordinates = "orthonormal",
    ) -> None:
        """Check the arguments and freeze the structure."""
        given, dtype = _as_matrices(matrices)
        given = given + 0.0  # -0.0 is the same number
        vectors = given.reshape(given.shape[0], -1)
        _require_independent(vectors, dtype)
        q, r = np.linalg.qr(vectors.T)
        signs = np.where(np.diag(r) < 0, -1.0, 1.0)
        orthonormal = np.ascontiguousarray((q * signs).T).reshape(given.shape)
        triangle = np.triu(signs[:, None] * r)
        self._set(
            coordinates,
            given=given,
            orthonormal_matrices=orthonormal,
            triangle=triangle,
            size=given.shape,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """``(k_out, k_in)``."""
        return self.size[1], self.size[2]

    @property
    def dim(self) -> int:
        """How many matrices were given."""
        return self.size[0]

    @property
    def norms(self) -> np.ndarray:
        """The Frobenius norms of the given matrices, shape ``(dim,)``."""
        return np.sqrt((self.given**2).sum((1, 2)))

    def raw(self, coefficients: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Raw coefficients of what has these orthonormal ones: ``R^{-1} c``.

        Raises:
            TypeError, ValueError: if ``coefficients`` is no real vector of length ``dim``.
        """
        return self._solve(self.check(coefficients))

    def orthonormal(self, coefficients: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Orthonormal coefficients of what has these raw ones: ``R c``.

        Raises:
            TypeError, ValueError: if ``coefficients`` is no real vector of length ``dim``.
        """
        c = self.check(coefficients)
        return matmul(jnp.asarray(self.triangle, c.dtype), c)

    def _solve(self, c: Array) -> Array:
        triangle = jnp.asarray(self.triangle, c.dtype)
        return triangular_solve(triangle, c[:, None], left_side=True, lower=False)[:, 0]

    # The coordinates' own matrices are used as they are: going through the raw ones would lose
    # what an ill-conditioned basis loses.

    def _taps(self, c: Array) -> Array:
        return c

    def _fill(self, taps: Array) -> Array:
        raw = self.coordinates == "raw"
        matrices = self.given if raw else self.orthonormal_matrices
        return jnp.tensordot(taps, jnp.asarray(matrices, taps.dtype), 1, precision="highest")

    def _distance(self, matrix: np.ndarray) -> tuple[float, float]:
        vectors = self.orthonormal_matrices.reshape(self.dim, -1)
        rest = matrix.ravel() - (vectors @ matrix.ravel()) @ vectors
        return float(np.linalg.norm(rest)), 64.0 * self.dim**0.5

    def _fit(self, matrix: Array) -> Array:
        vectors = self.orthonormal_matrices.reshape(self.dim, -1)
        c = matmul(jnp.asarray(vectors, matrix.dtype), matrix.ravel())
        return self._solve(c) if self.coordinates == "raw" else c


def _as_matrices(matrices: Any) -> tuple[np.ndarray, Any]:
    """A copy of the matrices in float64, shape ``(dim, k_out, k_in)``, and the dtype they had."""
    require_concrete(matrices, "matrices", "Basis")
    if isinstance(matrices, Sequence) and not isinstance(matrices, (str, bytes)):
        matrices = [np.asarray(as_raw(m, f"matrices[{i}]")) for i, m in enumerate(matrices)]
        shapes = sorted({m.shape for m in matrices})
        if len(shapes) > 1:
            raise ValueError(f"matrices must have one shape, got {shapes}")
    raw = as_raw(matrices, "matrices")
    given = np.array(raw, np.float64, order="C")
    if given.ndim != 3 or given.size == 0:
        raise ValueError(
            f"matrices must be one or more of one shape (k_out, k_in), an array (dim, k_out, "
            f"k_in), got {describe(given)}"
        )
    if not np.isfinite(given).all():
        raise ValueError("matrices must be finite, but hold NaN or infinity")
    return given, raw.dtype


def _require_independent(vectors: np.ndarray, dtype: Any) -> None:
    rank = row_rank(vectors, dtype)
    if rank < len(vectors):
        raise ValueError(
            f"matrices must be linearly independent, but the {len(vectors)} given have numerical "
            f"rank {rank}"
        )
