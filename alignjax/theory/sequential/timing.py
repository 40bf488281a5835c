"""When modes are learned: transition times, the limit of small starts, and what separates modes.

A two-layer network starts balanced with every layer's singular values at ``e^{-δ}``, so a mode's
product starts at ``e^{-2δ}``. ``target`` is σ, a mode's entry of Sigma_yx, and ``input`` is λ, its
entry of Sigma_xx.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alignjax._validation import as_raw, is_concrete
from alignjax.closed_forms._elementwise import elementwise, on_host, refuse

__all__ = [
    "SeparationMargins",
    "learning_order",
    "limit_of_mode",
    "limiting_norm",
    "printed_separates",
    "regression_order",
    "separates",
    "separation_margins",
    "transition_steps",
    "transition_times",
]


def transition_times(
    target: Float[Array, "..."], input: Any, delta: Any, *, exact: bool = True
) -> Float[Array, "..."]:
    """The time at which the flow of a mode reaches half of its final height ``σ/λ``.

        T = (1/σ) [δ + 1/2 ln(σ/λ - e^{-2δ})],   or δ/σ where exact is False

    The second is what remains of the first as δ grows. A start above half height gives a negative
    time; modes without a target, and modes without inputs, which have no final height, never get
    there: infinity, except that δ/σ knows nothing of λ.

    Args:
        target: σ, at least 0.
        input: λ, at least 0.
        delta: δ, positive, with the start ``e^{-2δ}`` below ``σ/λ``.
        exact: whether the logarithm is kept.

    Returns:
        Times, of the broadcast shape.

    Raises:
        TypeError: for what is no real number.
        ValueError: for δ <= 0, negative or non-finite arguments, a start that is not below σ/λ, or
            shapes that do not broadcast.

    Source: Gidel et al. 2019, eq. 17 and Theorem 2; the printed eq. 17, ``(δ/σ) ln σ``, is wrong.

    Example:
        >>> import alignjax as aj
        >>> times = aj.theory.sequential.transition_times([1.0, 0.5], 1.0, 20.0, exact=False)
        >>> times.tolist()
        [20.0, 40.0]
    """
    _refuse_start(target, input, delta)
    sigma, lam, depth = elementwise(target=target, input=input, delta=delta)
    learned = sigma > 0
    safe = jnp.where(learned, sigma, 1.0)
    times = jnp.where(learned, _log_growth(safe, lam, depth, exact) / safe, jnp.inf)
    return _refuse_rounded(times, target=sigma, input=lam, delta=depth)


def transition_steps(
    target: Float[Array, "..."],
    input: Any,
    delta: Any,
    learning_rate: Any,
    *,
    exact: bool = False,
) -> Float[Array, "..."]:
    """The number of steps after which descent on a mode is at half of its final height.

        δ / ln(1 + ησ),   or [δ + 1/2 ln(σ/λ - e^{-2δ})] / ln(1 + ησ) where exact is True

    Small modes grow by ``(1 + ησ)^2`` a step, and the first form is their time as δ grows. The
    second takes the start and the final height as they are. It is where the lower bound of
    :func:`alignjax.closed_forms.mode_descent_bounds` crosses half height, so for ``2ησ <= 1`` the
    mode is there at the next whole step, if not before.

    Args:
        target: σ, at least 0.
        input: λ, at least 0.
        delta: δ, positive, with the start ``e^{-2δ}`` below ``σ/λ``.
        learning_rate: η, positive.
        exact: whether the logarithm is kept.

    Returns:
        Numbers of steps, not rounded, of the broadcast shape; infinite for modes without a target.

    Raises:
        TypeError: for what is no real number.
        ValueError: for δ <= 0, η <= 0, negative or non-finite arguments, a start that is not below
            σ/λ, or shapes that do not broadcast.

    Source: Gidel et al. 2019, eq. 25; the printed ``T = 1/(ησ)``, in units of δ, is the limit of
    small ``ησ``.

    Example:
        >>> import alignjax as aj
        >>> steps = aj.theory.sequential.transition_steps(1.0, 0.01, 8.0, 0.1, exact=True)
        >>> round(float(steps), 1)
        108.1
    """
    _refuse_start(target, input, delta)
    _refuse_rate(learning_rate)
    sigma, lam, depth, rate = elementwise(
        target=target, input=input, delta=delta, learning_rate=learning_rate
    )
    learned = sigma > 0
    safe = jnp.where(learned, sigma, 1.0)
    steps = _log_growth(safe, lam, depth, exact) / jnp.log1p(rate * safe)
    steps = jnp.where(learned, steps, jnp.inf)
    return _refuse_rounded(steps, target=sigma, input=lam, delta=depth)


def _log_growth(sigma: Array, lam: Array, delta: Array, exact: bool) -> Array:
    """The logarithm of what a layer must gain to bring the product to half height."""
    if not exact:
        return delta + jnp.zeros_like(sigma * lam)
    has_height = lam > 0
    height = sigma / jnp.where(has_height, lam, 1.0)
    # height - e^{-2 delta}, in which neither a small delta nor a small height may be lost
    above = jnp.where(
        height < 0.5, height - jnp.exp(-2 * delta), (height - 1) - jnp.expm1(-2 * delta)
    )
    # A start above the height has no transition: NaN under a trace, refused where concrete.
    growth = delta + 0.5 * jnp.log(jnp.where(above > 0, above, jnp.nan))
    return jnp.where(has_height, growth, jnp.inf)


def _refuse_rounded(found: Array, *, target: Array, input: Array, delta: Array) -> Array:
    """What was found, unless rounding has taken a start to its height or above."""
    if is_concrete(found):
        values = on_host(target=target, input=input, delta=delta)
        assert values is not None
        refuse(
            np.isnan(found),
            {name: np.broadcast_to(value, found.shape) for name, value in values.items()},
            f"delta must be so large that the start e^(-2 delta) lies in (0, target / input) in "
            f"{found.dtype} too",
        )
    return found


def _refuse_start(target: Any, input: Any, delta: Any) -> None:
    values = on_host(target=target, input=input, delta=delta)
    if values is None:
        return
    sigma, lam, depth = values.values()
    refuse(depth <= 0, values, "delta must be positive: layers start at e^(-delta) < 1")
    refuse(
        (sigma > 0) & (lam * np.exp(-2 * depth) >= sigma),
        values,
        "delta must be so large that the start e^(-2 delta) lies in (0, target / input)",
    )


def _refuse_rate(learning_rate: Any) -> None:
    values = on_host(learning_rate=learning_rate)
    if values is not None:
        refuse(values["learning_rate"] <= 0, values, "learning_rate must be positive")


def limit_of_mode(target: Float[Array, "..."], input: Any, time: Any) -> Float[Array, "..."]:
    """What a mode's product is at time ``tδ`` of the flow from ``e^{-2δ}``, as δ grows.

        0 for t < T,   σ/(λ + σ) at T,   σ/λ for t > T,   with T = 1/σ

    Args:
        target: σ, at least 0; where it is 0 the limit is 0.
        input: λ, at least 0; where it is 0 the limit after T is infinite.
        time: t, in units of δ, at least 0.

    Returns:
        The limit, of the broadcast shape.

    Raises:
        TypeError: for what is no real number.
        ValueError: for negative or non-finite arguments, or shapes that do not broadcast.

    Source: Gidel et al. 2019, Theorem 2, eq. 18; printed form differs: it starts at ``e^{-δ}``,
    which would halve the times.

    Example:
        >>> import alignjax as aj
        >>> aj.theory.sequential.limit_of_mode(2.0, 2.0, [0.4, 0.5, 0.6]).tolist()
        [0.0, 0.5, 1.0]
    """
    sigma, lam, t = elementwise(target=target, input=input, time=time)
    learned = sigma > 0
    safe = jnp.where(learned, sigma, 1.0)
    turn = jnp.where(learned, 1 / safe, jnp.inf)
    return jnp.where(t < turn, 0.0, jnp.where(t == turn, safe / (lam + safe), safe / lam))


def limiting_norm(
    target: Float[Array, "... r"],
    input: Any,
    time: Any,
    *,
    norm: Literal["squared_fro", "nuclear"] = "squared_fro",
) -> Float[Array, "..."]:
    """The norm of the network's product at time ``tδ`` of the flow, as δ grows: a staircase.

        sum_i w_i^2 (squared Frobenius norm)  or  sum_i w_i (nuclear norm)

    with the limits ``w_i`` of :func:`limit_of_mode`. The nuclear norm counts modes only where
    ``σ = λ``, as in autoencoding.

    Args:
        target: σ of all modes, along the last axis.
        input: λ of the same modes.
        time: t, in units of δ, at least 0, of any shape that broadcasts with the leading axes.
        norm: ``"squared_fro"`` or ``"nuclear"``.

    Returns:
        The norm, of the shape of ``time`` broadcast with the leading axes of the spectra.

    Raises:
        TypeError: for what is no real number.
        ValueError: for negative or non-finite arguments, another ``norm``, or shapes that do not
            broadcast.

    Source: Gidel et al. 2019, Corollary 1, eq. 19.

    Example:
        >>> import alignjax as aj
        >>> steps = aj.theory.sequential.limiting_norm([1.0, 0.5], [1.0, 0.5], [0.5, 1.5, 2.5])
        >>> steps.tolist()
        [0.0, 1.0, 2.0]
    """
    if norm not in ("squared_fro", "nuclear"):
        raise ValueError(f"norm must be 'squared_fro' or 'nuclear', got {norm!r}")
    (t,) = elementwise(time=time)
    limits = limit_of_mode(target, input, t[..., None])
    return (limits**2 if norm == "squared_fro" else limits).sum(-1)


class SeparationMargins(NamedTuple):
    """By how much each condition of :func:`separates` holds; a mode that fails has at most 0.

    Attributes:
        gaps: ``ln(1 + ησ_i) - ησ_{i+1}``, shape ``(..., r - 1)``; infinite where ``σ_{i+1} = 0``,
            since nothing follows.
        stability: ``1 - ησ_1``, shape ``(...)``; 0 is still stable.
    """

    gaps: Array
    stability: Array


def separation_margins(target: Float[Array, "... r"], learning_rate: Any) -> SeparationMargins:
    """Which modes are done before the next one's time ``T_{i+1} = 1/(ησ_{i+1})``, in steps / δ.

    Args:
        target: σ, descending along the last axis, at least 0.
        learning_rate: η, positive, of any shape that broadcasts with the leading axes.

    Returns:
        The margins of all gaps and of stability.

    Raises:
        TypeError: for what is no real number.
        ValueError: for η <= 0, a target that ascends, or negative or non-finite arguments.

    Source: Gidel et al. 2019, Corollary 3, with the conditions of :func:`separates`.

    Example:
        >>> import alignjax as aj
        >>> margins = aj.theory.sequential.separation_margins([1.0, 0.9, 0.1], 0.5)
        >>> (margins.gaps > 0).tolist()
        [False, True]
    """
    sigma, rate = _descending(target, learning_rate)
    gain = rate * sigma
    following = gain[..., 1:]
    gaps = jnp.where(following > 0, jnp.log1p(gain[..., :-1]) - following, jnp.inf)
    return SeparationMargins(gaps, 1 - gain[..., 0])


def separates(target: Float[Array, "... r"], learning_rate: Any) -> Bool[Array, "..."]:
    """Whether descent learns the modes one by one on the paper's clock, as δ grows.

        ln(1 + ησ_i) > ησ_{i+1} for all i,   and   ησ_1 <= 1

    Exactly then, ``δT_j`` steps from ``e^{-2δ}`` leave mode i at 0 for j < i and at ``σ_i/λ_i`` for
    j > i, with ``T_j = 1/(ησ_j)``. A small mode grows by ``2 ln(1 + ησ_i)`` a step, in logarithms.
    As ``ln(1 + x) < x``, it is never early; it is done in time if ``δ ln(1 + ησ_i) / (ησ_{i+1})``
    exceeds δ. Where ``ησ_1 > 1`` the height ``σ/λ`` repels and a cycle takes its place; at 1 it
    still attracts, like ``t^{-1/2}``.

    On the modes' own clock, ``T_j = 1/ln(1 + ησ_j)``, distinct targets always separate, and only
    the second condition remains.

    Args:
        target: σ, descending along the last axis, at least 0; modes without a target do not count.
        learning_rate: η, positive, of any shape that broadcasts with the leading axes.

    Returns:
        Booleans, of the shape of ``learning_rate`` broadcast with the leading axes.

    Raises:
        TypeError: for what is no real number.
        ValueError: for η <= 0, a target that ascends, or negative or non-finite arguments.

    Source: Gidel et al. 2019, Corollary 3; printed form differs: it demands more, see
    :func:`printed_separates`.

    Example:
        >>> import alignjax as aj
        >>> aj.theory.sequential.separates([1.0, 0.1], [0.9, 1.1]).tolist()
        [True, False]
    """
    gaps, stability = separation_margins(target, learning_rate)
    return (gaps > 0).all(-1) & (stability >= 0)


def printed_separates(target: Float[Array, "... r"], learning_rate: Any) -> Bool[Array, "..."]:
    """The conditions for learning one by one as they are printed: sufficient, far from necessary.

        η < 1/(2σ_1),   η < 2 (σ_i - σ_{i+1})/σ_i^2,   η < (σ_i - σ_{i+1})/(2σ_{i+1}^2)

    Args:
        target: σ, descending along the last axis, at least 0; modes without a target do not count.
        learning_rate: η, positive, of any shape that broadcasts with the leading axes.

    Returns:
        Booleans, of the shape of ``learning_rate`` broadcast with the leading axes.

    Raises:
        TypeError: for what is no real number.
        ValueError: for η <= 0, a target that ascends, or negative or non-finite arguments.

    Source: Gidel et al. 2019, Corollary 3, as printed.
    """
    sigma, rate = _descending(target, learning_rate)
    before, after = sigma[..., :-1], sigma[..., 1:]
    gap = before - after
    apart = (rate * before**2 < 2 * gap) & (2 * rate * after**2 < gap)
    return (apart | (after == 0)).all(-1) & (2 * rate * sigma[..., :1] < 1)[..., 0]


def _descending(target: Any, learning_rate: Any) -> tuple[Array, Array]:
    """The targets, and the rate with an axis for the modes."""
    _refuse_rate(learning_rate)
    if as_raw(target, "target").ndim == 0:
        raise ValueError("target must hold the modes along its last axis, got a scalar")
    values = on_host(target=target)
    if values is not None:
        rises = np.argwhere(np.diff(values["target"], axis=-1) > 0)
        if len(rises):
            *before, at = map(int, rises[0])
            here, there = (", ".join(map(str, (*before, i))) for i in (at, at + 1))
            lower, upper = values["target"][tuple(before)][at : at + 2]
            raise ValueError(
                f"target must descend along its last axis, but target[{here}] = {lower:.6g} is "
                f"followed by target[{there}] = {upper:.6g}"
            )
    (rate,) = elementwise(learning_rate=learning_rate)
    sigma, rate = elementwise(target=target, learning_rate=rate[..., None])
    return sigma, rate


def learning_order(target: Float[Array, "... r"]) -> Int[Array, "... r"]:
    """The order in which small starts learn the modes: by descending σ, ties as they come.

    Args:
        target: σ along the last axis, at least 0.

    Returns:
        Indices of the modes, the first one learned first.

    Raises:
        TypeError: for what is no real number.
        ValueError: for negative or non-finite targets.

    Source: Gidel et al. 2019, Theorem 2 and Corollary 3.

    Example:
        >>> import alignjax as aj
        >>> aj.theory.sequential.learning_order([1.0, 2.0, 0.5]).tolist()
        [1, 0, 2]
    """
    (sigma,) = elementwise(target=target)
    return jnp.argsort(-sigma, axis=-1, stable=True)


def regression_order(target: Float[Array, "... r"], input: Any) -> Int[Array, "... r"]:
    """The order in which reduced-rank regression takes up the modes: by descending ``σ^2/λ``.

    Mode i lowers the least risk by ``σ_i^2 / (2 λ_i)``. It is the order of learning for
    autoencoding and for whitened inputs, but not in general: with σ = (2, 1, 0.5) and
    λ = (8, 0.5, 0.5), descent learns the first mode first, and the best rank 1 is the second.

    Args:
        target: σ along the last axis, at least 0.
        input: λ of the same modes, at least 0; modes with neither target nor input come last.

    Returns:
        Indices of the modes, the most useful one first.

    Raises:
        TypeError: for what is no real number.
        ValueError: for negative or non-finite arguments, or shapes that do not broadcast.

    Source: Gidel et al. 2019, Corollary 2, which takes the two orders for the same.

    Example:
        >>> import alignjax as aj
        >>> aj.theory.sequential.regression_order([2.0, 1.0, 0.5], [8.0, 0.5, 0.5]).tolist()
        [1, 0, 2]
    """
    sigma, lam = elementwise(target=target, input=input)
    gain = jnp.where(sigma > 0, sigma**2 / jnp.where(sigma > 0, lam, 1.0), 0.0)
    return jnp.argsort(-gain, axis=-1, stable=True)
