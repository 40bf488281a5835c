"""How fast gradient flow separates: norms, risk and angle at late times, with their constants.

Late on, for a loss with the tail ``e^{-x}``, the layers are of rank one and ``w = p u + w_perp``
along the maximum-margin direction ``u``. Only support vectors count, so that the risk is
``C e^{-gamma p}``, and ``x = gamma p`` follows

    dx/dt = K x^m e^{-x},    m = 2 - 2/L,    K = L gamma^{2/L} C.

Neither constant depends on the start. What the start does, its imbalance, is lost like
``x^{-4/L}``.

``w`` here is in the span of the samples. Where they span less than the space of inputs, what
``W_1`` has outside of their span stays, and adds to ``w`` what grows like ``||w||^{1 - 1/L}``: its
angle then falls like ``x^{-1/L}``, for one layer like ``1/x``, with a constant from the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignjax._validation import as_count, as_real, describe, is_concrete
from alignjax.linalg import end_to_end
from alignjax.problems import SampleProblem, check_weights, gradient
from alignjax.theory.margin.maximum_margin import MaximumMargin, across_direction

__all__ = [
    "LateTimes",
    "first_layer_growth",
    "late_times",
    "predicted_angle",
    "predicted_layer_norm",
    "predicted_log_risk",
    "predicted_norm",
    "predicted_ratio_exponent",
]

_FIRST = 4.0  # x = gamma ||w|| below which the expansion in 1/x says nothing
_SWEEPS = 200


@dataclass(frozen=True)
class LateTimes:
    """What the data alone decide about late times.

    Attributes:
        margin: the maximum margin gamma, in units of the inputs.
        offset: the limit of ``w_perp``, shape ``(k_0,)``, in inverse units of the inputs.
        lag: how far ``w_perp`` trails behind its limit, ``x (w_perp - offset) / (L - 1)``, shape
            ``(k_0,)``.
        level: ``C``, the limit of ``R(w) e^{gamma p}``.
    """

    margin: float
    offset: Array
    lag: Array
    level: float


def late_times(X: Float[Array, "n k_0"], labels: Any, found: MaximumMargin) -> LateTimes:
    """The limit of ``w`` across the maximum-margin direction, and the level of the risk.

    With ``z_i = y_i x_i`` and the support vectors S, for every depth,

        w_perp -> argmin_{v _|_ u} sum_{i in S} e^{-<v, z_i>},    C = (1/n) min_v of that sum,

    by Newton's method. Where the support vectors lie symmetrically about ``u``, the limit is 0. The
    layers above the first turn ``w_perp`` by less and less, which leaves it behind its limit by

        w_perp = v + (L - 1) gamma^2 H^{-1} v / x + O(x^{-2}),

    with ``H`` the Hessian of the logarithm of the sum at its minimizer ``v``. The remainder is that
    of balanced layers: an imbalance ``D`` that is not small beside ``||W_k||^2`` adds terms which,
    for L >= 3, can be as large as this one up to the latest times. ``w_perp`` is that of ``w`` in
    the span of the samples.
    Host-only, in float64.

    Args:
        X: inputs, shape ``(n, k_0)``.
        labels: -1 or +1, shape ``(n,)``.
        found: what :func:`max_margin` returned for them.

    Raises:
        TypeError: if anything is traced, or ``found`` is no :class:`MaximumMargin`.
        ValueError: for shapes or labels that do not fit; where the sum has no minimum, because 0 is
            not inside the hull of the projected support vectors; or where the support vectors span
            less than the samples (Assumption 3), so that the limit depends on the start.

    Source: not in Ji & Telgarsky 2019; for one layer Soudry et al. 2018, Theorem 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.theory.margin import late_times, max_margin
        >>> X, labels = jnp.array([[1.0, 2.0], [1.0, -1.0]]), [1, 1]
        >>> late = late_times(X, labels, max_margin(X, labels))
        >>> late.offset.round(4).tolist(), round(late.level, 4)
        ([0.0, 0.231], 0.9449)
    """
    across = across_direction(X, labels, found, "late_times")
    everything, basis, unit, _ = across
    points = everything[found.support]
    if across.rank(points) < len(basis):
        raise ValueError(
            f"the support vectors of found span less than the samples (Assumption 3): "
            f"{len(points)} of them, for {len(basis)} dimensions across the direction; the limit "
            f"depends on the start"
        )
    v, total, hessian = _least_sum(points)
    margin = float(found.margin)
    lag = (margin / unit) ** 2 * np.linalg.solve(hessian, v)
    offset, behind = (jnp.asarray(part @ basis / unit) for part in (v, lag))
    return LateTimes(margin, offset, behind, total / len(everything))


def _least_sum(points: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Minimizer and minimum of ``sum_i e^{-<v, points_i>}``, and the Hessian of its logarithm.

    By Newton's method, whose steps are halved until they descend.
    """
    v = np.zeros(points.shape[1])

    def log_sum(at: np.ndarray) -> float:
        return float(np.logaddexp.reduce(-points @ at))

    value = log_sum(v)
    for _ in range(_SWEEPS):
        q = np.exp(-points @ v - value)
        mean = q @ points
        moment = (points * q[:, None]).T @ points - np.outer(mean, mean)
        step, *_ = np.linalg.lstsq(moment, mean, rcond=None)
        decrease = float(step @ mean)
        if decrease <= 1e-28:
            break
        size = 1.0
        # A descent this small is lost in the value's roundoff; full steps converge from here.
        while (
            decrease > 1e-12
            and log_sum(v + size * step) > value - 0.25 * size * decrease
            and size > 1e-8
        ):
            size /= 2
        v = v + size * step
        value = log_sum(v)
    # Where the sum falls without end, it has gone flat by now.
    flat = v.size and np.linalg.eigvalsh(moment)[0] <= 1e-10 * (points**2).sum(axis=1).max()
    if decrease > 1e-28 or flat:
        raise ValueError(
            "the support vectors of found do not surround its direction (a dual weight is 0): what "
            "lies across it has no limit"
        )
    return v, float(np.exp(value)), moment


def predicted_norm(times: Float[Array, "..."], late: LateTimes, depth: int) -> Float[Array, "..."]:
    """The norm ``||w||`` of the network's product at late times.

        gamma ||w|| = ln t + (2 - 2/L) ln ln t + ln(L gamma^{2/L} C) + o(1).

    The logarithms are not expanded: ``x = gamma p`` solves the integrated equation
    ``e^x x^{-m} (1 + m/x + m (m+1)/x^2) = K t`` and ``||w||^2 = p^2 + ||w_perp||^2``, which leaves
    an error of ``x^{-2}`` from the path and ``x^{-4/L}`` from the start's imbalance.

    Args:
        times: t, any shape; may be traced.
        late: from :func:`late_times`.
        depth: L, at least 1.

    Returns:
        Norms in the shape of ``times``, in inverse units of the inputs; NaN at times too early for
        the expansion (x below 4).

    Raises:
        TypeError: if ``late`` is no :class:`LateTimes`, or the others are no numbers.
        ValueError: if ``times`` or ``depth`` are not positive.

    Source: not in Ji & Telgarsky 2019, which proves no rate; Soudry et al. 2018 for one layer.
    """
    x = _scaled_norm(times, late, depth)
    return jnp.sqrt((x / late.margin) ** 2 + (late.offset**2).sum())


def predicted_log_risk(
    times: Float[Array, "..."], late: LateTimes, depth: int
) -> Float[Array, "..."]:
    """The logarithm of the risk at late times.

        ln R = -ln t - (2 - 2/L) ln ln t - ln(L gamma^{2/L}) + o(1).

    The last constant knows neither the start nor how many samples there are. Evaluated as
    ``ln C - x`` with the ``x`` of :func:`predicted_norm`; arguments and errors as there.

    Source: not in Ji & Telgarsky 2019, Theorem 1, which proves that R tends to 0.
    """
    return jnp.log(late.level) - _scaled_norm(times, late, depth)


def predicted_angle(times: Float[Array, "..."], late: LateTimes, depth: int) -> Float[Array, "..."]:
    """The angle between ``w`` and the maximum-margin direction at late times, in radians.

        tan(angle) = gamma ||w_perp|| / x ~ gamma ||v|| / ln t

    To the leading order it does not depend on the depth; ``w_perp = v + (L - 1) lag / x`` does.
    It holds for starts whose first layer lies in the span of the samples, which all do where the
    samples span the space of inputs. Arguments and errors as in :func:`predicted_norm`.

    Source: not in Ji & Telgarsky 2019, Theorem 2, which proves that it tends to 0.
    """
    x = _scaled_norm(times, late, depth)
    like = (*[None] * x.ndim, ...)
    across = late.offset[like] + (depth - 1) * late.lag[like] / x[..., None]
    return jnp.arctan(late.margin * jnp.linalg.norm(across, axis=-1) / x)


def predicted_layer_norm(
    times: Float[Array, "..."], late: LateTimes, depth: int
) -> Float[Array, "..."]:
    """``||W_k||`` of every layer at late times, ``||w||^{1/L}``: squared norms differ by constants.

    Arguments and errors as in :func:`predicted_norm`.

    Source: Ji & Telgarsky 2019, eq. 3.
    """
    return predicted_norm(times, late, depth) ** (1 / depth)


def predicted_ratio_exponent(depth: int) -> float:
    """``-2/L``: ``1 - ||W_k||_2 / ||W_k||_F`` decays like ``(ln t)^{-2/L}`` for ``k < L``.

    What a layer has beyond its first singular value tends to a constant ``E_k <= D``, so that

        1 - ||W_k||_2 / ||W_k||_F -> (E_k / 2) (gamma / ln t)^{2/L}.

    The last layer is a row, whose ratio is 1 always, and balanced starts (``D = 0``) keep every
    ratio at 1.

    Raises:
        TypeError, ValueError: if ``depth`` is no positive integer.

    Source: follows from Ji & Telgarsky 2019, Lemma 2.

    Example:
        >>> predicted_ratio_exponent(4)
        -0.5
    """
    return -2 / as_count(depth, "depth", minimum=1)


def _scaled_norm(times: Any, late: LateTimes, depth: Any) -> Array:
    """``x = gamma p``; NaN where it would be below ``_FIRST``."""
    if not isinstance(late, LateTimes):
        raise TypeError(f"late must come from late_times, got {describe(late)}")
    layers = as_count(depth, "depth", minimum=1)
    t = as_real(times, "times")
    if is_concrete(t) and not bool((t > 0).all()):
        raise ValueError(f"times must be positive, got {float(t.min())}")
    power = 2 - 2 / layers
    goal = jnp.log(t) + float(np.log(layers * late.margin ** (2 / layers) * late.level))

    def correction(x: Array) -> Array:
        return jnp.log1p(power / x + power * (power + 1) / x**2) - power * jnp.log(x)

    first = jnp.asarray(_FIRST, t.dtype)

    # A contraction for x >= 4: the slope is at most m/x.
    def sweep(_: Array, x: Array) -> Array:
        return jnp.maximum(goal - correction(x), first)

    x = jax.lax.fori_loop(0, _SWEEPS, sweep, jnp.maximum(goal, first))
    return jnp.where(goal < first + correction(first), jnp.nan, x)


def first_layer_growth(
    problem: SampleProblem, weights: Any, *, direction: Float[Array, " k_0"] | None = None
) -> Float[Array, ""]:
    """How fast the first layer grows along gradient flow.

        d||W_1||_F^2/dt = -2 <w, dR/dw>,    d||W_1 P||_F^2/dt = -2 <P w, dR/dw>

    with the projector ``P`` onto the complement of ``direction``. A flow into the cone of the
    direction makes the second negative.

    Args:
        problem: what is learned, with one output.
        weights: ``(W_1, ..., W_L)``.
        direction: a unit vector, shape ``(k_0,)``; the first identity without it.

    Raises:
        TypeError, ValueError: if ``weights`` do not fit ``problem``, the network has more than one
            output, or ``direction`` is no unit vector of that length.

    Source: Ji & Telgarsky 2019, eqs. 20 and 21; the printed form differs: it lacks the factor 2.
    """
    layers = check_weights(problem, weights)
    product = end_to_end(layers)
    if len(product) != 1:
        raise ValueError(f"weights must have one output, got {len(product)}")
    (slope,) = gradient(problem, (product,))
    if direction is None:
        return -2 * jnp.vdot(product, slope)
    unit = as_real(direction, "direction", ndim=1)
    if unit.shape != (product.shape[1],):
        raise ValueError(f"direction must have shape ({product.shape[1]},), got {unit.shape}")
    # by NumPy, since JAX would trace the norm of a constant too
    size = float(np.linalg.norm(np.asarray(unit))) if is_concrete(unit) else 1.0
    if abs(size - 1) > 1e-5:
        raise ValueError(f"direction must have norm 1, got {size:.6g}")
    return -2 * (jnp.vdot(product, slope) - jnp.vdot(product, unit) * jnp.vdot(slope, unit))
