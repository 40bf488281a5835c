"""Gradient descent on a batch of small networks, beside all that one would write instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

import alignjax as aj
from benchmarks.peers import PEERS, Job, NotMeasured
from benchmarks.peers.job import DEPTH, make_job
from benchmarks.timing import Contender, Row, agree, compiled, not_measured, race, timed

__all__ = [
    "OURS",
    "OURS_CPU",
    "OURS_XLA",
    "case_name",
    "flops",
    "on_cpu",
    "one_case",
    "ours",
    "run",
    "width_of",
]

OURS = "alignjax"
OURS_CPU = "alignjax: engine='cpu'"
OURS_XLA = "alignjax: engine='xla'"
# steps after which answers are compared, by width; also the fewest in a timed call
STEPS = {2: 20, 4: 10, 9: 100, 16: 60, 32: 24, 64: 16, 128: 16, 256: 12}
DOUBLE = {4: 10, 16: 60, 64: 16}
# wide networks are fewer, so that a call with as many steps takes seconds
BATCHES = {2: 16_384, 4: 16_384, 128: 128, 256: 32}
BATCH = 1024
TOLERANCE = {"float32": 1e-3, "float64": 1e-10}


@contextmanager
def on_cpu(dtype: str = "float32") -> Iterator[None]:
    """Compute on the CPU, also where there is a GPU, and in float64 if asked."""
    with (
        jax.default_device(jax.devices("cpu")[0]),
        _in_float64() if dtype == "float64" else nullcontext(),
    ):
        yield


def _in_float64() -> Any:
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # JAX before 0.8

    return enable_x64(True)


def case_name(width: int, dtype: str) -> str:
    """How a case is called in the table."""
    return f"k = {width}, d = {DEPTH}" + (", float64" if dtype == "float64" else "")


def width_of(row: Row) -> int:
    """The width in the name of a row's case."""
    return int(row.case.split()[2].rstrip(","))


def flops(job: Job) -> float:
    """Operations that a step needs: ``3 (d - 1)`` products of ``2 k^3`` for each network."""
    return 3 * (DEPTH - 1) * 2 * job.width**3 * job.batch


def ours(job: Job, steps: int, *, engine: str = "auto", name: str = OURS) -> Contender:
    """The descent by alignjax.

    Raises:
        NotMeasured: if the engine is not here.
    """
    missing = aj.engines.unavailable()
    if engine in missing:
        raise NotMeasured(f"engine {engine!r} cannot run here: {missing[engine]}")
    problem = aj.regression(job.X, job.Y)

    def train(problem: Any, starts: Any, rates: Any) -> Any:
        return jax.vmap(
            lambda weights, rate: (
                aj.gradient_descent(problem, weights, rate, steps=steps, engine=engine).weights
            )
        )(starts, rates)

    return compiled(name, train, problem, *jax.device_put((job.starts, job.rates)), steps=steps)


CONTENDERS: Mapping[str, Callable[[Job, int], Contender]] = {
    OURS: ours,
    OURS_CPU: partial(ours, engine="cpu", name=OURS_CPU),
    OURS_XLA: partial(ours, engine="xla", name=OURS_XLA),
    **PEERS,
}
"""Name to contender, in the order of the table."""


def run(
    *,
    repeats: int,
    steps: Mapping[int, int] = STEPS,
    double: Mapping[int, int] = DOUBLE,
    batches: Mapping[int, int] = BATCHES,
    batch: int = BATCH,
    seconds: float = 0.25,
    contenders: Mapping[str, Callable[[Job, int], Contender]] = CONTENDERS,
) -> list[Row]:
    """Whitened random regression, one problem, a batch of starts and learning rates.

    All contenders take the same steps and answers are compared; who is done sooner than half of
    ``seconds`` is then timed over more steps, so that what happens once a call does not count.

    Args:
        repeats: timed calls of each contender.
        steps: width k to the steps after which answers are compared, in float32.
        double: the same in float64.
        batches: width k to trainings at once, where it is not ``batch``.
        batch: trainings at once.
        seconds: how long a timed call should take at least.
        contenders: who takes part; the first one's answer is what the others must give.
    """
    rows: list[Row] = []
    for dtype, chosen in (("float32", steps), ("float64", double)):
        for width, count in chosen.items():
            job = make_job(width, batches.get(width, batch), dtype=dtype)
            with on_cpu(dtype):
                rows += one_case(job, count, repeats, seconds, contenders)
    return rows


def one_case(
    job: Job,
    steps: int,
    repeats: int,
    seconds: float,
    contenders: Mapping[str, Callable[[Job, int], Contender]],
    *,
    benchmark: str = "engine",
) -> list[Row]:
    """One job by all contenders, see :func:`run`."""
    case = case_name(job.width, job.target.dtype.name)
    present: list[Contender] = []
    differences: list[float | None] = []
    absent: list[Row] = []
    expected: list[np.ndarray] = []
    for name, contend in contenders.items():
        try:
            contender = contend(job, steps)
        except NotMeasured as reason:
            why = f"not measured: {reason}"
            absent.append(not_measured(benchmark, case, name, runs=job.batch, why=why))
            continue
        answer, taken = timed(contender.call)
        if present:
            tolerance = TOLERANCE[job.target.dtype.name]
            differences.append(agree(name, expected, answer, tolerance=tolerance))
        else:
            expected, differences = [np.asarray(w) for w in answer], [None]
        cold = contender
        for _ in range(3):  # what a call costs by itself misleads the first guess
            if taken > seconds / 2:
                break
            contender = contend(job, _round(contender.steps * seconds / taken))
            taken = timed(contender.call)[1]
        # what happened before the timed calls is told of the first program
        present.append(
            replace(
                contender,
                compile_seconds=cold.compile_seconds,
                first_seconds=cold.first_seconds,
            )
        )
    measured = race(
        benchmark,
        case,
        present,
        runs=job.batch,
        repeats=repeats,
        differences=differences,
        flops=flops(job),
    )
    return measured + absent


def _round(steps: float) -> int:
    """Two significant digits."""
    return int(float(f"{steps:.1e}"))
