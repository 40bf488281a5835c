"""Checks of numbers that describe modes and broadcast element by element."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignjax._validation import as_raw, as_real, is_concrete


def elementwise(*, signed: str = "", **named: Any) -> tuple[Array, ...]:
    """Numbers in one dtype, at least 0 except ``signed``, whose shapes broadcast.

    Raises:
        TypeError: for what is no real number.
        ValueError: for negative, NaN or infinite values, or shapes that do not broadcast.
    """
    arrays = []
    for name, value in named.items():
        raw = as_raw(value, name)
        arrays.append(as_real(value, name))
        if is_concrete(raw) and name != signed and bool((np.asarray(raw) < 0).any()):
            raise ValueError(f"{name} must be at least 0, got {float(np.min(raw)):.6g}")
    shapes = {name: array.shape for name, array in zip(named, arrays, strict=True)}
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError as error:
        raise ValueError(f"shapes must broadcast, got {shapes}") from error
    # Python numbers take the precision of the arrays they stand beside.
    values = zip(arrays, named.values(), strict=True)
    typed = [a for a, value in values if type(value) not in (int, float, bool)]
    dtype = jnp.result_type(*(typed or arrays))
    # Of one rank too: whoever forbids JAX to promote ranks does not forbid this function.
    rank = max(a.ndim for a in arrays)
    return tuple(a.astype(dtype)[(*[None] * (rank - a.ndim), ...)] for a in arrays)


def on_host(**named: Any) -> dict[str, np.ndarray] | None:
    """The arguments as float64 arrays of one shape, or None where one of them is traced."""
    raw = {name: as_raw(value, name) for name, value in named.items()}
    if not all(is_concrete(a) for a in raw.values()):
        return None
    shaped = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in raw.values()))
    return dict(zip(raw, shaped, strict=True))


def refuse(bad: np.ndarray, values: dict[str, np.ndarray], expected: str) -> None:
    """Stop where any entry is bad, with what was expected and the first bad arguments.

    Raises:
        ValueError: if ``bad`` holds anywhere.
    """
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        got = ", ".join(f"{name} = {float(a[index]):.6g}" for name, a in values.items())
        raise ValueError(f"{expected}, got {got}")
