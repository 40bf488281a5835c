"""The loop under every descent: a traced number of steps, differentiable, quick to compile."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from alignjax._meshes import tied

__all__ = ["guarded_steps", "repeat"]

State = TypeVar("State")


def repeat(
    body: Callable[[State, Array], State], state: State, steps: Array | int, *, max_steps: int
) -> State:
    """``steps`` applications of ``state = body(state, index)``, ``index = 0 .. steps - 1``.

    Blocks of about ``sqrt(max_steps)`` steps under a ``cond`` whose predicate comes from ``steps``
    and the loop's own counter only: it is never batched, so that ``vmap`` keeps it a branch. Two
    copies of the body are compiled whatever ``max_steps`` is, and reverse-mode differentiation
    stores one state a block and one a step of the block at hand.

    Args:
        body: one step.
        state: a pytree.
        steps: how many steps, at most ``max_steps``; an int32 that may be traced, not batched.
        max_steps: a static upper bound.

    Returns:
        The state after ``steps`` steps.
    """
    if max_steps == 0:
        return state
    length = isqrt(max_steps)
    blocks, rest = steps // length, steps % length

    @jax.checkpoint
    def block(state: State, first: Array) -> State:
        inner = jnp.arange(length, dtype=jnp.int32)
        return lax.scan(lambda s, i: (body(s, first + i), None), state, inner)[0]

    def maybe_block(state: State, i: Array) -> tuple[State, None]:
        return lax.cond(i < blocks, lambda s: block(s, i * length), lambda s: s, state), None

    def maybe_step(state: State, i: Array) -> tuple[State, None]:
        index = blocks * length + i
        return lax.cond(i < rest, lambda s: body(s, index), lambda s: s, state), None

    state = lax.scan(maybe_block, state, jnp.arange(max_steps // length, dtype=jnp.int32))[0]
    if length == 1:  # no step is left over, and without a compiler there is no scan of none
        return state
    return lax.scan(maybe_step, state, jnp.arange(length - 1, dtype=jnp.int32))[0]


def guarded_steps(
    evaluate: Callable[[Any, Array], tuple[Any, Array]],
    update: Callable[[Any, Any], Any],
    state: Any,
    steps: Array | int,
    *,
    max_steps: int,
) -> tuple[Any, Array]:
    """Steps that stop at the last good state.

    Args:
        evaluate: ``(state, index) -> (slope, ok)``, what step ``index`` needs to know at ``state``.
        update: ``(state, slope) -> candidate``; it is accepted if its own evaluation is ok.
        state: a pytree of arrays.
        steps: how many steps; may be traced, not batched.
        max_steps: a static upper bound.

    Returns:
        The last good state and the number of accepted steps (int32).
    """

    def body(carry: Any, index: Array) -> Any:
        state, slope, ok, taken = carry
        candidate = update(state, slope)
        next_slope, next_ok = evaluate(candidate, index + 1)
        ok = ok & next_ok
        state, slope = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old), (candidate, next_slope), (state, slope)
        )
        return state, slope, ok, taken + ok.astype(jnp.int32)

    slope, ok = evaluate(state, jnp.zeros((), jnp.int32))
    state, slope, taken = tied((state, slope, jnp.int32(0)), (state, slope, ok))
    carry = (state, slope, ok, taken)
    state, _, _, taken = repeat(body, carry, steps, max_steps=max_steps)
    return state, taken
