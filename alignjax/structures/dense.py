"""All matrices: the structure of an ordinary layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array

from alignjax.structures.base import Coordinates, Structure, as_pair

__all__ = ["Dense"]


@dataclass(frozen=True, init=False, eq=False)
class Dense(Structure):
    """All ``(k_out, k_in)`` matrices, their entries row by row.

    The entries are orthonormal coordinates already, so both coordinate systems agree.

    Args:
        shape: ``(k_out, k_in)``, or one integer for a square.
        coordinates: ``"orthonormal"`` or ``"raw"``.

    Raises:
        TypeError, ValueError: for sizes that are no positive integers, or unknown coordinates.

    Source: Radhakrishnan et al. 2020, Definition 4.

    Example:
        >>> Dense((2, 3)).matrix([1, 2, 3, 4, 5, 6])
        Array([[1., 2., 3.],
               [4., 5., 6.]], dtype=float64)
    """

    size: tuple[int, int]

    def __init__(
        self, shape: int | Sequence[int], *, coordinates: Coordinates = "orthonormal"
    ) -> None:
        """Check the arguments and freeze the structure."""
        self._set(coordinates, size=as_pair(shape, "shape"))

    @property
    def shape(self) -> tuple[int, int]:
        """``(k_out, k_in)``."""
        return self.size

    @property
    def dim(self) -> int:
        """``k_out * k_in``."""
        return self.size[0] * self.size[1]

    @property
    def norms(self) -> np.ndarray:
        """Ones, shape ``(dim,)``: raw and orthonormal descent have the same rate everywhere."""
        return np.ones(self.dim)

    def _fill(self, taps: Array) -> Array:
        return taps.reshape(self.size)

    def _distance(self, matrix: np.ndarray) -> tuple[float, float]:
        return 0.0, 0.0

    def _fit(self, matrix: Array) -> Array:
        return matrix.ravel()
