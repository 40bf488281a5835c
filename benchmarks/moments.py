"""Does a step cost the same for a hundred samples and for a million?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import alignjax as aj
from benchmarks.timing import Row, agree, compiled, race

__all__ = ["run"]

WIDTHS = (32, 32, 10)
RATE = 0.05
PEER = "plain JAX: autodiff on the samples"


def _samples(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(count)
    X = random.standard_normal((count, WIDTHS[0]), np.float32)
    teacher = random.standard_normal((WIDTHS[0], WIDTHS[-1]), np.float32) / np.sqrt(WIDTHS[0])
    noise = random.standard_normal((count, WIDTHS[-1]), np.float32)
    return X, (X @ teacher + 0.1 * noise).astype(np.float32)


def _plain(X: Any, Y: Any, start: Any, rate: Any, steps: int) -> Any:
    def risk(weights: Any) -> Any:
        outputs = X
        for layer in weights:
            outputs = outputs @ layer.T
        return 0.5 * jnp.mean(jnp.sum((outputs - Y) ** 2, axis=1))

    def step(weights: Any, _: None) -> Any:
        return jax.tree.map(lambda w, g: w - rate * g, weights, jax.grad(risk)(weights)), None

    return lax.scan(step, start, length=steps)[0]


def run(
    *,
    repeats: int,
    sizes: Sequence[int] = (100, 1_000, 10_000, 100_000, 1_000_000),
    peer_up_to: int = 10_000,
    steps: int = 1000,
) -> list[Row]:
    """Time per step against the number of samples; building the problem is not timed."""
    key = jax.random.key(0)
    start = aj.initializers.gaussian(key, WIDTHS, 0.1, dtype=jnp.float32)
    rate = jnp.float32(RATE)
    rows: list[Row] = []
    for count in sizes:
        X, Y = map(jnp.asarray, _samples(count))

        def ours(problem: Any, weights: Any, rate: Any) -> Any:
            return aj.gradient_descent(problem, weights, rate, steps=steps).weights

        contenders = [compiled("alignjax", ours, aj.regression(X, Y), start, rate, steps=steps)]
        differences: list[float | None] = [None]
        if count <= peer_up_to:

            def peer(X: Any, Y: Any, weights: Any, rate: Any) -> Any:
                return _plain(X, Y, weights, rate, steps)

            contenders.append(compiled(PEER, peer, X, Y, start, rate, steps=steps))
            answers = [contender.call() for contender in contenders]
            differences.append(agree(PEER, *answers, tolerance=1e-3))
        rows += race(
            "moments",
            f"n = {count:,}",
            contenders,
            runs=1,
            repeats=repeats,
            differences=differences,
        )
    return _against_the_smallest(rows)


def _against_the_smallest(rows: list[Row]) -> list[Row]:
    """The same rows with a note on how alignjax's time per step grows with n."""
    base = rows[0]
    assert base.step_microseconds is not None
    return [
        replace(
            row,
            note=f"{row.step_microseconds / base.step_microseconds:.2f} of the time at {base.case}",
        )
        if row.contender == "alignjax" and row.step_microseconds is not None
        else row
        for row in rows
    ]
