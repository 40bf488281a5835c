"""How things are timed: compiled first, warmed up, in turns, medians."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

__all__ = [
    "CLOCKS",
    "Contender",
    "Row",
    "agree",
    "clock",
    "compiled",
    "differences",
    "not_measured",
    "race",
    "timed",
    "uncompiled",
    "usable_cores",
]


@dataclass(frozen=True)
class Contender:
    """One way to do a job.

    Attributes:
        name: what it is.
        call: does the job and returns when it is done.
        steps: descent steps in one call.
        compile_seconds: tracing and compiling, which happened before; None where nothing compiles.
        first_seconds: the first call, which happened before; None where nobody looked.
        note: what a reader must know to judge the comparison.
    """

    name: str
    call: Callable[[], Any]
    steps: int
    compile_seconds: float | None = None
    first_seconds: float | None = None
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
        first_seconds: the first call after that.
        run_seconds: median time of a call.
        spread: slowest call over fastest call.
        step_microseconds: ``run_seconds / steps`` for all runs together.
        gflops: billions of floating-point operations a second, by a count that is the same for all.
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
    first_seconds: float | None = None
    run_seconds: float | None = None
    spread: float | None = None
    step_microseconds: float | None = None
    gflops: float | None = None
    ratio: float | None = None
    difference: float | None = None
    note: str = ""


CLOCKS: Mapping[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "processor": time.process_time,
}
"""Processor time, of all threads of this process, says something while other programs run, too."""
_chosen: ContextVar[str] = ContextVar("clock", default="wall")


@contextmanager
def clock(name: str) -> Iterator[None]:
    """Time calls by this one of :data:`CLOCKS` while inside; compiling is always wall time."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def timed(call: Callable[[], Any], clock: str | None = None) -> tuple[Any, float]:
    """What a call returns, and its seconds by a clock, that of :func:`clock` by default."""
    now = CLOCKS[clock or _chosen.get()]
    start = now()
    result = call()
    return result, now() - start


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compiled(
    name: str, function: Callable[..., Any], *arguments: Any, steps: int, note: str = ""
) -> Contender:
    """A contender that calls ``jit(function)(*arguments)``, compiled and called once here."""
    program, seconds = timed(lambda: jax.jit(function).lower(*arguments).compile(), "wall")
    return uncompiled(
        name,
        lambda: jax.block_until_ready(program(*arguments)),
        steps=steps,
        note=note,
        compile_seconds=seconds,
    )


def uncompiled(
    name: str,
    call: Callable[[], Any],
    *,
    steps: int,
    note: str = "",
    compile_seconds: float | None = None,
) -> Contender:
    """A contender that is called once here, to know the first call's time."""
    _, first = timed(call, "wall")
    return Contender(name, call, steps, compile_seconds, first, note)


def race(
    benchmark: str,
    case: str,
    contenders: Sequence[Contender],
    *,
    runs: int,
    repeats: int,
    differences: Sequence[float | None],
    flops: float | None = None,
) -> list[Row]:
    """Time contenders in turns, so that a slow moment of the machine meets all of them.

    Args:
        benchmark: which benchmark.
        case: at which size.
        contenders: who is timed; ratios are to the first.
        runs: independent trainings in one call.
        repeats: timed calls of each contender, after one that is not.
        differences: of the answers, one a contender.
        flops: floating-point operations in a step of all runs together.
    """
    seconds: list[list[float]] = [[] for _ in contenders]
    for contender in contenders:
        contender.call()
    for _ in range(repeats):
        for times, contender in zip(seconds, contenders, strict=True):
            times.append(timed(contender.call)[1])
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
                steps=contender.steps,
                compile_seconds=contender.compile_seconds,
                first_seconds=contender.first_seconds,
                run_seconds=median,
                spread=max(times) / min(times),
                step_microseconds=step,
                gflops=None if flops is None else 1e-3 * flops / step,
                ratio=step / (rows[0].step_microseconds or step) if rows else 1.0,
                difference=difference,
                note=contender.note,
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
