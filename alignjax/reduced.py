"""Training of an aligned network as a recursion in its singular values.

Where layers and data have common bases, gradient descent on matrices is gradient descent on
``(d, r)`` numbers: ``O(d r)`` a step, and exact. This is the independent oracle of the descents; it
shares no gradient with them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alignjax._meshes import on_automatic_axes, tied
from alignjax._roundoff import above, relative_roundoff
from alignjax._validation import as_count, as_learning_rate, as_real, describe
from alignjax.bases import chain_bases
from alignjax.bases.moments import ProblemMatrices, spectra
from alignjax.engines import recursion
from alignjax.engines.loop import guarded_steps
from alignjax.linalg import guarded, leave_one_out_products, leaves_finite, matmul
from alignjax.problems import MomentProblem
from alignjax.trajectory import (
    Begun,
    Trajectory,
    asked_for,
    begun,
    clock,
    end_of,
    record,
    save_points,
)

__all__ = ["Reduced", "expand", "reduce", "reduced_descent", "reduced_gradient", "reduced_risk"]

Layers = tuple[Array, ...]
"""Singular values, one array ``(r,)`` a layer."""

_BLOCK = 4  # More steps a pass over memory need more registers than a core has.
_BLOCKS_A_LOOK = 8  # A look at the risk costs as much as a block.


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reduced:
    """An aligned network and problem in common bases; ``r = min k_i`` modes take part.

    Attributes:
        U: ``P_d``, shape ``(k_d, k_d)``.
        V: ``P_0``, shape ``(k_0, k_0)``.
        inner_bases: ``(P_1, ..., P_{d-1})``, ``P_i`` of shape ``(k_i, k_i)``.
        singular_values: the start's first ``r`` diagonal entries of ``P_i^T W_i P_{i-1}``, shape
            ``(d, r)``; signed in the last layer only.
        target_spectrum: ``diag(U^T Sigma_yx V)``, shape ``(r,)``, at least 0 and descending (for
            sensing of any sign).
        input_spectrum: ``diag(V^T Sigma_xx V)``, shape ``(r,)``; for sensing the Gram matrix
            ``(r, r)`` of the measurements' diagonals.
        full_input_spectrum: all ``k_0`` diagonal entries of ``V^T Sigma_xx V``; for sensing the
            Gram matrix again.
        full_target_spectrum: all ``min(k_0, k_d)`` diagonal entries of ``U^T Sigma_yx V``,
            descending up to roundoff between two neighbouring widths; for sensing those of
            ``target_spectrum`` again.
        minimizer: the products ``p`` of least risk and least norm, shape ``(r,)``.
        minimum_risk: the least risk that the ``r`` modes can reach.
        frozen: per layer the diagonal entries beyond ``r``, which no gradient moves.
    """

    U: Array
    V: Array
    inner_bases: tuple[Array, ...]
    singular_values: Array
    target_spectrum: Array
    input_spectrum: Array
    full_input_spectrum: Array
    full_target_spectrum: Array
    minimizer: Array
    minimum_risk: Array
    frozen: tuple[Array, ...]

    @property
    def depth(self) -> int:
        """``d``."""
        return len(self.frozen)

    @property
    def rank(self) -> int:
        """``r``."""
        return self.target_spectrum.shape[-1]


def reduce(
    problem: Any, weights: Sequence[Float[Array, "k_i k_j"]], *, tolerance: float | None = None
) -> Reduced:
    """Common bases of a problem and weights, and their diagonals there.

    Finds ``P_i^T W_i P_{i-1} = diag(s_i)``, ``U^T Sigma_yx V`` and ``V^T Sigma_xx V`` diagonal,
    also where singular values repeat, vanish, are negative or unsorted. Host-only.

    Args:
        problem: a problem with the squared loss, or a sensing problem.
        weights: layers ``(W_1, ..., W_d)`` of any widths.
        tolerance: the largest relative off-diagonal part; 1e-9 in float64, 1e-4 in float32.

    Returns:
        A :class:`Reduced`, in the promoted dtype of problem and weights.

    Raises:
        NotAlignedError: if there are no common bases, with the measured ``defect``.
        TypeError: if anything is traced, or the loss is another one.
        ValueError: if shapes do not fit, the tolerance is negative or NaN, or moments overflow.

    Source: Radhakrishnan et al. 2020, Definition 2 and Corollary 1.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
        >>> aj.reduce(problem, aj.initializers.identity((2, 2, 2), 0.5)).singular_values.shape
        (2, 2)
    """
    found = chain_bases(problem, weights, tolerance=tolerance)
    bases, data = found.bases, found.matrices
    r = min(b.shape[0] for b in bases)
    layers = [np.asarray(w, np.float64) for w in weights]
    diagonals = [np.diagonal(bases[i + 1].T @ w @ bases[i]).copy() for i, w in enumerate(layers)]
    target, full = spectra(bases[-1], bases[0], data, r)
    inputs = full[:r] if full.ndim == 1 else full[:r, :r]
    minimizer, floor = _minimum(problem, data, bases, target[:r], full)
    dtype = jnp.result_type(data.dtype, *(jnp.asarray(w).dtype for w in weights))
    as_jax = partial(jnp.asarray, dtype=dtype)
    return Reduced(
        U=as_jax(bases[-1]),
        V=as_jax(bases[0]),
        inner_bases=tuple(as_jax(b) for b in bases[1:-1]),
        singular_values=as_jax(np.stack([s[:r] for s in diagonals])),
        target_spectrum=as_jax(target[:r]),
        input_spectrum=as_jax(inputs),
        full_input_spectrum=as_jax(full if full.ndim == 1 else inputs),
        full_target_spectrum=as_jax(target if full.ndim == 1 else target[:r]),
        minimizer=as_jax(minimizer),
        minimum_risk=as_jax(floor),
        frozen=tuple(as_jax(s[r:]) for s in diagonals),
    )


def _minimum(
    problem: Any,
    data: ProblemMatrices,
    bases: Sequence[np.ndarray],
    target: np.ndarray,
    spectrum: np.ndarray,
) -> tuple[np.ndarray, float]:
    """The least-norm minimizer in the modes, and the risk that is left there."""
    r = len(target)
    if data.values is not None:
        modes = np.stack([np.diagonal(bases[-1].T @ m @ bases[0])[:r] for m in data.cross])
        share = relative_roundoff(data.dtype, *modes.shape)
        best = np.linalg.lstsq(modes, data.values, rcond=share)[0]
        return best, 0.5 * float(np.mean((modes @ best - data.values) ** 2))
    inputs = spectrum[:r]
    positive = inputs > 0
    best = np.where(positive, target, 0.0) / np.where(positive, inputs, 1.0)
    # What a network of full width would still fit beyond the r modes.
    beyond = (bases[-1].T @ data.link @ bases[0])[r:, r:]
    moment = (bases[0].T @ data.symmetric[0] @ bases[0])[r:, r:]
    values, vectors = np.linalg.eigh(moment)
    real = above(values, data.roundoff, spectrum.max())
    missed = 0.5 * float(np.sum((beyond @ vectors[:, real]) ** 2 / values[real]))
    assert isinstance(problem, MomentProblem)
    return best, float(problem.minimum_risk) + missed


def _leave_one_out(layers: Sequence[Array]) -> tuple[Array, tuple[Array, ...]]:
    """The product of all layers, and for each layer that of all others."""
    others = leave_one_out_products(layers)
    return others[-1] * layers[-1], others


def _weighted(reduced: Reduced, product: Array) -> Array:
    spectrum = reduced.input_spectrum
    return matmul(spectrum, product) if spectrum.ndim == 2 else spectrum * product


def _slope(reduced: Reduced, product: Array) -> Array:
    """The derivative of the risk in the modes' products ``p``."""
    return _weighted(reduced, product) - reduced.target_spectrum


def _gradient(reduced: Reduced, s: Layers) -> tuple[Layers, Array]:
    """The gradient of the risk, and the product of all layers."""
    product, others = _leave_one_out(s)
    slope = _slope(reduced, product)
    return tuple(other * slope for other in others), product


def _excess(reduced: Reduced, product: Array) -> Array:
    """What each mode adds to the least risk."""
    off = product - reduced.minimizer
    return 0.5 * _weighted(reduced, off) * off


def reduced_risk(reduced: Reduced, singular_values: Float[Array, "d r"]) -> Float[Array, ""]:
    """The risk in terms of singular values, centred at its minimum.

        R = R_min + 1/2 sum_k lambda_k (p_k - p*_k)^2,    p_k = prod_i s_{i,k}

    Args:
        reduced: what :func:`reduce` returned.
        singular_values: shape ``(d, r)``.
    """
    return reduced.minimum_risk + _excess(reduced, jnp.prod(singular_values, axis=0)).sum()


def reduced_gradient(reduced: Reduced, singular_values: Float[Array, "d r"]) -> Float[Array, "d r"]:
    """``dR/ds_{i,k} = prod_{j != i} s_{j,k} (lambda_k p_k - lambda'_k)``, shape ``(d, r)``.

    Source: Radhakrishnan et al. 2020, Corollary 1, eq. 6; the printed form differs: its product
    runs over all ``j``.
    """
    return jnp.stack(_gradient(reduced, tuple(singular_values))[0])


def reduced_descent(
    reduced: Reduced,
    learning_rate: Float[Array, ""] | Float[Array, " d"] | float,
    *,
    steps: int,
    singular_values: Float[Array, "d r"] | Trajectory | None = None,
    save_at: Sequence[int] | None = None,
    engine: str = "auto",
) -> Trajectory:
    """Gradient descent on the singular values, exactly as on the full matrices.

        s_i <- s_i + eta prod_{j != i} s_j (lambda' - lambda prod_j s_j),

    mode by mode, with both spectra divided by ``n``; for sensing the modes couple through the Gram
    matrix. Runs under ``vmap`` and ``grad``; freezes on divergence as ``gradient_descent`` does.
    In real numbers full matrices do the same; with roundoff they do below
    :func:`alignjax.theory.alignment.stability_threshold`, and as long as they pass no saddle.

    Args:
        reduced: what :func:`reduce` returned.
        learning_rate: eta, a scalar, or one rate a layer, shape ``(d,)``.
        steps: how many steps.
        singular_values: another start, shape ``(d, r)``; may be traced. Or a
            :class:`alignjax.Trajectory` of this function to carry on.
        save_at: increasing steps at which to observe, 0 for the start of this call; by default its
            start and end.
        engine: how steps are executed; ``"xla"`` is the reference, ``"cpu"`` a compiled kernel
            for modes that no Gram matrix couples, and ``"auto"`` takes it where it applies and
            save points lie more than a few steps apart.

    Returns:
        A :class:`alignjax.Trajectory`; its ``weights`` are the final singular values ``(d, r)``,
        its observations ``{"singular_values": (saves, d, r), "risk": (saves,)}``.

    Raises:
        TypeError, ValueError: for arguments that do not fit, before anything is traced.

    Source: Radhakrishnan et al. 2020, Corollary 1, eq. 6; the printed form differs: its product
    runs over all ``j``, which is off by tens of percent in one step.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
        >>> reduced = aj.reduce(problem, aj.initializers.identity((2, 2, 2), 0.5))
        >>> run = aj.reduced_descent(reduced, 0.1, steps=1000)
        >>> bool(jnp.allclose(run.weights.prod(axis=0), jnp.array([2.0, 1.0])))
        True
    """
    _check_reduced(reduced)
    rate = as_learning_rate(learning_rate, reduced.depth)
    singular_values, begin = begun(singular_values, "singular_values")
    start = _as_singular_values(reduced, singular_values)
    steps = as_count(steps, "steps")
    points = save_points(save_at, steps)
    others = (reduced.target_spectrum, reduced.minimizer, reduced.minimum_risk, start)
    name = recursion.resolve(engine, reduced.input_spectrum, others)
    return _reduced_descent(
        reduced, start, rate.astype(start.dtype), begin, steps=steps, save_at=points, engine=name
    )


@partial(jax.jit, static_argnames=("steps", "save_at", "engine"))
@on_automatic_axes
def _reduced_descent(
    reduced: Reduced,
    start: Array,
    rate: Array,
    begin: Begun | None,
    *,
    steps: int,
    save_at: tuple[int, ...],
    engine: str,
) -> Trajectory:
    rates = (rate,) * reduced.depth if rate.ndim == 0 else tuple(rate)

    def advance(s: Layers, _: Array, count: Array, max_count: int) -> tuple[Layers, Array]:
        return _advance(max_count, engine, reduced, s, rates, count)

    def observe(s: Layers) -> dict[str, Array]:
        values = jnp.stack(s)
        return {"singular_values": values, "risk": reduced_risk(reduced, values)}

    final, seen, taken, status, stopped_at = record(
        advance, tuple(start), observe, save_at, steps, given=(reduced, rate), begin=begin
    )
    time, last = clock(begin, taken, stopped_at, rate)
    end = end_of(begin, steps, status, stopped_at, last)
    step = asked_for(begin, save_at)
    return Trajectory(step, time, seen, jnp.stack(final), status, stopped_at, end=end)


def _largest_risk(reduced: Reduced) -> float:
    return float(np.sqrt(jnp.finfo(reduced.target_spectrum.dtype).max))


@guarded
def _checked(reduced: Reduced, s: Layers) -> tuple[Layers, Array]:
    gradient, product = _gradient(reduced, s)
    risk = reduced.minimum_risk + _excess(reduced, product).sum()
    # NaN fails the comparison too.
    return gradient, leaves_finite(gradient) & (risk <= _largest_risk(reduced))


def _moved(s: Layers, gradient: Layers, rates: Layers) -> Layers:
    return tuple(x - rate * g for x, rate, g in zip(s, rates, gradient, strict=True))


def _block(reduced: Reduced, s: Layers, rates: Layers) -> Layers:
    """``_BLOCK`` steps without looking.

    A mode's whole block is arithmetic on its own ``d`` numbers: one pass over memory, in which what
    stays the same is multiplied once.
    """
    pairs = [(rate * reduced.input_spectrum, rate * reduced.target_spectrum) for rate in rates]
    for _ in range(_BLOCK):
        product, others = _leave_one_out(s)
        s = tuple(
            x - (scaled * product - target) * other
            for x, (scaled, target), other in zip(s, pairs, others, strict=True)
        )
    return s


def _watched(reduced: Reduced, s: Layers, rates: Layers) -> Array:
    """The sum of ``(p - p*)^2`` over the states that :func:`_block` passes, ``s`` included.

    Its steps go through the gradient, so that one that overflows shows in the next state.
    """
    off = jnp.zeros_like(s[0])
    for _ in range(_BLOCK):
        gradient, product = _gradient(reduced, s)
        off = off + (product - reduced.minimizer) ** 2
        s = _moved(s, gradient, rates)
    return off


def _surely_good(reduced: Reduced, s: Layers, off: Array) -> Array:
    """Whether ``s`` and all states before it surely pass :func:`_checked`.

    It errs on the safe side: the sum over all states stands for the largest risk, half the limit
    leaves room for roundoff, and no later step brings a state back from infinity.
    """
    gradient, product = _gradient(reduced, s)
    excess = 0.5 * jnp.abs(reduced.input_spectrum) * (off + (product - reduced.minimizer) ** 2)
    size = functools.reduce(jnp.add, map(jnp.abs, gradient))
    limit = (0.5 * _largest_risk(reduced) - jnp.abs(reduced.minimum_risk)) / reduced.rank
    return ((excess <= limit) & (size < jnp.inf)).all()


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _advance(
    max_steps: int, engine: str, reduced: Reduced, state: Layers, rates: Layers, steps: Array
) -> tuple[Layers, Array]:
    """Steps by an engine that stop at the last good state."""
    return recursion.advance(
        engine,
        partial(_reference, reduced),
        state,
        rates,
        steps,
        reduced.input_spectrum,
        reduced.target_spectrum,
        reduced.minimizer,
        reduced.minimum_risk,
        max_steps=max_steps,
    )


def _reference(
    reduced: Reduced, state: Layers, rates: Layers, steps: Array
) -> tuple[Layers, Array]:
    """Steps that stop at the last good state: many at a time while surely good, then one by one."""
    blocks = steps // _BLOCK

    def stretch(i: Array, carry: tuple[Layers, Array, Array]) -> tuple[Layers, Array, Array]:
        state, good, taken = carry
        count = jnp.minimum(_BLOCKS_A_LOOK, blocks - i * _BLOCKS_A_LOOK)
        moved, off = lax.fori_loop(
            0,
            count,
            lambda _, c: (_block(reduced, c[0], rates), c[1] + _watched(reduced, c[0], rates)),
            (state, jnp.zeros_like(state[0])),
        )
        good = good & _surely_good(reduced, moved, off)
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state)
        return state, good, taken + jnp.where(good, _BLOCK * count, 0)

    def step(carry: tuple[Layers, Array, Array]) -> tuple[Layers, Array, Array]:
        state, _, taken = carry
        moved = _moved(state, _checked(reduced, state)[0], rates)
        good = _checked(reduced, moved)[1]
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state)
        return state, good, taken + good.astype(jnp.int32)

    good = _checked(reduced, state)[1]
    taken = jnp.where(good, jnp.int32(0), jnp.int32(0))  # varies as `good` does in `shard_map`
    if reduced.input_spectrum.ndim == 1:  # modes that a Gram matrix couples fill no such block
        looks = (blocks + _BLOCKS_A_LOOK - 1) // _BLOCKS_A_LOOK
        state, _, taken = lax.fori_loop(0, looks, stretch, (state, good, taken))
    unfinished = lambda carry: carry[1] & (carry[2] < steps)  # noqa: E731
    state, _, taken = lax.while_loop(unfinished, step, (state, good, taken))
    return state, taken


@_advance.defjvp
def _advance_derivative(max_steps: int, _: str, primals: Any, tangents: Any) -> Any:
    *moving, steps = primals

    def scanned(reduced: Reduced, state: Layers, rates: Layers) -> tuple[Layers, Array]:
        given = reduced, state, rates
        reduced, state, rates = tied(given, given)
        return guarded_steps(
            lambda s, _: _checked(reduced, s),
            lambda s, gradient: _moved(s, gradient, rates),
            state,
            steps,
            max_steps=max_steps,
        )

    # A loop of unknown length has no reverse mode; the checkpointed scan has.
    return jax.jvp(scanned, tuple(moving), tuple(tangents[:-1]))


def expand(
    reduced: Reduced, singular_values: Float[Array, "d r"]
) -> tuple[Float[Array, "k_i k_j"], ...]:
    """Full layers ``W_i = P_i diag(s_i) P_{i-1}^T``, with the frozen entries beyond ``r``.

    Args:
        reduced: what :func:`reduce` returned.
        singular_values: shape ``(d, r)``; may be traced.

    Returns:
        ``(W_1, ..., W_d)``, ``W_i`` of shape ``(k_i, k_{i-1})``.

    Raises:
        TypeError, ValueError: for another shape, or what :func:`reduce` did not return.

    Source: Radhakrishnan et al. 2020, Definition 2.
    """
    _check_reduced(reduced)
    values = _as_singular_values(reduced, singular_values)
    bases = (reduced.V, *reduced.inner_bases, reduced.U)
    layers = []
    for s, rest, into, out in zip(values, reduced.frozen, bases, bases[1:], strict=False):
        diagonal = jnp.concatenate([s, rest])
        count = diagonal.shape[0]
        layers.append(matmul(out[:, :count] * diagonal[None], into[:, :count].T))
    return tuple(layers)


def _check_reduced(reduced: Any) -> None:
    if not isinstance(reduced, Reduced):
        raise TypeError(f"reduced must be what reduce returned, got {describe(reduced)}")


def _as_singular_values(reduced: Reduced, singular_values: Any) -> Array:
    if singular_values is None:
        return reduced.singular_values
    values = as_real(singular_values, "singular_values", finite=False)
    expected = (reduced.depth, reduced.rank)
    if values.shape != expected:
        raise ValueError(
            f"singular_values must have shape (d, r) = {expected}, got {tuple(values.shape)}; "
            f"to run many starts at once use jax.vmap"
        )
    return values.astype(jnp.result_type(values, reduced.target_spectrum))
