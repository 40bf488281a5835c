"""One mode of a balanced network under the gradient flow, at any depth and any time.

A mode's product ``p`` of its ``d`` equal singular values obeys

    p' = d p^(2 - 2/d) (sigma - lambda p),

which has an elementary solution for ``d <= 2`` and, in ``x = lambda p / sigma``, an integral that
is a hypergeometric function for ``d > 2``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alignjax._validation import as_count
from alignjax.closed_forms._elementary import decay_integral, elapsed
from alignjax.closed_forms._elementwise import elementwise

__all__ = ["deep_mode_time", "mode_flow"]

_NEWTON_STEPS = 9  # quadratic from the first on; five or six reach roundoff


def mode_flow(
    time: Float[Array, "*batch"] | float,
    start: Float[Array, "*batch"] | float,
    target: Float[Array, "*batch"] | float,
    input: Float[Array, "*batch"] | float,
    *,
    depth: int = 2,
) -> Float[Array, "*batch"]:
    """The product of one balanced mode under the gradient flow, ``p' = d p^(2-2/d) (sigma - l p)``.

    Depth 1: ``p = p_0 e^{-lt} + sigma phi_t(l)``. Depth 2: ``p = p_0 / (e^{-2 sigma t} + l p_0
    phi_{2t}(sigma))`` with ``phi_s(x) = (1 - e^{-sx}) / x``, which is both cases of the paper,
    ``p_0 / (1 + 2 l p_0 t)`` at ``sigma = 0``. Deeper, :func:`deep_mode_time` is inverted.

    Args:
        time: at least 0, as large as floats get.
        start: the product ``p_0`` of the mode's singular values, at least 0 (any, at depth 1); it
            may lie above ``sigma / l``. 0 stays 0 at depth 2 and beyond.
        target: ``sigma``, at least 0.
        input: ``l``, at least 0. At ``l = 0`` the mode grows for ever: deeper than 2 it is infinite
            after a finite time.
        depth: ``d``, static.

    Returns:
        ``p(time)``; all arguments broadcast against each other. Differentiable in all four.

    Raises:
        TypeError: if an argument is no real number, or ``depth`` no integer.
        ValueError: if an argument is negative or not finite, or ``depth`` is below 1.

    Source: Gidel et al. 2019, eq. 16; printed form differs in case 2, whose denominator is
        ``1 + 2 e^{-2 delta} l t`` for ``p_0 = e^{-2 delta}``. Depth 1: eq. 9.

    Example:
        >>> from alignjax.closed_forms import mode_flow
        >>> [round(mode_flow(t, 0.01, 1.0, 1.0).item(), 4) for t in (0.0, 2.3, 1e300)]
        [0.01, 0.5012, 1.0]
    """
    depth = as_count(depth, "depth", minimum=1)
    arrays = jnp.broadcast_arrays(
        *elementwise(
            time=time, start=start, target=target, input=input, signed="start" * (depth == 1)
        )
    )
    if depth == 1:
        t, p, sigma, rate = arrays
        return p * jnp.exp(-rate * t) + sigma * elapsed(rate, t)
    return _two_layers(*arrays) if depth == 2 else _deep(depth, *arrays)


def deep_mode_time(
    product: Float[Array, "*batch"] | float,
    start: Float[Array, "*batch"] | float,
    target: Float[Array, "*batch"] | float,
    input: Float[Array, "*batch"] | float,
    *,
    depth: int,
) -> Float[Array, "*batch"]:
    """When a balanced mode of any depth reaches a product.

    The time is ``int dp / (d p^(2-2/d) (sigma - l p))`` from start to product.

    For ``d > 2``, with ``a = 2/d - 1``, ``p* = sigma / l`` and ``x = p / p*`` it is
    ``[x^a/a 2F1(1, a; a+1; x)]`` between start and product, divided by ``d sigma p*^(1-2/d)``.

    Args:
        product: ``p``, on the start's side of ``p*``.
        start: ``p_0``, at least 0.
        target: ``sigma``, at least 0.
        input: ``l``, at least 0.
        depth: ``d``, static.

    Returns:
        The time; negative for a product that lies on the other side of the start, infinite for
        ``p*`` itself, and NaN for a product that the mode never had. All arguments broadcast, and
        derivatives are right in all four, at any scale.

    Raises:
        TypeError: if an argument is no real number, or ``depth`` no integer.
        ValueError: if an argument is negative or not finite, or ``depth`` is below 1.

    Source: the integral of Gidel et al. 2019, eq. 12, in one mode of any depth; at depth 2 it
        inverts eq. 16.

    Example:
        >>> from alignjax.closed_forms import deep_mode_time, mode_flow
        >>> t = deep_mode_time(0.5, 0.01, 1.0, 1.0, depth=3)
        >>> round(mode_flow(t, 0.01, 1.0, 1.0, depth=3).item(), 12)
        0.5
    """
    depth = as_count(depth, "depth", minimum=1)
    arrays = elementwise(product=product, start=start, target=target, input=input)
    return _time(depth, *jnp.broadcast_arrays(*arrays))


def _ratio(numerator: Array, denominator: Array, otherwise: Any) -> Array:
    """The quotient, and ``otherwise`` where the denominator is 0."""
    zero = denominator == 0.0
    return jnp.where(zero, otherwise, numerator / jnp.where(zero, 1.0, denominator))


@jax.custom_jvp
def _two_layers(t: Array, p: Array, sigma: Array, rate: Array) -> Array:
    return _ratio(p, _two_layer_parts(t, p, sigma, rate)[1], jnp.where(p > 0.0, jnp.inf, 0.0))


def _two_layer_parts(t: Array, p: Array, sigma: Array, rate: Array) -> tuple[Array, Array, Array]:
    """``e^{-2 sigma t}``, the denominator ``p_0 / p``, and half of ``phi_{2t}(sigma)``."""
    # Never 2 t, which overflows for the largest times.
    left, spent = jnp.exp(-2.0 * (sigma * t)), elapsed(2.0 * sigma, t)
    return left, left + 2.0 * (rate * p * spent), spent


@_two_layers.defjvp
def _two_layers_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # Quotients that stay within range: the plain derivative squares the denominator, which
    # underflows from starts below 1e-154 on, and multiplies times before they meet a decay.
    t, start, sigma, rate = primals
    dt, d_start, d_sigma, d_rate = tangents
    p = _two_layers(*primals)
    left, denominator, spent = _two_layer_parts(*primals)
    share = _ratio(left, denominator, 0.0)  # how much of p still depends on the start
    x = 2.0 * (sigma * t)
    late = x > 1.0
    # -d ln phi / d sigma = 2t phi_1(x) / phi_0(x), by phi_1 = (1 - e^{-x} (1 + x)) / x^2 later on.
    faded, early = jnp.minimum(x, 1e3), jnp.where(late, 1.0, x)
    fading = jnp.where(
        late,
        0.5 * (1.0 - faded / jnp.expm1(jnp.where(late, faded, 1.0))) / jnp.where(late, sigma, 1.0),
        t * (decay_integral(1, early) / decay_integral(0, early)),
    )
    by_target = (1.0 - share) * fading + t * share
    tangent = 2.0 * p * (sigma - rate * start) * share * dt
    tangent += _ratio(share, denominator, 0.0) * d_start
    tangent += 2.0 * (p * by_target * d_sigma - p * (p * spent) * d_rate)
    return p, tangent


class _Branches(NamedTuple):
    """Which of the four solutions of a deep mode holds, entry by entry."""

    no_input: Array
    no_target: Array
    above: Array
    settled: Array  # at sigma / lambda from the start, or 0

    @property
    def general(self) -> Array:
        return ~(self.no_input | self.no_target | self.settled)


def _branches(p: Array, sigma: Array, rate: Array) -> _Branches:
    # Beyond these ratios the powers in the general solution leave the range of floats.
    tiny = jnp.finfo(p.dtype).tiny
    no_input = rate * p <= tiny * sigma
    no_target = ~no_input & (sigma <= tiny ** (1 / 3) * rate * p)
    above = rate * p > sigma
    settled = (p == 0.0) | (~no_input & (rate * p == sigma))
    return _Branches(no_input, no_target, above, settled)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _deep_state(depth: int, t: Array, p: Array, sigma: Array, rate: Array) -> tuple[Array, Array]:
    """``p(t)`` and ``sigma - lambda p(t)``, the latter with its digits near 0 too."""
    which, a = _branches(p, sigma, rate), 2.0 / depth
    start = jnp.where(p > 0.0, p, 1.0)
    shrink = 1.0 - (1.0 - a) * depth * sigma * start ** (1.0 - a) * t
    grown = start * jnp.where(shrink > 0.0, shrink, 0.0) ** (-1.0 / (1.0 - a))
    decayed = start * (1.0 + (2.0 - a) * depth * rate * start ** (2.0 - a) * t) ** (
        -1.0 / (2.0 - a)
    )
    general = which.general
    sigma_, rate_ = jnp.where(general, sigma, 1.0), jnp.where(general, rate, 1.0)
    above, start_ = which.above & general, jnp.where(general, start, 0.5)
    limit = sigma_ / rate_
    logit = _logit(above, start_, sigma_, rate_)
    clock = jnp.minimum(depth * sigma_ * limit ** (1.0 - a) * t, 0.25 * jnp.finfo(p.dtype).max)
    logit = jnp.where(
        above,
        _invert(2.0 - a, True, jnp.where(above, logit, 0.0), clock),
        _invert(a, False, jnp.where(above, 0.0, logit), clock),
    )
    reached, missing = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
    moved = jnp.where(above, limit / reached, limit * reached)
    gap = jnp.where(above, -rate_ * moved, sigma_) * missing
    out = jnp.where(which.no_target, decayed, moved)
    out = jnp.where(which.no_input, grown, out)
    out = jnp.where(which.settled, p, out)
    gap = jnp.where(which.no_input | which.no_target, sigma - rate * out, gap)
    return out, jnp.where(which.settled, sigma - rate * p, gap)


def _deep(depth: int, t: Array, p: Array, sigma: Array, rate: Array) -> Array:
    return _deep_state(depth, t, p, sigma, rate)[0]


@_deep_state.defjvp
def _deep_state_jvp(depth: int, primals: tuple, tangents: tuple) -> tuple:
    # From the equation itself: dp/dt and dp/dp_0 directly; the other two from its two scalings,
    # of time and of p.
    t, start, sigma, rate = primals
    dt, d_start, d_sigma, d_rate = tangents
    which, a = _branches(start, sigma, rate), 2.0 / depth
    p, gap = _deep_state(depth, *primals)
    speed = depth * p ** (2.0 - a) * gap
    safe = jnp.where(start > 0.0, start, 1.0)
    gap_ratio = _ratio(gap, sigma - rate * start, jnp.exp(-depth * sigma * safe ** (1.0 - a) * t))
    by_start = jnp.where(gap_ratio == 0.0, 0.0, (p / safe) ** (2.0 - a) * gap_ratio)
    by_start = jnp.where(start > 0.0, by_start, 1.0)
    moved = t * speed  # before it meets a factor: the largest times leave no room
    by_target = _ratio((2.0 - a) * moved + p - start * by_start, sigma, 0.0)
    by_input = _ratio(start * by_start - p - (1.0 - a) * moved, rate, 0.0)
    # Where sigma or lambda vanishes, its scaling says nothing, and the integral is elementary.
    drive = depth * t * safe ** (2.0 - a)
    lost = -jnp.expm1(-(3.0 - a) / (2.0 - a) * jnp.log1p((2.0 - a) * rate * drive))
    by_target = jnp.where(
        which.no_target | (which.no_input & (sigma == 0.0)),
        _ratio(lost, (3.0 - a) * rate, drive),
        by_target,
    )
    free = -(p ** (2.0 - a)) * _ratio(p**a - safe**a, a * sigma, depth * t * safe)
    by_input = jnp.where(which.no_input, free, by_input)
    zero = start == 0.0
    by_target, by_input = jnp.where(zero, 0.0, by_target), jnp.where(zero, 0.0, by_input)
    dp = speed * dt + by_start * d_start + by_target * d_sigma + by_input * d_rate
    return (p, gap), (dp, d_sigma - p * d_rate - rate * dp)


def _logit(above: Array, p: Array, sigma: Array, rate: Array) -> Array:
    """``ln(x / (1 - x))`` of ``x = lambda p / sigma``, or of ``1 / x`` above 1."""
    gap = jnp.abs(sigma - rate * p)
    gap = jnp.where(gap > 0.0, gap, jnp.finfo(gap.dtype).tiny)
    return jnp.log(jnp.where(above, sigma, rate * p)) - jnp.log(gap)


def _series(c: float, dtype: Any) -> tuple[list[float], list[float], float]:
    """Coefficients of :func:`_beta` around 0 and around 1, and its constant at 1."""
    count = jnp.finfo(dtype).nmant + 4  # the arguments are at most 1/2
    low = [1.0 / (c + k) for k in range(count)]
    high, term = [], 1.0
    for k in range(1, count + 1):
        term *= (k - c) / k
        high.append(term / k)
    at_half = 0.5**c * sum(u * 0.5**k for k, u in enumerate(low))
    constant = at_half - float(np.log(2.0)) + sum(u * 0.5 ** (k + 1) for k, u in enumerate(high))
    return low, high, constant


def _beta(c: float, logit: Array) -> Array:
    """The incomplete beta function ``int_0^x r^(c-1) / (1 - r) dr`` at ``x = sigmoid(logit)``."""
    low, high, constant = _series(c, logit.dtype)
    x, missing = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
    small = logit <= 0.0
    argument = jnp.where(small, x, missing)
    below, above = jnp.zeros_like(x), jnp.zeros_like(x)
    for u, v in zip(reversed(low), reversed(high), strict=True):
        below, above = below * argument + u, above * argument + v
    return jnp.where(small, x**c * below, jax.nn.softplus(logit) + constant - missing * above)


def _clock(c: float, above: bool, logit: Array) -> Array:
    """The time, over ``d sigma p*^(1-2/d)``, up to a constant: it grows from 0 or -infinity."""
    value = _beta(c, logit)
    return value if above else value - jnp.exp((c - 1.0) * jax.nn.log_sigmoid(logit)) / (1.0 - c)


def _invert(c: float, above: bool, logit: Array, elapsed_clock: Array) -> Array:
    """The logit at which :func:`_clock` has advanced by ``elapsed_clock``.

    In the logit the clock is concave below ``p*`` and convex above, with slopes between 0 and 1
    near ``p*``, so Newton's steps approach from one side without a safeguard.
    """
    goal = _clock(c, above, logit) + elapsed_clock
    half = _beta(c, jnp.zeros((), logit.dtype))
    if above:
        early = goal < half
        guess = jnp.minimum((c * jnp.where(early, goal, half)) ** (1.0 / c), 0.9)
    else:
        early = goal < half - 0.5 ** (c - 1.0) / (1.0 - c)
        guess = ((1.0 - c) * (half - jnp.where(early, goal, 0.0))) ** (-1.0 / (1.0 - c))
        guess = jnp.minimum(guess, 0.5)
    first = jnp.where(early, jnp.log(guess) - jnp.log1p(-guess), 0.0)

    def step(_: int, at: Array) -> Array:
        slope = jnp.exp((c if above else c - 1.0) * jax.nn.log_sigmoid(at))
        return at + (goal - _clock(c, above, at)) / slope

    return lax.fori_loop(0, _NEWTON_STEPS, step, first)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _time(depth: int, p: Array, start: Array, sigma: Array, rate: Array) -> Array:
    gap, gap_start = sigma - rate * p, sigma - rate * start
    if depth <= 2:
        scale, drive = (1.0, rate) if depth == 1 else (2.0 * start, sigma)
        step = (p - start) / (scale * gap)
        w = (drive if depth == 1 else 2.0 * drive) * step
        out = step * jnp.where(jnp.abs(w) < 1e-30, 1.0, jnp.log1p(w) / w)
    else:
        out = _deep_time(depth, p, start, sigma, rate)
    out = jnp.where(gap == 0.0, jnp.inf, out)
    out = jnp.where((gap * gap_start < 0.0) | (gap_start == 0.0), jnp.nan, out)
    return jnp.where(p == start, 0.0, out)


def _deep_time(depth: int, p: Array, start: Array, sigma: Array, rate: Array) -> Array:
    which, a = _branches(jnp.maximum(p, start), sigma, rate), 2.0 / depth
    grown = (start ** (a - 1.0) - p ** (a - 1.0)) / ((1.0 - a) * depth * sigma)
    decayed = (p ** (a - 2.0) - start ** (a - 2.0)) / ((2.0 - a) * depth * rate)
    above = which.above
    ends = [_logit(above, side, sigma, rate) for side in (p, start)]
    below_, above_ = (
        _clock(c, side, ends[0]) - _clock(c, side, ends[1])
        for c, side in ((a, False), (2.0 - a, True))
    )
    scale = depth * sigma * (sigma / rate) ** (1.0 - a)
    out = jnp.where(above, above_, below_) / scale
    return jnp.where(which.no_input, grown, jnp.where(which.no_target, decayed, out))


@_time.defjvp
def _time_jvp(depth: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    p, start, sigma, rate = primals
    dp, d_start, d_sigma, d_rate = tangents
    a, time = 2.0 / depth, _time(depth, *primals)
    above = rate * start > sigma
    # One factor after the other, lest a power leave the range of floats before it meets the rest.
    inverse = [s ** (a - 1.0) / (depth * (sigma - rate * s)) / s for s in (p, start)]
    tangent = inverse[0] * dp - inverse[1] * d_start
    # By sigma it is -int dq / (d q^(2-a) (sigma - l q)^2), by l the same with a factor -q. The one
    # that is small against the other is integrated, and the other one is what is left to
    # sigma dt/dsigma + l dt/dl = -t, where nothing cancels.
    by_rate, by_target, shared = jnp.zeros_like(time), jnp.zeros_like(time), jnp.zeros_like(time)
    for s, sign in ((p, 1.0), (start, -1.0)):
        logit = _logit(above, s, sigma, rate)
        low = sign * s ** (a - 1.0) / (depth * sigma) * _squared(a, logit)
        high = sign * s ** (a - 2.0) / (depth * rate) * _squared(3.0 - a, logit)
        by_rate += low * (s / sigma)
        by_target += high / (rate * s)
        # This one times its own argument, which may be finite where it is not.
        shared += jnp.where(above, high * (sigma / (rate * s)), low * (rate * s / sigma))
    by_target = jnp.where(above, by_target, -(time + shared) / sigma)
    tangent += by_target * d_sigma
    tangent += jnp.where(above, -(time + shared) / rate, by_rate) * d_rate
    return time, tangent


def _squared(c: float, logit: Array) -> Array:
    """``x^(-c) int_0^x r^(c-1) / (1 - r)^2 dr`` at ``x = sigmoid(logit)``; it is ``1/c`` at 0."""
    x = jax.nn.sigmoid(logit)
    tiny = x < jnp.finfo(x.dtype).eps ** 2
    whole = _beta(c, logit) / jnp.where(tiny, 1.0, x) ** c
    return 1.0 / jax.nn.sigmoid(-logit) + (1.0 - c) * jnp.where(tiny, 1.0 / c, whole)
