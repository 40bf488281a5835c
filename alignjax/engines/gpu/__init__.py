"""The kernels for NVIDIA GPUs: a network stays on the chip for all steps of a segment.

A scan launches a dozen kernels a step, and each reads and writes every layer. Here one kernel, in
CUDA C++ (``csrc/gpu``), runs all steps; weights leave the chip once, at the end. XLA calls it as it
calls the kernels for CPUs, whose step of a chain of layers it shares. There are two layouts.

*Lanes*, for up to four layers of width up to 4 (three of width 4 in float64): a network a thread,
its layers filled up with zeros to squares, which changes nothing, every entry a register, all loops
over entries unrolled. Three layers of width 4 take 127 registers in float32 and 252 in float64, of
255.

*Tiles*, for widths up to 64: a network a block of 32 to 256 threads, its layers and their products
in shared memory as far as there is room, the rest in memory that the card caches. Each thread
computes tiles of 2 x 2 or 4 x 4 entries. Products are in full precision: no tensor core rounds to
TF32.

A program in which a network diverges takes twice as long, since it starts anew and stops in time.

The counts are of the code that the compiler makes for an H200, not of a run: the speed is not
measured. The same sources compile for the host, where the tests run them, thread by thread;
:mod:`alignjax.engines.gpu.trial` tries them on the card.

Why CUDA C++: it runs on Ampere and later chips under every version of JAX that has typed foreign
calls, and is lowered without a GPU. Of Pallas' two lowerings, JAX 0.12 deprecates the one by
Triton, and the other one, Mosaic GPU, needs Hopper and has products for tensor cores only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignjax._meshes import tied
from alignjax.engines.gpu import library
from alignjax.engines.gpu.plan import Plan, applies, make_plan
from alignjax.problems import MomentProblem

__all__ = ["applies", "descend", "proves_itself", "reason_for_absence", "takes_part"]

State = tuple[Array, ...]

_OLDEST = 8.0  # compute capability: what the kernels are compiled for


def reason_for_absence() -> str | None:
    """Why the kernels do not run here, or None if they do; starts JAX's back ends."""
    try:
        devices = jax.devices("cuda")
    except RuntimeError:
        return "JAX sees no NVIDIA GPU here"
    capability = min(float(device.compute_capability) for device in devices)
    if capability < _OLDEST:
        return f"they need compute capability {_OLDEST}, a GPU here has {capability}"
    return library.reason_for_absence()


def takes_part() -> bool:
    """Whether the program that is being traced can be one for a GPU that has a kernel in it.

    It is none where the default device is a CPU, which nobody should wait for a trial for.
    """
    device = jax.config.jax_default_device or jax.default_backend()  # type: ignore[attr-defined]
    return getattr(device, "platform", device) != "cpu"


def proves_itself(widths: Sequence[int], dtype: Any) -> bool:
    """Whether the kernel for these widths gave the reference's answer on the GPU of this process.

    Args:
        widths: ``(k_0, ..., k_d)``; :func:`applies` to them.
        dtype: of the weights.
    """
    from alignjax.engines.gpu.trial import passes

    return passes(make_plan(widths, dtype))


def descend(core: MomentProblem, start: State, rates: Array, steps: Array) -> tuple[State, Array]:
    """Gradient descent of one network; under any nest of ``vmap`` one kernel runs all of them.

    The caller supplies derivatives.

    Args:
        core: moments in the dtype of the weights, without a basis.
        start: the weights; :func:`applies` says which widths.
        rates: one learning rate a layer, ``(d,)``.
        steps: how many, an int32 that may be traced, but not batched.

    Returns:
        The weights after the steps, or the last ones before divergence, and the steps taken.

    Raises:
        ValueError: if the weights do not fit on the chip.
    """
    dtype = start[0].dtype
    plan = make_plan([start[0].shape[1], *(w.shape[0] for w in start)], dtype)
    layers = jnp.concatenate(
        [_fill_up(w, shape).ravel() for w, shape in zip(start, plan.layers, strict=True)]
    )
    inputs, outputs = plan.widths[0], plan.widths[-1]
    results = [jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct(layers.shape, dtype)]
    # Batch axes of operands that are not batched have length 1: shared moments are read once.
    call = jax.ffi.ffi_call(library.TARGET, results, vmap_method="expand_dims")
    taken, moved = call(
        jnp.asarray(steps, jnp.int32),
        rates,
        _fill_up(core.input_moment, (inputs, inputs)),
        _fill_up(core.cross_moment, (outputs, inputs)),
        _fill_up(core.minimizer, (outputs, inputs)),
        _fill_up(core.minimizer_slope, (outputs, inputs)),
        core.target_energy,
        core.minimum_risk,
        layers,
        widths=np.array(plan.widths, np.int64),
        vertex=np.int64(plan.vertex),
        lanes=np.int64(plan.lanes),
    )
    return tied((_layers(plan, moved, start), taken), (core, start, rates))


def _fill_up(matrix: Array, shape: tuple[int, int]) -> Array:
    """With zeros, below and to the right."""
    return jnp.pad(matrix, [(0, n - m) for m, n in zip(matrix.shape, shape, strict=True)])


def _layers(plan: Plan, flat: Array, like: State) -> State:
    """The layers that lie in ``flat`` one after the other, in the shapes of ``like``."""
    ends = np.cumsum([rows * cols for rows, cols in plan.layers])[:-1]
    parts = zip(jnp.split(flat, ends), plan.layers, like, strict=True)
    return tuple(part.reshape(shape)[: w.shape[0], : w.shape[1]] for part, shape, w in parts)
