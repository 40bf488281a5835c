"""How things are timed: compiled first, warmed up, in turns, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

__all__ = ["Contender", "Row", "agree", "compiled", "not_measured", "race"]


@dataclass(frozen=True)
class Contender:
    """One way to do a job.

    Attributes:
        name: what it is.
        call: does the job and returns when it is done.
        steps: descent steps in one call.
        compile_seconds: tracing and compiling, which happened before; None where nothing compiles.
        note: what a reader must know to judge the comparison.
    """

    name: str
    call: Callable[[], Any]
    steps: int
    compile_seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the results; None is "not measured".

    Attributes:
        benchmark: which benchmark.
        case: at which size.
        contender: who was timed.
        runs: independent trainings in one call.
        steps: descent steps in one call.
        compile_seconds: tracing and compiling.
        run_seconds: median time of a call.
        spread: slowest call over fastest call.
        step_microseconds: ``run_seconds / steps`` for all runs together.
        ratio: time per step over that of the first contender of the same case.
        difference: largest norm-wise relative difference between the peer's answer and the first
            contender's, over layers.
        note: what a reader must know to judge the comparison.
    """

    benchmark: str
    case: str
    contender: str
    runs: int
    steps: int | None = None
    compile_seconds: float | None = None
    run_seconds: float | None = None
    spread: float | None = None
    step_microseconds: float | None = None
    ratio: float | None = None
    difference: float | None = None
    note: str = ""


def compiled(
    name: str, function: Callable[..., Any], *arguments: Any, steps: int, note: str = ""
) -> Contender:
    """A contender that calls ``jit(function)(*arguments)``, compiled here."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return Contender(name, lambda: jax.block_until_ready(program(*arguments)), steps, seconds, note)


def race(
    benchmark: str,
    case: str,
    contenders: Sequence[Contender],
    *,
    runs: int,
    repeats: int,
    differences: Sequence[float | None],
) -> list[Row]:
    """Time contenders in turns, so that a slow moment of the machine meets all of them."""
    seconds: list[list[float]] = [[] for _ in contenders]
    for contender in contenders:
        contender.call()
    for _ in range(repeats):
        for times, contender in zip(seconds, contenders, strict=True):
            start = time.perf_counter()
            contender.call()
            times.append(time.perf_counter() - start)
    rows: list[Row] = []
    for times, contender, difference in zip(seconds, contenders, differences, strict=True):
        median = statistics.median(times)
        step = 1e6 * median / contender.steps
        rows.append(
            Row(
                benchmark,
                case,
                contender.name,
                runs,
                contender.steps,
                contender.compile_seconds,
                median,
                max(times) / min(times),
                step,
                step / (rows[0].step_microseconds or step) if rows else 1.0,
                difference,
                contender.note,
            )
        )
    return rows


def not_measured(benchmark: str, case: str, contender: str, *, runs: int, why: str) -> Row:
    """The row of a contender that cannot run here."""
    return Row(benchmark, case, contender, runs, note=why)


def differences(
    contenders: Sequence[Contender],
    *,
    tolerance: float,
    layers: Callable[[Any], Sequence[Any]] = list,
) -> list[float | None]:
    """How far each contender's answer is from the first one's, None for that itself.

    Args:
        contenders: what is compared.
        tolerance: the largest difference that counts as the same answer.
        layers: makes layers of an answer.

    Raises:
        ValueError: as :func:`agree`.
    """
    first, *others = contenders
    expected = layers(first.call())
    return [
        None,
        *(agree(c.name, expected, layers(c.call()), tolerance=tolerance) for c in others),
    ]


def agree(name: str, expected: Sequence[Any], answer: Sequence[Any], *, tolerance: float) -> float:
    """The largest norm-wise relative difference over layers and runs.

    Args:
        name: whose answer it is.
        expected: layers ``(..., k_i, k_{i-1})``.
        answer: the same of another contender.
        tolerance: the largest difference that counts as the same answer.

    Raises:
        ValueError: if the answers differ by more, are not finite, or differ in shape.
    """
    largest = 0.0
    for ours, theirs in zip(expected, answer, strict=True):
        a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        if a.shape != b.shape:
            raise ValueError(f"{name} answers in shape {b.shape} instead of {a.shape}")
        off = np.linalg.norm(a - b, axis=(-2, -1)) / np.linalg.norm(a, axis=(-2, -1))
        # max() would lose a NaN.
        largest = float(np.maximum(largest, off.max()))
    if not largest <= tolerance:
        raise ValueError(f"{name} differs by {largest:.2e}, more than {tolerance:.0e}")
    return largest
