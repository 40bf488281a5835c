"""The reference engine: plain XLA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from alignjax._meshes import tied
from alignjax.engines.loop import guarded_steps
from alignjax.engines.structured import checked_structured_gradient
from alignjax.problems import ByOutputs, Problem, checked_gradient, from_span, to_span
from alignjax.structures import Structure

__all__ = ["advance"]

State = tuple[Array, ...]


def advance(
    problem: Problem | ByOutputs,
    state: State,
    learning_rate: Array,
    steps: Array | int,
    *,
    max_steps: int,
    structure: tuple[Structure, ...] | None = None,
) -> tuple[State, Array]:
    """Gradient descent: ``W_i <- W_i - eta_i dR/dW_i``, ``steps`` times or until it diverges."""
    if structure is not None:
        outputs = problem.by_outputs()
        every = outputs, state, learning_rate
        outputs, state, learning_rate = tied(every, every)
        look = partial(checked_structured_gradient, outputs, structure)
        return _descend(look, state, learning_rate, steps, max_steps)
    assert isinstance(problem, Problem)
    core, start = to_span(problem, state)
    given = core, start, learning_rate
    core, start, learning_rate = tied(given, given)
    look = partial(checked_gradient, core)
    moved, taken = _descend(look, start, learning_rate, steps, max_steps)
    return from_span(problem, state, moved), taken


def _descend(
    look: Callable[[State], Any], state: State, rate: Array, steps: Array | int, max_steps: int
) -> tuple[State, Array]:
    """The steps themselves, ``look`` giving ``(gradient, ok)`` of a state."""
    rates = jnp.broadcast_to(rate, (len(state),))

    def evaluate(state: State, _: Array) -> tuple[State, Array]:
        return look(state)

    def update(state: State, slope: State) -> State:
        return tuple(w - rates[i] * g for i, (w, g) in enumerate(zip(state, slope, strict=True)))

    return guarded_steps(evaluate, update, state, steps, max_steps=max_steps)
