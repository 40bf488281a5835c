"""What a run returns, and where it is saved."""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from alignjax._meshes import tied
from alignjax._validation import as_count, describe, refuse_masked

__all__ = ["End", "Status", "Trajectory", "every", "log_steps"]


Observe = Callable[[tuple[Array, ...]], Any]


class Status(enum.IntEnum):
    """How a run ended."""

    COMPLETED = 0
    """All steps were taken."""
    DIVERGED = 1
    """Frozen at the last state of finite gradient and risk of at most sqrt(largest float), or at
    the start, if that is no such state."""
    REACHED = 2
    """Stopped on a save point whose risk was at most ``until``."""
    UNFINISHED = 3
    """A flow whose solver spent all its steps before the last time; ``time`` says how far it came.
    """


class End(NamedTuple):
    """Where a run ended, whether or not that is a save point: what follows counts on from here.

    Attributes:
        step: the steps it was asked for, with those of the runs that it carried on, int32; fewer
            where ``until`` stopped it. None for a flow.
        time: the time that it reached, ``()`` or ``(d,)``; None where there is no time.
    """

    step: Array | None
    time: Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trajectory:
    """A run, seen at its save points. A step is not a time: time is the sum of learning rates.

    Every descent takes the trajectory of a descent in place of its start and carries it on: ``run =
    gradient_descent(problem, run, rate, steps=20)``. Steps and times go on counting, an optimizer
    keeps its state, minibatches go on where they were, and a run that diverged stays where it is.
    Twice 20 steps are 40 steps with a save point at 20, to the last bit of the weights. A flow
    carries on any trajectory that has a time, to the tolerance of its steps.

    Attributes:
        step: save points, int32, shape ``(saves,)``; None for a flow, which has no steps.
        time: the sum of learning rates up to each save point, ``(saves,)``, or ``(saves, d)`` with
            one rate a layer; it stands still once a run has stopped. None where there is no time.
        observations: what ``observe`` returned, stacked along axis 0 by save point.
        weights: the final state.
        status: a :class:`Status`, int32.
        stopped_at: the number of steps taken, int32; for a flow those of its solver.
        optimizer_state: what the rule carries beside the weights, in the end: the optimizer's state
            from ``optimizer_descent``, radius and log time from ``adaptive_descent``.
        end: an :class:`End`.
    """

    step: Array | None
    time: Array | None
    observations: Any
    weights: Any
    status: Array
    stopped_at: Array
    optimizer_state: Any = None
    end: End | None = None


class Begun(NamedTuple):
    """How far a run that is to be carried on has come: ``end.step``, steps taken, status, time."""

    step: Array
    taken: Array
    status: Array
    time: Array | None


def begun(start: Any, name: str) -> tuple[Any, Begun | None]:
    """The state to start from, and how far its run has come if ``start`` is a trajectory.

    Raises:
        ValueError: for a trajectory that counts no steps.
    """
    if not isinstance(start, Trajectory):
        return start, None
    if start.end is None or start.end.step is None:
        raise ValueError(
            f"{name} is a Trajectory that counts no steps, as of a flow: to start from its last "
            f"state give its weights"
        )
    return start.weights, Begun(start.end.step, start.stopped_at, start.status, start.end.time)


def clock(begin: Begun | None, taken: Array, stopped_at: Array, rate: Array) -> tuple[Any, Any]:
    """The sum of learning rates at each save point and at the end."""
    steps = jnp.append(taken, stopped_at)
    if begin is None:
        times = steps.astype(rate.dtype).reshape(-1, *[1] * rate.ndim) * rate[None]
    elif begin.time is None:
        return None, None
    else:
        # The rate may be another one than before, and one a layer where it was one for all.
        before = begin.time.astype(rate.dtype)
        rate, before = jnp.broadcast_arrays(rate, before)
        since = (steps - begin.taken).astype(rate.dtype)
        times = before[None] + since.reshape(-1, *[1] * rate.ndim) * rate[None]
    return times[:-1], times[-1]


def asked_for(begin: Begun | None, save_at: tuple[int, ...]) -> Array:
    """The save points, counted from where the first of the runs began."""
    points = jnp.asarray(save_at, jnp.int32)
    return points if begin is None else points + begin.step


def end_of(
    begin: Begun | None, steps: int, status: Array, stopped_at: Array, time: Array | None
) -> End:
    """Where a run of ``steps`` steps ended."""
    asked = jnp.int32(steps) if begin is None else begin.step + steps
    return End(jnp.where(status == Status.REACHED, stopped_at, asked), time)


def log_steps(steps: int, count: int) -> tuple[int, ...]:
    """At most ``count`` save points from 0 to ``steps``, evenly spaced in the logarithm.

    Args:
        steps: the last save point, at least 1.
        count: how many at most; fewer where neighbours would coincide. At least 2.

    Example:
        >>> import alignjax as aj
        >>> aj.log_steps(1000, 5)
        (0, 1, 10, 100, 1000)
    """
    steps, count = as_count(steps, "steps", minimum=1), as_count(count, "count", minimum=2)
    points = np.round(np.geomspace(1, steps, count - 1)).astype(int) if count > 2 else [steps]
    return (0, *sorted({int(p) for p in points} - {0} | {steps}))


def every(steps: int, interval: int) -> tuple[int, ...]:
    """Save points ``0, interval, 2 interval, ...`` and ``steps``.

    Example:
        >>> import alignjax as aj
        >>> aj.every(10, 4)
        (0, 4, 8, 10)
    """
    steps, interval = as_count(steps, "steps"), as_count(interval, "interval", minimum=1)
    return tuple(sorted({*range(0, steps + 1, interval), steps}))


def save_points(save_at: Sequence[int] | None, steps: int) -> tuple[int, ...]:
    """Checked save points; by default the start and the end.

    Raises:
        TypeError: if they are not concrete integers.
        ValueError: if they are empty, not strictly increasing, negative or beyond ``steps``.
    """
    if save_at is None:
        return (0, steps) if steps else (0,)
    if isinstance(save_at, jax.core.Tracer):
        raise TypeError("save_at shapes the computation, so it must be concrete, not traced")
    refuse_masked(save_at, "save_at")
    try:
        given = np.asarray(save_at)
        if given.ndim > 1 or given.dtype == np.bool_:
            raise TypeError("not a sequence of integers")
        points = tuple(operator.index(p) for p in given.reshape(-1).tolist())
    except (TypeError, ValueError) as error:
        raise TypeError(f"save_at must hold integers, got {describe(save_at)}") from error
    if not points:
        raise ValueError("save_at must hold at least one step, got none")
    if any(b <= a for a, b in pairwise(points)):
        raise ValueError(f"save_at must be strictly increasing, got {list(points[:8])}")
    if points[0] < 0 or points[-1] > steps:
        raise ValueError(
            f"save_at must lie between 0 and steps = {steps}, got {points[0]} to {points[-1]}"
        )
    return points


def observer(value: Callable[[Any], Array], observe: Observe | None) -> Observe:
    """What looks at a state: by default ``{"risk": value(state)}``.

    Raises:
        TypeError: when called, if ``observe`` returns what is no array.
    """
    if observe is None:
        return lambda state: {"risk": value(state)}

    def look(weights: tuple[Array, ...]) -> Any:
        seen = observe(weights)
        for leaf in jax.tree.leaves(seen):
            if not isinstance(
                leaf, (jax.Array, np.ndarray, np.number, np.bool_, complex, float, int)
            ):
                raise TypeError(
                    f"observe must return a pytree of arrays, got {describe(leaf)} in it"
                )
        return jax.tree.map(jnp.asarray, seen)

    return look


def record(
    advance: Callable[[Any, Array, Array, int], tuple[Any, Array]],
    state: Any,
    observe: Callable[[Any], Any],
    save_at: tuple[int, ...],
    steps: int,
    *,
    reached: Callable[[Any], Array] | None = None,
    given: Any = None,
    begin: Begun | None = None,
) -> tuple[Any, Any, Array, Array, Array]:
    """Observe, advance, observe, advance, to the last save point and then to ``steps``.

    Args:
        advance: ``(state, start, count, max_count) -> (state, taken)``; ``start`` and ``count`` are
            traced and never batched.
        state: where the run starts.
        observe: looks at a state.
        save_at: checked save points.
        steps: where the run ends.
        reached: looks at a state on save points and stops the run where true.
        given: the arrays that these functions close over.
        begin: how far the run has come that this one carries on.

    Returns:
        ``(state, observations, taken at each save point, status, stopped_at)``.
    """
    ends = np.array([*save_at, steps], np.int32)
    starts = np.array([0, *ends[:-1]], np.int32)
    counts = ends - starts
    asked = jnp.arange(len(ends)) < len(save_at)
    max_count = int(counts.max())

    def segment(carry: Any, span: tuple[Array, Array, Array]) -> tuple[Any, Any]:
        state, total, status = carry
        start, count, asked = span
        running = status == Status.COMPLETED
        # Stopped lanes run idle: a branch on their status would be batched under vmap, become a
        # select, and drag the loop's own branches along.
        moved, taken = advance(state, start, count, max_count)
        state = jax.tree.map(lambda new, old: jnp.where(running, new, old), moved, state)
        total = jnp.where(running, total + taken, total)
        status = jnp.where(running & (taken < count), Status.DIVERGED, status)
        if reached is not None:
            stop = asked & (status == Status.COMPLETED) & reached(state)
            status = jnp.where(stop, Status.REACHED, status)
        return (state, total, status), (observe(state), total)

    state, zero = tied((state, jnp.zeros((), jnp.int32)), (state, given, begin))
    first, total, status = jnp.asarray(starts), zero, zero
    if begin is not None:
        # A run that came below `until` may go on, to another one; one that diverged may not.
        first, total = first + begin.step, zero + begin.taken
        status = zero + jnp.where(begin.status == Status.DIVERGED, begin.status, 0)
    body = jax.checkpoint(segment, prevent_cse=False)
    carry, (seen, totals) = lax.scan(
        body, (state, total, status), (first, jnp.asarray(counts), asked)
    )
    state, total, status = carry
    # The stretch to `steps` rides along as one more save point, which nobody asked to see.
    seen = jax.tree.map(lambda leaf: leaf[:-1], seen)
    return state, seen, totals[:-1], status, total
