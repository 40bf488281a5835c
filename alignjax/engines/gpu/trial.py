"""A kernel is tried before anybody is given its answers unasked.

The kernels are tested on the host and compiled for GPUs; on which card, by which compiler and under
which driver they will run, nobody knows before. So ``engine="auto"`` takes the one for given
widths only after it gave the reference's answer, on this card, to a problem of these widths. What
is looked at are answers, never times.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignjax.engines import gpu, xla
from alignjax.engines.gpu.plan import Plan
from alignjax.problems import MomentProblem, regression

__all__ = ["example", "objection", "passes"]

State = tuple[Array, ...]

# More than one block of threads, and no whole number of them.
_NETWORKS, _STEPS = 140, 24
# Of a layer's norm. Products in TF32, the likeliest mistake, are off by 5e-5 and more; roundoff at
# the start moves the answer by 1e-6.
_TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
# The same for a network that diverges, where it was last good: roundoff has grown as it has.
_LOOSE = {"float32": 1e-2, "float64": 1e-6}


@cache
def passes(plan: Plan) -> bool:
    """Whether the kernel of this layout gives the reference's answer on the GPUs here.

    The first call for a layout compiles three programs for each kind of GPU and runs them; later
    calls remember. If the answer is no, a warning says why.
    """
    kinds = {device.device_kind: device for device in jax.local_devices(backend="cuda")}
    for kind, device in kinds.items():
        why = objection(plan, device)
        if why is not None:
            warnings.warn(
                f"engine='auto' leaves networks that are laid out as widths {plan.widths} in "
                f"{plan.dtype} to XLA: on this {kind} their kernel {why}",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
    return True


def objection(plan: Plan, device: jax.Device) -> str | None:
    """What is wrong with the kernel of this layout on this device, or None.

    Networks with rates from 0 up to one at which they diverge are trained by the reference and by
    the kernel, with moments that they share and with moments of their own. All must take the same
    number of steps and come to the same weights.

    Args:
        plan: the layout.
        device: where to run.
    """
    # In a thread of its own nothing is traced, whatever the caller is in the middle of.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_objection, plan, device).result()


def _objection(plan: Plan, device: jax.Device) -> str | None:
    try:
        with _in_precision(plan.dtype), jax.default_device(device):
            problem, start, rates = example(plan)
            steps = jnp.int32(_STEPS)
            expected = jax.device_get(_by_xla(problem, start, rates, steps))
            *healthy, last = expected[1]
            if min(healthy) < _STEPS or last == _STEPS:
                return "cannot be tried: the reference itself comes out otherwise than it should"
            for shared in (True, False):
                got = jax.device_get(_by_kernel(problem, start, rates, steps, shared))
                why = _difference(plan, got, expected)
                if why is not None:
                    return why
    except Exception as error:  # whatever this compiler, driver or card objects to
        return f"fails: {type(error).__name__}: {error}"
    return None


def _by_xla(problem: MomentProblem, start: State, rates: Array, steps: Array) -> Any:
    reference = partial(xla.advance, problem, max_steps=_STEPS)
    return jax.jit(jax.vmap(reference, in_axes=(0, 0, None)))(start, rates, steps)


def _by_kernel(
    problem: MomentProblem, start: State, rates: Array, steps: Array, shared: bool
) -> Any:
    if not shared:
        problem = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(rates)), problem)
    axes = (None if shared else 0, 0, 0, None)
    return jax.jit(jax.vmap(gpu.descend, in_axes=axes))(problem, start, rates, steps)


def _difference(plan: Plan, got: Any, expected: Any) -> str | None:
    (moved, taken), (wanted, whole) = got, expected
    off = np.abs(taken - whole)
    off[-1] -= 1  # roundoff may decide which state is the last good one
    if (off > 0).any():
        worst = np.argmax(off)
        return f"takes {taken[worst]} steps where XLA takes {whole[worst]}"
    for layer, (a, b) in enumerate(zip(moved, wanted, strict=True), start=1):
        # Not by Python's `max`, which may lose a NaN.
        far = np.linalg.norm(a - b, axis=(1, 2)) / np.linalg.norm(b, axis=(1, 2))
        if not far[:-1].max() <= _TOLERANCE[plan.dtype]:
            return f"is off by {far[:-1].max():.1e} of the norm of W_{layer}"
        if taken[-1] == whole[-1] and not far[-1] <= _LOOSE[plan.dtype]:
            return f"returns a W_{layer} that is off by {far[-1]:.1e} where a network diverges"
    return None


def example(plan: Plan) -> tuple[MomentProblem, State, Array]:
    """A problem, starts and rates, which the last network alone diverges at."""
    random = np.random.default_rng(0)
    inputs, outputs = plan.widths[0], plan.widths[-1]
    X = jnp.asarray(random.normal(size=(4 * inputs, inputs)), plan.dtype)
    Y = jnp.asarray(random.normal(size=(4 * inputs, outputs)), plan.dtype)
    # Near the identity, so that signals pass through any number of layers.
    start = tuple(
        jnp.asarray(
            np.eye(*shape)
            + 0.3 / (shape[1] * plan.depth) ** 0.5 * random.normal(size=(_NETWORKS, *shape)),
            plan.dtype,
        )
        for shape in plan.layers
    )
    layers = 1 + np.arange(plan.depth) / plan.depth
    rates = np.outer(np.linspace(0, 0.05, _NETWORKS), layers) / plan.depth
    # One layer diverges slowly, many at once.
    rates[-1] = 1e6 if plan.depth == 1 else max(30.0, 10 ** (4.5 / plan.depth))
    return regression(X, Y)._core(), start, jnp.asarray(rates, plan.dtype)


def _in_precision(dtype: str) -> Any:
    wide = dtype == "float64"
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(wide)
    from jax import experimental

    return experimental.enable_x64(wide)  # type: ignore[attr-defined]  # JAX before 0.8
