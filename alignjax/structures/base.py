"""What all layer structures share: coordinates, projection, membership, and how they are checked.

A layer structure is a linear subspace ``S`` of matrices with a basis ``A_j``; a layer is
``W = sum_j c_j A_j`` and is trained in its coefficients ``c``. Structures are static: immutable,
hashable, compared by what they are, and made of plain numbers and numpy arrays only.

To add one whose entries each hold one tap or zero, subclass :class:`Pattern` in a file of its own,
pass all that tells two instances apart to ``_set``, and give ``shape``, ``dim`` and ``_entries``;
for any other subspace subclass :class:`Structure`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignjax._validation import as_count, as_real, describe, is_concrete
from alignjax.linalg import matmul

__all__ = ["Coordinates", "Pattern", "Structure", "as_pair"]

Coordinates = Literal["orthonormal", "raw"]


@dataclass(frozen=True, init=False, eq=False)
class Structure(ABC):
    """A linear subspace ``S`` of ``(k_out, k_in)`` matrices: ``W = sum_j c_j A_j``.

    In coordinates ``"orthonormal"`` the basis is orthonormal in the Frobenius inner product, so
    ``||W||_F = ||c||``, and gradient descent on ``c`` is projected gradient descent on ``W``
    (Theorem 2). In coordinates ``"raw"`` the coefficients are the taps themselves, as deep-learning
    frameworks train them. Descent on raw taps with rate ``eta`` is, where the raw elements are
    orthogonal, descent in orthonormal coordinates with rate ``eta * norms[j]**2`` for tap ``j``: a
    scaled projection.

    Attributes:
        coordinates: ``"orthonormal"`` or ``"raw"``.

    Source: Radhakrishnan et al. 2020, Definition 4, Theorem 2 and its footnote 3: where the basis
    is orthogonal but not orthonormal, descent is a projection with a scale of its own for each tap.
    """

    coordinates: Coordinates
    _identity: tuple[Any, ...] = field(init=False, repr=False)

    def _set(self, coordinates: Any, **fields: Any) -> None:
        """Fill the frozen instance; for ``__init__`` only."""
        if coordinates not in get_args(Coordinates):
            raise ValueError(
                f"coordinates must be 'orthonormal' or 'raw', got {describe(coordinates)}"
            )
        self.__setstate__({"coordinates": coordinates, **fields})
        object.__setattr__(self, "_identity", _identity({"coordinates": coordinates, **fields}))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill the instance, copies included; arrays cannot be written any more."""
        for name, value in state.items():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
            object.__setattr__(self, name, value)

    # Compiled runs are kept by structure, so two that differ must never be equal. By all that
    # `_set` was given, not by dataclass fields, which a subclass may forget to declare.

    def __eq__(self, other: object) -> bool:
        """Whether the other is of the same class and was made of the same numbers."""
        return type(self) is type(other) and self._identity == other._identity

    def __hash__(self) -> int:
        """Agrees with equality."""
        return hash((type(self), self._identity))

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(k_out, k_in)`` of the layer's matrix."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """The dimension of ``S``, the number of coefficients."""

    @property
    @abstractmethod
    def norms(self) -> np.ndarray:
        """The Frobenius norms of the raw basis elements, shape ``(dim,)``.

        They say how the scale of raw descent differs tap by tap: a raw rate ``eta`` is the rate
        ``eta * norms**2`` in orthonormal coordinates.
        """

    # What a structure gives; the public methods derive the rest.

    @abstractmethod
    def _fill(self, taps: Array) -> Array:
        """The matrix with these raw coefficients."""

    @abstractmethod
    def _fit(self, matrix: Array) -> Array:
        """The coefficients, in this structure's coordinates, of the nearest matrix in ``S``."""

    def _act(self, taps: Array, x: Array) -> Array:
        """``x @ matrix.T``; structures that can do without the matrix override it."""
        return matmul(x, self._fill(taps).T)

    def raw(self, coefficients: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Raw coefficients of what has these orthonormal ones: ``c_j / ||A_j||_F``.

        Raises:
            TypeError, ValueError: if ``coefficients`` is no real vector of length ``dim``.
        """
        c = self.check(coefficients)
        return c / jnp.asarray(self.norms, c.dtype)

    def orthonormal(self, coefficients: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Orthonormal coefficients of what has these raw ones: ``c_j ||A_j||_F``.

        Raises:
            TypeError, ValueError: if ``coefficients`` is no real vector of length ``dim``.
        """
        c = self.check(coefficients)
        return c * jnp.asarray(self.norms, c.dtype)

    def matrix(self, coefficients: Float[Array, " dim"]) -> Float[Array, "k_out k_in"]:
        """The layer's matrix ``W = sum_j c_j A_j``.

        Args:
            coefficients: ``c``, shape ``(dim,)``, in this structure's coordinates.

        Returns:
            ``W``, shape ``(k_out, k_in)``.

        Raises:
            TypeError, ValueError: if ``coefficients`` is no real vector of length ``dim``.

        Source: Radhakrishnan et al. 2020, Definition 4.
        """
        return self._fill(self._taps(self.check(coefficients)))

    def apply(
        self, coefficients: Float[Array, " dim"], x: Float[Array, "*n k_in"]
    ) -> Float[Array, "*n k_out"]:
        """The layer's outputs ``x W^T`` for inputs in rows.

        Args:
            coefficients: ``c``, shape ``(dim,)``, in this structure's coordinates.
            x: inputs, shape ``(..., k_in)``.

        Returns:
            Outputs, shape ``(..., k_out)``, in the common dtype of both arguments.

        Raises:
            TypeError, ValueError: if ``coefficients`` or ``x`` are not real or do not fit.
        """
        c, x = self.check(coefficients), as_real(x, "x", finite=False)
        if x.ndim == 0 or x.shape[-1] != self.shape[1]:
            raise ValueError(
                f"x must hold rows of k_in = {self.shape[1]} inputs, got shape {x.shape}"
            )
        dtype = jnp.promote_types(c.dtype, x.dtype)
        return self._act(self._taps(c).astype(dtype), x.astype(dtype))

    def project(self, matrix: Float[Array, "k_out k_in"]) -> Float[Array, "k_out k_in"]:
        """The nearest matrix of ``S`` in the Frobenius norm.

        Args:
            matrix: any matrix, shape ``(k_out, k_in)``.

        Returns:
            ``sum_j <matrix, A_j> A_j / ||A_j||_F^2`` over an orthogonal basis, of the same shape.

        Raises:
            TypeError, ValueError: if ``matrix`` is not real or of another shape.

        Source: Radhakrishnan et al. 2020, Theorem 2.
        """
        return self._fill(self._taps(self._fit(self._checked_matrix(matrix))))

    def coefficients(self, matrix: Float[Array, "k_out k_in"]) -> Float[Array, " dim"]:
        """The coefficients of a matrix that lies in ``S``, the inverse of :meth:`matrix`.

        Membership is checked where the matrix is concrete, up to the roundoff of its dtype (for
        patterns a distance of ``8 sqrt(max(k_out, k_in)) eps ||W||_F``); a traced matrix gets the
        coefficients of its projection.

        Args:
            matrix: a matrix of ``S``, shape ``(k_out, k_in)``.

        Returns:
            ``c``, shape ``(dim,)``, in this structure's coordinates.

        Raises:
            TypeError, ValueError: if ``matrix`` is not real, of another shape, or outside ``S``;
                the message holds the Frobenius distance.
        """
        matrix = self._checked_matrix(matrix)
        c = self._fit(matrix)
        if is_concrete(c):
            distance, roundoff = self._distance(np.asarray(matrix, np.float64))
            norm = float(jnp.linalg.norm(matrix))
            tolerance = roundoff * float(jnp.finfo(matrix.dtype).eps) * norm
            if not distance <= tolerance:
                raise ValueError(
                    f"matrix must lie in the subspace of {type(self).__name__}, but its Frobenius "
                    f"distance from it is {distance:.6g} (its norm is {norm:.6g}); "
                    f"project(matrix) gives the nearest one"
                )
        return c

    @abstractmethod
    def _distance(self, matrix: np.ndarray) -> tuple[float, float]:
        """The Frobenius distance from ``S``, and the epsilons of the norm that roundoff may add."""

    def _taps(self, c: Array) -> Array:
        return self.raw(c) if self.coordinates == "orthonormal" else c

    def check(
        self, coefficients: Any, name: str = "coefficients", *, finite: bool = False
    ) -> Float[Array, " dim"]:
        """Coefficients of this structure as a real JAX vector; integers become floats.

        Args:
            coefficients: anything that becomes an array, shape ``(dim,)``.
            name: what messages call it.
            finite: whether NaN and infinity are refused (where the values are concrete).

        Raises:
            TypeError: if they are not real.
            ValueError: if they are no vector of length ``dim``.
        """
        if np.ndim(coefficients) == 2:
            raise ValueError(
                f"{name} must be a vector of {self.dim} coefficients, as structure.coefficients("
                f"matrix) gives, got a matrix of shape {np.shape(coefficients)}"
            )
        c = as_real(coefficients, name, ndim=1, finite=finite)
        if c.shape != (self.dim,):
            raise ValueError(
                f"{name} must hold {self.dim} coefficients, the dimension of "
                f"{type(self).__name__} with shape {self.shape}, got {c.shape[0]}"
            )
        return c

    def _checked_matrix(self, matrix: Any) -> Array:
        out = as_real(matrix, "matrix", ndim=2)
        if out.shape != self.shape:
            raise ValueError(f"matrix must have shape {self.shape}, got {out.shape}")
        return out


@dataclass(frozen=True, init=False, eq=False)
class Pattern(Structure):
    """A subspace in which every entry of the matrix is one of the taps, or zero.

    Its raw elements are 0/1 matrices with disjoint supports, hence orthogonal, and ``norms[j]`` is
    the square root of the number of entries that hold tap ``j``.
    """

    @abstractmethod
    def _entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and taps of all entries that are not zero, each entry once."""

    def _counts(self) -> np.ndarray:
        """How many entries hold each tap; overridden where a formula knows."""
        return np.bincount(self._entries()[2], minlength=self.dim)

    @cached_property
    def norms(self) -> np.ndarray:
        """The square roots of how many entries of the matrix hold each tap, shape ``(dim,)``.

        A raw rate ``eta`` is the rate ``eta * norms**2`` in orthonormal coordinates.
        """
        norms = np.sqrt(np.asarray(self._counts(), np.float64))
        norms.flags.writeable = False
        return norms

    def _fill(self, taps: Array) -> Array:
        rows, columns, index = self._entries()
        return (
            jnp.zeros(self.shape, taps.dtype)
            .at[rows, columns]
            .set(taps[index], unique_indices=True)
        )

    def _distance(self, matrix: np.ndarray) -> tuple[float, float]:
        rows, columns, index = self._entries()
        rest = matrix.copy()
        sums = np.bincount(index, matrix[rows, columns], minlength=self.dim)
        rest[rows, columns] -= (sums / self.norms**2)[index]
        # After a descent on matrices, entries that hold one tap agree up to many roundings.
        return float(np.linalg.norm(rest)), 8.0 * max(self.shape) ** 0.5

    def _fit(self, matrix: Array) -> Array:
        rows, columns, index = self._entries()
        sums = jnp.zeros(self.dim, matrix.dtype).at[index].add(matrix[rows, columns])
        norms = jnp.asarray(self.norms, matrix.dtype)
        return sums / (norms if self.coordinates == "orthonormal" else norms**2)


def _identity(fields: dict[str, Any]) -> tuple[Any, ...]:
    """What tells two structures of one class apart, hashable."""
    return tuple(
        (name, value.shape, value.dtype.str, value.tobytes())
        if isinstance(value, np.ndarray)
        else (name, value)
        for name, value in sorted(fields.items())
    )


def as_pair(value: Any, name: str) -> tuple[int, int]:
    """An integer, meant twice, or a pair of integers of at least 1, by name in errors."""
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes)):
        if np.ndim(value) != 1 or len(value) != 2:
            raise ValueError(f"{name} must be an integer or a pair of them, got {describe(value)}")
        first, second = (as_count(v, f"{name}[{i}]", minimum=1) for i, v in enumerate(value))
        return first, second
    count = as_count(value, name, minimum=1)
    return count, count
