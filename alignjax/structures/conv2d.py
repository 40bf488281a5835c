"""Convolutions of one channel, as deep-learning frameworks compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignjax._validation import describe
from alignjax.structures.base import Coordinates, Pattern, as_pair
from alignjax.structures.correlation import correlate

__all__ = ["Conv2d"]

Padding = Literal["zeros", "circular"]


@dataclass(frozen=True, init=False, eq=False)
class Conv2d(Pattern):
    """Convolutions of ``p x q`` images: one channel, stride 1, an odd kernel, the size kept.

    ``y[r, s] = sum_{a, b} w[a, b] x[r + a - h_a, s + b - h_b]`` with ``h = kernel_size // 2``, a
    cross-correlation, where ``x`` is zero outside of the image (``"zeros"``) or repeats
    (``"circular"``). Images and kernels are flattened row by row. ``apply`` and its derivatives
    build no matrix; their time and memory are linear in the number of pixels.

    With zero padding the taps differ in scale: the tap at offset ``(a, b)`` from the centre has
    ``norms**2 = (p - |a|) (q - |b|)``, so descent on raw taps with rate ``eta`` is descent in
    orthonormal coordinates with rate ``eta (p - |a|) (q - |b|)``, from ``784 eta`` at the centre to
    ``729 eta`` in the corners for 3x3 kernels on 28x28 images. With circular padding all taps have
    ``norms**2 = p q``.

    Args:
        image_size: ``(p, q)``, or one integer for a square.
        kernel_size: odd, at most ``image_size``; a pair, or one integer for a square.
        padding: ``"zeros"`` or ``"circular"``.
        coordinates: ``"orthonormal"`` or ``"raw"`` (the taps).

    Raises:
        TypeError: for sizes that are no integers.
        ValueError: for even kernels, kernels larger than the image, unknown padding or coordinates.

    Source: Radhakrishnan et al. 2020, Definition 4 and section 5, where the basis of a convolution
    is orthogonal, not orthonormal.

    Example:
        >>> layer = Conv2d(image_size=28, kernel_size=3)
        >>> layer.shape, layer.dim
        ((784, 784), 9)
        >>> [int(v) for v in (layer.norms**2).round()]
        [729, 756, 729, 756, 784, 756, 729, 756, 729]
    """

    image_size: tuple[int, int]
    kernel_size: tuple[int, int]
    padding: Padding

    def __init__(
        self,
        image_size: int | Sequence[int],
        kernel_size: int | Sequence[int],
        *,
        padding: Padding = "zeros",
        coordinates: Coordinates = "orthonormal",
    ) -> None:
        """Check the arguments and freeze the structure."""
        image = as_pair(image_size, "image_size")
        kernel = as_pair(kernel_size, "kernel_size")
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that the image keeps its size: {kernel}")
        if kernel[0] > image[0] or kernel[1] > image[1]:
            raise ValueError(f"kernel_size must be at most image_size = {image}, got {kernel}")
        if padding not in get_args(Padding):
            raise ValueError(f"padding must be 'zeros' or 'circular', got {describe(padding)}")
        self._set(coordinates, image_size=image, kernel_size=kernel, padding=padding)

    @property
    def shape(self) -> tuple[int, int]:
        """``(p q, p q)``."""
        pixels = self.image_size[0] * self.image_size[1]
        return pixels, pixels

    @property
    def dim(self) -> int:
        """The number of taps."""
        return self.kernel_size[0] * self.kernel_size[1]

    def _counts(self) -> np.ndarray:
        if self.padding == "circular":
            return np.full(self.dim, self.shape[0])
        rows, columns = (
            size - np.abs(np.arange(taps) - taps // 2)
            for size, taps in zip(self.image_size, self.kernel_size, strict=True)
        )
        return np.outer(rows, columns).ravel()

    def _entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (p, q), (a, b) = self.image_size, self.kernel_size
        i, j, r, s = np.ogrid[:a, :b, :p, :q]
        from_r, from_s = r + i - a // 2, s + j - b // 2
        inside = (from_r >= 0) & (from_r < p) & (from_s >= 0) & (from_s < q)
        if self.padding == "circular":
            inside = np.ones_like(inside)
        rows, columns, taps = r * q + s, (from_r % p) * q + from_s % q, i * b + j
        everywhere = np.broadcast_arrays(rows, columns, taps)
        rows, columns, taps = (index[inside] for index in everywhere)
        return rows, columns, taps

    def _act(self, taps: Array, x: Array) -> Array:
        margins = [(0, 0), *((k // 2, k // 2) for k in self.kernel_size)]
        images = x.reshape(-1, *self.image_size)
        padded = jnp.pad(images, margins, mode="wrap" if self.padding == "circular" else "constant")
        return correlate(taps.reshape(self.kernel_size), padded).reshape(x.shape)
