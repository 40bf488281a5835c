"""Checks of arguments at the host boundary: every message names the argument.

Shapes, dtypes and domains are checked before anything is traced. Values are looked at only where
they are concrete, so that the same functions work under ``jit``, ``vmap`` and ``grad``.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_warned_about_float64 = False


def is_concrete(value: Any) -> bool:
    """Whether ``value`` carries numbers, as opposed to being traced."""
    return not isinstance(value, jax.core.Tracer)


def describe(value: Any) -> str:
    """A short description of what came, for messages."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def require_concrete(value: Any, name: str, function: str) -> None:
    """Refuse traced values in functions that run on the host only.

    Raises:
        TypeError: if any leaf of ``value`` is traced.
    """
    if any(not is_concrete(leaf) for leaf in jax.tree.leaves(value)):
        raise TypeError(
            f"{function} runs on the host and takes concrete arrays, but {name} is traced: "
            f"call it outside jit, vmap and grad"
        )


def as_raw(value: Any, name: str) -> jax.Array | np.ndarray:
    """Turn what people pass in good faith into an array of real numbers, dtype kept.

    Raises:
        TypeError: for complex, object or text arrays, times, long doubles, and for what is no array
            at all.
        ValueError: for masked entries.
    """
    array: jax.Array | np.ndarray
    if isinstance(value, jax.Array):
        array = value
    else:
        refuse_masked(value, name)
        try:
            found = np.asanyarray(value)
        except (ValueError, TypeError) as error:
            raise TypeError(
                f"{name} must be an array of real numbers, got {describe(value)}: {error}"
            ) from error
        refuse_masked(found, name)  # some objects give a masked array when asked for an array
        array = np.asarray(found)
    # Of NumPy's kinds, timedeltas ("m") call themselves integers.
    if array.dtype.kind == "m" or not (
        jnp.issubdtype(array.dtype, np.floating)
        or jnp.issubdtype(array.dtype, np.integer)
        or array.dtype == np.bool_
    ):
        raise TypeError(f"{name} must hold real numbers, got {describe(array)}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise TypeError(
            f"{name} must be float32 or float64, got {array.dtype}, which JAX does not have: "
            f"convert it first"
        )
    if isinstance(array, np.ndarray):
        # Files keep numbers of the other byte order, which JAX does not know.
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array


def refuse_masked(value: Any, name: str) -> None:
    """Refuse hidden entries, which NumPy would turn into numbers without a word.

    Raises:
        ValueError: if ``value``, or something in lists and tuples of it, has masked entries.
    """
    if isinstance(value, (list, tuple)):
        for item in value:
            if not isinstance(item, (float, int)):
                refuse_masked(item, name)
    elif isinstance(value, np.ndarray) and np.any(getattr(value, "mask", False)):
        raise ValueError(
            f"{name} has masked entries: leave them out (of samples whole rows, in inputs and "
            f"targets), or fill them in"
        )


def as_real(
    value: Any, name: str, *, ndim: int | tuple[int, ...] | None = None, finite: bool = True
) -> jax.Array:
    """An array of floats on JAX's side: integers become the default float, floats keep their dtype.

    Args:
        value: anything ``np.asarray`` takes, or a JAX array, traced or not.
        name: the argument's name, for messages.
        ndim: the number or numbers of dimensions that are allowed.
        finite: whether NaN and infinity are refused (where the values are concrete).

    Raises:
        TypeError: for complex, object or text arrays.
        ValueError: for a wrong number of dimensions, empty arrays, NaN or infinity.
    """
    array = as_raw(value, name)
    if ndim is not None:
        allowed = (ndim,) if isinstance(ndim, int) else ndim
        if array.ndim not in allowed:
            expected = " or ".join(str(n) for n in allowed)
            raise ValueError(
                f"{name} must have {expected} dimension(s), got {array.ndim}: shape {array.shape}"
            )
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(array.shape)}")
    if finite and is_concrete(array) and not bool(np.isfinite(array).all()):
        where = [int(i) for i in np.argwhere(~np.isfinite(np.asarray(array)))[0]]
        raise ValueError(
            f"{name} must be finite, but holds NaN or infinity, first at index {where}"
        )
    if not jnp.issubdtype(array.dtype, np.floating):
        return jnp.asarray(array, dtype=jnp.result_type(float))
    if jnp.finfo(array.dtype).bits < 32:
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}: convert it first")
    if not isinstance(value, (list, tuple, float, int)):
        _warn_if_narrowed(array, name)
    if (
        finite
        and isinstance(array, np.ndarray)
        and array.dtype != jax.dtypes.canonicalize_dtype(array.dtype)
        and np.abs(array).max() > jnp.finfo(jnp.float32).max
    ):
        raise ValueError(f"{name} holds {np.abs(array).max():.3g}, which float32 cannot hold")
    return jnp.asarray(array)


def _warn_if_narrowed(array: Any, name: str) -> None:
    global _warned_about_float64
    narrowed = array.dtype == np.float64 != jax.dtypes.canonicalize_dtype(np.float64)
    if narrowed and not _warned_about_float64:
        _warned_about_float64 = True
        warnings.warn(
            f"{name} is float64, but jax_enable_x64 is off, so it becomes float32; to compute in "
            f"float64 call jax.config.update('jax_enable_x64', True) first (said once)",
            stacklevel=4,
        )


def as_weights(weights: Any, *, name: str = "weights") -> tuple[jax.Array, ...]:
    """The layers ``(W_1, ..., W_d)`` as a tuple of matrices that chain, in one dtype.

    Raises:
        TypeError: if ``weights`` is no sequence of real matrices.
        ValueError: if there are no layers, or shapes do not chain.
    """
    if not isinstance(weights, Sequence) or isinstance(weights, (str, bytes)):
        raise TypeError(
            f"{name} must be a tuple (W_1, ..., W_d) of matrices, got {describe(weights)}"
        )
    if len(weights) == 0:
        raise ValueError(
            f"{name} must hold at least one layer, got an empty {type(weights).__name__}"
        )
    layers = tuple(as_real(w, f"{name}[{i}]", ndim=2) for i, w in enumerate(weights))
    for i in range(1, len(layers)):
        if layers[i].shape[1] != layers[i - 1].shape[0]:
            raise ValueError(
                f"{name} do not chain: {name}[{i}] of shape {layers[i].shape} takes "
                f"{layers[i].shape[1]} inputs, but {name}[{i - 1}] of shape {layers[i - 1].shape} "
                f"gives {layers[i - 1].shape[0]}"
            )
    dtype = jnp.result_type(*layers)
    return tuple(w.astype(dtype) for w in layers)


def as_widths(widths: Any, *, name: str = "widths") -> tuple[int, ...]:
    """The widths ``(k_0, ..., k_d)`` as a tuple of positive integers, at least two of them."""
    if not isinstance(widths, (Sequence, np.ndarray)) or isinstance(widths, (str, bytes)):
        raise TypeError(
            f"{name} must be a sequence (k_0, ..., k_d) of integers, got {describe(widths)}"
        )
    refuse_masked(widths, name)
    out = tuple(as_count(k, f"{name}[{i}]", minimum=1) for i, k in enumerate(widths))
    if len(out) < 2:
        raise ValueError(f"{name} must hold at least two widths (k_0, ..., k_d), got {out}")
    return out


def as_dtype(dtype: Any, name: str = "dtype") -> Any:
    """float32 or float64; None is the default float.

    Raises:
        TypeError: for anything else.
    """
    if dtype is None:
        return jnp.result_type(float)
    try:
        chosen = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{name} must be float32 or float64, got {describe(dtype)}") from error
    if chosen not in (np.float32, np.float64):
        raise TypeError(f"{name} must be float32 or float64, got {chosen}")
    return jax.dtypes.canonicalize_dtype(chosen)


def as_count(value: Any, name: str, *, minimum: int = 0) -> int:
    """A static integer of at least ``minimum``.

    Raises:
        TypeError: if it is traced or not an integer.
        ValueError: if it is too small.
    """
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} shapes the computation, so it must be a Python int, not traced")
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {describe(value)}")
    try:
        count = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {describe(value)}") from error
    if count < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {count}")
    if count >= 2**31:  # counts are int32 on the device
        raise ValueError(f"{name} must be below 2**31, got {count}")
    return count


def as_learning_rate(learning_rate: Any, depth: int) -> jax.Array:
    """A scalar or per-layer learning rate.

    Raises:
        TypeError: if it is not a real number or array.
        ValueError: for another shape, NaN, infinite or negative rates.
    """
    raw = as_raw(learning_rate, "learning_rate")
    rate = as_real(learning_rate, "learning_rate", finite=False)
    if rate.shape not in ((), (depth,)):
        raise ValueError(
            f"learning_rate must be a scalar or one rate a layer, shape () or ({depth},), got "
            f"shape {rate.shape}; to run many rates at once use jax.vmap over this function"
        )
    # Inside jit a number becomes traced as soon as it is an array of JAX's.
    # Compared by NumPy: a number of Python's beside an array of JAX's would be sent to its device.
    known = np.asarray(jax.device_get(raw)) if is_concrete(raw) else None
    if known is not None and not bool(((known >= 0) & np.isfinite(known)).all()):
        raise ValueError(f"learning_rate must be finite and at least 0, got {learning_rate}")
    return rate


def as_key(key: Any, name: str = "key") -> jax.Array:
    """A JAX random key, new style or raw uint32.

    Raises:
        TypeError: if it is no key.
    """
    is_key = isinstance(key, jax.Array) and (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        or (key.dtype == jnp.uint32 and key.ndim == 1)
    )
    if not is_key:
        raise TypeError(f"{name} must be a key from jax.random.key(seed), got {describe(key)}")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim:
        raise ValueError(f"{name} must be one key, got an array of keys of shape {key.shape}")
    return key


def as_callable(value: Any, name: str) -> Any:
    """Something that can be called, else a TypeError."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {describe(value)}")
    return value
