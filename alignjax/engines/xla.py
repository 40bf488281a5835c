"""The reference engine: plain XLA."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from alignjax.engines.loop import guarded_steps
from alignjax.problems import Problem, checked_gradient, from_span, to_span

__all__ = ["advance"]


def advance(
    problem: Problem,
    state: tuple[Array, ...],
    learning_rate: Array,
    steps: Array | int,
    *,
    max_steps: int,
) -> tuple[tuple[Array, ...], Array]:
    """Gradient descent: ``W_i <- W_i - eta_i dR/dW_i``, ``steps`` times or until it diverges."""
    core, start = to_span(problem, state)
    rates = jnp.broadcast_to(learning_rate, (len(state),))

    def evaluate(weights: tuple[Array, ...], _: Array) -> tuple[tuple[Array, ...], Array]:
        (_, slope), ok = checked_gradient(core, weights)
        return slope, ok

    def update(weights: tuple[Array, ...], slope: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(w - rates[i] * g for i, (w, g) in enumerate(zip(weights, slope, strict=True)))

    moved, taken = guarded_steps(evaluate, update, start, steps, max_steps=max_steps)
    return from_span(problem, state, moved), taken
