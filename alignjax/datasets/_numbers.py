"""Arrays as they come in."""

from typing import Any

import jax
import numpy as np


def as_numbers(name: str, values: Any) -> jax.Array | np.ndarray:
    """An array in this machine's byte order, with nothing hidden in it.

    Raises:
        TypeError: long doubles, which JAX does not have.
        ValueError: entries are masked, which NumPy would turn into numbers without a word.
    """
    if isinstance(values, jax.Array):
        return values
    masked = map(np.ma.is_masked, values if isinstance(values, list | tuple) else [values])
    if any(masked):
        raise ValueError(f"{name}: expected an array without masked entries")
    array = np.asarray(values)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected float32 or float64, got {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
