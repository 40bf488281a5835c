"""Toeplitz matrices: constant along each diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignjax.structures.base import Coordinates, Pattern, as_pair
from alignjax.structures.correlation import correlate
from alignjax.structures.fourier import FFT_FROM, circular_convolution, fast_length

__all__ = ["Toeplitz"]


@dataclass(frozen=True, init=False, eq=False)
class Toeplitz(Pattern):
    """``W[i, j] = t[i - j + k_in - 1]``: matrices that are constant along each diagonal.

    The coefficients run from the top right corner to the bottom left one: the first row backwards,
    then the rest of the first column. ``norms**2`` is the length of each diagonal, so descent on
    raw coefficients with rate ``eta`` is descent in orthonormal coordinates with rate ``eta`` times
    that length: ``eta`` in the corners, ``eta * min(k_out, k_in)`` on the longest diagonals.

    ``apply`` and its derivatives build no matrix: a sum over shifts for small sizes, a fast Fourier
    transform from ``k_out + k_in - 1 >= 32`` on.

    Args:
        size: ``(k_out, k_in)``, or one integer for a square.
        coordinates: ``"orthonormal"`` or ``"raw"`` (the values on the diagonals).

    Raises:
        TypeError, ValueError: for sizes that are no positive integers, or unknown coordinates.

    Source: Radhakrishnan et al. 2020, Definition 4 and section 5.

    Example:
        >>> Toeplitz((2, 3), coordinates="raw").matrix([1, 2, 3, 4])
        Array([[3., 2., 1.],
               [4., 3., 2.]], dtype=float64)
    """

    size: tuple[int, int]

    def __init__(
        self, size: int | Sequence[int], *, coordinates: Coordinates = "orthonormal"
    ) -> None:
        """Check the arguments and freeze the structure."""
        self._set(coordinates, size=as_pair(size, "size"))

    @property
    def shape(self) -> tuple[int, int]:
        """``(k_out, k_in)``."""
        return self.size

    @property
    def dim(self) -> int:
        """The number of diagonals, ``k_out + k_in - 1``."""
        return self.size[0] + self.size[1] - 1

    def _counts(self) -> np.ndarray:
        from_right = np.arange(self.dim) + 1
        return np.minimum(np.minimum(from_right, from_right[::-1]), min(self.size))

    def _entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, columns = (index.ravel() for index in np.indices(self.size))
        return rows, columns, rows - columns + self.size[1] - 1

    def _act(self, taps: Array, x: Array) -> Array:
        out, ahead = self.size[0], self.size[1] - 1
        if self.dim >= FFT_FROM:
            # What wraps around lands on the first k_in - 1 entries, which are cut off.
            y = circular_convolution(taps, x, fast_length(self.dim))
            return y[..., ahead : ahead + out]
        rows = jnp.pad(x.reshape(-1, 1, self.size[1]), ((0, 0), (0, 0), (out - 1, out - 1)))
        return correlate(taps[None, ::-1], rows).reshape(*x.shape[:-1], out)
