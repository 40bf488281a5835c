"""How many steps of gradient descent are executed.

An engine has one job: ``advance(problem, state, learning_rate, steps, *, max_steps, structure) ->
(state, taken)``. Saving, observing and stopping sit outside. ``"xla"`` is the reference.
"""

from __future__ import annotations

from jaxtyping import Array

from alignjax.engines import xla
from alignjax.problems import ByOutputs, Problem
from alignjax.structures import Structure

__all__ = ["advance", "available", "resolve"]

_ENGINES = {"xla": xla.advance}


def available() -> tuple[str, ...]:
    """The names of the engines that can run here."""
    return tuple(_ENGINES)


def resolve(engine: str) -> str:
    """The engine that ``engine`` stands for; ``"auto"`` picks the fastest that applies.

    Raises:
        ValueError: for an unknown engine.
    """
    if engine == "auto":
        return "xla"
    if not isinstance(engine, str) or engine not in _ENGINES:
        raise ValueError(f"engine must be 'auto' or one of {sorted(_ENGINES)}, got {engine!r}")
    return engine


def advance(
    problem: Problem | ByOutputs,
    state: tuple[Array, ...],
    learning_rate: Array,
    steps: Array | int,
    *,
    max_steps: int,
    structure: tuple[Structure, ...] | None = None,
    engine: str = "auto",
) -> tuple[tuple[Array, ...], Array]:
    """``steps`` steps of gradient descent by the named engine.

    Args:
        problem: what is learned; with ``structure``, seen through its outputs or not.
        state: the weights ``(W_1, ..., W_d)``, or with ``structure`` the coefficients.
        learning_rate: a scalar or one rate a layer ``(d,)``, in the dtype of the weights.
        steps: how many; an int32 that may be traced, but not batched.
        max_steps: a static upper bound.
        structure: one structure a layer, or None for matrices.
        engine: a name.

    Returns:
        The state after the steps, or the last one before divergence, and the steps taken.
    """
    run = _ENGINES[resolve(engine)]
    return run(problem, state, learning_rate, steps, max_steps=max_steps, structure=structure)
