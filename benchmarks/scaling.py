"""Is the cost linear in networks, steps and depth, and flat in the number of samples?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

import alignjax as aj
from benchmarks.engine import on_cpu, ours
from benchmarks.peers.job import make_job
from benchmarks.timing import Contender, Row, compiled, race

__all__ = ["SERIES", "run"]

WIDTH = 9
SERIES = {
    "networks": "{:,} networks",
    "steps": "{:,} steps",
    "depth": "{:,} layers",
    "samples": "{:,} samples",
}
"""What grows, and how a size of it is called."""


def run(
    *,
    repeats: int,
    networks: Sequence[int] = (256, 1024, 4096, 16_384),
    steps: Sequence[int] = (2000, 8000, 32_000, 128_000),
    depths: Sequence[int] = (2, 3, 4, 6, 8),
    samples: Sequence[int] = (100, 10_000, 1_000_000),
) -> list[Row]:
    """Four series at width 9; "ratio" is the time per unit of cost, 1 where cost is linear.

    The unit is a network and a step for the first two series; a step's ``3 (d - 1) + 1`` products
    of matrices for depth (the last is by the input moment); a step for samples, where building the
    problem is not timed.

    Args:
        repeats: timed calls of each size.
        networks: trainings at once; fewer of them take more steps, so that calls last alike.
        steps: descent steps in a call.
        depths: layers.
        samples: n.
    """
    count, few, batch = steps[0], networks[0], networks[(len(networks) - 1) // 2]
    with on_cpu():
        return [
            *_series(
                "networks",
                [(n, n, ours(make_job(WIDTH, n), count * max(networks) // n)) for n in networks],
                repeats,
            ),
            *_series("steps", [(s, few, ours(make_job(WIDTH, few), s)) for s in steps], repeats),
            *_series(
                "depth",
                [(d, batch, _deep(d, batch, count)) for d in depths],
                repeats,
                units=[3 * (d - 1) + 1 for d in depths],
            ),
            *_series(
                "samples",
                [(n, batch, ours(make_job(WIDTH, batch, samples=n), count)) for n in samples],
                repeats,
                units=[1] * len(samples),
            ),
        ]


def _deep(depth: int, batch: int, steps: int) -> Contender:
    """Descent at any depth."""
    job = make_job(WIDTH, batch)
    problem = aj.regression(job.X, job.Y)
    keys = jax.random.split(jax.random.key(depth), batch)
    widths = (WIDTH,) * (depth + 1)
    starts = jax.vmap(lambda key: aj.initializers.orthogonal(key, widths, 0.8, dtype=jnp.float32))(
        keys
    )

    def train(problem: Any, starts: Any, rates: Any) -> Any:
        return jax.vmap(
            lambda weights, rate: aj.gradient_descent(problem, weights, rate, steps=steps).weights
        )(starts, rates)

    return compiled("", train, problem, starts, jnp.asarray(job.rates), steps=steps)


def _series(
    name: str,
    sizes: Sequence[tuple[int, int, Contender]],
    repeats: int,
    units: Sequence[int] | None = None,
) -> list[Row]:
    """One row a size, all sizes in turns.

    Args:
        name: what grows.
        sizes: how much of it, trainings at once, and the descent.
        repeats: timed calls of each size.
        units: what a step costs if cost is linear; trainings at once by default.
    """
    costs = [runs for _, runs, _ in sizes] if units is None else units
    contenders = [replace(c, name="alignjax, " + SERIES[name].format(size)) for size, _, c in sizes]
    rows = race(
        "scaling", name, contenders, runs=0, repeats=repeats, differences=[None] * len(sizes)
    )
    return [
        replace(row, runs=runs, ratio=row.ratio * costs[0] / cost)
        for row, (_, runs, _), cost in zip(rows, sizes, costs, strict=True)
        if row.ratio is not None
    ]
