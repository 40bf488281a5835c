"""How a sweep is cut into blocks, and the program that runs one block on each device."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignjax.sweeps.axes import Grid
from alignjax.sweeps.trace import Traced

# Blocks must not depend on how many devices there are or how much memory is free today, or the
# last bits of the results would: these numbers are fixed, by platform.
CPU_MEMORY = 256 * 2**20
CPU_MEMORY_AT_ONCE = 4 * CPU_MEMORY
CPU_BLOCKS, CPU_LANES = 32, 1024
ACCELERATOR_LANES = 2**17
ACCELERATOR_SHARE, ACCELERATOR_MEMORY = 0.3, 4 * 2**30


def block_shape(sizes: Sequence[int], chunk: int) -> tuple[int, ...]:
    """A rectangular block of at most ``chunk`` points, the last dimension filled first.

    Blocks along a dimension are made equal, so that padding wastes little.

    >>> block_shape((7, 1000), 300)
    (1, 250)
    >>> block_shape((7, 100), 300)
    (3, 100)
    """
    block = []
    room = chunk
    for size in reversed(sizes):
        most = max(1, min(size, room))
        block.append(math.ceil(size / math.ceil(size / most)))
        room //= block[-1]
    return tuple(reversed(block))


@dataclass(frozen=True)
class Program:
    """One compiled program: a block of runs on each device.

    Attributes:
        compiled: from (constants, key, first, values) to outputs with the devices in front.
        constants: the arrays that the run closes over, on every device.
        bytes: what it needs on one device, as the compiler counts.
    """

    compiled: Any
    constants: tuple[jax.Array, ...]
    bytes: int

    def __call__(
        self, key: jax.Array | None, first: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> dict[str, jax.Array]:
        """Run one block on each device: the first run's number, and the axes' values."""
        return self.compiled(self.constants, key, first, values)


def compile_block(
    traced: Traced, grid: Grid, block: Sequence[int], key: jax.Array | None, mesh: Mesh
) -> Program:
    """Compile ``vmap`` of a run over a block, for one block on each device of ``mesh``.

    Args:
        traced: the run.
        grid: the grid.
        block: the block's shape over the swept dimensions.
        key: the base key, or None.
        mesh: one dimension, ``"device"``.
    """
    lanes = math.prod(block)
    # Global indices are counted modulo 2^32, which is what fold_in takes.
    strides = grid.strides()[len(grid.static) :]

    def one_block(
        constants: Any, base: Any, first: jax.Array, values: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        lane = jax.lax.iota(np.uint32, lanes)
        index = first[0]
        point = {}
        for axis, dimension in enumerate(grid.swept):
            along = lane // np.uint32(math.prod(block[axis + 1 :])) % np.uint32(block[axis])
            index = index + along * np.uint32(strides[axis] % 2**32)
            for swept in dimension.axes:
                taken = values[swept.name][0].take(along.astype(np.int32), axis=0, mode="clip")
                if swept.key_type is not None:
                    taken = jax.random.wrap_key_data(taken, impl=swept.key_impl)
                point[swept.name] = taken
        if base is not None:
            point["key"] = jax.vmap(jax.random.fold_in, (None, 0))(base, index + 0 * lane)
        # A grid of static axes alone has nothing to map over.
        one = lambda point: traced(constants, point)  # noqa: E731
        outputs = jax.vmap(one, axis_size=lanes)(point)
        return {name: value[None] for name, value in outputs.items()}

    everywhere, split = PartitionSpec(), PartitionSpec("device")
    devices = mesh.devices.size
    inputs = {
        axis.name: jax.ShapeDtypeStruct(
            (devices, block[i], *axis.values.shape[1:]),
            axis.values.dtype,
            sharding=NamedSharding(mesh, split),
        )
        for i, dimension in enumerate(grid.swept)
        for axis in dimension.axes
    }
    first = jax.ShapeDtypeStruct((devices,), np.uint32, sharding=NamedSharding(mesh, split))
    constants = tuple(
        jax.device_put(jnp.asarray(c), NamedSharding(mesh, everywhere)) for c in traced.constants
    )
    program = jax.jit(
        jax.shard_map(
            one_block,
            mesh=mesh,
            in_specs=(everywhere, everywhere, split, split),
            out_specs=split,
            check_vma=False,
        )
    )
    compiled = program.lower(constants, key, first, inputs).compile()
    return Program(compiled, constants, _bytes(compiled))


def _bytes(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    if memory is None:  # some plugins do not tell
        return 0
    return (
        memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        + memory.argument_size_in_bytes
        - memory.alias_size_in_bytes
    )


def memory_budget(device: jax.Device) -> int:
    """How many bytes one block may need on a device."""
    if device.platform == "cpu":
        return CPU_MEMORY
    stats = device.memory_stats() or {}
    return int(ACCELERATOR_SHARE * stats.get("bytes_limit", ACCELERATOR_MEMORY))


def rounds_at_once(program: Program, mesh: Mesh) -> int:
    """How many rounds of blocks to compute side by side: on a CPU what its cores and memory hold.

    Each block is computed as if alone, so this number changes no result.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return 1
    room = CPU_MEMORY_AT_ONCE // max(1, program.bytes * mesh.devices.size)
    return max(1, min(usable_cores() // mesh.devices.size, room))


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def most_lanes(runs: int, platform: str) -> int:
    """How many runs a block has where memory sets no limit.

    A CPU gains nothing from long blocks and many show progress; an accelerator needs them.
    """
    if platform == "cpu":
        return min(runs, max(CPU_LANES, math.ceil(runs / CPU_BLOCKS)))
    return min(runs, ACCELERATOR_LANES)


def fitted_block(
    traced: Sequence[Traced], grid: Grid, key: jax.Array | None, mesh: Mesh
) -> tuple[tuple[int, ...], list[Program]]:
    """The block of the largest size that fits in memory, measured by compiling.

    The program is compiled at the size one would like; only where that needs too much memory, it
    is compiled once more at an eighth, and the memory of a run is the slope between the two.

    Returns:
        The block's shape, and the programs of all combinations of static values. Where a single
        run needs more than the budget, a block is one run.
    """
    sizes = [dimension.size for dimension in grid.swept]
    device = mesh.devices.flat[0]
    budget = memory_budget(device)
    chunk = most_lanes(math.prod(sizes), device.platform)
    # Outputs and inputs alone bound the size before anything is compiled.
    least = _bytes_in_and_out(traced[0], grid)
    block = block_shape(sizes, max(1, min(chunk, budget // max(1, least))))
    while True:
        programs = [compile_block(one, grid, block, key, mesh) for one in traced]
        heaviest = max(range(len(programs)), key=lambda i: programs[i].bytes)
        lanes, needed = math.prod(block), programs[heaviest].bytes
        if needed <= budget or lanes == 1:
            return block, programs
        smaller = block_shape(sizes, max(1, lanes // 8))
        probe = compile_block(traced[heaviest], grid, smaller, key, mesh)
        slope = max(1.0, (needed - probe.bytes) / (lanes - math.prod(smaller)))
        room = int((budget - (needed - slope * lanes)) / slope)
        block = block_shape(sizes, max(1, min(room, lanes - 1)))


def _bytes_in_and_out(traced: Traced, grid: Grid) -> int:
    outputs = sum(math.prod(o.shape) * np.dtype(o.dtype).itemsize for o in traced.outputs.values())
    return outputs + sum(axis.values[:1].nbytes for axis in grid.axes)
