"""What a sweep would take, before it runs: programs, blocks, memory and time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alignjax.sweeps.execute import Prepared, prepare
from alignjax.sweeps.plan import rounds_at_once
from alignjax.sweeps.store import open_store
from alignjax.sweeps.store_creation import check_names, is_free, refuse_foreign
from alignjax.sweeps.store_manifest import check_same_sweep, manifest, read_manifest


@dataclass(frozen=True)
class Forecast:
    """What a sweep would take.

    Attributes:
        dims: the dimensions of the grid and their sizes, in order.
        outputs: name -> what one run gives, dimensions and sizes.
        runs, runs_left: all, and those that the store does not have yet.
        programs: how many are compiled.
        chunk: the most runs in a block.
        blocks, blocks_left: all, and those that the store does not have yet.
        devices: how many of this process share them.
        bytes_per_device: what a block needs at most while it is computed, as the compiler counts;
            0 where it does not tell.
        bytes_of_results: of all results together.
        compile_seconds: what compiling took; a sweep compiles once more.
        seconds: for the blocks left, from timing one block of each program; without compiling and
            writing.
    """

    dims: Mapping[str, int]
    outputs: Mapping[str, Mapping[str, int]]
    runs: int
    runs_left: int
    programs: int
    chunk: int
    blocks: int
    blocks_left: int
    devices: int
    bytes_per_device: int
    bytes_of_results: int
    compile_seconds: float
    seconds: float


def forecast(
    run: Callable[..., Mapping[str, Any]],
    axes: Mapping[str | tuple[str, ...], Any],
    *,
    static: Mapping[str, Sequence[Any]] | None = None,
    key: jax.Array | None = None,
    dims: Mapping[Any, Any] | None = None,
    units: Mapping[str, str] | None = None,
    store: str | os.PathLike[str] | None = None,
    resume: bool = True,
    overwrite: bool = False,
    chunk: int | None = None,
    devices: int | Sequence[jax.Device] | None = None,
) -> Forecast:
    """What :func:`alignjax.sweep` would take with the same arguments; nothing is written.

    Every program is compiled and runs one block, which is timed. The arguments mean what they mean
    to the sweep; blocks that ``store`` has already are left out of the time.

    Raises:
        StoreMismatchError: the store holds another sweep.
        FileExistsError: the store may not be continued or replaced, or something else is there.
        TypeError, ValueError: as for :func:`alignjax.sweep`.

    >>> import jax.numpy as jnp
    >>> def run(rate, steps):
    ...     return {"risk": (1 - rate) ** (2 * jnp.arange(steps))}
    >>> plan = forecast(run, {"rate": [0.1, 0.5, 2.5]}, static={"steps": [3]}, dims={"risk": "t"})
    >>> plan.runs, plan.programs, dict(plan.outputs["risk"])
    (3, 1, {'t': 3})
    """
    start = time.perf_counter()
    reused = None if overwrite else store
    ready = prepare(run, axes, static, key, dims, units, chunk, devices, reused)
    spec, grid = ready.spec, ready.grid
    missing = _missing(ready, store, resume=resume, overwrite=overwrite)
    programs = [ready.program(i) for i in range(len(ready.traced))]
    compiled = time.perf_counter() - start
    count = ready.mesh.devices.size
    seconds = 0.0
    for i, combination in enumerate(grid.combinations()):
        left = [block for block in missing if block[: len(combination)] == combination]
        if left:
            inputs = ready.inputs(left[:count])
            together = count * jax.process_count() * rounds_at_once(programs[i], ready.mesh)
            rounds = math.ceil(len(left) / together)
            seconds += rounds * _seconds(partial(programs[i], ready.key, *inputs))
    runs_left = sum(
        math.prod(part.stop - part.start for part in spec.region(block)) for block in missing
    )
    return Forecast(
        dims=dict(spec.dims),
        outputs={n: dict(zip(o.dims, o.shape, strict=True)) for n, o in spec.outputs.items()},
        runs=grid.size,
        runs_left=runs_left,
        programs=len(programs),
        chunk=math.prod(spec.block),
        blocks=math.prod(spec.blocks_shape),
        blocks_left=len(missing),
        devices=count,
        bytes_per_device=max(program.bytes for program in programs),
        bytes_of_results=grid.size
        * sum(math.prod(o.shape) * np.dtype(o.dtype).itemsize for o in spec.outputs.values()),
        compile_seconds=compiled,
        seconds=seconds,
    )


def _missing(
    ready: Prepared, store: str | os.PathLike[str] | None, *, resume: bool, overwrite: bool
) -> list[tuple[int, ...]]:
    """The blocks that are to be computed; of a store that exists, those that it does not have."""
    root = None if store is None else Path(store)
    if root is not None:
        check_names(ready.spec)
    if root is None or is_free(root):
        return list(ready.spec.blocks())
    stored = read_manifest(root)
    if stored is not None and overwrite:
        refuse_foreign(root, stored)
        return list(ready.spec.blocks())
    if stored is not None and resume:
        check_same_sweep(root, stored, manifest(ready.spec))
    # What may not be continued is refused here as it is by the sweep.
    return open_store(root, ready.spec, resume=resume).missing()


def _seconds(run: Callable[[], Any]) -> float:
    """How long a program runs; the second time, unless the first was long."""
    elapsed = 0.0
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(run())
        elapsed = time.perf_counter() - start
        if elapsed > 1.0:
            break
    return elapsed
