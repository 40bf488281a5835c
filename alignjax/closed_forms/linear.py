"""The linear model, one layer, at any time in one evaluation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from alignjax._roundoff import above, relative_roundoff
from alignjax._validation import as_learning_rate, as_raw, as_real, describe
from alignjax.closed_forms._elementary import (
    Steps,
    as_moment_problem,
    as_steps,
    as_times,
    elapsed,
    without_derivative,
)
from alignjax.linalg import matmul
from alignjax.problems import MomentProblem, from_span, to_span

__all__ = ["linear_descent", "linear_flow"]

_SLOPE_TERMS = 20
_SECOND_ORDER = (
    "second derivatives in the moments are not offered: differentiate once in the data, or any "
    "number of times in the start and the time"
)


def linear_flow(
    problem: Any, start: Float[Array, "k_d k_0"], times: Float[Array, " T"] | float
) -> Float[Array, "T k_d k_0"]:
    """Gradient flow of the linear model, ``W' = Sigma_yx - W Sigma_xx``, at any times.

    ``W(t) = W_0 e^{-t Sigma_xx} + Sigma_yx phi_t(Sigma_xx)`` with
    ``phi_t(x) = (1 - e^{-tx}) / x``, so no pseudo-inverse and no full rank is needed. Eigenvalues
    of ``Sigma_xx`` below roundoff count as 0, and nothing moves there.

    Args:
        problem: a problem with the squared loss, described by its moments.
        start: ``W_0``, shape ``(k_d, k_0)``.
        times: a scalar, or increasing times ``(T,)``, at least 0; may be traced.

    Returns:
        ``W(t)``, shape ``(k_d, k_0)`` or ``(T, k_d, k_0)``. Differentiable in times, start and
        data, also where eigenvalues repeat.

    Raises:
        TypeError: if the problem has another loss, or second derivatives in the data are asked.
        ValueError: if shapes do not fit, or times are negative, not finite or unordered.

    Source: Gidel et al. 2019, eq. 9 (Proposition 1), whose matrices are the transposes of these.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.closed_forms import linear_flow
        >>> problem = aj.from_moments(jnp.eye(1), jnp.eye(1), 1.0)
        >>> round(linear_flow(problem, jnp.zeros((1, 1)), 1.0).item(), 6)  # 1 - 1/e
        0.632121
    """
    return _path(problem, start, as_times(times), None, "linear_flow")


def linear_descent(
    problem: Any,
    start: Float[Array, "k_d k_0"],
    learning_rate: Float[Array, ""] | float,
    steps: Int[Array, " T"] | int,
) -> Float[Array, "T k_d k_0"]:
    """Gradient descent of the linear model after any numbers of steps, in one evaluation.

    ``W_t = W_0 (I - eta Sigma_xx)^t + Sigma_yx (I - (I - eta Sigma_xx)^t) Sigma_xx^{-1}``, the last
    factor ``eta t`` where ``Sigma_xx`` is 0. Any learning rate is right, also beyond stability,
    where ``W_t`` alternates and grows until it overflows.

    Args:
        problem: a problem with the squared loss, described by its moments.
        start: ``W_0``, shape ``(k_d, k_0)``.
        learning_rate: a scalar, at least 0; may be traced.
        steps: a scalar, or increasing integers ``(T,)``, at least 0 and below 2^64; may be traced.
            They may exceed JAX's integers, and enter powers rounded to the dtype of the weights.

    Returns:
        ``W_t``, shape ``(k_d, k_0)`` or ``(T, k_d, k_0)``, differentiable in start, learning rate
        and data.

    Raises:
        TypeError: if the problem has another loss, steps are no integers, or second derivatives in
            the data are asked.
        ValueError: if shapes do not fit, steps are negative or unordered, or the rate is negative.

    Source: Gidel et al. 2019, eq. 21; printed form differs: the power stands on the side of the
        inputs, which for the paper's transposed matrices is the left.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.closed_forms import linear_descent
        >>> problem = aj.from_moments(jnp.eye(1), jnp.eye(1), 1.0)
        >>> linear_descent(problem, jnp.zeros((1, 1)), 0.5, jnp.arange(4)).ravel().tolist()
        [0.0, 0.5, 0.75, 0.875]
    """
    shape = as_raw(learning_rate, "learning_rate").shape
    if shape:
        raise ValueError(
            f"learning_rate must be a scalar, got shape {tuple(shape)}; to run many rates at once "
            f"use jax.vmap over this function"
        )
    return _path(problem, start, as_learning_rate(learning_rate, 1), steps, "linear_descent")


def _path(problem: Any, start: Any, pace: Array, steps: Any, function: str) -> Array:
    problem = as_moment_problem(problem, function)
    matrix = as_real(start, "start")
    wanted = (problem.output_width, problem.input_width)
    if matrix.shape != wanted:
        raise ValueError(
            f"start must be the matrix (k_d, k_0) = {wanted} that fits the problem, got "
            f"{describe(start)}"
        )
    dtype = jnp.result_type(matrix, problem.dtype)
    weights = (matrix.astype(dtype),)
    core, (inside,) = to_span(problem, weights)
    assert isinstance(core, MomentProblem)
    count = None if steps is None else as_steps(steps, dtype)
    scalar = (pace if count is None else count.number).ndim == 0
    moved = _moved(
        inside,
        core.input_moment.astype(dtype),
        core.cross_moment.astype(dtype),
        (jnp.atleast_1d(pace) if count is None else pace).astype(dtype),
        jax.tree.map(jnp.atleast_1d, count),
    )
    out = from_span(problem, weights, (moved,))[0]
    return out[0] if scalar else out


@jax.custom_jvp
def _moved(start: Array, moment: Array, cross: Array, pace: Array, count: Steps | None) -> Array:
    """``start f(moment) + cross g(moment)``, shape ``(T, k_d, m)``.

    ``pace`` holds the times ``(T,)`` of the flow, or the learning rate where ``count`` is given.
    """
    spectrum, basis, own, pull = _decompose(start, moment, cross)
    decay, total, _ = _factors(spectrum, pace, count)
    return matmul(own[None] * decay[:, None] + pull[None] * total[:, None], basis.T)


def _moved_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    start, moment, cross, pace, count = primals
    spectrum, basis, own, pull = _decompose(start, moment, cross)
    decay, total, speed = _factors(spectrum, pace, count)
    d_start, d_moment, d_cross, d_pace, _ = tangents
    tangent = jnp.zeros((decay.shape[0], *start.shape), start.dtype)
    if not isinstance(d_start, SymbolicZero):
        tangent += matmul(d_start, basis)[None] * decay[:, None]
    if not isinstance(d_cross, SymbolicZero):
        tangent += matmul(d_cross, basis)[None] * total[:, None]
    if not isinstance(d_pace, SymbolicZero):
        tangent += (pull - own * spectrum[None])[None] * (speed * jnp.reshape(d_pace, (-1, 1)))[
            :, None
        ]
    if not isinstance(d_moment, SymbolicZero):
        turned = matmul(matmul(basis.T, 0.5 * (d_moment + d_moment.T)), basis)

        # One time after another, recomputed on the way back: (T, m, m) may not fit in memory.
        @jax.checkpoint
        def through_moment(inputs: tuple[Array, Steps | None]) -> Array:
            at, taken = inputs
            decays, totals = without_derivative(_slopes(spectrum, at, taken), _SECOND_ORDER)
            return matmul(own, decays * turned) + matmul(pull, totals * turned)

        paces = pace if count is None else jnp.broadcast_to(pace, count.number.shape)
        tangent += lax.map(through_moment, (paces, count))
    return _moved(*primals), matmul(tangent, basis.T)


_moved.defjvp(_moved_jvp, symbolic_zeros=True)


def _decompose(start: Array, moment: Array, cross: Array) -> tuple[Array, Array, Array, Array]:
    """Spectrum and eigenvectors of the moment, and start and cross moment in their coordinates."""
    spectrum, basis = without_derivative(jnp.linalg.eigh(moment), _SECOND_ORDER)
    seen = above(spectrum, relative_roundoff(moment.dtype, *moment.shape))
    # Where there is no input there is no target: what roundoff left there would grow like t.
    pull = matmul(cross, basis) * seen[None].astype(cross.dtype)
    return jnp.where(seen, spectrum, 0.0), basis, matmul(start, basis), pull


def _factors(spectrum: Array, pace: Array, count: Steps | None) -> tuple[Array, Array, Array]:
    """``f``, ``g = (1 - f) / x`` and the derivative of ``g`` in ``pace``, each ``(T, m)``."""
    spectrum = spectrum[None]
    if count is None:
        exponent = -pace[:, None] * spectrum
        decay, time = jnp.exp(exponent), pace[:, None]
        speed, lost = decay, -jnp.expm1(exponent)
    else:
        rate, steps = pace * spectrum, Steps(count.number[:, None], count.odd[:, None])
        decay, time = _power(rate, steps), pace * steps.number
        speed = steps.number * _power(rate, steps.before)
        slow = rate < 1.0
        lost = jnp.where(
            slow, -jnp.expm1(steps.number * jnp.log1p(-jnp.where(slow, rate, 0.0))), 1.0 - decay
        )
    positive = spectrum > 0.0
    return decay, jnp.where(positive, lost / jnp.where(positive, spectrum, 1.0), time), speed


@jax.custom_jvp
def _power(x: Array, steps: Steps) -> Array:
    """``(1 - x)^steps``, without the roundoff of ``1 - x`` where ``x`` is small."""
    below, above = jnp.where(x < 1.0, x, 0.0), jnp.where(x > 1.0, x, 2.0)
    size = jnp.where(x < 1.0, jnp.log1p(-below), jnp.log(above - 1.0))
    power = jnp.exp(steps.number * size) * jnp.where((x > 1.0) & steps.odd, -1.0, 1.0)
    return jnp.where(x == 1.0, jnp.where(steps.number == 0, 1.0, 0.0), power).astype(x.dtype)


@_power.defjvp
def _power_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x, steps = primals
    return _power(x, steps), -steps.number * _power(x, steps.before) * tangents[0]


def _slopes(spectrum: Array, pace: Array, count: Steps | None) -> tuple[Array, Array]:
    """Divided differences ``f[a, b]`` and ``g[a, b]`` of all pairs of eigenvalues, ``(m, m)``.

    Where the eigenvalues tie these are the derivatives (Daleckii and Krein), so that no eigenvector
    is ever differentiated.
    """
    low = jnp.minimum(spectrum[:, None], spectrum[None])
    high = jnp.maximum(spectrum[:, None], spectrum[None])
    if count is None:
        time, share = pace, jnp.zeros_like(pace)
        decays = -jnp.exp(-time * low) * elapsed(high - low, time)
    else:
        time, share = pace * count.number, 1.0 / jnp.maximum(count.number, 1.0)
        decays = -pace * _power_slope(pace * low, pace * high, count)
    # b g[a, b] + g(a) = -f[a, b] for b = high, which cancels where b is small: there a series.
    total_low = jnp.where(
        spectrum[:, None] <= spectrum[None],
        *(lambda g: (g[:, None], g[None]))(_total(spectrum, pace, count)),
    )
    late = time * high > 1.0
    direct = -(decays + total_low) / jnp.where(late, high, 1.0)
    x, y = (jnp.where(late, 0.0, time * side) for side in (low, high))
    coefficient, homogeneous, power = -0.5 * (1.0 - share), jnp.ones_like(x), jnp.ones_like(x)
    series = coefficient * homogeneous
    for k in range(2, _SLOPE_TERMS):
        coefficient = -coefficient * (1.0 - k * share) / (k + 1)
        power = power * x
        homogeneous = homogeneous * y + power
        series = series + coefficient * homogeneous
    return decays, jnp.where(late, direct, time**2 * series)


def _total(spectrum: Array, pace: Array, count: Steps | None) -> Array:
    times = jax.tree.map(lambda part: part[None], count)
    return _factors(spectrum, pace[None] if count is None else pace, times)[1][0]


def _power_slope(low: Array, high: Array, steps: Steps) -> Array:
    """``sum_{s < steps} x^s y^(steps - 1 - s)`` with ``x = 1 - low`` and ``y = 1 - high``."""
    x, y = 1.0 - low, 1.0 - high
    larger = jnp.maximum(jnp.abs(x), jnp.abs(y))
    same = (x * y > 0.0) & (high > low)
    gap = jnp.where(same, (high - low) / jnp.where(larger > 0.0, larger, 1.0), 0.5)
    # x^t - y^t = x^t (1 - (1 - gap)^t) where both have one sign.
    shrunk = -jnp.expm1(steps.number * jnp.log1p(-gap)) / gap
    end = jnp.where(jnp.abs(x) >= jnp.abs(y), low, high)
    near = _power(end, steps.before) * shrunk
    apart = jnp.where(high > low, high - low, 1.0)
    far = (_power(low, steps) - _power(high, steps)) / apart
    tied = steps.number * _power(low, steps.before)
    return jnp.where(high > low, jnp.where(same, near, far), tied)
