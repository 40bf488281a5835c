"""The kernels: many steps of many networks, all in registers and shared memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from alignjax.engines.gpu.lanes import Lanes
from alignjax.engines.gpu.plan import Plan
from alignjax.linalg import matmul

__all__ = ["by_lanes", "by_tiles"]

Matrix = Any  # a tile of shape (k_i, k_j), or `Lanes`
Product = Callable[[Matrix, Matrix], Matrix]


def by_tiles(plan: Plan, steps: Any, rates: Any, refs: Sequence[Any]) -> None:
    """One network a program; ``refs`` are moments, weights, results and the steps taken."""
    moments, weights, results, taken = plan.split(refs)
    each_rate = [rates[i] for i in range(plan.depth)]
    step = partial(_step, plan.vertex, matmul, [ref[...] for ref in moments], each_rate)

    def read_weights() -> tuple[Array, ...]:
        return tuple(ref[...] for ref in weights)

    moved, limit = _rounds(step, read_weights, steps[0], plan.largest)
    taken[...] = jnp.full(taken.shape, limit)
    for ref, tile in zip(results, moved, strict=True):
        ref[...] = tile


def by_lanes(
    plan: Plan, periods: Sequence[tuple[int, int]], steps: Any, rates: Any, refs: Sequence[Any]
) -> None:
    """A block of networks a program, one a lane.

    Args:
        plan: the widths.
        periods: for every moment ``(r, m)``: network ``n`` has the one at ``(n // r) % m``.
        steps: a reference to their number.
        rates: a reference of shape ``(d, block)``.
        refs: moments, weights, results, ``(entries, block)`` each, and the steps taken.
    """
    moments, weights, results, taken = plan.split(refs)
    block = taken.shape[0]
    here = pl.program_id(0) * block + jnp.arange(block, dtype=jnp.int32)

    def column(period: tuple[int, int]) -> Any:
        repeats, count = period
        return 0 if count == 1 else lax.rem(lax.div(here, jnp.int32(repeats)), jnp.int32(count))

    shared = [
        Lanes.read(ref, shape, column(period)) if shape else ref[0, column(period)]
        for ref, shape, period in zip(moments, plan.moments, periods, strict=True)
    ]
    each_rate = [rates[i, :] for i in range(plan.depth)]
    step = partial(_step, plan.vertex, Lanes.__matmul__, shared, each_rate)

    def read_weights() -> tuple[Lanes, ...]:
        pairs = zip(weights, plan.layers, strict=True)
        return tuple(Lanes.read(ref, shape, slice(None)) for ref, shape in pairs)

    limit = jnp.full((block,), steps[0])
    moved, limit = _rounds(step, read_weights, limit, plan.largest)
    taken[...] = limit
    for ref, matrix in zip(results, moved, strict=True):
        for i, entry in enumerate(matrix.entries()):
            ref[i, :] = entry


def _rounds(
    step: Callable[[tuple[Matrix, ...], Array], tuple[tuple[Matrix, ...], Array]],
    read: Callable[[], tuple[Matrix, ...]],
    limit: Array,
    largest: float,
) -> tuple[tuple[Matrix, ...], Array]:
    """The state before the first bad one, and the steps taken until there.

    To keep a second copy of the weights, the state to return to, would cost a third of the
    registers. Instead the first round runs to the end and counts; if that met a bad state, a second
    round starts anew and stops each network in time. Both are one loop, so they round alike. Where
    the start itself is bad, ``limit`` is 0 and the weights returned are not to be used.

    Args:
        step: ``(weights, moves) -> (moved, risk)``: a network moves where ``moves``; the risk is
            that of ``weights``, or NaN where the gradient is not finite.
        read: gives the weights at the start.
        limit: how many steps each network may take.
        largest: the largest risk of a good state.
    """

    def advance(before: Array, carry: Any) -> Any:
        weights, alive, taken, limit = carry
        weights, risk = step(weights, before < limit - 1)
        alive = alive * (jnp.abs(risk) <= largest).astype(jnp.int32)
        return weights, alive, taken + alive * (before >= 0).astype(jnp.int32), limit

    def one_round(carry: Any) -> Any:
        _, limit, _ = carry
        start = (read(), jnp.ones_like(limit), jnp.zeros_like(limit), limit)
        # The state after the last step is looked at too. It counts from -1, the steps before the
        # first state less one, for one more than the largest `limit` is no int32.
        weights, _, taken, _ = lax.fori_loop(-1, jnp.max(limit), advance, start)
        return jnp.min(taken - limit) < 0, jnp.minimum(taken, limit), weights

    nothing = jax.tree.map(jnp.zeros_like, read())
    carry = (jnp.bool_(True), limit, nothing)
    _, limit, weights = lax.while_loop(lambda carry: carry[0], one_round, carry)
    return weights, limit


def _step(
    vertex: int,
    product: Product,
    moments: Sequence[Matrix],
    rates: Sequence[Array],
    weights: tuple[Matrix, ...],
    moves: Array,
) -> tuple[tuple[Matrix, ...], Array]:
    """One step, and the risk where it starts (NaN if the gradient there is not finite).

    The mathematics of :func:`alignjax.linalg.chain_gradients`, but a layer moves as soon as its
    gradient is known: nothing waits in registers.
    """
    inner, outer = weights[:vertex], weights[vertex:]
    lefts = list(inner[-1:])
    for layer in reversed(inner[:-1]):
        lefts.append(product(lefts[-1], layer))
    rights = list(outer[:1])
    for layer in outer[1:]:
        rights.append(product(layer, rights[-1]))
    parts, into_inner, into_outer = _pullback(
        product, moments, rights[-1] if outer else None, lefts[-1] if inner else None
    )

    def move(layer: int, gradient: Matrix) -> Matrix:
        parts.append(gradient * 0.0)  # NaN if not finite, or nothing
        # No `where`: the Triton lowering of JAX may take its literals for booleans.
        return weights[layer] - gradient * (rates[layer] * moves.astype(rates[layer].dtype))

    depth, moved = len(weights), {}
    signal = into_inner
    for i in range(vertex):
        last = i == vertex - 1
        moved[i] = move(i, signal if last else product(lefts[vertex - 2 - i].T, signal))
        if not last:
            signal = product(signal, weights[i].T)
    signal = into_outer
    for i in reversed(range(vertex, depth)):
        last = i == vertex
        moved[i] = move(i, signal if last else product(signal, rights[i - vertex - 1].T))
        if not last:
            signal = product(weights[i].T, signal)
    return tuple(moved[i] for i in range(depth)), 0.5 * _total(parts)


def _pullback(
    product: Product, moments: Sequence[Matrix], outer: Matrix | None, inner: Matrix | None
) -> tuple[list[Matrix], Matrix, Matrix]:
    """Parts of twice the risk, to be summed, and the gradients in both halves of the network.

    The first part is a number, the others are matrices whose entries count.
    The formulas are those of :class:`alignjax.problems.MomentProblem`.
    """
    if outer is None or inner is None:
        input_moment, cross_moment, minimizer, minimizer_slope, minimum_risk = moments
        whole = inner if outer is None else outer
        slope = product(whole, input_moment) - cross_moment
        above = (slope + minimizer_slope) * (whole - minimizer)
        return [2.0 * minimum_risk, above], slope, slope
    input_moment, cross_moment, target_energy = moments
    seen = product(inner, input_moment)
    square = product(seen, inner.T)
    gram = product(outer.T, outer)
    pulled = product(outer.T, cross_moment)
    parts = [target_energy, gram * square, pulled * inner * -2.0]
    into_outer = product(outer, square) - product(cross_moment, inner.T)
    return parts, product(gram, seen) - pulled, into_outer


def _total(parts: Sequence[Matrix]) -> Array:
    """The sum of all entries. Parts of one shape are added first: a reduction costs more."""
    by_shape: dict[tuple[int, ...], Matrix] = {}
    for part in parts[1:]:
        by_shape[part.shape] = by_shape[part.shape] + part if part.shape in by_shape else part
    return sum((part.sum() for part in by_shape.values()), start=parts[0])
