"""How many steps of gradient descent are executed.

An engine has one job: ``advance(problem, state, learning_rate, steps, *, max_steps, structure) ->
(state, taken)``. Saving, observing and stopping sit outside. ``"xla"`` is the reference and runs
everything, everywhere. ``"cpu"`` and ``"gpu"`` run all steps of a segment in one kernel, for least
squares by moments; their derivatives are those of the reference. ``"auto"`` is, for such a
problem, ``"cpu"`` where a program is compiled for a CPU, no layer is wider than 256 and the chain
is no bottleneck of a few units between wide inputs and outputs; ``"gpu"`` where it is compiled for
an NVIDIA GPU, the network fits on the chip and the kernel has given XLA's answer on this GPU to a
problem of these widths (tried once a process); and ``"xla"`` elsewhere.

The recursion in singular values has a kernel of its own, in :mod:`alignjax.engines.recursion`.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Array

from alignjax.engines import fused, library, xla
from alignjax.engines.gpu import library as gpu_library
from alignjax.problems import ByOutputs, Problem
from alignjax.structures import Structure

__all__ = ["advance", "available", "export_checks", "resolve", "unavailable"]

_NAMES = ("xla", *fused.KERNELS)

# Here, so that an exported program finds them in a process that does no more than import alignjax.
library.register()
gpu_library.register_here()


def available() -> tuple[str, ...]:
    """The names of the engines that can run here.

    Example:
        >>> import alignjax as aj
        >>> "xla" in aj.engines.available()
        True
    """
    missing = unavailable()
    return tuple(name for name in _NAMES if name not in missing)


def unavailable() -> dict[str, str]:
    """The names of the engines that cannot run here, and why."""
    return fused.reasons_for_absence()


def export_checks() -> list[Any]:
    """What ``jax.export`` takes as ``disabled_checks`` where a run may hold a compiled kernel.

    By default JAX exports no call of a kernel that it does not know. The exported program runs in
    every process that has imported alignjax and whose :func:`available` names the engine; where
    there are no compiled kernels it ends in an error of XLA's about a handler that is not
    registered. Kernels are called by name, so load a program with the version of alignjax that
    exported it. A program exported with ``engine="xla"`` needs neither these checks nor alignjax.

    Returns:
        One ``jax.export.DisabledSafetyCheck`` a kernel.

    Example:
        >>> import alignjax as aj, jax, jax.numpy as jnp
        >>> problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
        >>> start = aj.initializers.identity((2, 2, 2), 0.5)
        >>> train = jax.jit(lambda rate: aj.gradient_descent(problem, start, rate, steps=9).weights)
        >>> checks = aj.engines.export_checks()
        >>> exported = jax.export.export(train, disabled_checks=checks)(0.1)
        >>> bool((exported.call(0.1)[0] == train(0.1)[0]).all())
        True
    """
    from jax import export

    # Also those not compiled here: a program may be exported for machines that have them.
    targets = (*library.TARGETS, gpu_library.TARGET)
    return [export.DisabledSafetyCheck.custom_call(target) for target in targets]


def resolve(
    engine: str,
    problem: Problem | ByOutputs,
    state: tuple[Array, ...],
    structure: tuple[Structure, ...] | None = None,
) -> str:
    """The engine for this problem: the one that is named, if it runs it.

    Args:
        engine: a name, or ``"auto"``.
        problem: what is learned.
        state: the weights, or with ``structure`` the coefficients; only shapes and dtype count.
        structure: one structure a layer, or None for matrices.

    Returns:
        A name that :func:`advance` takes; ``"auto"`` where the platform is to decide.

    Raises:
        ValueError: for an unknown engine, or one that cannot run here, or not this problem.
    """
    if engine == "auto":
        return engine if fused.that_pay(problem, state, structure) else "xla"
    if not isinstance(engine, str) or engine not in _NAMES:
        raise ValueError(f"engine must be 'auto' or one of {list(_NAMES)}, got {engine!r}")
    if engine == "xla":
        return engine
    if engine in unavailable():
        raise ValueError(
            f"engine must be 'auto' or one of {list(available())}, got {engine!r}, which cannot "
            f"run here: {unavailable()[engine]}"
        )
    misfit = fused.unsupported(engine, problem, state, structure)
    if misfit is not None:
        raise ValueError(
            f"engine {engine!r} runs least squares by moments on dense layers, not {misfit}: leave "
            f"engine out, or take 'xla'"
        )
    return engine


def advance(
    problem: Problem | ByOutputs,
    state: tuple[Array, ...],
    learning_rate: Array,
    steps: Array | int,
    *,
    max_steps: int,
    structure: tuple[Structure, ...] | None = None,
    engine: str = "auto",
) -> tuple[tuple[Array, ...], Array]:
    """``steps`` steps of gradient descent by the named engine.

    Args:
        problem: what is learned; with ``structure``, seen through its outputs or not.
        state: the weights ``(W_1, ..., W_d)``, or with ``structure`` the coefficients.
        learning_rate: a scalar or one rate a layer ``(d,)``, in the dtype of the weights.
        steps: how many; an int32 that may be traced, but not batched.
        max_steps: a static upper bound.
        structure: one structure a layer, or None for matrices.
        engine: a name.

    Returns:
        The state after the steps, or the last one before divergence, and the steps taken.

    Raises:
        ValueError: as :func:`resolve`.
    """
    name = resolve(engine, problem, state, structure)
    if name == "xla":
        return xla.advance(
            problem, state, learning_rate, steps, max_steps=max_steps, structure=structure
        )
    auto = name == "auto"
    kernels = fused.that_pay(problem, state, structure) if auto else (name,)
    return fused.advance(
        problem,
        state,
        learning_rate,
        steps,
        max_steps=max_steps,
        kernels=kernels,
        elsewhere=auto,
    )
