"""The kernels for NVIDIA GPUs: a network stays on the chip for all steps of a segment.

A scan launches a dozen kernels a step, and each reads and writes every layer. Here one kernel, by
Pallas, runs all steps; weights leave the chip once, at the end. There are two layouts.

*Lanes*, for widths up to 4: a network a lane, every entry of a matrix a register, all loops over
entries unrolled. Three layers of width 4 in float32 are 48 weights, with about as many entries of
products alive at once and 64 of shared moments: 255 registers a lane, hence 8 warps on a
multiprocessor with 65,536 of them, and 450 of some 660 instructions a step are the
multiply-adds of matrix products.

*Tiles*, for widths up to 64: a network a program, its layers padded with zeros to a power of two
(which changes nothing, see ``launch``), its products ``tl.dot`` of whole layers through shared
memory. Three layers of width 16, 32 and 64 take 1, 2 and 8 warps and 6, 24 and 96 KB of the
227 KB of shared memory; 68, 82 and 77 percent of their instructions are the multiply-adds of
products. In float64 products run on the tensor cores, in float32 never: they would round to TF32.

These counts are of the code that the compiler makes for an H200, not of a run. A program in which
a network diverges takes twice as long, since it starts anew, and lanes with the most entries take
the compiler some ten seconds.

Of the two lowerings of Pallas for these GPUs this is the one by Triton: it takes small products in
full precision, runs on Ampere and later chips, and lowers without a GPU, so that every machine can
test it; :mod:`alignjax.engines.gpu.trial` tries it on the card. The other one, Mosaic GPU, needs
Hopper and has products for tensor cores only. Where a version of JAX has no Triton lowering any
more, the reference engine runs instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array

from alignjax.engines.gpu.plan import applies, make_plan
from alignjax.problems import MomentProblem

__all__ = ["applies", "descend", "proves_itself", "reason_for_absence", "takes_part"]

State = tuple[Array, ...]

_OLDEST = 8.0  # compute capability: what the Triton lowering supports


def reason_for_absence() -> str | None:
    """Why the kernels do not run here, or None if they do; starts JAX's back ends."""
    try:
        devices = jax.devices("cuda")
    except RuntimeError:
        return "JAX sees no NVIDIA GPU here"
    try:
        from jax.experimental.pallas import triton  # noqa: F401
    except ImportError as error:
        return f"this version of JAX has no Triton lowering of Pallas: {error}"
    capability = min(float(device.compute_capability) for device in devices)
    if capability < _OLDEST:
        return f"they need compute capability {_OLDEST}, a GPU here has {capability}"
    return None


def takes_part() -> bool:
    """Whether the program that is being traced can be one for a GPU that has a kernel in it.

    It is none where the default device is a CPU, which nobody should wait for a trial for; and
    before JAX 0.10.2 the kernels do not trace inside ``shard_map`` with its checks on.
    """
    device = jax.config.jax_default_device or jax.default_backend()  # type: ignore[attr-defined]
    if getattr(device, "platform", device) == "cpu":
        return False
    inside = bool(getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ()))
    return not inside or jax.__version_info__ >= (0, 10, 2)


def proves_itself(widths: Sequence[int], dtype: Any) -> bool:
    """Whether the kernel for these widths gave the reference's answer on the GPU of this process.

    Args:
        widths: ``(k_0, ..., k_d)``; :func:`applies` to them.
        dtype: of the weights.
    """
    from alignjax.engines.gpu.trial import passes

    return passes(make_plan(widths, dtype))


def descend(
    core: MomentProblem,
    start: State,
    rates: Array,
    steps: Array,
    *,
    interpret: bool = False,
) -> tuple[State, Array]:
    """Gradient descent of one network; under any nest of ``vmap`` one kernel runs all of them.

    Inside ``shard_map`` it wants ``check_vma=False`` where JAX is older than 0.10.2, or where it is
    emulated. The caller supplies derivatives.

    Args:
        core: moments in the dtype of the weights, without a basis.
        start: the weights; :func:`applies` says which widths.
        rates: one learning rate a layer, ``(d,)``.
        steps: how many, an int32 that may be traced, but not batched.
        interpret: whether to emulate the kernel, on any platform; for tests.

    Returns:
        The weights after the steps, or the last ones before divergence, and the steps taken.

    Raises:
        ValueError: if the weights do not fit on the chip, or under a ``vmap`` over ``steps``.
    """
    # Pallas takes a second to import.
    from alignjax.engines.gpu.launch import batched

    widths = [start[0].shape[1], *(w.shape[0] for w in start)]
    plan = make_plan(widths, start[0].dtype)
    moments: tuple[Any, ...] = tuple(getattr(core, name)[None] for name in plan.moment_names)
    run = batched(plan, ((1, 1),) * len(moments), interpret)
    moved, taken = run(steps, tuple(w[None] for w in start), rates[None], moments)
    return tuple(w[0] for w in moved), taken[0]
