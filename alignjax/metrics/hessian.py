"""The curvature of the risk in all weights together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from alignjax._meshes import on_automatic_axes, tied
from alignjax._validation import as_count, as_key, as_raw, as_real, is_concrete
from alignjax.linalg import matmul
from alignjax.metrics._norms import norm, ratio, to_unit_norm
from alignjax.problems import Problem, check_weights, gradient

__all__ = ["sharpness", "sharpness_and_residual"]

_STEPS = 16
"""Products with the Hessian between two looks at the residual."""

_KEPT = 8
"""Ritz vectors that outlive a look: memory stays at 25 vectors, whatever the iterations."""

_ROUNDINGS = 100
"""A product with the Hessian is right to some tens of roundings of its largest eigenvalue."""


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

    Gradient descent near a minimum is stable for ``learning_rate * sharpness < 2``. Lanczos'
    iteration finds it, from a random vector, until the residual of its eigenvector is small. A
    larger negative eigenvalue, a pair ``+-rho`` (as two layers have at zero) and repeated
    eigenvalues do it no harm. It can be differentiated where the eigenvalue is simple.

    A value that has not converged is not returned: an eager call raises, and under ``jit``,
    ``vmap`` or as ``observe``, where nothing can be raised, the value is NaN.
    :func:`sharpness_and_residual` returns what was reached, and how far that may be off.

    Args:
        problem: any problem.
        weights: layers ``(W_1, ..., W_d)``.
        key: for the random first vector; None means a fixed one.
        tolerance: the largest residual ``||H v - value v||`` of the unit vector ``v`` that is
            accepted, as a share of the Hessian's spectral radius ``rho``; at least 100 of the
            dtype's epsilon. An eigenvalue lies within ``tolerance * rho`` of the value.
        max_iterations: the most products with the Hessian, rounded up to a multiple of 16.

    Returns:
        A scalar, in units of the risk over squared units of the weights; never above the exact
        value but for roundoff, at any scale at which the Hessian itself is finite. NaN where it
        is not, or where the iteration has not converged and nothing can be raised.

    Raises:
        TypeError: if ``problem`` is no problem, ``weights`` no sequence of real matrices, ``key``
            no key, or ``max_iterations`` no integer.
        ValueError: if ``weights`` do not fit ``problem``, ``tolerance`` is negative or no finite
            scalar, or ``max_iterations`` is less than 1.
        RuntimeError: if an eager call has not converged after ``max_iterations``.

    Source: not in the papers; the classical bound of descent on a quadratic. Wu & Simon 2000,
    "Thick-restart Lanczos method for large symmetric eigenvalue problems".

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.metrics import sharpness
        >>> problem = aj.regression(jnp.eye(2), jnp.eye(2))
        >>> round(sharpness(problem, (jnp.eye(2), jnp.eye(2))).item(), 6)
        1.0
    """
    found = _found(problem, weights, key, tolerance, max_iterations)
    if is_concrete(found.residual) and float(found.residual) > float(found.limit):
        raise RuntimeError(
            f"sharpness has not converged after max_iterations = {max_iterations} products with "
            f"the Hessian: it reached {float(found.value):.10g} with a residual of "
            f"{float(found.residual):.2g}, and tolerance * rho is {float(found.limit):.2g}; raise "
            f"max_iterations or tolerance, or take sharpness_and_residual, which returns both"
        )
    return found.converged


def sharpness_and_residual(
    problem: Problem,
    weights: Sequence[Float[Array, "k_i k_j"]],
    *,
    key: Array | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 1000,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What :func:`sharpness` reached, converged or not, and the residual that it left.

        value = <v, H v>,  residual = ||H v - value v||,  ||v|| = 1

    Some eigenvalue lies within ``residual`` of ``value``, and the largest one not below ``value``.

    Args:
        problem: any problem.
        weights: layers ``(W_1, ..., W_d)``.
        key: for the random first vector; None means a fixed one.
        tolerance: the iteration ends when the residual is this share of the spectral radius, or
            100 of the dtype's epsilon.
        max_iterations: the most products with the Hessian, rounded up to a multiple of 16.

    Returns:
        ``(value, residual)``, two scalars in units of the risk over squared units of the weights;
        NaN where the Hessian is not finite. Only ``value`` has derivatives.

    Raises:
        TypeError, ValueError: as :func:`sharpness`.

    Source: not in the papers; see :func:`sharpness`.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.metrics import sharpness_and_residual
        >>> problem = aj.regression(jnp.eye(2), jnp.eye(2))
        >>> value, residual = sharpness_and_residual(problem, (jnp.eye(2), jnp.eye(2)))
        >>> round(value.item(), 6), residual.item() < 1e-10
        (1.0, True)
    """
    found = _found(problem, weights, key, tolerance, max_iterations)
    return found.value, found.residual


class _Found(NamedTuple):
    converged: Array  # the value, or NaN where the residual is above the limit
    value: Array
    residual: Array
    limit: Array


def _found(problem: Any, weights: Any, key: Any, tolerance: Any, max_iterations: Any) -> _Found:
    layers = check_weights(problem, weights)
    max_iterations = as_count(max_iterations, "max_iterations", minimum=1)
    # Threefry by name: the default may be a generator that draws other numbers in a batch.
    key = jax.random.key(0, impl="threefry2x32") if key is None else as_key(key)
    allowed = _as_tolerance(tolerance, layers[0].dtype)
    return _top_eigenvalue(problem, layers, key, allowed, max_iterations=max_iterations)


def _as_tolerance(tolerance: Any, dtype: Any) -> Array:
    """The share of the spectral radius that a residual may be."""
    value = as_real(tolerance, "tolerance", ndim=0)
    # Asked of what came: the array made of it is traced where the call is.
    if is_concrete(tolerance) and as_raw(tolerance, "tolerance") < 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    return jnp.maximum(value, _ROUNDINGS * jnp.finfo(dtype).eps).astype(dtype)


# Compiled once for all problems and weights of the same shapes.
@on_automatic_axes
@partial(jax.jit, static_argnames="max_iterations")
def _top_eigenvalue(
    problem: Problem, layers: tuple[Array, ...], key: Array, allowed: Array, max_iterations: int
) -> _Found:
    # As one vector of all entries, whose norms and products are those of the whole network.
    flat, unravel = ravel_pytree(layers)

    def product(problem: Problem, flat: Array, vector: Array) -> Array:
        def slope(flat: Array) -> Array:
            return ravel_pytree(gradient(problem, unravel(flat)))[0]

        return jax.jvp(slope, (flat,), (vector,))[1]

    frozen = lax.stop_gradient((problem, flat))
    first = to_unit_norm(jax.random.normal(key, flat.shape, flat.dtype))
    vector, radius = _top_vector(
        lambda v: product(*frozen, v), first, allowed, max_iterations, frozen
    )
    vector, radius = lax.stop_gradient((vector, radius))
    # The eigenvector's own derivative drops out of the quotient's, so it is held constant.
    image = product(problem, flat, vector)
    value = jnp.vdot(vector, image, precision="highest")
    # What is left is measured, and owes nothing to how the vector was found.
    residual = norm(lax.stop_gradient(image - value * vector))
    limit = allowed * radius
    return _Found(jnp.where(residual <= limit, value, jnp.nan), value, residual, limit)


class _Lanczos(NamedTuple):
    """A basis ``q`` of ``_KEPT`` Ritz vectors, then steps; rows not yet reached are 0."""

    q: Array  # (m + 1, n), orthonormal rows
    t: Array  # (m, m), <q_i, H q_j>
    known: Array  # (m,), whether q_j counts
    rest: Array  # (), the length of what H q_m has outside of the basis
    radius: Array  # (), the largest size of a Ritz value so far
    vector: Array  # (n,), the top Ritz vector
    bound: Array  # (), its residual
    rounds: Array


def _top_vector(
    product: Callable[[Array], Array],
    first: Array,
    allowed: Array,
    max_iterations: int,
    given: Any,
) -> tuple[Array, Array]:
    """A unit vector that maximizes ``<v, product(v)>``, and the spectral radius as far as seen."""
    dtype, n = first.dtype, first.shape[0]
    steps = min(n, _STEPS, max_iterations)
    m, most = _KEPT + steps, -(-max_iterations // steps)
    eps = jnp.finfo(dtype).eps
    # In units of its own size neither squares nor products over- or underflow.
    scale = norm(product(first))

    def step(j: Array, state: _Lanczos) -> _Lanczos:
        image = ratio(product(state.q[j]), scale, otherwise=0.0)
        size = norm(image)
        # Gram and Schmidt against the whole basis, twice: orthogonal to roundoff.
        inside = matmul(state.q, image)
        image = image - matmul(inside, state.q)
        again = matmul(state.q, image)
        image = image - matmul(again, state.q)
        column = (inside + again)[:m]
        rest = norm(image)
        # Nothing but roundoff is left where the basis holds all that the first vector does.
        going = state.known[j] & (rest > 10 * eps * size)
        known = state.known.at[j + 1].set(going, mode="drop")
        q = state.q.at[j + 1].set(jnp.where(going, to_unit_norm(image), 0.0))
        t = state.t.at[:, j].set(column).at[j, :].set(column)
        return state._replace(q=q, t=t, known=known, rest=jnp.where(going, rest, 0.0))

    def cycle(state: _Lanczos) -> _Lanczos:
        state = lax.fori_loop(_KEPT, m, step, state)
        # Rows that do not count come out below all others.
        low = -2.0 * jnp.sqrt((state.t**2).sum()) - 1.0
        t = state.t + jnp.diag(jnp.where(state.known, 0.0, low))
        values, turns = jnp.linalg.eigh(t)
        real = jnp.where(values > 0.75 * low, jnp.abs(values), 0.0)
        top = matmul(turns.T, state.q[:m])[-_KEPT:]
        last = values[-_KEPT:]
        q = jnp.zeros_like(state.q).at[:_KEPT].set(top).at[_KEPT].set(state.q[m])
        return _Lanczos(
            q,
            jnp.zeros_like(state.t).at[jnp.arange(_KEPT), jnp.arange(_KEPT)].set(last),
            jnp.ones_like(state.known).at[:_KEPT].set(last > 0.75 * low),
            state.rest,
            jnp.maximum(state.radius, real.max()),
            to_unit_norm(top[-1]),
            state.rest * jnp.abs(turns[-1, -1]),
            state.rounds + 1,
        )

    def unfinished(state: _Lanczos) -> Array:
        # Not so for NaN: nothing is to be learned from a Hessian that is not finite.
        return (state.rounds < most) & (state.bound > 0.5 * allowed * state.radius)

    zero = jnp.zeros((), dtype)
    start = _Lanczos(
        jnp.zeros((m + 1, n), dtype).at[_KEPT].set(first),
        jnp.zeros((m, m), dtype),
        jnp.arange(m) == _KEPT,
        zero,
        zero,
        first,
        jnp.ones((), dtype),
        jnp.zeros((), jnp.int32),
    )
    end = lax.while_loop(unfinished, cycle, tied(start, given))
    return end.vector, scale * end.radius
