"""Gradient descent on one mode of a balanced two-layer network: the recursion and its bounds.

Both layers carry the singular value ``m``, the product is ``w = m^2``. ``target`` is the mode's
entry σ of Sigma_yx and ``input`` its entry λ of Sigma_xx. All arguments broadcast element by
element, and results have their promoted dtype.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alignjax._validation import as_count
from alignjax.closed_forms._elementwise import elementwise, on_host, refuse

__all__ = [
    "layer_update",
    "mode_descent",
    "mode_descent_bounds",
    "printed_mode_descent_bounds",
    "printed_zero_target_bound",
    "product_update",
    "zero_target_bound",
]


def _refuse_outside_theorem(start: Any, target: Any, input: Any, learning_rate: Any) -> None:
    """``0 < w_0 <= σ/λ``, ``σ > 0`` and ``2ησ <= 1``, where the values are concrete."""
    values = on_host(start=start, target=target, input=input, learning_rate=learning_rate)
    if values is None:
        return
    w, sigma, lam, rate = values.values()
    # Roundoff of float32 is forgiven: starts at σ/λ and rates at 1/(2σ) are meant.
    slack = 1 + 4 * float(np.finfo(np.float32).eps)
    refuse(
        sigma <= 0,
        values,
        "target must be positive (for modes without a target see zero_target_bound)",
    )
    refuse(
        (w <= 0) | (lam * w > sigma * slack),
        values,
        "start must lie in (0, target / input], where the bounds hold",
    )
    refuse(
        2 * rate * sigma > slack,
        values,
        "learning_rate must be at most 1 / (2 target), beyond which the bounds fail",
    )


def layer_update(
    layer: Float[Array, "..."], target: Any, input: Any, learning_rate: Any
) -> Float[Array, "..."]:
    """One step of descent on a layer's singular value ``m``, of any sign.

        m <- m + η m (σ - λ m^2)

    Args:
        layer: m, the same in both layers.
        target: σ, at least 0.
        input: λ, at least 0.
        learning_rate: η, at least 0.

    Returns:
        The next m, of the broadcast shape.

    Raises:
        TypeError: for what is no real number.
        ValueError: for negative or non-finite σ, λ, η, or shapes that do not broadcast.

    Source: Gidel et al. 2019, eq. 22, which holds for layers only; the printed symbol is that of
    the product, whose step is :func:`product_update`.

    Example:
        >>> from alignjax.closed_forms import layer_update
        >>> float(layer_update(0.5, 1.0, 1.0, 0.5))
        0.6875
    """
    m, sigma, lam, rate = elementwise(
        signed="layer", layer=layer, target=target, input=input, learning_rate=learning_rate
    )
    return m + rate * m * (sigma - lam * m * m)


def product_update(
    product: Float[Array, "..."], target: Any, input: Any, learning_rate: Any
) -> Float[Array, "..."]:
    """One step of descent on the product ``w = m^2`` of a balanced mode.

        w <- w (1 + η (σ - λ w))^2

    Args:
        product: w, at least 0.
        target: σ, at least 0.
        input: λ, at least 0.
        learning_rate: η, at least 0.

    Returns:
        The next w, of the broadcast shape.

    Raises:
        TypeError: for what is no real number.
        ValueError: for negative or non-finite arguments, or shapes that do not broadcast.

    Source: Gidel et al. 2019, eq. 22; printed form differs: it gives the step of a layer to w.

    Example:
        >>> from alignjax.closed_forms import product_update
        >>> float(product_update(0.25, 1.0, 1.0, 0.5)), 0.6875**2
        (0.47265625, 0.47265625)
    """
    w, sigma, lam, rate = elementwise(
        product=product, target=target, input=input, learning_rate=learning_rate
    )
    return _step(w, sigma, lam, rate)


def _step(w: Array, sigma: Array, lam: Array, rate: Array) -> Array:
    # A mode without inputs grows out of the floats, and 0 times infinity is no number.
    pull = jnp.where(lam == 0, 0.0, lam * w)
    return w * (1.0 + rate * (sigma - pull)) ** 2


@partial(jax.jit, static_argnums=4)
def _iterate(w: Array, sigma: Array, lam: Array, rate: Array, steps: int) -> Array:
    def advance(current: Array, _: None) -> tuple[Array, Array]:
        following = _step(current, sigma, lam, rate)
        return following, following

    path = lax.scan(advance, w, None, length=steps)[1]
    return jnp.concatenate([w[None], path])


def mode_descent(
    start: Float[Array, "..."], target: Any, input: Any, learning_rate: Any, *, steps: int
) -> Float[Array, "steps_and_one ..."]:
    """All iterates of the product of a balanced two-layer mode under descent.

        w_{t+1} = w_t (1 + η (σ - λ w_t))^2

    Any learning rate is allowed: ``w = σ/λ`` attracts while ``ησ <= 1``, cycles and chaos come
    after, and where iterates leave the floats they are infinite.

    Args:
        start: w_0, the product, at least 0; 0 stays 0.
        target: σ, at least 0.
        input: λ, at least 0.
        learning_rate: η, at least 0.
        steps: how many steps, static.

    Returns:
        ``w_0, ..., w_steps``, stacked along axis 0 of shape ``(steps + 1, ...)``.

    Raises:
        TypeError: for what is no real number, or ``steps`` that is no integer.
        ValueError: for negative or non-finite arguments, or shapes that do not broadcast.

    Source: Gidel et al. 2019, eq. 22 as it reads for the product; see :func:`product_update`.

    Example:
        >>> from alignjax.closed_forms import mode_descent
        >>> mode_descent(0.01, 1.0, 1.0, 0.5, steps=30).shape
        (31,)
    """
    w, sigma, lam, rate = elementwise(
        start=start, target=target, input=input, learning_rate=learning_rate
    )
    count = as_count(steps, "steps")
    shape = jnp.broadcast_shapes(w.shape, sigma.shape, lam.shape, rate.shape)
    return _iterate(jnp.broadcast_to(w, shape), sigma, lam, rate, count)


def mode_descent_bounds(
    start: Float[Array, "..."], target: Any, input: Any, learning_rate: Any, step: Any
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Bounds of a mode's product after ``t`` steps of descent.

        σ w_0 / [(σ - λ w_0) (1 + ησ)^{-2t} + λ w_0]  <=  w_t
                  <=  σ w_0 / [(σ - λ w_0) (1 - 2ησ)^t + λ w_0]

    for ``0 < w_0 <= σ/λ`` and ``2ησ <= 1``. Proof: let ``z = 1/w - λ/σ`` and
    ``u = η (σ - λ w)``, which lies in ``[0, ησ]``. A step multiplies z by
    ``1 - ησ [1/(1+u) + 1/(1+u)^2]``. This increases with u from ``1 - 2ησ >= 0`` to
    ``(1 + ησ)^{-2}``, so z stays at least 0, hence ``w <= σ/λ``, and induction gives both bounds.
    Both are equal to w_t at t = 0 and tend to σ/λ.

    Args:
        start: w_0, in ``(0, σ/λ]``.
        target: σ, positive.
        input: λ, at least 0.
        learning_rate: η, in ``[0, 1/(2σ)]``.
        step: t, at least 0.

    Returns:
        ``(lower, upper)``, both of the broadcast shape.

    Raises:
        TypeError: for what is no real number.
        ValueError: for arguments outside of these domains, or shapes that do not broadcast.

    Source: Gidel et al. 2019, eq. 23; printed form differs, see
    :func:`printed_mode_descent_bounds`.

    Example:
        >>> from alignjax.closed_forms import mode_descent_bounds, product_update
        >>> lower, upper = mode_descent_bounds(0.9, 1.0, 1.0, 0.4, 1)
        >>> bool(lower <= product_update(0.9, 1.0, 1.0, 0.4) <= upper)
        True
    """
    w, sigma, lam, rate, t = elementwise(
        start=start, target=target, input=input, learning_rate=learning_rate, step=step
    )
    _refuse_outside_theorem(start, target, input, learning_rate)
    gain = rate * sigma
    slow = jnp.exp(-2 * t * jnp.log1p(gain))
    # 1 - 2ησ is exact above 1/4 and may vanish; below, only log1p keeps the digits of large powers.
    fast = jnp.where(
        gain > 0.25,
        jnp.power(1 - 2 * gain, t),
        jnp.exp(t * jnp.log1p(-2 * jnp.minimum(gain, 0.25))),
    )
    return _interpolate(w, sigma, lam, slow), _interpolate(w, sigma, lam, fast)


def _interpolate(w: Array, sigma: Array, lam: Array, decay: Array) -> Array:
    """``1/w - λ/σ`` shrunk by ``decay``, read as a product."""
    return sigma * w / ((sigma - lam * w) * decay + lam * w)


def printed_mode_descent_bounds(
    start: Float[Array, "..."],
    target: Any,
    input: Any,
    learning_rate: Any,
    step: Any,
    *,
    restored: bool = False,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The bounds of a mode's product as they are printed, kept to show that they fail.

        w_0 / [(σ - λ w_0) e^{(-2ησ + 4η²σ²) t} + λ w_0]  and the same with  e^{(-2ησ - η²σ²) t}

    Without a factor σ in the numerators they are no bounds at ``t = 0`` unless ``σ = 1``. With it
    (``restored``) the lower one holds, but the upper one fails, since
    ``1 - 2ησ < e^{-2ησ - η²σ²}``: 0.9734 > 0.9592 at σ = λ = 1, η = 0.4, w_0 = 0.9, t = 1.

    Args:
        start: w_0, in ``(0, σ/λ]``.
        target: σ, positive.
        input: λ, at least 0.
        learning_rate: η, in ``[0, 1/(2σ)]``.
        step: t, at least 0.
        restored: whether to put the missing σ back.

    Returns:
        ``(lower, upper)``, both of the broadcast shape.

    Raises:
        TypeError: for what is no real number.
        ValueError: for arguments outside of these domains, or shapes that do not broadcast.

    Source: Gidel et al. 2019, eq. 23 as printed; :func:`mode_descent_bounds` is what holds.
    """
    w, sigma, lam, rate, t = elementwise(
        start=start, target=target, input=input, learning_rate=learning_rate, step=step
    )
    _refuse_outside_theorem(start, target, input, learning_rate)
    gain = rate * sigma
    scale = jnp.ones_like(sigma) if restored else 1 / sigma
    exponents = (-2 * gain + 4 * gain**2, -2 * gain - gain**2)
    lower, upper = (scale * _interpolate(w, sigma, lam, jnp.exp(e * t)) for e in exponents)
    return lower, upper


def zero_target_bound(
    start: Float[Array, "..."], input: Any, learning_rate: Any, step: Any
) -> Float[Array, "..."]:
    """An upper bound of the product of a mode without a target after ``t`` steps of descent.

        w_t <= w_0 / (1 + 2 w_0 λ η t)      for σ = 0 and η λ w_0 <= 3/2

    The flow's own decay, at time ``ηt``. Proof: with ``x = ηλw`` a step gives
    ``1/w' = (1/w) (1 - x)^{-2}``, at least ``(1/w) (1 + 2x)`` exactly where ``x <= 3/2``, and x
    does not grow.

    Args:
        start: w_0, positive.
        input: λ, at least 0.
        learning_rate: η, at least 0, with ``ηλw_0 <= 3/2``.
        step: t, at least 0.

    Returns:
        The bound, of the broadcast shape.

    Raises:
        TypeError: for what is no real number.
        ValueError: for arguments outside of these domains, or shapes that do not broadcast.

    Source: Gidel et al. 2019, Theorem 3; printed form differs by a factor of 2 and is loose, see
    :func:`printed_zero_target_bound`.

    Example:
        >>> from alignjax.closed_forms import zero_target_bound
        >>> float(zero_target_bound(0.5, 1.0, 0.1, 10))
        0.25
    """
    return _zero_target(start, input, learning_rate, step, 2.0)


def printed_zero_target_bound(
    start: Float[Array, "..."], input: Any, learning_rate: Any, step: Any
) -> Float[Array, "..."]:
    """The bound of a mode without a target as it is printed: it holds, but is loose.

        w_t <= w_0 / (1 + w_0 λ η t)

    Args:
        start: w_0, positive.
        input: λ, at least 0.
        learning_rate: η, at least 0, with ``ηλw_0 <= 3/2``.
        step: t, at least 0.

    Returns:
        The bound, of the broadcast shape.

    Raises:
        TypeError: for what is no real number.
        ValueError: for arguments outside of these domains, or shapes that do not broadcast.

    Source: Gidel et al. 2019, Theorem 3 as printed; :func:`zero_target_bound` is tighter.
    """
    return _zero_target(start, input, learning_rate, step, 1.0)


def _zero_target(start: Any, input: Any, learning_rate: Any, step: Any, factor: float) -> Array:
    w, lam, rate, t = elementwise(start=start, input=input, learning_rate=learning_rate, step=step)
    values = on_host(start=start, input=input, learning_rate=learning_rate)
    if values is not None:
        w_0, inputs, rates = values.values()
        refuse(w_0 <= 0, values, "start must be positive")
        refuse(
            w_0 * inputs * rates > 1.5,
            values,
            "learning_rate must be at most 1.5 / (input * start), beyond which the product does "
            "not decay like this",
        )
    return w / (1 + factor * w * lam * rate * t)
