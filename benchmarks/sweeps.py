"""What does a sweep cost beyond the bare ``jit(vmap(run))``, results labelled, and stored?"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from benchmarks.timing import Contender, Row, differences, race

__all__ = ["BARE", "MEMORY", "STORE", "run"]

BARE = "plain JAX: jit(vmap(run))"
MEMORY = "alignjax: sweep"
STORE = "alignjax: sweep into a store"
NOTE = "tracing, compiling, running, and results on the host"


def _training(width: int, depth: int, steps: int) -> Any:
    """A square network with one learning rate for its first layer and one for the others."""
    target = jnp.eye(width, dtype=jnp.float32) + 0.3 * jnp.eye(width, k=1, dtype=jnp.float32)
    problem = aj.factorization(target / (width - 1))
    widths = (width,) * (depth + 1)
    start = aj.initializers.gaussian(jax.random.key(0), widths, 0.5, dtype=jnp.float32)

    def train(first: Any, second: Any) -> Mapping[str, Any]:
        rates = jnp.stack([first, *[second] * (depth - 1)])
        trained = aj.gradient_descent(problem, start, rates, steps=steps)
        return {"risk": trained.observations["risk"][-1], "status": trained.status}

    return train


def _contenders(side: tuple[int, int], case: tuple[int, int, int], folder: Path) -> list[Contender]:
    train, steps = _training(*case), case[-1]
    # Rates that converge: elsewhere rounding decides who diverges, and answers do not compare.
    first, second = (np.linspace(0.005, 0.1, n, dtype=np.float32) for n in side)
    grid = [values.ravel() for values in np.meshgrid(first, second, indexing="ij")]

    def bare() -> Any:
        def one(first: Any, second: Any) -> Any:  # a new function, compiled anew as a sweep is
            return train(first, second)

        return _risk(jax.device_get(jax.jit(jax.vmap(one))(*grid)), side)

    def sweep(**options: Any) -> Any:
        axes = {"first": first, "second": second}
        return _risk(aj.sweep(train, axes, progress=False, **options), side)

    numbers = itertools.count()

    def stored() -> Any:  # a new store each time: removing an old one is no part of a sweep
        return sweep(store=folder / f"{next(numbers)}.zarr")

    start = time.perf_counter()
    jax.jit(jax.vmap(train)).lower(*grid).compile()
    note = f"{NOTE}; {time.perf_counter() - start:.2f} s of it tracing and compiling"
    return [
        Contender(BARE, bare, steps, note=note),
        Contender(MEMORY, sweep, steps, note=NOTE),
        Contender(STORE, stored, steps, note=f"{NOTE}, and on disk"),
    ]


def _risk(results: Any, side: tuple[int, int]) -> list[np.ndarray]:
    return [np.asarray(results["risk"]).reshape(side)]


class _CpuTimes:
    """Calls a contender, and notes the processor time of all its threads."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.seconds: list[float] = []

    def __call__(self) -> Any:
        start = time.process_time()
        result = self._call()
        self.seconds.append(time.process_time() - start)
        return result


def run(
    *,
    repeats: int,
    side: tuple[int, int] = (400, 250),
    cases: Sequence[tuple[int, int, int]] = ((2, 2, 400), (2, 2, 25_600), (9, 3, 1_000)),
) -> list[Row]:
    """Time of whole calls, for trainings that cost almost nothing and for common ones.

    Ratios are of wall-clock time, in which idle cores count; notes tell those of processor time.

    Args:
        repeats: timed calls of each contender.
        side: how many learning rates of the first layer, and of the others.
        cases: width, depth, steps.
    """
    rows: list[Row] = []
    for case in cases:
        width, depth, steps = case
        with tempfile.TemporaryDirectory() as folder:
            bare = _contenders(side, case, Path(folder))
            clocks = [_CpuTimes(contender.call) for contender in bare]
            contenders = [
                dataclasses.replace(contender, call=clock)
                for contender, clock in zip(bare, clocks, strict=True)
            ]
            measured = race(
                "sweeps",
                f"k = {width}, d = {depth}, {steps:,} steps",
                contenders,
                runs=side[0] * side[1],
                repeats=repeats,
                differences=differences(contenders, tolerance=1e-4),
            )
        processor = [statistics.median(clock.seconds[-repeats:]) for clock in clocks]
        rows += [
            dataclasses.replace(
                row, note=f"{row.note}; processor {own:.2f} s, ratio {own / processor[0]:.2f}"
            )
            for row, own in zip(measured, processor, strict=True)
        ]
    return rows
