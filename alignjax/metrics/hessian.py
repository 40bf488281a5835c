"""The curvature of the risk in all weights together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from alignjax._validation import as_count, as_key, as_raw, as_real, is_concrete
from alignjax.metrics._norms import norm, ratio, to_unit_norm
from alignjax.problems import Problem, check_weights, gradient

__all__ = ["sharpness"]


def sharpness(
    problem: Problem,
    weights: Sequence[Float[Array, "k_i k_j"]],
    *,
    key: Array | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 1000,
) -> Float[Array, ""]:
    """The largest (algebraic) eigenvalue of the risk's Hessian in all weights together.

        max_v <v, H v> / <v, v>,  H v = d/de gradient(weights + e v)

    Gradient descent near a minimum is stable for ``learning_rate * sharpness < 2``. Two power
    iterations find it: one on ``H`` for its spectral radius ``rho``, one on ``H + rho I``, which
    has no negative eigenvalue, so that neither a larger negative eigenvalue nor a pair ``+-rho``
    (as two layers have at zero) misleads it. It can be differentiated where the eigenvalue is
    simple.

    Args:
        problem: any problem.
        weights: layers ``(W_1, ..., W_d)``.
        key: for the random first vector; None means ``jax.random.key(0)``.
        tolerance: each iteration stops when its estimate changes by less than this fraction of
            ``rho``, or than ten times the dtype's epsilon if that is more. The error is then about
            ``tolerance * rho`` over twice the relative gap to the next eigenvalue.
        max_iterations: the most products with the Hessian in either iteration.

    Returns:
        A scalar, in units of the risk over squared units of the weights; a lower bound of the
        exact value up to roundoff, at any scale at which the Hessian itself is finite.

    Raises:
        TypeError: if ``problem`` is no problem, ``weights`` no sequence of real matrices, ``key``
            no key, or ``max_iterations`` no integer.
        ValueError: if ``weights`` do not fit ``problem``, ``tolerance`` is negative or no finite
            scalar, or ``max_iterations`` is less than 1.

    Source: not in the papers; the classical bound of descent on a quadratic, by power iteration.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.metrics import sharpness
        >>> problem = aj.regression(jnp.eye(2), jnp.eye(2))
        >>> round(sharpness(problem, (jnp.eye(2), jnp.eye(2))).item(), 6)
        1.0
    """
    layers = check_weights(problem, weights)
    max_iterations = as_count(max_iterations, "max_iterations", minimum=1)
    key = jax.random.key(0) if key is None else as_key(key)
    # As one vector of all entries, whose norms and products are those of the whole network.
    flat, unravel = ravel_pytree(layers)
    allowed = _as_tolerance(tolerance, flat.dtype)

    def product(problem: Problem, flat: Array, vector: Array) -> Array:
        def slope(flat: Array) -> Array:
            return ravel_pytree(gradient(problem, unravel(flat)))[0]

        return jax.jvp(slope, (flat,), (vector,))[1]

    frozen = jax.lax.stop_gradient((problem, flat))
    first = jax.random.normal(key, flat.shape, flat.dtype)
    vector = jax.lax.stop_gradient(
        _top_vector(lambda v: product(*frozen, v), first, allowed, max_iterations)
    )
    # The eigenvector's own derivative drops out of the quotient's, so it is held constant.
    return jnp.vdot(vector, product(problem, flat, vector), precision="highest")


def _as_tolerance(tolerance: Any, dtype: Any) -> Array:
    """The relative change at which an iteration may stop, at least ten roundings."""
    value = as_real(tolerance, "tolerance", ndim=0)
    # Asked of what came: the array made of it is traced where the call is.
    if is_concrete(tolerance) and as_raw(tolerance, "tolerance") < 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    return jnp.maximum(value, 10 * jnp.finfo(dtype).eps).astype(dtype)


def _top_vector(
    product: Callable[[Array], Array], first: Array, tolerance: Array, max_iterations: int
) -> Array:
    """A unit vector that maximizes ``<v, product(v)>``, by two power iterations."""

    def iterate(
        apply: Callable[[Array], Array], vector: Array, reference: Array | None
    ) -> tuple[Array, Array]:
        def unfinished(state: tuple) -> Array:
            _, value, before, count = state
            change = tolerance * (value if reference is None else reference)
            return (count < max_iterations) & ((count < 2) | (jnp.abs(value - before) > change))

        def step(state: tuple) -> tuple:
            vector, value, _, count = state
            image = apply(vector)
            # The length of H v tends to the spectral radius also where +rho and -rho both occur.
            length = norm(image)
            return jnp.where(length == 0, vector, to_unit_norm(image)), length, value, count + 1

        zero = jnp.zeros_like(tolerance)
        return jax.lax.while_loop(unfinished, step, (vector, zero, zero, 0))[:2]

    start = to_unit_norm(first)
    dominant, radius = iterate(product, start, None)
    rising = jnp.vdot(dominant, product(dominant), precision="highest") > 0
    # A dominant vector of a negative eigenvalue has lost what points upwards: begin anew.
    again = jnp.where(rising, dominant, start)

    def shifted(vector: Array) -> Array:
        # In units of rho, which cannot overflow.
        return ratio(product(vector), radius, otherwise=0.0) + vector

    return iterate(shifted, again, jnp.ones_like(radius))[0]
