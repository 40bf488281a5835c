"""The recursion in singular values, all steps of a segment in one kernel.

It stands apart from the kernels for networks: what they share is a library and a way of calling,
no gradient, so that the recursion stays an independent oracle. Its derivative is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alignjax._meshes import tied
from alignjax.engines import library

__all__ = ["advance", "resolve"]

Layers = tuple[Array, ...]

# A call of the kernel costs more than it saves below this many steps, measured for few modes.
_FEWEST = 4


def resolve(engine: str, input_spectrum: Array, others: tuple[Array, ...]) -> str:
    """The engine for this recursion: the one that is named, if it runs it.

    Args:
        engine: ``"auto"``, ``"cpu"`` or ``"xla"``.
        input_spectrum: ``lambda``, shape ``(r,)``; the Gram matrix ``(r, r)`` if it couples modes.
        others: all other arrays that take part; only dtypes count.

    Returns:
        ``"cpu"`` or ``"xla"``; ``"auto"`` where the platform is to decide.

    Raises:
        ValueError: for an unknown engine, or one that cannot run here, or not this recursion.
    """
    if not isinstance(engine, str) or engine not in ("auto", "cpu", "xla"):
        raise ValueError(
            f"engine must be 'auto', 'cpu' or 'xla' for the recursion in singular values, got "
            f"{engine!r}"
        )
    if engine == "xla":
        return engine
    misfit = library.reason_for_absence() or _misfit(input_spectrum, others)
    if misfit is None:
        return engine
    if engine == "auto":
        return "xla"
    raise ValueError(f"engine 'cpu' cannot run this: {misfit}; leave engine out, or take 'xla'")


def _misfit(input_spectrum: Array, others: tuple[Array, ...]) -> str | None:
    if input_spectrum.ndim != 1:
        return "the modes are coupled by a Gram matrix"
    if input_spectrum.shape[0] == 0:
        return "there are no modes"
    dtypes = sorted({str(jnp.asarray(array).dtype) for array in (input_spectrum, *others)})
    if len(dtypes) > 1:
        return f"its numbers are {' and '.join(dtypes)}, not of one precision"
    if dtypes[0] not in ("float32", "float64"):
        return f"it is {dtypes[0]}, not float32 or float64"
    return None


def advance(
    engine: str,
    reference: Callable[..., tuple[Layers, Array]],
    values: Layers,
    rates: Layers,
    steps: Array,
    *problem: Array,
    max_steps: int,
) -> tuple[Layers, Array]:
    """``s_i <- s_i - eta_i dR/ds_i``, ``steps`` times or until it diverges.

    Args:
        engine: what :func:`resolve` returned.
        reference: does the same by XLA, from ``(values, rates, steps)``.
        values: the singular values ``(s_1, ..., s_d)``, each ``(r,)``.
        rates: one scalar a layer.
        steps: how many; an int32 that may be traced, not batched.
        problem: ``lambda``, ``lambda'`` and the minimizer ``p*``, each ``(r,)``; the least risk.
        max_steps: a static upper bound.

    Returns:
        The values after the steps, or the last ones before divergence, and the steps taken.
    """
    if engine == "xla" or (engine == "auto" and max_steps < _FEWEST):
        return reference(values, rates, steps)
    branches: dict[str, Callable[..., Any]] = {"cpu": lambda *given: _on_cpu(problem, *given)}
    if engine == "auto":
        branches["default"] = reference
    return lax.platform_dependent(values, rates, steps, **branches)


def _on_cpu(
    problem: tuple[Array, ...],
    values: tuple[Float[Array, " r"], ...],
    rates: tuple[Float[Array, ""], ...],
    steps: Array,
) -> tuple[Layers, Array]:
    results = [jax.ShapeDtypeStruct((), jnp.int32)]
    results += [jax.ShapeDtypeStruct(s.shape, s.dtype) for s in values]
    # Batch axes of operands that are not batched have length 1: shared spectra are read once.
    call = jax.ffi.ffi_call(library.RECURSION, results, vmap_method="expand_dims")
    taken, *moved = call(steps, jnp.stack(rates), *problem, *values)
    return tied((tuple(moved), taken), (problem, values, rates))
