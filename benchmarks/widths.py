"""Widths between those of `engine`, where the package may not be slower; single networks."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.engine import OURS, STEPS, on_cpu, one_case, ours
from benchmarks.peers import PLAIN, TORCH
from benchmarks.peers.job import make_job
from benchmarks.peers.plain_jax import train_in_jax
from benchmarks.peers.pytorch import train_in_torch
from benchmarks.timing import Row

__all__ = ["WIDTHS", "run", "run_single"]

# Primes, and the neighbours of the sizes of vectors and tiles, where remainders cost most.
WIDTHS = (3, 5, 6, 7, 8, 10, 12, 13, 15, 17, 20, 24, 25, 31, 33, 40, 48, 63, 65, 80, 96, 97, 127)
WIDTHS += (129, 160, 192, 193, 224, 255)
BATCHES = ((4, 16_384), (80, 1024), (160, 128), (256, 32))
CONTENDERS = {OURS: ours, PLAIN: train_in_jax, TORCH: train_in_torch}


def run(
    *,
    repeats: int,
    widths: Sequence[int] = WIDTHS,
    batches: Sequence[tuple[int, int]] = BATCHES,
    steps: int = 12,
    seconds: float = 0.25,
) -> list[Row]:
    """The job of `engine` in float32 by the package, plain JAX and PyTorch.

    Args:
        repeats: timed calls of each contender.
        widths: the widths k.
        batches: pairs of a width and the trainings at once up to there, in order.
        steps: descent steps after which answers are compared, and the fewest in a timed call.
        seconds: how long a timed call should take at least.
    """
    return _rows("widths", repeats, widths, batches, steps, seconds)


def run_single(
    *,
    repeats: int,
    widths: Sequence[int] = tuple(STEPS),
    steps: int = 50,
    seconds: float = 0.25,
) -> list[Row]:
    """The same for one network alone, as in a first look at something."""
    return _rows("single", repeats, widths, ((max(widths), 1),), steps, seconds)


def _rows(
    benchmark: str,
    repeats: int,
    widths: Sequence[int],
    batches: Sequence[tuple[int, int]],
    steps: int,
    seconds: float,
) -> list[Row]:
    rows: list[Row] = []
    for width in widths:
        batch = next(batch for widest, batch in batches if width <= widest)
        with on_cpu():
            job = make_job(width, batch)
            rows += one_case(job, steps, repeats, seconds, CONTENDERS, benchmark=benchmark)
    return rows
