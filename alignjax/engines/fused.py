"""Engines that run all steps of a segment in one kernel.

This is the layer between :func:`alignjax.engines.advance` and a kernel: it says which problems the
kernels know, hands them the moments, and gives the whole its derivative, which is that of the
reference engine. The kernel stands behind one ``custom_jvp``, the outermost one, so that ``grad``
never meets its batching rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from alignjax._meshes import tied
from alignjax.engines import gpu, library, xla
from alignjax.linalg import narrowest_vertex
from alignjax.problems import ByOutputs, MomentProblem, Problem, from_span, to_span
from alignjax.structures import Structure

__all__ = [
    "KERNELS",
    "LAYOUTS",
    "advance",
    "on_cpu",
    "reasons_for_absence",
    "that_pay",
    "unsupported",
]

State = tuple[Array, ...]

# Up to this width kernels for CPUs are measured to win; beyond it XLA shares one network among
# threads, and so may win where there are many.
_WIDEST = 256

KERNELS = ("cpu", "gpu")
"""The names of the engines that this layer runs."""

LAYOUTS = ("best", "lanes", "columns")
"""How the CPU kernel uses its vectors: many networks side by side, one entry of each in a lane; one
network after the other, vectors along its columns; or what is faster for the widths and the number
of networks, see ``csrc/layout.h``."""


@lru_cache
def _without_gpu() -> str | None:
    return gpu.reason_for_absence()


def reasons_for_absence() -> dict[str, str]:
    """Which kernels cannot run here, and why; starts JAX's back ends."""
    reasons = {"cpu": library.reason_for_absence(), "gpu": _without_gpu()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def unsupported(
    engine: str,
    problem: Problem | ByOutputs,
    state: State,
    structure: tuple[Structure, ...] | None,
) -> str | None:
    """Why an engine's kernels do not run this, or None if they do."""
    if structure is not None:
        return "layers with a structure"
    if not isinstance(problem, MomentProblem):
        return f"a {type(problem).__name__}"
    dtype = state[0].dtype
    if jnp.result_type(problem.dtype, dtype) != dtype:
        return f"{problem.dtype} data with {dtype} weights"
    if dtype not in (jnp.float32, jnp.float64):
        return f"{dtype} weights"
    if engine == "gpu" and not gpu.applies(_widths(problem, state), dtype):
        return f"layers of shapes {[w.shape for w in state]}, which do not fit on the chip"
    return None


def _widths(problem: MomentProblem, state: State) -> tuple[int, ...]:
    """``(k_0, ..., k_d)`` in coordinates of the span of the inputs."""
    return problem.input_moment.shape[0], *(w.shape[0] for w in state)


def that_pay(
    problem: Problem | ByOutputs, state: State, structure: tuple[Structure, ...] | None
) -> tuple[str, ...]:
    """The kernels that are here, run this, and are taken for it without being named.

    The one for CPUs up to the width at which it was measured to be faster than XLA for many runs;
    the one for GPUs wherever it fits on the chip, once it has given XLA's answer on the GPU at hand
    (see :mod:`alignjax.engines.gpu.trial`).
    """
    missing = reasons_for_absence()
    return tuple(
        name
        for name in KERNELS
        if name not in missing
        and unsupported(name, problem, state, structure) is None
        and _pays(name, problem, state)
    )


def _pays(name: str, problem: Problem | ByOutputs, state: State) -> bool:
    assert isinstance(problem, MomentProblem)  # see `unsupported`
    widths = _widths(problem, state)
    if name == "cpu":
        return max(widths) <= _WIDEST and not _is_bottleneck(widths)
    return gpu.takes_part() and gpu.proves_itself(widths, state[0].dtype)


def _is_bottleneck(widths: tuple[int, ...]) -> bool:
    """Whether nearly all work is products of a row or two with wide moments.

    Where networks share the moments, XLA multiplies the rows of all of them at once, up to eight
    times faster than a kernel that runs one network after the other.
    """
    inputs, outputs = widths[0], widths[-1]
    layers = sum(a * b for a, b in pairwise(widths))
    return min(inputs, outputs) >= 64 * min(widths) and 4 * layers < inputs * outputs


def advance(
    problem: Problem | ByOutputs,
    state: State,
    learning_rate: Array,
    steps: Array | int,
    *,
    max_steps: int,
    kernels: tuple[str, ...],
    elsewhere: bool,
) -> tuple[State, Array]:
    """Gradient descent: ``W_i <- W_i - eta_i dR/dW_i``, ``steps`` times or until it diverges.

    Args:
        problem: least squares by moments.
        state: the weights.
        learning_rate: a scalar or one rate a layer.
        steps: how many; may be traced, not batched.
        max_steps: a static upper bound.
        kernels: which of :data:`KERNELS` to use, each on its platform.
        elsewhere: whether other platforms use the reference engine; if not, they refuse.

    Returns:
        The state after the steps, or the last one before divergence, and the steps taken.
    """
    assert isinstance(problem, MomentProblem)  # see `unsupported`
    if max_steps == 0:
        return state, jnp.zeros((), jnp.int32)
    core, start = to_span(problem, state)
    assert isinstance(core, MomentProblem)
    core = jax.tree.map(lambda leaf: leaf.astype(start[0].dtype), core)
    rates = jnp.broadcast_to(learning_rate, (len(state),)).astype(start[0].dtype)
    branches: dict[str, Callable] = {}
    if "cpu" in kernels:
        branches["cpu"] = on_cpu
    if "gpu" in kernels:
        branches["cuda"] = gpu.descend
    if elsewhere:
        branches["default"] = partial(_reference, max_steps)
    steps = jnp.asarray(steps, jnp.int32)
    moved, taken = _advance(max_steps, tuple(branches.items()), core, start, rates, steps)
    return from_span(problem, state, moved), taken


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _advance(
    max_steps: int,
    branches: tuple[tuple[str, Callable], ...],
    core: MomentProblem,
    start: State,
    rates: Array,
    steps: Array,
) -> tuple[State, Array]:
    return lax.platform_dependent(core, start, rates, steps, **dict(branches))


@_advance.defjvp
def _advance_jvp(max_steps: int, _: Any, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    return jax.jvp(partial(_reference, max_steps), primals, tangents)


def _reference(
    max_steps: int, core: MomentProblem, start: State, rates: Array, steps: Array
) -> tuple[State, Array]:
    return xla.advance(core, start, rates, steps, max_steps=max_steps)


def on_cpu(
    core: MomentProblem,
    start: State,
    rates: Array,
    steps: Array,
    *,
    layout: str = "best",
) -> tuple[State, Array]:
    """The kernels for CPUs.

    Args:
        core: the problem, in coordinates of the span of its inputs.
        start: the weights, in the same coordinates.
        rates: one a layer.
        steps: how many, an int32 that is not batched.
        layout: one of :data:`LAYOUTS`; no bit depends on it.

    Returns:
        The state after the steps, or the last one before divergence, and the steps taken.
    """
    results = [jax.ShapeDtypeStruct((), jnp.int32)]
    results += [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in start]
    # Batch axes of operands that are not batched have length 1: shared moments are read once.
    call = jax.ffi.ffi_call(library.TARGET, results, vmap_method="expand_dims")
    taken, *moved = call(
        steps,
        rates,
        core.input_moment,
        core.cross_moment,
        core.minimizer,
        core.minimizer_slope,
        core.target_energy,
        core.minimum_risk,
        *start,
        vertex=np.int64(narrowest_vertex(start)),
        layout=np.int64(LAYOUTS.index(layout)),
    )
    return tied((tuple(moved), taken), (core, start, rates))
