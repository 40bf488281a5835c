"""Circulant matrices: cyclic convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignjax._validation import as_count
from alignjax.structures.base import Coordinates, Pattern
from alignjax.structures.correlation import correlate
from alignjax.structures.fourier import FFT_FROM, circular_convolution

__all__ = ["Circulant"]


@dataclass(frozen=True, init=False, eq=False)
class Circulant(Pattern):
    """``W[i, j] = t[(i - j) mod k]``: circulant matrices, by their first column ``t``.

    All elements have ``norms**2 = k``, so descent on raw coefficients with rate ``eta`` is
    projected descent with rate ``eta k``: here the raw coordinates only rescale.

    ``apply`` and its derivatives build no matrix: a sum over shifts for small ``k``, a fast Fourier
    transform from ``k >= 32`` on.

    Args:
        k: the size of the square matrix.
        coordinates: ``"orthonormal"`` or ``"raw"`` (the first column).

    Raises:
        TypeError, ValueError: if ``k`` is no positive integer, or for unknown coordinates.

    Source: Radhakrishnan et al. 2020, Definition 4.

    Example:
        >>> Circulant(3, coordinates="raw").matrix([1, 2, 3])
        Array([[1., 3., 2.],
               [2., 1., 3.],
               [3., 2., 1.]], dtype=float64)
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

    def _counts(self) -> np.ndarray:
        return np.full(self.k, self.k)

    def _entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, columns = (index.ravel() for index in np.indices(self.shape))
        return rows, columns, (rows - columns) % self.k

    def _act(self, taps: Array, x: Array) -> Array:
        if self.k >= FFT_FROM:
            return circular_convolution(taps, x, self.k)
        rows = x.reshape(-1, 1, self.k)
        around = jnp.concatenate([rows[..., 1:], rows], axis=-1)
        return correlate(taps[None, ::-1], around).reshape(x.shape)
