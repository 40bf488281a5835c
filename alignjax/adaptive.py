"""Descent whose steps follow the risk: for losses that fall to 0 as the weights grow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignjax._meshes import on_automatic_axes, tied
from alignjax._programs import compiled
from alignjax._validation import as_callable, as_count, as_real, is_concrete
from alignjax.engines.loop import guarded_steps
from alignjax.problems import (
    Problem,
    SampleProblem,
    check_tail,
    check_weights,
    checked_log_gradient,
    from_span,
    risk,
    smoothness,
    to_span,
)
from alignjax.trajectory import (
    Begun,
    Observe,
    Trajectory,
    asked_for,
    begun,
    end_of,
    observer,
    record,
    save_points,
)

__all__ = ["adaptive_descent"]

Weights = tuple[Array, ...]

RULES = ("ball", "margin")
_DEFAULT_CONSTANT = 0.02


class _Memory(NamedTuple):
    """What the rules carry beside the weights: ``R`` of Assumption 5 and the logarithm of time."""

    radius: Array
    log_time: Array


def adaptive_descent(
    problem: Problem,
    weights: Sequence[Float[Array, "k_i k_j"]] | Trajectory,
    *,
    steps: int,
    rule: str = "ball",
    constant: Float[Array, ""] | float | None = None,
    save_at: Sequence[int] | None = None,
    observe: Observe | None = None,
) -> Trajectory:
    """Gradient descent on separable data, with steps that grow or shrink with the weights.

    ``rule="ball"`` is Assumption 5 of Ji & Telgarsky 2019: with ``B = max_i ||x_i||`` and the
    smoothness ``beta(R)`` of :func:`alignjax.problems.smoothness`,

        eta_t = min(1 / beta(R_t), 1),    max_k ||W_k(t)||_F <= R_t - 1,

    where ``R`` stays until a layer's norm passes ``R - 1`` and then becomes that norm plus 1. The
    risk never increases, and time goes slowly.

    ``rule="margin"`` takes the largest steps that keep up with a vanishing risk,

        eta_t = c / (R(W) max(1, max_k ||W_k||_F)^{2L-2}),

    and reaches times of 1e13 and more within tens of thousands of steps. As in Assumption 5 no ball
    is smaller than 1: near 0 the curvature falls like ``||W||^{L-2}`` only, and steps that follow
    ``||W||^{2L-2}`` would leap over whatever training does there.

    Where the loss has its own logarithms (``log_slope``), risk and gradient are computed in them:
    a risk of 1e-300 has all its digits, and one below the smallest float still moves the weights;
    :func:`alignjax.metrics.log_risk` shows it where ``risk`` is 0. A time beyond the largest float
    is infinite. Traced starts are not checked against Assumption 2.
    Runs under ``jit``, ``vmap`` and ``grad``; freezes on divergence as ``gradient_descent`` does.

    Args:
        problem: a classification; for ``"margin"`` by a loss that decays like an exponential, for
            ``"ball"`` by any positive one with the constants of Assumption 4.
        weights: the start ``(W_1, ..., W_L)``; its gradient must not vanish, nor, for two layers
            and more, its risk exceed that of zero weights. Or a :class:`alignjax.Trajectory` to
            carry on, with its ``R`` and time.
        steps: how many steps.
        rule: ``"ball"`` or ``"margin"``.
        constant: ``c`` of ``"margin"``, in inverse squared units of the inputs; 0.02 by default,
            which suits inputs of norm 1. May be traced.
        save_at: increasing steps at which to observe, 0 for the start of this call; by default its
            start and end.
        observe: ``weights -> pytree`` of arrays; by default ``{"risk": ...}``.

    Returns:
        A :class:`alignjax.Trajectory` whose ``time`` is the sum of the learning rates.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: for arguments that do not fit; for ``"margin"``, a loss without an exponential
            tail; for ``"ball"``, one without the constants of Assumption 4 or with more than one
            output; a start that breaks Assumption 2.

    Source: Ji & Telgarsky 2019, Assumptions 2, 4 and 5; the printed Assumption 5 has
    ``max_k ||W_k(t)||_F <= R_t``, which its proof does not use.

    Example:
        >>> import alignjax as aj, jax, jax.numpy as jnp
        >>> data = aj.datasets.separable_pair(jax.random.key(0), 20, 2)
        >>> problem = aj.classification(data.inputs, data.labels)
        >>> start = aj.initializers.identity((2, 2, 1), 0.1)
        >>> run = aj.adaptive_descent(problem, start, steps=2000, rule="margin")
        >>> bool(run.time[-1] > 1e4)
        True
    """
    memory = weights.optimizer_state if isinstance(weights, Trajectory) else None
    weights, begin = begun(weights, "weights")
    layers = check_weights(problem, weights)
    if rule not in RULES:
        raise ValueError(f"rule must be 'ball' or 'margin', got {rule!r}")
    if rule == "ball" and isinstance(problem, SampleProblem):
        # Assumption 5 asks for the constants of the loss, and not for its tail.
        known = problem
    else:
        known = check_tail(problem, "adaptive_descent")
    if begin is None:
        _check_start(known, layers)
    dtype = layers[0].dtype
    if rule == "ball":
        if constant is not None:
            raise ValueError(f"constant belongs to rule='margin', got {constant} with rule='ball'")
        size = _ball_constant(known, layers)
    else:
        given = as_real(_DEFAULT_CONSTANT if constant is None else constant, "constant", ndim=0)
        size = given.astype(dtype)
        if is_concrete(size) and not 0 < float(size) < np.inf:
            raise ValueError(f"constant must be positive and finite in {dtype}, got {constant}")
    steps = as_count(steps, "steps")
    points = save_points(save_at, steps)
    if observe is not None:
        as_callable(observe, "observe")
    return _adaptive_descent(
        known,
        layers,
        size.astype(dtype),
        memory if isinstance(memory, _Memory) else None,
        begin,
        steps=steps,
        rule=rule,
        save_at=points,
        observe=observe,
    )


def _ball_constant(problem: SampleProblem, weights: Weights) -> Array:
    """``beta(1)``: that of a ball of radius ``R`` is ``R^{2L-2}`` times as large."""
    length = jnp.sqrt((problem.inputs**2).sum(axis=1).max())
    constant = smoothness(problem.loss, len(weights), 1.0, input_norm=length)
    outputs = len(weights[-1])
    if outputs != 1:
        raise ValueError(
            f"rule='ball' is for networks with one output, got {outputs} with the loss "
            f"{problem.loss.name!r}: use rule='margin'"
        )
    return constant


def _check_start(problem: SampleProblem, weights: Weights) -> None:
    """Refuse a start that breaks Assumption 2, where it is concrete."""
    core, inside = to_span(problem, weights)
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves((core, inside))):
        return
    found = checked_log_gradient(core, inside)
    (log_risk, _, slope), ok = found
    # A batch that is traced around this traces the losses too. A start that is not ok is frozen,
    # as a run that diverged.
    if not all(map(is_concrete, jax.tree.leaves(found))) or not bool(ok):
        return
    zero = float(jnp.log(_risk_of_zero(problem)))
    moves = any(bool((g != 0).any()) for g in slope)
    # One layer is a convex problem, which has no bad start.
    if len(weights) > 1 and float(log_risk) > zero + 1e-6:
        raise ValueError(
            f"weights must start with a risk of at most that of zero weights (Assumption 2), got "
            f"{np.exp(float(log_risk)):.6g} > {np.exp(zero):.6g}: descent need not reach 0 from "
            f"there; a smaller start, or one with W_1 = 0, will do"
        )
    if not moves:
        raise ValueError(
            "weights must not start where the gradient vanishes (Assumption 2): it does in every "
            "layer, as where two layers are zero"
        )


def _risk_of_zero(problem: SampleProblem) -> Array:
    outputs = jnp.zeros((problem.inputs.shape[0], problem.output_width or 1), problem.dtype)
    return problem.risk_of(outputs)


@compiled(static=("steps", "rule", "save_at"), callables=("observe",))
@on_automatic_axes
def _adaptive_descent(
    problem: SampleProblem,
    weights: Weights,
    size: Array,
    memory: _Memory | None,
    begin: Begun | None,
    *,
    steps: int,
    rule: str,
    save_at: tuple[int, ...],
    observe: Observe | None,
) -> Trajectory:
    given = problem, weights, size
    problem, weights, size = tied(given, given)
    power = 2 * len(weights) - 2

    def log_rate(norm: Array, log_risk: Array, radius: Array) -> Array:
        if rule == "ball":
            return jnp.minimum(-jnp.log(size) - power * jnp.log(radius), 0)
        return jnp.log(size) - log_risk - power * jnp.log(jnp.maximum(norm, 1))

    def advance(state: Any, _: Array, count: Array, max_count: int) -> tuple[Any, Array]:
        whole, memory = state
        core, start = to_span(problem, whole)
        # What W_1 does outside of the span of the inputs never moves, but it counts for its norm.
        outside = jnp.maximum((whole[0] ** 2).sum() - (start[0] ** 2).sum(), 0)

        def evaluate(state: Any, _: Array) -> tuple[Any, Array]:
            return checked_log_gradient(core, state[0])

        def update(state: Any, found: Any) -> Any:
            layers, (radius, log_time) = state
            log_risk, scale, slope = found
            rate = log_rate(_largest_norm(layers, outside), log_risk, radius)
            # The rate may be 1e300 and the slope 1e-300: only their product is ever a number.
            factor = jnp.exp(rate + scale)
            layers = jax.tree.map(lambda w, g: w - factor * g, layers, slope)
            norm = _largest_norm(layers, outside)
            radius = jnp.where(norm > radius - 1, norm + 1, radius)
            return layers, _Memory(radius, jnp.logaddexp(log_time, rate))

        (moved, memory), taken = guarded_steps(
            evaluate, update, (start, memory), count, max_steps=max_count
        )
        return (from_span(problem, whole, moved), memory), taken

    watch = observer(partial(risk, problem), observe)

    def look(state: Any) -> Any:
        whole, memory = state
        return watch(whole), jnp.exp(memory.log_time)

    if memory is None:
        memory = _Memory(_largest_norm(weights, 0) + 1, _log_time(begin, weights[0].dtype))
    state, (seen, time), _, status, stopped_at = record(
        advance,
        (weights, memory),
        look,
        save_at,
        steps,
        given=(problem, size),
        begin=begin,
    )
    weights, memory = state
    end = end_of(begin, steps, status, stopped_at, jnp.exp(memory.log_time))
    return Trajectory(
        asked_for(begin, save_at), time, seen, weights, status, stopped_at, memory, end
    )


def _largest_norm(layers: Weights, outside: Array | float) -> Array:
    """``max_k ||W_k||_F``, ``outside`` being what a first layer in a span lacks, squared."""
    energies = [(w**2).sum() for w in layers]
    energies[0] = energies[0] + outside
    return jnp.sqrt(jnp.stack(energies).max())


def _log_time(begin: Begun | None, dtype: Any) -> Array:
    """The logarithm of the time at which a run begins that carries on one by another rule."""
    if begin is None or begin.time is None or begin.time.ndim > 0:
        return jnp.asarray(-jnp.inf, dtype)
    return jnp.log(begin.time).astype(dtype)
