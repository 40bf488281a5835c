"""What the closed forms share: decay integrals, checks of times, and a stop for derivatives."""

from __future__ import annotations

from functools import partial
from math import factorial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignjax._validation import as_raw, as_real, describe, is_concrete
from alignjax.problems import MomentProblem

_SERIES_TERMS = 20  # 1/20! is below the roundoff of float64, and the series serves x < 1


def as_times(times: Any) -> Array:
    """Times along a path: a scalar or an increasing ``(T,)`` array, at least 0.

    Raises:
        TypeError: if they are no real numbers.
        ValueError: for NaN, infinite, negative or unordered times, or more than one dimension.
    """
    values = as_real(times, "times", ndim=(0, 1))
    _check_order(as_raw(times, "times"), "times")
    return values


class Steps(NamedTuple):
    """Numbers of steps as floats, which no dtype of integers bounds, and their parity.

    Attributes:
        number: the numbers, ``()`` or ``(T,)``, rounded to the dtype of the computation.
        odd: whether each of them is odd, exactly.
    """

    number: Array
    odd: Array

    @property
    def before(self) -> Steps:
        """One step less, and 0 before 0."""
        some = self.number > 0
        return Steps(jnp.maximum(self.number - 1, 0), some & ~self.odd)


def as_steps(steps: Any, dtype: Any) -> Steps:
    """Numbers of steps, a scalar or an increasing ``(T,)`` array of integers of at least 0.

    Raises:
        TypeError: if they are not integers.
        ValueError: if they are negative or unordered, or have another number of dimensions.
    """
    raw = as_raw(steps, "steps")
    if raw.ndim > 1 or raw.size == 0:
        raise ValueError(
            f"steps must be a scalar or an array (T,) that is not empty, got shape "
            f"{tuple(raw.shape)}"
        )
    if not jnp.issubdtype(raw.dtype, np.integer):
        raise TypeError(f"steps must be integers, got {describe(steps)}")
    _check_order(raw, "steps")
    # On the host where possible: JAX would wrap 2^31 around where its integers have 32 bits.
    counts = np.asarray(raw) if is_concrete(raw) else raw
    return Steps(jnp.asarray(counts.astype(dtype)), jnp.asarray(counts % 2 == 1))


def _check_order(raw: Any, name: str) -> None:
    if not is_concrete(raw):
        return
    values = np.asarray(raw)
    if values.min() < 0:
        raise ValueError(f"{name} must be at least 0, got {values.min()}")
    rises = values[1:] > values[:-1] if values.ndim else np.ones(1, bool)
    if not rises.all():
        at = int(np.argmin(rises))
        raise ValueError(
            f"{name} must increase, but {name}[{at}] = {values[at]} is followed by {values[at + 1]}"
        )


def as_moment_problem(problem: Any, function: str) -> MomentProblem:
    """The problem, if the squared loss and its moments describe it.

    Raises:
        TypeError: for any other problem.
    """
    if not isinstance(problem, MomentProblem):
        raise TypeError(
            f"{function} is exact for the squared loss only and takes a problem made by "
            f"regression, autoencoding, factorization, inversion or from_moments, got "
            f"{describe(problem)}"
        )
    return problem


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def decay_integral(order: int, x: Array) -> Array:
    """``phi_n(x) = int_0^1 u^n e^{-xu} du`` for ``x >= 0``, to full precision everywhere.

    ``phi_0(x) = (1 - e^{-x}) / x``, and ``phi_n' = -phi_{n+1}`` gives all derivatives, at 0 too.
    """
    small = x < 1.0
    inside, outside = jnp.where(small, x, 0.0), jnp.where(small, 1.0, x)
    series = jnp.zeros_like(x)
    for k in reversed(range(_SERIES_TERMS)):
        series = series * inside + (-1) ** k / (factorial(k) * (order + k + 1))
    value = -jnp.expm1(-outside) / outside
    for n in range(1, order + 1):
        value = (n * value - jnp.exp(-outside)) / outside
    return jnp.where(small, series, value)


@decay_integral.defjvp
def _decay_integral_jvp(order: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return decay_integral(order, x), -decay_integral(order + 1, x) * dx


def elapsed(rate: Array, time: Array) -> Array:
    """``(1 - e^{-rate time}) / rate``, the integral of ``e^{-rate s}`` up to ``time``.

    It is ``time`` at rate 0 and ``1 / rate`` at late times, without overflow.
    """
    x = rate * time
    late = x > 1.0
    early = time * decay_integral(0, jnp.where(late, 1.0, x))
    return jnp.where(late, -jnp.expm1(-x) / jnp.where(late, rate, 1.0), early)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def without_derivative(value: Any, reason: str) -> Any:
    """``value``, whose differentiation is refused with ``reason`` instead of done wrongly."""
    return value


@without_derivative.defjvp
def _refuse(reason: str, primals: tuple, tangents: tuple) -> Any:
    raise TypeError(reason)
