"""Matrices that are zero outside of a mask."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from alignjax._validation import as_raw, describe, require_concrete
from alignjax.structures.base import Coordinates, Pattern

__all__ = ["Sparse"]


@dataclass(frozen=True, init=False, eq=False)
class Sparse(Pattern):
    """Matrices that are zero where ``mask`` is 0; the free entries row by row.

    The entries are orthonormal coordinates already (``norms`` are ones), so both coordinate systems
    agree.

    Args:
        mask: zeros and ones (or booleans), shape ``(k_out, k_in)``; concrete.
        coordinates: ``"orthonormal"`` or ``"raw"``.

    Raises:
        TypeError: if ``mask`` is traced or holds no real numbers.
        ValueError: if it is not 2-d, holds anything but 0 and 1, or no 1; for unknown coordinates.

    Source: Radhakrishnan et al. 2020, Definition 4 (layers with sparse connections).

    Example:
        >>> Sparse([[1, 0], [1, 1]]).matrix([1, 2, 3])
        Array([[1., 0.],
               [2., 3.]], dtype=float64)
    """

    mask: np.ndarray
    size: tuple[int, int] = field(repr=False)

    def __init__(self, mask: ArrayLike, *, coordinates: Coordinates = "orthonormal") -> None:
        """Check the arguments and freeze the structure."""
        require_concrete(mask, "mask", "Sparse")
        given = np.asarray(as_raw(mask, "mask"))
        if given.ndim != 2:
            raise ValueError(f"mask must have 2 dimensions, got {given.ndim}: shape {given.shape}")
        if not np.isin(given, (0, 1)).all():
            other = given[~np.isin(given, (0, 1))][0]
            raise ValueError(f"mask must hold zeros and ones only, but holds {other}")
        free = given.astype(bool)
        if not free.any():
            raise ValueError(f"mask must leave an entry free, got {describe(given)} without a one")
        size = (free.shape[0], free.shape[1])
        self._set(coordinates, mask=free, size=size)

    @property
    def shape(self) -> tuple[int, int]:
        """``(k_out, k_in)``."""
        return self.size

    @property
    def dim(self) -> int:
        """How many entries are free."""
        return int(self.mask.sum())

    def _entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, columns = np.nonzero(self.mask)
        return rows, columns, np.arange(rows.size)
