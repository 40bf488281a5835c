"""How images and class numbers become rows of samples, on the host."""

import math
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import ArrayLike, DTypeLike

from alignjax.datasets._numbers import as_numbers
from alignjax.datasets.images import Images, check_pixels


def _default_float() -> np.dtype:
    """JAX's default float: float64 where x64 is on, else float32."""
    return np.dtype(jax.dtypes.canonicalize_dtype(np.float64))


def flatten(
    images: Images | UInt8[np.ndarray, "n *channels height width"],
    mean: float = 0.1307,
    std: float = 0.3081,
    *,
    dtype: DTypeLike | None = None,
) -> Float[np.ndarray, "n pixels"]:
    """Turn each image into one row of standardized pixels.

    x = (pixel/255 - mean)/std. The defaults are those of MNIST's training pixels, the usual choice
    (Radhakrishnan et al. 2020, Figure 1b and c); `mean=0, std=1` leaves pixels in [0, 1].

    Args:
        images: an `Images`, or uint8 `(n, height, width)` or `(n, 3, height, width)`.
        mean: subtracted from pixel/255.
        std: positive; what remains is divided by it.
        dtype: of the result; by default JAX's default float.

    Returns:
        `(n, height·width)`, each image read row by row; in colour `(n, 3·height·width)`: all red
        pixels, then all green, then all blue.

    Raises:
        ValueError: `images` has another shape, or `std` is not positive.
        TypeError: `images` is not uint8: pixels that are floats may be scaled already.

    Example:
        >>> import numpy as np
        >>> flatten(np.array([[[0, 51], [102, 255]]], np.uint8), mean=0, std=1).round(3)
        array([[0. , 0.2, 0.4, 1. ]])
    """
    pixels = (
        images.images if isinstance(images, Images) else np.asarray(as_numbers("images", images))
    )
    if pixels.dtype != np.uint8:
        raise TypeError(f"images: expected uint8 pixels in 0..255, got {pixels.dtype}")
    check_pixels(pixels)
    if not std > 0:
        raise ValueError(f"std: expected a positive number, got {std}")
    # Scaled in float64 whatever the result's dtype, so that float32 rows are rounded once.
    rows = (pixels.reshape(len(pixels), math.prod(pixels.shape[1:])) / 255 - mean) / std
    return rows.astype(_default_float() if dtype is None else dtype, copy=False)


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
    numbers = np.asarray(as_numbers("labels", labels))
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


def batches(
    images: Images | Iterable[Images],
    size: int,
    *,
    classes: int,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: DTypeLike | None = None,
) -> Iterator[tuple[Float[np.ndarray, "m pixels"], Float[np.ndarray, "m classes"]]]:
    """Samples `(X, Y)` by the batch: flattened pixels and one-hot classes, for `accumulate`.

    Only one batch exists as floats at a time: 50,000 colour images of 32x32 pixels take 154 MB as
    bytes and 1.2 GB as float64.

    Args:
        images: an `Images`, or a stream of them (as `imagenet64` gives).
        size: the number of images in a batch; the last of each `Images` may have fewer.
        classes: how many classes there are.
        mean: as in `flatten`; by default pixels stay in [0, 1].
        std: as in `flatten`.
        dtype: of the samples; by default JAX's default float.

    Yields:
        X `(m, pixels)` and Y `(m, classes)`, in the images' order.

    Raises:
        TypeError: `size` is no integer.
        ValueError: `size` is below 1, or what `flatten` and `one_hot` refuse.

    Example:
        >>> import numpy as np
        >>> from alignjax.datasets import Images
        >>> grey = Images(np.zeros((5, 2, 2), np.uint8), np.zeros(5, np.uint8), "black", "here")
        >>> [X.shape for X, Y in batches(grey, 2, classes=3)]
        [(2, 4), (2, 4), (1, 4)]
    """
    if not isinstance(size, int | np.integer) or isinstance(size, bool):
        raise TypeError(f"size: expected an integer, got {size!r}")
    if size < 1:
        raise ValueError(f"size: expected at least 1, got {size}")
    # A function of its own, so that a wrong size is refused before the first batch is asked for.
    return (
        (flatten(part, mean, std, dtype=dtype), one_hot(part.labels, classes, dtype=dtype))
        for block in ([images] if isinstance(images, Images) else images)
        for part in (block[start : start + size] for start in range(0, len(block), size))
    )
