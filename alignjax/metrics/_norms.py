"""Norms and ratios that are right at any scale and have finite derivatives at zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array


def ratio(part: Array, total: Array, *, otherwise: float) -> Array:
    """``part / total``, or ``otherwise`` where the total is zero; NaN stays NaN."""
    zero = total == 0
    return jnp.where(zero, otherwise, part / jnp.where(zero, 1.0, total))


def largest(array: Array) -> Array:
    """The largest size of an entry, as a constant to scale by."""
    return jax.lax.stop_gradient(jnp.abs(array).max())


def unit(array: Array) -> Array:
    """``array`` with a largest entry of size 1, so that no power of it over- or underflows."""
    size = largest(array)
    # Division may be by the reciprocal, which near the largest float is below the smallest normal
    # one and so counts as 0.
    shrink = jnp.where(size > jnp.finfo(size.dtype).max / 8, 0.125, 1.0).astype(size.dtype)
    return ratio(shrink * array, shrink * size, otherwise=0.0)


def norm(array: Array) -> Array:
    """The square root of the sum of squares, also where the squares over- or underflow."""
    return largest(array) * _norm_at_unit_scale(unit(array))


def to_unit_norm(array: Array) -> Array:
    """``array`` scaled to norm 1; zero stays zero."""
    array = unit(array)
    return ratio(array, _norm_at_unit_scale(array), otherwise=0.0)


def _norm_at_unit_scale(array: Array) -> Array:
    energy = (array**2).sum()
    zero = energy == 0
    # The root has no derivative at zero, so that branch never sees one.
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, energy)))


def stack(values: list[Array], dtype: jnp.dtype) -> Array:
    """A vector, also of no values: a single layer has no pair."""
    return jnp.stack(values) if values else jnp.zeros((0,), dtype)
