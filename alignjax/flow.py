"""Gradient flow: descent in the limit of small steps, integrated to a stated tolerance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alignjax._meshes import on_automatic_axes
from alignjax._programs import compiled
from alignjax._validation import as_callable, as_count, as_real, is_concrete
from alignjax.problems import (
    Problem,
    check_tail,
    check_weights,
    checked_gradient,
    checked_log_gradient,
    from_span,
    largest_risk,
    risk,
    to_span,
)
from alignjax.trajectory import End, Observe, Status, Trajectory, observer

if TYPE_CHECKING:
    import diffrax

__all__ = ["gradient_flow"]

Weights = tuple[Array, ...]
Field = Callable[[Any, Weights, Any], Weights]

SOLVERS = ("auto", "explicit", "implicit")
LARGEST_IMPLICIT = 2000
"""Parameters beyond which no Jacobian is formed and factorized: 32 MB, and a second a step."""

_DEFAULT_RTOL = {np.dtype(np.float64): 1e-11, np.dtype(np.float32): 1e-5}


def gradient_flow(
    problem: Problem,
    weights: Sequence[Float[Array, "k_i k_j"]] | Trajectory,
    *,
    times: Float[Array, " saves"] | Sequence[float],
    observe: Observe | None = None,
    log_time: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    solver: str = "auto",
    max_steps: int = 10_000,
) -> Trajectory:
    """Gradient flow ``dW_i/dt = -dR/dW_i`` from time 0, seen at ``times``.

    The flow conserves ``W_{i+1}^T W_{i+1} - W_i W_i^T`` for every pair of neighbours. It is
    integrated by an explicit Runge-Kutta method of order 8 with steps chosen so that the estimated
    error of a step stays below ``atol + rtol |W|`` entry by entry (root mean square); steps end
    exactly on the times asked for, so nothing is interpolated.

    A stiff problem (a large curvature times a long time) exhausts explicit steps. Networks of at
    most ``LARGEST_IMPLICIT`` parameters are then carried on by an implicit method of order 5 from
    where the explicit one came to. Larger ones stop there: ``status`` is
    :attr:`alignjax.Status.UNFINISHED`, ``time`` stands still, and outside of ``jit`` and ``vmap`` a
    warning says so.

    With ``log_time`` the flow is integrated in ``s = ln(1 + t)``, where ``dW/ds = -(1 + t) dR/dW``
    and the samples' weights are ``exp(s + ln|l'|)``: nothing overflows or underflows up to the
    largest time that a float can hold. It is for losses with an exponential tail, whose risk falls
    like ``1/t`` on separable data.

    Runs under ``jit``, ``vmap`` over starts, times and problems, and reverse-mode ``grad``, but
    not inside ``jax.shard_map``, where diffrax 0.7.2 raises.

    Args:
        problem: what is learned.
        weights: the start ``(W_1, ..., W_d)`` at time 0, or a :class:`alignjax.Trajectory` to carry
            on from the time that it reached.
        times: when to look, strictly increasing and at least 0, or at least the time that the
            trajectory reached, shape ``(saves,)``; may be traced.
            A time is a sum of learning rates, not a number of steps.
        observe: ``weights -> pytree`` of arrays; by default ``{"risk": ...}``. Pass the same
            function again to reuse the compiled run.
        log_time: integrate in the logarithm of time; ``times`` are times all the same.
        rtol: relative tolerance of a step; 1e-11 in float64, 1e-5 in float32.
        atol: absolute tolerance of a step; ``rtol`` times the start's largest entry, or ``rtol``
            where that is above 1, so that a vanishing start keeps its digits (down to the smallest
            normal float over ``rtol``: 2e-297 in float64, 1e-33 in float32).
        solver: ``"explicit"``, ``"implicit"``, or ``"auto"`` as told above.
        max_steps: steps of either method before it gives up.

    Returns:
        A :class:`alignjax.Trajectory` whose ``time`` is ``times`` as far as they were reached,
        whose ``step`` is None, and whose ``stopped_at`` counts the steps of the solver.

    Raises:
        TypeError, ValueError: for arguments that do not fit, before anything is traced.

    Source: Gidel et al. 2019, eqs. 6 and 12; Ji & Telgarsky 2019, section 1.2.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
        >>> start = aj.initializers.identity((2, 2, 2), 0.1)
        >>> flow = aj.gradient_flow(problem, start, times=[0.0, 1.0, 20.0])
        >>> bool(flow.observations["risk"][-1] < 1e-8)
        True
    """
    weights, since = _begun(weights)
    weights = check_weights(problem, weights)
    since = jnp.asarray(since, weights[0].dtype)
    moments = _as_times(times, since)
    if log_time:
        check_tail(problem, "log_time")
    if observe is not None:
        as_callable(observe, "observe")
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    count = sum(w.size for w in to_span(problem, weights)[1])
    if solver == "implicit" and count > LARGEST_IMPLICIT:
        raise ValueError(
            f"solver='implicit' factorizes a matrix of the parameters' number squared: it takes "
            f"at most {LARGEST_IMPLICIT} of them, and weights have {count} in the span of the "
            f"inputs; use solver='explicit', or a narrower network"
        )
    tolerances = _as_tolerances(rtol, atol, weights)
    integrate = partial(
        _gradient_flow,
        problem,
        weights,
        moments,
        since,
        *tolerances,
        observe=observe,
        log_time=bool(log_time),
        explicit=solver != "implicit",
        max_steps=as_count(max_steps, "max_steps", minimum=1),
    )
    implicit = solver != "explicit" and count <= LARGEST_IMPLICIT
    _refuse_subnormal(weights)
    known = all(map(is_concrete, jax.tree.leaves((problem, weights, moments, tolerances))))
    # Compiling both methods takes three times as long as the explicit one, which mostly suffices.
    run = integrate(implicit=implicit and not (known and solver == "auto"))
    if implicit and _is_unfinished(run):
        run = integrate(implicit=True)
    if _is_unfinished(run):
        assert run.time is not None  # a flow has times
        message = _unfinished(float(run.time[-1]), float(moments[-1]), solver, count, max_steps)
        if log_time:
            # Where the risk does not fall like 1/t, the field in ln(1 + t) grows with t.
            message += (
                "; in the logarithm of time this happens where the samples are not separable: "
                "theory.margin.max_margin decides that"
            )
        warnings.warn(message, stacklevel=2)
    return run


def _is_unfinished(run: Trajectory) -> bool:
    return is_concrete(run.status) and int(run.status) == Status.UNFINISHED


def _begun(start: Any) -> tuple[Any, Any]:
    """The state to start from, and the time it belongs to."""
    if not isinstance(start, Trajectory):
        return start, 0.0
    if start.end is None or start.end.time is None or jnp.ndim(start.end.time) > 0:
        raise ValueError(
            "weights is a Trajectory without one time for all layers: to start from its last state "
            "at time 0 give its weights"
        )
    return start.weights, start.end.time


def _as_times(times: Any, since: Array) -> Array:
    """Checked times, none before ``since``, in its dtype."""
    dtype = since.dtype
    out = as_real(times, "times", ndim=1).astype(dtype)
    if is_concrete(out):
        seen = np.asarray(out)
        if not np.isfinite(seen).all():
            raise ValueError(
                f"times must be below the largest {seen.dtype}, the dtype of weights, "
                f"{float(jnp.finfo(dtype).max):.2g}, got {np.asarray(times).max():.6g}"
            )
        if is_concrete(since) and seen[0] < float(since):
            raise ValueError(
                f"times must be at least {float(since):.6g}, where the flow starts, got {seen[0]}"
            )
        late = np.flatnonzero(np.diff(seen) <= 0)
        if late.size:
            i = int(late[0])
            raise ValueError(
                f"times must be strictly increasing in {seen.dtype}, got {seen[i]} before "
                f"{seen[i + 1]} at index {i}"
            )
    return out


def _as_tolerances(rtol: Any, atol: Any, weights: Weights) -> tuple[Array, Array]:
    dtype = weights[0].dtype
    largest = reduce(jnp.maximum, [jnp.abs(w).max() for w in weights])
    relative = jnp.asarray(_DEFAULT_RTOL[np.dtype(dtype)], dtype)
    if rtol is not None:
        relative = _as_tolerance(rtol, "rtol", dtype)
    if atol is not None:
        return relative, _as_tolerance(atol, "atol", dtype)
    # A zero start moves only where no layer is hidden, and then to the size of the targets.
    scale = lax.stop_gradient(jnp.where(largest > 0, jnp.minimum(largest, 1), 1))
    # Below the smallest normal float it would count as 0.
    return relative, jnp.maximum(relative * scale, 1e3 * jnp.finfo(dtype).tiny)


def _refuse_subnormal(weights: Weights) -> None:
    """Refuse a start that is all below the smallest normal float, which counts as 0."""
    if not all(map(is_concrete, weights)):
        return
    largest = max(float(np.abs(np.asarray(w)).max()) for w in weights)
    tiny = float(jnp.finfo(weights[0].dtype).tiny)
    if 0 < largest < tiny:
        raise ValueError(
            f"weights start below the smallest normal {weights[0].dtype}, {tiny:.1e}, and would "
            f"count as 0: their largest entry is {largest:.1e}"
        )


def _as_tolerance(value: Any, name: str, dtype: Any) -> Array:
    tolerance = as_real(value, name, ndim=0).astype(dtype)
    if is_concrete(tolerance) and not float(tolerance) > 0:
        raise ValueError(f"{name} must be positive in {tolerance.dtype}, got {value}")
    return tolerance


def _unfinished(time: float, last: float, solver: str, parameters: int, max_steps: int) -> str:
    reached = f"the flow came to t = {time:.6g} of {last:.6g}"
    advice = "raise max_steps, loosen rtol, or ask for earlier times"
    if solver == "explicit":
        return f"{reached} in {max_steps} explicit steps: use solver='auto', {advice}"
    if parameters > LARGEST_IMPLICIT:
        return (
            f"{reached} in {max_steps} explicit steps: the problem is stiff, and its {parameters} "
            f"parameters are more than the {LARGEST_IMPLICIT} that an implicit solver takes: "
            f"{advice}"
        )
    return f"{reached} in {max_steps} steps of the implicit solver: {advice}"


def _slope(t: Any, layers: Weights, problem: Problem) -> Weights:
    gradients, ok = checked_gradient(problem, layers)
    return _downhill(gradients, jnp.ones((), layers[0].dtype), ok)


def _slope_in_log_time(s: Any, layers: Weights, problem: Any) -> Weights:
    (_, scale, gradients), ok = checked_log_gradient(problem, layers)
    return _downhill(gradients, jnp.exp(s + jnp.where(ok, scale, 0)), ok)


def _downhill(gradients: Weights, factor: Array, ok: Array) -> Weights:
    # A trial step may leave the floats. It must be rejected, for its size, and must not put NaN
    # into derivatives on the way back through it: infinity would.
    huge = jnp.asarray(largest_risk(factor.dtype), factor.dtype)
    return jax.tree.map(lambda g: jnp.where(ok, -factor * g, huge), gradients)


def _solve(
    method: diffrax.AbstractSolver,
    core: Problem,
    start: Weights,
    begin: Array,
    times: Array,
    look: Callable[[Weights], list[Array]],
    rtol: Array,
    atol: Array,
    field: Field,
    max_steps: int,
) -> tuple[Any, Weights, Array, Array]:
    """``(observations at times, final state, final time, steps)`` of one integration."""
    import diffrax

    # Its own jit would keep `look`, and all that it closes over, for the life of the process.
    solve = getattr(diffrax.diffeqsolve, "__wrapped__", diffrax.diffeqsolve)
    solution = solve(
        diffrax.ODETerm(field),
        method,
        begin,
        times[-1],
        None,
        start,
        args=core,
        saveat=diffrax.SaveAt(
            subs=[
                diffrax.SubSaveAt(ts=times, fn=lambda t, layers, args: look(layers)),
                diffrax.SubSaveAt(t1=True),
            ]
        ),
        stepsize_controller=diffrax.ClipStepSizeController(
            diffrax.PIDController(rtol=rtol, atol=atol), step_ts=times
        ),
        max_steps=max_steps,
        throw=False,
    )
    final = jax.tree.map(lambda leaf: leaf[0], solution.ys[1])
    return solution.ys[0], final, solution.ts[1][0], solution.stats["num_steps"]


@compiled(static=("log_time", "explicit", "implicit", "max_steps"), callables=("observe",))
@on_automatic_axes
def _gradient_flow(
    problem: Problem,
    weights: Weights,
    times: Array,
    since: Array,
    rtol: Array,
    atol: Array,
    *,
    observe: Observe | None,
    log_time: bool,
    explicit: bool,
    implicit: bool,
    max_steps: int,
) -> Trajectory:
    import diffrax

    core, start = to_span(problem, weights)

    watch = observer(partial(risk, problem), observe)

    def look(layers: Weights) -> Any:
        return watch(from_span(problem, weights, layers))

    shapes, tree = jax.tree.flatten(jax.eval_shape(look, start))

    def look_in_floats(layers: Weights) -> list[Array]:
        # The solver's buffers begin as infinity, which integers do not have, and hold no empty
        # containers.
        return [_as_float(leaf) for leaf in jax.tree.leaves(look(layers))]

    # A start that a descent would refuse is not moved at all.
    ok = checked_gradient(core, start)[1]
    asked = jnp.where(ok, times, since)
    times = jnp.log1p(asked) if log_time else asked
    field = _slope_in_log_time if log_time else _slope
    layers, reached, seen = start, jnp.log1p(since) if log_time else since, None
    taken = jnp.zeros((), jnp.int32)
    methods = [diffrax.Dopri8()] * explicit + [diffrax.Kvaerno5()] * implicit
    for method in methods:
        # What lies behind is asked for again, at once, and thrown away.
        ahead = jnp.maximum(times, reached)
        found, layers, now, steps = _solve(
            method, core, layers, reached, ahead, look_in_floats, rtol, atol, field, max_steps
        )
        if seen is not None:
            found = jax.tree.map(partial(_choose, times <= reached), seen, found)
        # Where one method hands over to the next has no influence on the path.
        seen, reached = found, lax.stop_gradient(now)
        taken = taken + steps.astype(jnp.int32)
    # Beyond what was reached, the state stands still.
    end = look_in_floats(layers)
    stopped = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(times)), end)
    seen = jax.tree.map(partial(_choose, times <= reached), seen, stopped)
    leaves = [leaf.astype(kind.dtype) for leaf, kind in zip(seen, shapes, strict=True)]
    finished = reached >= times[-1]
    status = jnp.where(finished, Status.COMPLETED, Status.UNFINISHED)
    status = jnp.where(ok, status, Status.DIVERGED).astype(jnp.int32)
    last = jnp.expm1(reached) if log_time else reached
    return Trajectory(
        step=None,
        time=jnp.where(times <= reached, asked, last),
        observations=jax.tree.unflatten(tree, leaves),
        weights=from_span(problem, weights, layers),
        status=status,
        stopped_at=taken,
        end=End(None, jnp.where(finished, asked[-1], last)),
    )


def _as_float(leaf: Array) -> Array:
    return leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf.astype(float)


def _choose(mask: Array, this: Array, other: Array) -> Array:
    """Rows of ``this`` where ``mask`` holds, else rows of ``other``."""
    return jnp.where(mask.reshape(-1, *[1] * (this.ndim - 1)), this, other)
