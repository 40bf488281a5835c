"""The kernels for GPUs beside plain JAX on the same card; without a card, rows that say so."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

import alignjax as aj
from alignjax.engines import gpu
from benchmarks.engine import OURS_XLA, TOLERANCE, case_name, flops, ours
from benchmarks.peers.job import make_job
from benchmarks.peers.plain_jax import train_in_jax
from benchmarks.timing import Row, compiled, differences, not_measured, race

__all__ = ["OURS_GPU", "run"]

OURS_GPU = "alignjax: engine='gpu'"
STEPS = {2: 1000, 4: 1000, 8: 500, 9: 200, 16: 200, 32: 100, 64: 50}
BATCH = 65_536
MANY = 2**24  # 16.8 million
MANY_STEPS = 500


def run(
    *,
    repeats: int,
    steps: Mapping[int, int] = STEPS,
    batch: int = BATCH,
    many: int = MANY,
    many_steps: int = MANY_STEPS,
) -> list[Row]:
    """Three layers of width k, and very many two-layer networks of width 4, in float32.

    Args:
        repeats: timed calls of each contender.
        steps: width k to steps in a call.
        batch: trainings at once.
        many: trainings at once of the two-layer networks.
        many_steps: their steps in a call.
    """
    missing = gpu.reason_for_absence()
    map_case = f"k = 4, d = 2, {many_steps} steps"
    if missing is not None:
        why = f"not measured: {missing}"
        widths = [(case_name(width, "float32"), batch) for width in steps]
        return [
            not_measured("gpu", case, OURS_GPU, runs=runs, why=why)
            for case, runs in [*widths, (map_case, many)]
        ]
    # Left to itself, JAX rounds factors of products to TF32 there; here all use full float32.
    with jax.default_device(jax.devices("cuda")[0]), jax.default_matmul_precision("highest"):
        rows = [row for each in steps.items() for row in _widths(*each, batch, repeats)]
        return rows + _many(map_case, many, many_steps, repeats)


def _widths(width: int, steps: int, batch: int, repeats: int) -> list[Row]:
    """One width, beside plain JAX and the reference engine."""
    job = make_job(width, batch)
    contenders = [
        ours(job, steps, engine="gpu", name=OURS_GPU),
        ours(job, steps, engine="xla", name=OURS_XLA),
        train_in_jax(job, steps),
    ]
    rows = race(
        "gpu",
        case_name(width, "float32"),
        contenders,
        runs=batch,
        repeats=repeats,
        differences=differences(contenders, tolerance=TOLERANCE["float32"]),
        flops=flops(job),
    )
    return [_with_share(row) for row in rows]


def _many(case: str, runs: int, steps: int, repeats: int) -> list[Row]:
    """A map of the final risk over a rate for each layer, as many points as a large screen."""
    side = round(runs**0.5)
    problem = aj.factorization(jnp.diag(jnp.array([1.0, 0.5, 0.25, 0.1], jnp.float32)))
    start = aj.initializers.gaussian(jax.random.key(0), (4, 4, 4), 0.5, dtype=jnp.float32)
    axis = jnp.linspace(0.01, 4.0, side, dtype=jnp.float32)

    def one(first: Any, second: Any) -> Any:
        rates = jnp.stack([first, second])
        state, taken = aj.engines.advance(
            problem, start, rates, steps, max_steps=steps, engine="gpu"
        )
        return aj.risk(problem, state), taken

    def train(axis: Any) -> Any:
        return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(axis, axis)

    contender = compiled(OURS_GPU, train, axis, steps=steps, note="a rate for each layer")
    count = 4 * 2 * 4**3 * side**2  # as `flops`, with the product by the moment: it is not white
    return race(
        "gpu", case, [contender], runs=side**2, repeats=repeats, differences=[None], flops=count
    )


def _with_share(row: Row) -> Row:
    """The row, with its share of what the card could do in its note."""
    peak = _peak()
    if peak is None or row.gflops is None:
        return row
    share = f"{row.gflops / peak:.0%} of the card's float32 peak of {peak / 1e3:.0f} TFLOP/s"
    return replace(row, note=f"{row.note}; {share}" if row.note else share)


def _peak() -> float | None:
    """GFLOP/s of float32 without tensor cores, None if it cannot be told."""
    device = jax.devices("cuda")[0]
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        megahertz = float(subprocess.run(query, capture_output=True, check=True).stdout.split()[0])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return None
    # Multiply-adds a cycle of one multiprocessor; the A100 is the exception.
    lanes = 64 if device.compute_capability == "8.0" else 128
    return 2 * lanes * device.core_count * megahertz / 1e3
