"""From a flat batch of networks to the blocks of a kernel, and any nest of ``vmap`` to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from alignjax.engines.gpu import kernels
from alignjax.engines.gpu.plan import Plan

__all__ = ["BLOCK", "SMALL_BLOCK", "batched"]

State = tuple[Array, ...]
Periods = tuple[tuple[int, int], ...]

# Blocks of 32 reach every multiprocessor with the fewest networks; larger ones save programs.
SMALL_BLOCK, BLOCK = 32, 128
_MANY = 132 * 4 * BLOCK


def batched(plan: Plan, periods: Periods, interpret: bool, block: int | None = None) -> Any:
    """The descent of a flat batch, whose ``vmap`` is the descent of a larger flat batch.

    ``(steps, weights, rates, moments) -> (moved, taken)``: weights of shape ``(n, k_i, k_{i-1})``,
    rates ``(n, d)``, and of each moment as many as there are: by ``periods``, pairs ``(r, m)`` with
    ``r m`` a divisor of ``n``, network ``i`` has the one at ``(i // r) % m``. So nothing that
    networks share is copied. The batching rule that Pallas has by itself would give every network
    of a batch a program of its own.

    Args:
        plan: the layout of a network.
        periods: one pair a moment.
        interpret: whether to emulate the kernel, on any platform.
        block: networks a program where they are lanes; by default what suits their number.
    """

    @custom_vmap
    def run(steps: Array, weights: State, rates: Array, moments: State) -> tuple[State, Array]:
        return _launch(plan, periods, interpret, block, steps, weights, rates, moments)

    @run.def_vmap
    def rule(
        size: int,
        in_batched: Any,
        steps: Array,
        weights: State,
        rates: Array,
        moments: State,
    ) -> Any:
        steps_batched, *state_batched, moments_batched = in_batched
        if steps_batched:
            raise ValueError("steps must be the same for all networks of a vmap, got a batch")
        count = rates.shape[1 if state_batched[1] else 0]

        def flat(array: Array, is_batched: bool) -> Array:
            if not is_batched:
                array = jnp.broadcast_to(array, (size, *array.shape))
            return array.reshape(size * count, *array.shape[2:])

        merged = [
            _merge(*each, size, count)
            for each in zip(moments, moments_batched, periods, strict=True)
        ]
        larger = batched(plan, tuple(period for _, period in merged), interpret, block)
        out = larger(
            steps,
            *jax.tree.map(flat, (weights, rates), tuple(state_batched)),
            tuple(moment for moment, _ in merged),
        )
        out = jax.tree.map(lambda array: array.reshape(size, count, *array.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return run


def _merge(
    moment: Array, is_batched: bool, period: tuple[int, int], size: int, count: int
) -> tuple[Array, tuple[int, int]]:
    """A moment under a further ``vmap`` of ``size`` over ``count`` networks, and its period."""
    repeats, own = period
    if not is_batched:
        return moment, period
    if own == 1:
        return moment.reshape(size, *moment.shape[2:]), (count, size)
    if repeats * own < count:
        # Shared on a level between two that batch it: the one pattern that no period describes.
        moment = jnp.take(moment, jnp.arange(count) // repeats % own, axis=1)
        repeats, own = 1, count
    return moment.reshape(size * own, *moment.shape[2:]), (repeats, size * own)


def _launch(
    plan: Plan,
    periods: Periods,
    interpret: bool,
    block: int | None,
    steps: Array,
    weights: State,
    rates: Array,
    moments: State,
) -> tuple[State, Array]:
    shapes = plan.moments + plan.layers
    operands = [
        _pad(array, shape) for array, shape in zip((*moments, *weights), shapes, strict=True)
    ]
    block = block or (BLOCK if rates.shape[0] >= _MANY else SMALL_BLOCK)
    call = partial(_call_by_lanes, block) if plan.lanes else partial(_call_by_tiles)
    *moved, taken = call(plan, periods, interpret, steps[None], rates, operands)
    kept = (taken == 0)[:, None, None]  # whose start is bad: the kernel gives nothing for it
    return tuple(
        jnp.where(kept, w, array[:, : w.shape[1], : w.shape[2]])
        for w, array in zip(weights, moved, strict=True)
    ), taken


def _pad(array: Array, shape: tuple[int, ...]) -> Array:
    """With zeros up to ``(networks, *shape)``.

    Padded weights stay exactly 0: with zeros beyond a width in both of its layers and in the
    moments, every product is 0 there, so the gradient is, and so the layers stay.
    """
    more = [(0, k - m) for k, m in zip(shape, array.shape[1:], strict=True)]
    return jnp.pad(array, [(0, 0), *more])


def _call_by_tiles(
    plan: Plan,
    periods: Periods,
    interpret: bool,
    steps: Array,
    rates: Array,
    operands: Sequence[Array],
) -> Sequence[Array]:
    """A program a network."""
    count = rates.shape[0]

    def spec(shape: tuple[int, ...], period: tuple[int, int]) -> pl.BlockSpec:
        repeats, number = (np.int32(each) for each in period)

        def index(n: Any) -> tuple[Any, ...]:
            return (lax.rem(lax.div(n, repeats), number), *(0 for _ in shape))

        return pl.BlockSpec((None, *shape), index)

    def kernel(steps: Any, rates: Any, *refs: Any) -> None:
        kernels.by_tiles(plan, steps, rates, refs)

    own = (1, count)
    layers = [spec(shape, own) for shape in plan.layers]
    everything = (steps, rates, *operands)
    results = [_result((count, *shape), rates.dtype, everything) for shape in plan.layers]
    return pl.pallas_call(
        kernel,
        out_shape=[*results, _result((count,), jnp.int32, everything)],
        grid=(count,),
        in_specs=[
            pl.BlockSpec((1,), lambda n: (0,)),
            spec((plan.depth,), own),
            *(spec(*each) for each in zip(plan.moments, periods, strict=True)),
            *layers,
        ],
        out_specs=[*layers, spec((), own)],
        compiler_params=triton.CompilerParams(num_warps=plan.warps, num_stages=1),
        interpret=interpret,
    )(steps, rates, *operands)


def _call_by_lanes(
    block: int,
    plan: Plan,
    periods: Periods,
    interpret: bool,
    steps: Array,
    rates: Array,
    operands: Sequence[Array],
) -> Sequence[Array]:
    """A program a block of networks; entries of matrices first, networks last."""
    count = rates.shape[0]
    padded = -(-count // block) * block
    split = len(plan.moments)

    def columns(array: Array) -> Array:
        return array.reshape(len(array), -1).T

    def block_of(array: Array) -> Array:
        # Networks of zeros fill the last block: they neither move nor diverge.
        return jnp.pad(columns(array), [(0, 0), (0, padded - count)])

    def kernel(steps: Any, rates: Any, *refs: Any) -> None:
        kernels.by_lanes(plan, periods, steps, rates, refs)

    def whole(array: Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda n: (0,) * array.ndim)

    def part(array: Any) -> pl.BlockSpec:
        return pl.BlockSpec((array.shape[0], block), lambda n: (0, n))

    moments = [columns(array) for array in operands[:split]]
    state = [block_of(array) for array in operands[split:]]
    rates = block_of(rates)
    everything = (steps, rates, *moments, *state)
    *moved, taken = pl.pallas_call(
        kernel,
        out_shape=[
            *(_result(w.shape, w.dtype, everything) for w in state),
            _result((padded,), jnp.int32, everything),
        ],
        grid=(padded // block,),
        in_specs=[
            whole(steps),
            part(rates),
            *(whole(array) for array in moments),
            *(part(array) for array in state),
        ],
        out_specs=[*(part(array) for array in state), pl.BlockSpec((block,), lambda n: (n,))],
        compiler_params=triton.CompilerParams(num_warps=block // 32, num_stages=1),
        interpret=interpret,
    )(steps, rates, *moments, *state)
    return *(
        array[:, :count].T.reshape(count, *shape)
        for array, shape in zip(moved, plan.layers, strict=True)
    ), taken[:count]


def _result(shape: tuple[int, ...], dtype: Any, operands: Sequence[Array]) -> jax.ShapeDtypeStruct:
    """A result that varies, inside ``shard_map``, along the mesh axes that an operand does."""
    types = [jax.typeof(operand) for operand in operands]
    manual: dict[str, Any]
    if hasattr(types[0], "manual_axis_type"):
        axes = frozenset().union(*(each.manual_axis_type.varying for each in types))
        manual = {"manual_axis_type": type(types[0].manual_axis_type)(varying=axes)}
    else:  # what it was called before
        manual = {"vma": frozenset().union(*(each.vma for each in types))}
    return jax.ShapeDtypeStruct(shape, dtype, **manual)
