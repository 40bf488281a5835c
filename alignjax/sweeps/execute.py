"""A sweep from the call to the data set: blocks spread over devices and processes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignjax.sweeps.axes import Grid, accepts, read_grid
from alignjax.sweeps.dataset import MemoryTarget, layout, zip_names
from alignjax.sweeps.plan import (
    Program,
    block_shape,
    compile_block,
    fitted_block,
    rounds_at_once,
    usable_cores,
)
from alignjax.sweeps.progress import progress_bar
from alignjax.sweeps.spec import Spec, Target
from alignjax.sweeps.store import open_store
from alignjax.sweeps.store_manifest import stored_block
from alignjax.sweeps.trace import Traced, trace

if TYPE_CHECKING:
    import xarray

Block = tuple[int, ...]

# Beside the rounds of blocks that compute, so many are being written: disks take a while to say
# that they have a file, and several files no longer than one.
ROUNDS_TO_WRITE = 2


def sweep(
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
    progress: bool = True,
) -> xarray.Dataset:
    """Run a function at every point of a grid, and label the results.

    The grid is the product of all axes. Runs are numbered with the last axis fastest, static axes
    first, and computed in rectangular blocks of at most ``chunk`` runs by ``vmap``, each block
    whole on one device. No device count, process count or resuming changes a bit of the results;
    another chunk size changes rounding at most. (Where the last bit matters: on CPUs, XLA cuts
    some sums and convolutions into as many parts as it has threads, so let the environment variable
    ``NPROC`` have one value, not below the number of devices, on all machines and in all processes.
    On GPUs it chooses kernels by timing them; set
    ``XLA_FLAGS=--xla_gpu_deterministic_ops=true``.) A run that diverges is data like any other:
    nothing of it reaches its neighbours.

    Where `jax.distributed` connects several processes, all of them call this with the same
    arguments and a ``store`` that all of them reach. Each computes its own blocks on its own
    devices, and each gets the whole data set.

    Args:
        run: one point of the grid, as a function that JAX can trace: its arguments are the axes by
            name, its result a dict of arrays of one shape at all points.
        axes: name -> values, stacked along axis 0, at least one: numbers, arrays, or random keys
            (``jax.random.split(key, n)``). ``("a", "b") -> (A, B)`` runs two or more through
            together; they share one dimension, named as the first.
        static: name -> Python values that must be known at compile time: a depth, a loss. Each
            combination is compiled once.
        key: a base random key. Each run then also gets ``key = fold_in(key, its number)``.
        dims: names of the outputs' own dimensions: ``{"risk": ("step",)}``, or
            ``{"risk": {"step": [0, 10, 100]}}`` with their coordinates. ``("a", "b") -> name``
            names the dimension of zipped axes.
        units: units of axes and outputs, by name.
        store: the folder of a Zarr store. Finished blocks survive a crash, and the same call
            continues where it stopped.
        resume: continue in a store that exists; if False, refuse one. A store of another function
            is refused, but what ``run`` computes in a host callback cannot be compared.
        overwrite: replace a sweep store that exists. A data set of the old one that was not
            loaded reads the new results from then on.
        chunk: the most runs in a block; by default that of the store, else as many as a fixed
            amount of memory allows, measured by compiling.
        devices: the devices of this process to use, or how many; all of them by default. Each
            takes whole blocks, so to occupy many devices a small sweep needs a small ``chunk``.
        progress: show a progress bar, if on a terminal.

    Returns:
        A data set. Its variables are the outputs of ``run``, their dimensions the axes in order
        (static ones first) and then their own; axes whose entries are arrays or keys have the
        coordinates 0, 1, ...; attributes tell versions, the commit of ``run``'s repository, and a
        hash of all that the results depend on.

    Raises:
        TypeError: if ``run`` cannot be traced (naming the axis to make static, or the line), if it
            returns no dict of arrays, or if its arguments are not those of the grid.
        ValueError: for empty or unequal axes, outputs whose shape depends on a static axis, and
            names that clash.
        FileExistsError: if there is a store that may not be continued or replaced.

    >>> import jax.numpy as jnp
    >>> def run(rate, steps):
    ...     return {"risk": (1 - rate) ** (2 * jnp.arange(steps))}
    >>> data = sweep(run, {"rate": [0.1, 0.5, 2.5]}, static={"steps": [3]}, dims={"risk": "step"})
    >>> dict(data.risk.sizes)
    {'steps': 1, 'rate': 3, 'step': 3}
    """
    _check_options(chunk, store, resume, overwrite)
    reused = None if overwrite else store
    ready = prepare(run, axes, static, key, dims, units, chunk, devices, reused)
    target = _open(store, ready.spec, resume=resume, overwrite=overwrite)
    with _waiting_for_all():
        _execute(ready, target, shown=progress)
    return target.dataset()


@dataclass(frozen=True)
class Prepared:
    """A sweep checked, traced and cut into blocks.

    Attributes:
        grid: its points.
        traced: the run, once for each combination of static values.
        spec: the layout of the results.
        key: the base key on all devices, or None.
        mesh: the devices, in one dimension.
        programs: those that were compiled to find the block's size, else None.
    """

    grid: Grid
    traced: Sequence[Traced]
    spec: Spec
    key: jax.Array | None
    mesh: Mesh
    programs: Sequence[Program | None]

    def program(self, combination: int) -> Program:
        """The program of a combination of static values, compiled if it is not yet."""
        block = self.spec.block[len(self.grid.static) :]
        return self.programs[combination] or compile_block(
            self.traced[combination], self.grid, block, self.key, self.mesh
        )

    def inputs(self, blocks: Sequence[Block]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The first run's number and the axes' values of each block, one block a device.

        Blocks cut at the end are filled up with their last value; devices left over repeat a block.
        """
        grid, spec = self.grid, self.spec
        rounds = [*blocks, *[blocks[-1]] * (self.mesh.devices.size - len(blocks))]
        first = [
            sum(s.start * stride for s, stride in zip(spec.region(b), grid.strides(), strict=True))
            for b in rounds
        ]
        values = {}
        for place, dimension in enumerate(grid.swept, start=len(grid.static)):
            wanted = np.array([b[place] for b in rounds])[:, None] * spec.block[place]
            index = np.minimum(wanted + np.arange(spec.block[place]), dimension.size - 1)
            for axis in dimension.axes:
                values[axis.name] = axis.values[index]
        # The program takes them to its devices, ten times as cheaply as jax.device_put.
        return np.array([number % 2**32 for number in first], np.uint32), values


def prepare(
    run: Callable[..., Mapping[str, Any]],
    axes: Mapping[str | tuple[str, ...], Any],
    static: Mapping[str, Sequence[Any]] | None,
    key: jax.Array | None,
    dims: Mapping[Any, Any] | None,
    units: Mapping[str, str] | None,
    chunk: int | None,
    devices: int | Sequence[jax.Device] | None,
    store: str | os.PathLike[str] | None,
) -> Prepared:
    """All that comes before the first run; the arguments are those of :func:`sweep`.

    ``store`` is one whose blocks are to be kept to, or None.
    """
    chosen = _devices(devices)
    grid = read_grid(axes, static, zip_names(dims))
    _check_key(key, grid)
    accepts(run, grid.names, key=key is not None)
    traced = trace(run, grid, key)
    spec = layout(run, grid, traced, dims, units, key, chosen[0])
    mesh = Mesh(np.array(chosen), ("device",))
    base = None if key is None else jax.device_put(key, NamedSharding(mesh, PartitionSpec()))
    block, programs = _cut(traced, grid, spec, base, mesh, chunk, store)
    attrs = spec.attrs | {"chunk": math.prod(block)}
    spec = dataclasses.replace(spec, block=(1,) * len(grid.static) + block, attrs=attrs)
    return Prepared(grid, traced, spec, base, mesh, programs)


def _devices(devices: int | Sequence[jax.Device] | None) -> list[jax.Device]:
    local = jax.local_devices()
    if devices is None:
        return local
    if isinstance(devices, int) and not isinstance(devices, bool):
        if not 1 <= devices <= len(local):
            raise ValueError(f"devices must be from 1 to {len(local)}, got {devices}")
        return local[:devices]
    chosen = list(devices) if isinstance(devices, Sequence) else []
    is_ours = all(getattr(d, "process_index", None) == jax.process_index() for d in chosen)
    if not chosen or not is_ours or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"devices must be different devices of this process, such as jax.local_devices(), or "
            f"their number, got {devices!r}"
        )
    if len({device.platform for device in chosen}) > 1:
        raise ValueError(f"devices must be of one kind, got {devices!r}")
    return chosen


def _check_options(chunk: Any, store: Any, resume: Any, overwrite: Any) -> None:
    if chunk is not None:
        try:
            count = operator.index(chunk)
        except TypeError as error:
            raise TypeError(f"chunk must be an integer, got {chunk!r}") from error
        if count < 1 or isinstance(chunk, bool):
            raise ValueError(f"chunk must be at least 1, got {chunk!r}")
    if store is not None and not isinstance(store, (str, os.PathLike)):
        raise TypeError(f"store must be a path, got {store!r}")
    if overwrite and store is None:
        raise ValueError("overwrite=True needs store=, the path of the store to replace")
    if store is None and jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes each compute their own blocks: give store=, a path "
            f"that all of them reach"
        )


def _check_key(key: Any, grid: Grid) -> None:
    if key is None:
        return
    if not isinstance(key, jax.Array) or isinstance(key, jax.core.Tracer):
        raise TypeError(f"key must be a key from jax.random.key(seed), got {key!r}")
    is_typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not (is_typed and key.ndim == 0) and not (key.dtype == np.uint32 and key.ndim == 1):
        raise TypeError(
            f"key must be one key from jax.random.key(seed), got an array of shape {key.shape} and "
            f"dtype {key.dtype}"
        )
    if grid.size > 2**32:
        raise ValueError(f"fold_in numbers at most 2^32 runs, but the grid has {grid.describe()}")


def _cut(
    traced: Sequence[Traced],
    grid: Grid,
    spec: Spec,
    key: jax.Array | None,
    mesh: Mesh,
    chunk: int | None,
    store: str | os.PathLike[str] | None,
) -> tuple[Block, list[Program | None]]:
    """The block's shape over the swept dimensions, and the programs compiled to find it.

    All processes must cut in the same way; the first one decides.
    """
    sizes = [dimension.size for dimension in grid.swept]
    programs: list[Program | None] = [None] * len(traced)
    if chunk is not None:
        return block_shape(sizes, chunk), programs
    if store is not None:
        stored = stored_block(store)
        if stored is not None and len(stored) == len(spec.dims):
            return stored[len(grid.static) :], programs
    block, compiled = fitted_block(traced, grid, key, mesh)
    if jax.process_count() > 1:
        agreed = _from_first(np.array(block, np.int64))
        if agreed.tolist() != list(block):
            return tuple(agreed.tolist()), programs
    return block, list(compiled)


def _open(
    store: str | os.PathLike[str] | None, spec: Spec, *, resume: bool, overwrite: bool
) -> Target:
    """Where results go; of several processes, the first one creates the store."""
    if store is None:
        return MemoryTarget(spec)
    if jax.process_count() == 1:
        return open_store(store, spec, resume=resume, overwrite=overwrite)
    if jax.process_index() == 0:
        try:
            target = open_store(store, spec, resume=resume, overwrite=overwrite)
        except BaseException:
            _from_first(np.array(False))
            raise
        _from_first(np.array(True))
        return target
    if not _from_first(np.array(False)):
        raise RuntimeError(f"store: the first process could not open {os.fspath(store)!r}")
    return open_store(store, spec)


def _from_first(value: np.ndarray) -> np.ndarray:
    """The first process's value, in all of them."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(value))


@contextlib.contextmanager
def _waiting_for_all() -> Iterator[None]:
    """Leave together with all processes, or tell which failed; what is inside has no collectives.

    Raises:
        RuntimeError: another process failed.
    """
    if jax.process_count() == 1:
        yield
        return
    from jax.experimental import multihost_utils

    try:
        yield
    except Exception:
        multihost_utils.process_allgather(np.array(False))
        raise
    done = multihost_utils.process_allgather(np.array(True))
    failed = np.flatnonzero(~done).tolist()
    if failed:
        raise RuntimeError(
            f"sweep: process {', '.join(map(str, failed))} of {len(done)} failed, and says why; "
            "finished blocks are kept: the same sweep started again continues from there"
        )


def _execute(ready: Prepared, target: Target, *, shown: bool) -> None:
    """Compute the missing blocks that are this process's, and write them as they come.

    Each round of blocks has a thread, which computes it and then fetches and writes it while others
    compute. A block is too small to occupy the cores of a CPU, which runs what one thread asks for
    in turn: there, several compute at once.
    """
    grid, spec, mesh = ready.grid, ready.spec, ready.mesh
    missing = set(target.missing())
    # Shared out by place in the whole grid: processes that start at different moments, and see
    # different blocks missing, still never take the same one.
    mine = [
        block
        for number, block in enumerate(spec.blocks())
        if number % jax.process_count() == jax.process_index()
    ]
    todo = [block for block in mine if block in missing]
    devices, platform = mesh.devices.size, mesh.devices.flat[0].platform
    total, left = _runs(spec, mine), _runs(spec, todo)
    pending: deque[Future[None]] = deque()
    stopped = threading.Event()
    x64 = bool(jax.config.read("jax_enable_x64"))  # may be this thread's alone
    with (
        progress_bar(total, total - left, shown=shown) as finished,
        ThreadPoolExecutor(usable_cores() + ROUNDS_TO_WRITE, "sweep-round") as threads,
    ):

        @contextlib.contextmanager
        def stopping() -> Iterator[None]:
            """After an error what is under way is finished, and nothing else is begun."""
            try:
                yield
            except BaseException:
                stopped.set()
                raise

        def work(
            program: Program, turn: threading.Semaphore, blocks: Sequence[Block], inputs: Any
        ) -> None:
            with turn:
                if stopped.is_set():
                    return
                with stopping(), _telling(spec, blocks), _in_precision(x64):
                    outputs = program(ready.key, *inputs)
                    if platform == "cpu":  # accelerators need the next round before it is done
                        jax.block_until_ready(outputs)
            with stopping():
                for block, arrays in zip(blocks, _on_host(spec, blocks, outputs), strict=True):
                    target.write(block, arrays)
                    finished(_runs(spec, [block]))

        def wanted(blocks: Sequence[Block]) -> Iterator[Block]:
            for block in blocks:
                # Asked at the last moment: another process may work on the same store.
                if target.has(block):
                    finished(_runs(spec, [block]))
                else:
                    yield block

        with stopping():
            for i, combination in enumerate(grid.combinations()):
                own = [block for block in todo if block[: len(grid.static)] == combination]
                if not own:
                    continue
                program = ready.program(i)
                at_once = rounds_at_once(program, mesh)
                turn, left_over = threading.Semaphore(at_once), wanted(own)
                while blocks := list(itertools.islice(left_over, devices)):
                    inputs = ready.inputs(blocks)
                    pending.append(threads.submit(work, program, turn, blocks, inputs))
                    if len(pending) >= at_once + ROUNDS_TO_WRITE:
                        pending.popleft().result()
            while pending:
                pending.popleft().result()


@contextlib.contextmanager
def _telling(spec: Spec, blocks: Sequence[Block]) -> Iterator[None]:
    """Add to an error which runs it is about."""
    try:
        yield
    except Exception as error:
        for block in blocks:
            places = zip(spec.dims, spec.region(block), strict=True)
            runs = ", ".join(f"{name}[{part.start}:{part.stop}]" for name, part in places)
            error.add_note(f"in the sweep's runs {runs}")
        raise


def _in_precision(x64: bool) -> Any:
    """Whether 64-bit numbers exist, in this thread alone."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(x64)
    from jax import experimental

    return experimental.enable_x64(x64)  # type: ignore[attr-defined]  # JAX before 0.8


def _runs(spec: Spec, blocks: Sequence[Block]) -> int:
    return sum(math.prod(s.stop - s.start for s in spec.region(block)) for block in blocks)


def _on_host(
    spec: Spec, blocks: Sequence[Block], outputs: Mapping[str, jax.Array]
) -> Iterator[dict[str, np.ndarray]]:
    """Each block's arrays, without what filled it up."""
    shards = {
        name: sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        for name, array in outputs.items()
    }
    for device, block in enumerate(blocks):
        cut = tuple(slice(s.stop - s.start) for s in spec.region(block))
        yield {
            name: np.asarray(pieces[device].data).reshape(spec.block + spec.outputs[name].shape)[
                cut
            ]
            for name, pieces in shards.items()
        }
