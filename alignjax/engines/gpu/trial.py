"""A kernel is tried before anybody is given its answers unasked.

The kernels are tested in emulation and lowered for GPUs; on which card, under which driver and
version of JAX they will run, nobody knows before. So ``engine="auto"`` takes the one for given
widths only after it gave the reference's answer, on this card, to a problem of these widths.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.engines import xla
from alignjax.engines.gpu.launch import batched
from alignjax.engines.gpu.plan import Plan
from alignjax.problems import Problem, regression

__all__ = ["objection", "passes"]

# More than one block of lanes, and no whole number of them.
_NETWORKS, _STEPS = 40, 24
_TOLERANCE = {"float32": 1e-4, "float64": 1e-11}


@cache
def passes(plan: Plan) -> bool:
    """Whether the kernel of this layout gives the reference's answer on the first GPU here.

    The first call for a layout compiles two programs and runs them; later ones remember. Who is
    told no is warned why.
    """
    why = objection(plan, jax.local_devices(backend="cuda")[0], interpret=False)
    if why is not None:
        warnings.warn(
            f"engine='auto' leaves networks of widths {plan.widths} in {plan.dtype} to XLA: on "
            f"this GPU the kernel for them {why}",
            RuntimeWarning,
            stacklevel=2,
        )
    return why is None


def objection(plan: Plan, device: jax.Device, *, interpret: bool) -> str | None:
    """What is wrong with the kernel of this layout on this device, or None.

    Networks with rates from 0 up to one at which they diverge are trained by the kernel and by the
    reference. Both must take the same number of steps, and where that is all of them, come to the
    same weights.

    Args:
        plan: the layout.
        device: where to run.
        interpret: whether to emulate the kernel.
    """
    # In a thread of its own nothing is traced, whatever the caller is in the middle of.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_objection, plan, device, interpret).result()


def _objection(plan: Plan, device: jax.Device, interpret: bool) -> str | None:
    try:
        with _in_precision(plan.dtype), jax.default_device(device):
            return _compare(plan, interpret)
    except Exception as error:  # whatever this compiler, driver or card objects to
        return f"fails: {type(error).__name__}: {error}"


def _compare(plan: Plan, interpret: bool) -> str | None:
    problem, start, rates = _case(plan)
    steps = jnp.int32(_STEPS)
    moments = tuple(jnp.asarray(getattr(problem, name))[None] for name in plan.moment_names)
    kernel = batched(plan, ((1, 1),) * len(moments), interpret)
    moved, taken = jax.device_get(jax.jit(kernel)(steps, start, rates, moments))
    reference = partial(xla.advance, problem, max_steps=_STEPS)
    expected, whole = jax.device_get(
        jax.jit(jax.vmap(reference, in_axes=(0, 0, None)))(start, rates, steps)
    )
    if not (whole[-1] < _STEPS and (whole[:-1] == _STEPS).all()):
        return "cannot be tried: the reference itself comes out otherwise than it should"
    off = np.abs(taken - whole)
    off[-1] -= 1  # roundoff may decide which state is the last good one
    if (off > 0).any():
        worst = np.argmax(off)
        return f"takes {taken[worst]} steps where XLA takes {whole[worst]}"
    far = max(
        float(np.max(np.linalg.norm(a - b, axis=(1, 2)) / np.linalg.norm(b, axis=(1, 2))))
        for a, b in zip((w[:-1] for w in moved), (w[:-1] for w in expected), strict=True)
    )
    if not far <= _TOLERANCE[plan.dtype]:  # also if it is NaN
        return f"is off by {far:.1e} of the weights' norm"
    return None


def _case(plan: Plan) -> tuple[Problem, tuple[Any, ...], Any]:
    """A problem, starts and rates, which the last network diverges at."""
    random = np.random.default_rng(0)
    inputs, outputs = plan.widths[0], plan.widths[-1]
    X = jnp.asarray(random.normal(size=(4 * inputs, inputs)), plan.dtype)
    Y = jnp.asarray(random.normal(size=(4 * inputs, outputs)), plan.dtype)
    # Near the identity, so that signals pass through any number of layers.
    start = tuple(
        jnp.asarray(
            np.eye(*shape) + 0.3 * random.normal(size=(_NETWORKS, *shape)) / shape[1] ** 0.5,
            plan.dtype,
        )
        for shape in plan.layers
    )
    layers = 1 + np.arange(plan.depth) / plan.depth
    rates = np.outer(np.linspace(0, 0.05, _NETWORKS), layers) / plan.depth
    rates[-1] = 1e6 if plan.depth == 1 else 30.0  # one layer diverges slowly
    return regression(X, Y), start, jnp.asarray(rates, plan.dtype)


def _in_precision(dtype: str) -> Any:
    wide = dtype == "float64"
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(wide)
    from jax import experimental

    return experimental.enable_x64(wide)  # type: ignore[attr-defined]  # JAX before 0.8
