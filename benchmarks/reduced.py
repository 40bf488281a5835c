"""What the reduction to singular values saves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from benchmarks.timing import Row, agree, compiled, race

__all__ = ["run"]

FULL = "alignjax: gradient_descent on full matrices"


def run(
    *,
    repeats: int,
    width: int = 64,
    depth: int = 3,
    runs: int = 1000,
    steps: int = 1000,
    full_steps: int = 40,
) -> list[Row]:
    """A batch of autoencoders of random aligned starts and learning rates."""
    random = np.random.default_rng(0)
    X = random.standard_normal((4 * width, width), np.float32)
    problem = aj.autoencoding(X)
    values = jnp.asarray(random.uniform(0.3, 1.0, (runs, depth, width)), jnp.float32)
    rates = jnp.asarray(random.uniform(0.005, 0.05, runs), jnp.float32)
    widths = (width,) * (depth + 1)
    start = aj.initializers.aligned(jax.random.key(0), problem, widths, values[0])
    reduced = aj.reduce(problem, start)
    starts = jax.vmap(lambda s: aj.expand(reduced, s))(values)

    def fast(reduced: Any, values: Any, rates: Any, count: int) -> Any:
        return jax.vmap(
            lambda s, rate: (
                aj.reduced_descent(
                    reduced, rate, steps=count, singular_values=s, save_at=(count,)
                ).weights
            )
        )(values, rates)

    def full(problem: Any, starts: Any, rates: Any) -> Any:
        return jax.vmap(
            lambda weights, rate: (
                aj.gradient_descent(
                    problem, weights, rate, steps=full_steps, save_at=(full_steps,)
                ).weights
            )
        )(starts, rates)

    contenders = [
        compiled(
            "alignjax: reduced_descent",
            lambda *given: fast(*given, steps),
            reduced,
            values,
            rates,
            steps=steps,
        ),
        compiled(
            FULL,
            full,
            problem,
            starts,
            rates,
            steps=full_steps,
            note=f"measured at {full_steps} steps, scaled linearly to compare with {steps:,}",
        ),
    ]
    # The answers are compared where both take the same number of steps.
    after = jax.vmap(lambda s: aj.expand(reduced, s))(fast(reduced, values, rates, full_steps))
    difference = agree(FULL, after, contenders[1].call(), tolerance=1e-3)
    return race(
        "reduced",
        f"k = {width}, d = {depth}",
        contenders,
        runs=runs,
        repeats=repeats,
        differences=[None, difference],
    )
