"""What the reduction to singular values saves, and what its kernel does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from benchmarks.timing import Contender, Row, agree, compiled, race

__all__ = ["FULL", "REFERENCE", "run"]

NAME = "alignjax: reduced_descent"
REFERENCE = "alignjax: reduced_descent, engine='xla'"
FULL = "alignjax: gradient_descent on full matrices"
RECURSIONS = ((2, 3, 100_000, 400), (64, 8, 1, 20_000))
"""Width, depth, runs, steps: many small problems, and one run of a deep network."""


def run(
    *,
    repeats: int,
    width: int = 64,
    depth: int = 3,
    runs: int = 1000,
    steps: int = 1000,
    full_steps: int = 40,
    recursions: Sequence[tuple[int, int, int, int]] = RECURSIONS,
) -> list[Row]:
    """A batch of autoencoders of random aligned starts and learning rates."""
    problem, start, values, rates = _case(width, depth, runs)
    reduced = aj.reduce(problem, start)
    starts = jax.vmap(lambda s: aj.expand(reduced, s))(values)

    def full(problem: Any, starts: Any, rates: Any) -> Any:
        return jax.vmap(
            lambda weights, rate: (
                aj.gradient_descent(
                    problem, weights, rate, steps=full_steps, save_at=(full_steps,)
                ).weights
            )
        )(starts, rates)

    ours, reference, difference = _recursions(reduced, values, rates, steps)
    matrices = compiled(
        FULL,
        full,
        problem,
        starts,
        rates,
        steps=full_steps,
        note=f"measured at {full_steps} steps, scaled linearly to compare with {steps:,}",
    )
    # The answers are compared where both take the same number of steps.
    after = _recursion("auto", full_steps)(reduced, values, rates)
    after = jax.vmap(lambda s: aj.expand(reduced, s))(after)
    rows = race(
        "reduced",
        f"k = {width}, d = {depth}",
        [ours, matrices, reference],
        runs=runs,
        repeats=repeats,
        differences=[None, agree(FULL, after, matrices.call(), tolerance=1e-3), difference],
    )
    for width, depth, runs, steps in recursions:
        problem, start, values, rates = _case(width, depth, runs)
        ours, reference, difference = _recursions(aj.reduce(problem, start), values, rates, steps)
        rows += race(
            "reduced",
            f"k = {width}, d = {depth}",
            [ours, reference],
            runs=runs,
            repeats=repeats,
            differences=[None, difference],
        )
    return rows


def _case(width: int, depth: int, runs: int) -> tuple[Any, Any, Any, Any]:
    """A problem, an aligned start, and singular values and learning rates of all runs."""
    random = np.random.default_rng(0)
    X = random.standard_normal((4 * width, width), np.float32)
    problem = aj.autoencoding(X)
    values = jnp.asarray(random.uniform(0.3, 1.0, (runs, depth, width)), jnp.float32)
    rates = jnp.asarray(random.uniform(0.005, 0.05, runs), jnp.float32)
    widths = (width,) * (depth + 1)
    start = aj.initializers.aligned(jax.random.key(0), problem, widths, values[0])
    return problem, start, values, rates


def _recursion(engine: str, steps: int) -> Callable[[Any, Any, Any], Any]:
    def last(reduced: Any, values: Any, rate: Any) -> Any:
        return aj.reduced_descent(
            reduced, rate, steps=steps, singular_values=values, save_at=(steps,), engine=engine
        ).weights

    return jax.vmap(last, (None, 0, 0))


def _recursions(
    reduced: Any, values: Any, rates: Any, steps: int
) -> tuple[Contender, Contender, float]:
    """The recursion as it runs by itself, the same by XLA, and how far their answers are apart."""
    ours, reference = (
        compiled(name, _recursion(engine, steps), reduced, values, rates, steps=steps)
        for name, engine in ((NAME, "auto"), (REFERENCE, "xla"))
    )
    return ours, reference, agree(REFERENCE, [ours.call()], [reference.call()], tolerance=1e-3)
