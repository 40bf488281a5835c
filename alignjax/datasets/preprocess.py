"""How images and class numbers become rows of samples, on the host."""

import jax
import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import ArrayLike, DTypeLike

from alignjax.datasets.images import Images


def _default_float() -> np.dtype:
    """JAX's default float: float64 where x64 is on, else float32."""
    return np.dtype(jax.dtypes.canonicalize_dtype(np.float64))


def flatten(
    images: Images | UInt8[np.ndarray, "n height width"],
    mean: float = 0.1307,
    std: float = 0.3081,
    *,
    dtype: DTypeLike | None = None,
) -> Float[np.ndarray, "n pixels"]:
    """Turn each image into one row of standardized pixels.

    x = (pixel/255 - mean)/std. The defaults are those of MNIST's training pixels, the usual choice
    (Radhakrishnan et al. 2020, Figure 1b and c); `mean=0, std=1` leaves pixels in [0, 1].

    Args:
        images: an `Images`, or uint8 `(n, height, width)`.
        mean: subtracted from pixel/255.
        std: positive; what remains is divided by it.
        dtype: of the result; by default JAX's default float.

    Returns:
        `(n, height·width)`, each image read row by row.

    Raises:
        ValueError: `images` is not three-dimensional, or `std` is not positive.
        TypeError: `images` is not uint8: pixels that are floats may be scaled already.

    Example:
        >>> import numpy as np
        >>> flatten(np.array([[[0, 51], [102, 255]]], np.uint8), mean=0, std=1).round(3)
        array([[0. , 0.2, 0.4, 1. ]])
    """
    pixels = images.images if isinstance(images, Images) else np.asarray(images)
    if pixels.dtype != np.uint8:
        raise TypeError(f"images: expected uint8 pixels in 0..255, got {pixels.dtype}")
    if pixels.ndim != 3:
        raise ValueError(f"images: expected shape (n, height, width), got {pixels.shape}")
    if not std > 0:
        raise ValueError(f"std: expected a positive number, got {std}")
    # Scaled in float64 whatever the result's dtype, so that float32 rows are rounded once.
    rows = (pixels.reshape(len(pixels), pixels.shape[1] * pixels.shape[2]) / 255 - mean) / std
    return rows.astype(_default_float() if dtype is None else dtype)


def one_hot(
    labels: ArrayLike, classes: int, *, dtype: DTypeLike | None = None
) -> Float[np.ndarray, "n classes"]:
    """Turn class numbers into unit vectors: row i is e_(labels[i]).

    Args:
        labels: `(n,)` integers in 0, ..., classes - 1.
        classes: how many classes there are.
        dtype: of the result; by default JAX's default float.

    Returns:
        `(n, classes)`.

    Raises:
        TypeError: labels are no integers.
        ValueError: labels are not one-dimensional, or one lies outside the range.

    Example:
        >>> one_hot([1, 0], 3)
        array([[0., 1., 0.],
               [1., 0., 0.]])
    """
    numbers = np.asarray(labels)
    if not np.issubdtype(numbers.dtype, np.integer):
        raise TypeError(f"labels: expected integers, got {numbers.dtype}")
    if numbers.ndim != 1:
        raise ValueError(f"labels: expected shape (n,), got {numbers.shape}")
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < classes):
        raise ValueError(
            f"labels: expected class numbers in 0..{classes - 1}, "
            f"got {numbers.min()}..{numbers.max()}"
        )
    return np.eye(classes, dtype=_default_float() if dtype is None else dtype)[numbers]
