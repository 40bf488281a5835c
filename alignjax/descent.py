"""Descents: observe, advance, observe, advance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from alignjax import engines
from alignjax._meshes import arrays_in, on_automatic_axes, tied
from alignjax._programs import compiled
from alignjax._validation import (
    as_callable,
    as_count,
    as_key,
    as_learning_rate,
    as_real,
)
from alignjax.engines.loop import guarded_steps
from alignjax.engines.structured import checked_structured_gradient, structured_risk
from alignjax.optimizers import check_memory, check_optimizer, prepare
from alignjax.problems import (
    Problem,
    check_fit,
    check_weights,
    checked_gradient,
    lift_gradient,
    risk,
    to_span,
)
from alignjax.structures import Structure, check_coefficients
from alignjax.trajectory import (
    Begun,
    Observe,
    Trajectory,
    asked_for,
    begun,
    clock,
    end_of,
    observer,
    record,
    save_points,
)

__all__ = ["gradient_descent", "optimizer_descent"]


def gradient_descent(
    problem: Problem,
    weights: Sequence[Float[Array, "k_i k_j"]] | Trajectory,
    learning_rate: Float[Array, ""] | Float[Array, " d"] | float,
    *,
    steps: int,
    save_at: Sequence[int] | None = None,
    observe: Observe | None = None,
    until: float | Array | None = None,
    structure: Structure | Sequence[Structure] | None = None,
    engine: str = "auto",
) -> Trajectory:
    """Full-batch gradient descent: ``W_i <- W_i - eta_i dR/dW_i``.

    Runs under ``vmap`` over rates, starts and problems and under ``grad``; one compilation serves a
    whole sweep. A run whose next risk or gradient would not be finite, or whose risk would pass
    the square root of the largest float, freezes where it is and says so in ``status``.

    A run stands still where a step is below half the spacing of floats at a weight: near weights of
    size 1 where ``eta |dR/dW|`` is below ``2^-25`` in float32 or ``2^-54`` in float64. Its status
    is ``COMPLETED`` all the same, since all steps were taken.

    Args:
        problem: what is learned.
        weights: the start ``(W_1, ..., W_d)``, or a :class:`alignjax.Trajectory` to carry on.
        learning_rate: eta, a scalar, or one rate a layer, shape ``(d,)``; cast to the dtype of the
            weights.
        steps: how many steps.
        save_at: increasing steps at which to observe, 0 for the start of this call; by default its
            start and end. See :func:`alignjax.log_steps` and :func:`alignjax.every`.
        observe: ``weights -> pytree`` of arrays; by default ``{"risk": ...}``. Pass the same
            function again to reuse the compiled run.
        until: a risk at which to stop, looked at on save points.
        structure: one of :mod:`alignjax.structures` for all layers, or one a layer. ``weights``,
            what ``observe`` receives and the result's ``weights`` are then coefficients, one vector
            a layer; ``aj.structures.matrices(structure, coefficients)`` converts. Nothing but the
            structures' own operations is used, so no matrix is built where they need none.
        engine: ``"auto"`` or a name out of ``alignjax.engines.available()``.

    Returns:
        A :class:`alignjax.Trajectory`.

    Raises:
        TypeError, ValueError: for arguments that do not fit, before anything is traced.

    Source: Radhakrishnan et al. 2020, section 3.

    Example:
        >>> import alignjax as aj, jax, jax.numpy as jnp
        >>> problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
        >>> start = aj.initializers.identity((2, 2, 2), 0.5)
        >>> rates = jnp.array([0.1, 0.2])
        >>> run = jax.vmap(lambda eta: aj.gradient_descent(problem, start, eta, steps=500))(rates)
        >>> bool((run.observations["risk"][:, -1] < 1e-12).all())
        True
    """
    weights, begin = begun(weights, "weights")
    weights, layers = _check_state(problem, weights, structure)
    rate = as_learning_rate(learning_rate, len(weights)).astype(weights[0].dtype)
    steps = as_count(steps, "steps")
    points = save_points(save_at, steps)
    if observe is not None:
        as_callable(observe, "observe")
    if until is not None:
        until = as_real(until, "until", ndim=0)
    return _gradient_descent(
        problem,
        weights,
        rate,
        until,
        begin,
        steps=steps,
        save_at=points,
        observe=observe,
        structure=layers,
        engine=engines.resolve(engine, problem, weights, layers),
    )


def _check_state(
    problem: Problem, state: Any, structure: Any
) -> tuple[tuple[Array, ...], tuple[Structure, ...] | None]:
    """The checked start, and one structure a layer if layers have structures."""
    if structure is None:
        return check_weights(problem, state), None
    layers, coefficients = check_coefficients(structure, state)
    check_fit(problem, layers[0].shape[1], layers[-1].shape[0], "structure", len(layers))
    dtype = jnp.result_type(problem.dtype, *coefficients)
    return tuple(c.astype(dtype) for c in coefficients), layers


def _risk_of(problem: Any, structure: tuple[Structure, ...] | None) -> Callable[[Any], Array]:
    """The risk of a state: of matrices, or of coefficients of a problem seen by outputs."""
    if structure is None:
        return lambda weights: risk(problem, weights)
    return lambda coefficients: structured_risk(problem, structure, coefficients)


@compiled(static=("steps", "save_at", "structure", "engine"), callables=("observe",))
@on_automatic_axes
def _gradient_descent(
    problem: Problem,
    weights: tuple[Array, ...],
    rate: Array,
    until: Array | None,
    begin: Begun | None,
    *,
    steps: int,
    save_at: tuple[int, ...],
    observe: Observe | None,
    structure: tuple[Structure, ...] | None,
    engine: str,
) -> Trajectory:
    # Once for all segments: it takes an eigendecomposition of the moments.
    seen_as: Any = problem if structure is None else problem.by_outputs()
    value = _risk_of(seen_as, structure)

    def advance(state: Any, _: Array, count: Array, max_count: int) -> tuple[Any, Array]:
        return engines.advance(
            seen_as, state, rate, count, max_steps=max_count, structure=structure, engine=engine
        )

    state, seen, taken, status, stopped_at = record(
        advance,
        weights,
        observer(value, observe),
        save_at,
        steps,
        reached=None if until is None else lambda state: value(state) <= until,
        given=(seen_as, rate, until),
        begin=begin,
    )
    time, last = clock(begin, taken, stopped_at, rate)
    end = end_of(begin, steps, status, stopped_at, last)
    return Trajectory(asked_for(begin, save_at), time, seen, state, status, stopped_at, end=end)


def optimizer_descent(
    problem: Problem,
    weights: Sequence[Float[Array, "k_i k_j"]] | Trajectory,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    save_at: Sequence[int] | None = None,
    observe: Observe | None = None,
    batch_size: int | None = None,
    key: Array | None = None,
    structure: Structure | Sequence[Structure] | None = None,
) -> Trajectory:
    """Descent by an optax transformation, on the full batch or on minibatches.

    Any transformation runs but those of differential privacy, which need a gradient for each
    sample. It is given what its signature takes, all of the batch at hand: ``value`` and ``grad``,
    the risk as a function (``value_fn``, ``obj_fn``) and its gradient (``grad_fn``). The weights
    keep their dtype, and so does the optimizer's state, whatever that of its rates; only what runs
    another on a condition (``optax.apply_if_finite``, ``optax.conditionally_transform``) asks for
    rates in the dtype of the weights, and a backtracking line search with ``store_grad=True`` for
    float64 weights once x64 is on. SAM, Sophia and lookahead are not recognized where a function
    makes them inside ``optax.inject_hyperparams``. Inside ``jax.shard_map`` ``optax.lbfgs`` needs
    ``check_vma=False``.

    Minibatches are drawn without replacement, in a new order each epoch; the ``n mod batch_size``
    samples left over at the end of an epoch are skipped. With minibatches, what is checked for
    divergence is the risk and gradient of the batch at hand. An epoch's batches make up for each
    other: seen at the ends of epochs, the noise of small rates is 3 to 15 times less than within.
    To measure it, save inside of epochs.

    What is observed and returned are the weights at which gradients are taken. Some optimizers mean
    others to be used: for ``optax.contrib.schedule_free`` they are
    ``optax.contrib.schedule_free_eval_params(run.optimizer_state, run.weights)``, for
    ``optax.lookahead`` ``run.optimizer_state.slow``, for ``optax.contrib.sam`` those on multiples
    of its ``sync_period``.

    Weights are ``(out, in)``, where Muon and unit-wise clipping of optax take matrices for (in,
    out): use :func:`alignjax.optimizers.muon`, and :func:`alignjax.optimizers.transposed` around
    ``optax.adaptive_grad_clip``.

    A run that stands still has the status ``COMPLETED``, since all steps were taken. In float32
    a step below ``2^-25`` of a weight is lost, which stalls plain descent where the gradient is
    below ``2^-25 / eta`` at weights of size 1; ``optax.contrib.momo`` and ``optax.polyak_sgd``
    never leave a saddle where ``||dR/dW||^2`` is below 2.2e-16, in any precision.

    Hyperparameters may be traced: ``vmap(lambda eta, b: optimizer_descent(..., optax.adam(eta,
    b1=b)))`` is one trace for a whole sweep. A Python loop that makes a new optimizer for each
    value compiles each time, since its hyperparameters are constants to the compiler; only the
    same optimizer object reuses the compiled run.

    Args:
        problem: what is learned.
        weights: the start ``(W_1, ..., W_d)``, or a :class:`alignjax.Trajectory` to carry on with
            its ``optimizer_state``, if it has one, and with the next batches of the same key.
        optimizer: an ``optax.GradientTransformation``, with or without extra arguments.
        steps: how many updates.
        save_at: increasing steps at which to observe, 0 for the start of this call; by default its
            start and end.
        observe: ``weights -> pytree`` of arrays; by default ``{"risk": ...}`` of the full data.
        batch_size: samples a step, at most ``n``; all of them by default.
        key: a random key; needed with ``batch_size``.
        structure: as for :func:`gradient_descent`; the optimizer then sees coefficients.

    Returns:
        A :class:`alignjax.Trajectory` with ``optimizer_state``; ``time`` is None.

    Raises:
        TypeError, ValueError: for arguments that do not fit, ``batch_size`` on a problem that holds
            moments only, or an optimizer that needs a gradient for each sample.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp, optax
        >>> problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
        >>> start = aj.initializers.identity((2, 2, 2), 0.5)
        >>> half = aj.optimizer_descent(problem, start, optax.adam(0.1), steps=20)
        >>> run = aj.optimizer_descent(problem, half, optax.adam(0.1), steps=20)
        >>> run.step.tolist(), bool(run.observations["risk"][-1] < 1e-2)
        ([20, 40], True)
    """
    begin: Begun | None
    memory = weights.optimizer_state if isinstance(weights, Trajectory) else None
    weights, begin = begun(weights, "weights")
    weights, layers = _check_state(problem, weights, structure)
    steps = as_count(steps, "steps")
    points = save_points(save_at, steps)
    check_optimizer(optimizer, weights)
    if memory is not None:
        check_memory(optimizer, weights, memory)
    if observe is not None:
        as_callable(observe, "observe")
    if batch_size is not None:
        samples = problem.sample_count
        if samples is None:
            problem._batch(jnp.zeros(1, jnp.int32))  # raises, and says why
        batch_size = as_count(batch_size, "batch_size", minimum=1)
        if samples is not None and batch_size > samples:
            raise ValueError(f"batch_size must be at most n = {samples}, got {batch_size}")
        if key is None:
            raise ValueError("batch_size draws samples at random, so it needs a key, got None")
        key = as_key(key)
    elif key is not None:
        raise ValueError("key is for minibatches: give batch_size too, or leave key out")
    return _optimizer_descent(
        problem,
        weights,
        key,
        memory,
        begin,
        optimizer=optimizer,
        steps=steps,
        save_at=points,
        observe=observe,
        batch_size=batch_size,
        structure=layers,
    )


@compiled(
    static=("steps", "save_at", "batch_size", "structure"), callables=("optimizer", "observe")
)
@on_automatic_axes
def _optimizer_descent(
    problem: Problem,
    weights: tuple[Array, ...],
    key: Array | None,
    memory: Any,
    begin: Begun | None,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    save_at: tuple[int, ...],
    observe: Observe | None,
    batch_size: int | None,
    structure: tuple[Structure, ...] | None,
) -> Trajectory:
    given = problem, weights
    problem, weights = tied(given, (given, arrays_in(optimizer)))
    core = to_span(problem, weights)[0] if structure is None else problem.by_outputs()
    value_of = _risk_of(problem if structure is None else core, structure)
    chosen = prepare(optimizer)
    batches = None if batch_size is None else _Epochs(problem, key, batch_size)

    def advance(state: Any, start: Array, count: Array, max_count: int) -> tuple[Any, Array]:
        def evaluate(state: Any, index: Array) -> tuple[Any, Array]:
            layers, _, order = state
            drawn, batch = None, core
            if batches is not None:
                drawn, order = batches.at(start + index, order)
                batch = problem._batch(drawn)
            if structure is not None:
                slope, ok = checked_structured_gradient(batch.by_outputs(), structure, layers)
                return (slope, drawn, order), ok
            # Most optimizers act entry by entry, so unlike plain descent they must see the layers
            # themselves and not coordinates of them.
            slope, ok = checked_gradient(batch, to_span(problem, layers)[1])
            return (lift_gradient(problem, slope), drawn, order), ok

        def update(state: Any, found: Any) -> Any:
            layers, memory, _ = state
            slope, drawn, order = found
            risk_here = value_of
            if batches is not None:
                batch = problem._batch(drawn)
                risk_here = _risk_of(batch if structure is None else batch.by_outputs(), structure)
            changes, memory = chosen.update(slope, memory, layers, risk_here)
            return optax.apply_updates(layers, changes), memory, order

        layers, memory = state
        order = None if batches is None else batches.order(start)
        (layers, memory, _), taken = guarded_steps(
            evaluate, update, (layers, memory, order), count, max_steps=max_count
        )
        return (layers, memory), taken

    look = observer(value_of, observe)
    state, seen, _, status, stopped_at = record(
        advance,
        (weights, chosen.init(weights) if memory is None else memory),
        lambda state: look(state[0]),
        save_at,
        steps,
        given=(problem, arrays_in(optimizer)),
        begin=begin,
    )
    end = end_of(begin, steps, status, stopped_at, None)
    weights, memory = state
    return Trajectory(
        asked_for(begin, save_at), None, seen, weights, status, stopped_at, memory, end
    )


class _Epochs:
    """Which samples each step sees: a function of the key and the step alone."""

    def __init__(self, problem: Problem, key: Array | None, batch_size: int) -> None:
        assert key is not None  # both checked by the caller
        assert problem.sample_count is not None
        self.key, self.size = key, batch_size
        self.samples = problem.sample_count
        self.per_epoch = self.samples // batch_size

    def order(self, step: Array) -> Array:
        """The order of the samples in the epoch of ``step``."""
        key = jax.random.fold_in(self.key, step // self.per_epoch)
        return jax.random.permutation(key, self.samples)

    def at(self, step: Array, order: Array) -> tuple[Array, Array]:
        """The samples of ``step``, and the order, new where an epoch begins."""
        within = step % self.per_epoch
        # The step is never batched, so this stays a branch under vmap.
        order = lax.cond(
            within == 0, lambda step: tied(self.order(step), order), lambda _: order, step
        )
        return lax.dynamic_slice_in_dim(order, within * self.size, self.size), order
