"""Diagonal matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array

from alignjax._validation import as_count
from alignjax.structures.base import Coordinates, Pattern

__all__ = ["Diagonal"]


@dataclass(frozen=True, init=False, eq=False)
class Diagonal(Pattern):
    """``W = diag(c)``: ``apply`` is a product entry by entry and builds no matrix.

    The entries are orthonormal coordinates already (``norms`` are ones), so both coordinate systems
    agree.

    Args:
        k: the size of the square matrix.
        coordinates: ``"orthonormal"`` or ``"raw"``.

    Raises:
        TypeError, ValueError: if ``k`` is no positive integer, or for unknown coordinates.

    Source: Radhakrishnan et al. 2020, Definition 4.

    Example:
        >>> Diagonal(2).apply([2, 3], [[1, 1], [0, 5]])
        Array([[ 2.,  3.],
               [ 0., 15.]], dtype=float64)
    """

    k: int

    def __init__(self, k: int, *, coordinates: Coordinates = "orthonormal") -> None:
        """Check the arguments and freeze the structure."""
        self._set(coordinates, k=as_count(k, "k", minimum=1))

    @property
    def shape(self) -> tuple[int, int]:
        """``(k, k)``."""
        return self.k, self.k

    @property
    def dim(self) -> int:
        """``k``."""
        return self.k

    def _entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        index = np.arange(self.k)
        return index, index, index

    def _act(self, taps: Array, x: Array) -> Array:
        return taps[(*[None] * (x.ndim - 1), ...)] * x
