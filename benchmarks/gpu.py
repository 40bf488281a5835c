"""The kernels for GPUs beside plain JAX on the same card; without a card, rows that say so."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import alignjax as aj
from alignjax.engines import gpu
from benchmarks.engine import OURS_XLA, TOLERANCE, case_name, flops, ours
from benchmarks.peers.job import make_job
from benchmarks.peers.plain_jax import train_in_jax
from benchmarks.timing import Row, agree, compiled, differences, not_measured, race

__all__ = ["MANY_CASE", "OURS_GPU", "PEAK", "run"]

OURS_GPU = "alignjax: engine='gpu'"
PEAK = "the card's peak in float32"
MANY_CASE = "k = 4, d = 2, each layer's rate swept"
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
    if missing is not None:
        why = f"not measured: {missing}"
        widths = [(case_name(width, "float32"), batch) for width in steps]
        return [
            not_measured("gpu", case, OURS_GPU, runs=runs, why=why)
            for case, runs in [*widths, (MANY_CASE, many)]
        ]
    # Left to itself, JAX rounds factors of products to TF32 there; here all use full float32.
    with jax.default_device(jax.devices("cuda")[0]), jax.default_matmul_precision("highest"):
        rows = [row for each in steps.items() for row in _widths(*each, batch, repeats)]
        return rows + _many(many, many_steps, repeats)


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
    return [*rows, _peak(case_name(width, "float32"), batch)]


def _many(runs: int, steps: int, repeats: int) -> list[Row]:
    """A map of the final risk over a rate for each layer, as many points as a large screen.

    The answer is compared with the reference engine's, on every eighth point of each axis.
    """
    side = round(runs**0.5)
    problem = aj.factorization(jnp.diag(jnp.array([1.0, 0.5, 0.25, 0.1], jnp.float32)))
    start = aj.initializers.gaussian(jax.random.key(0), (4, 4, 4), 0.5, dtype=jnp.float32)
    # Rates that converge: elsewhere rounding decides who diverges, and answers do not compare.
    axis = jnp.linspace(0.01, 0.5, side, dtype=jnp.float32)

    def one(first: Any, second: Any, engine: str) -> Any:
        rates = jnp.stack([first, second])
        state, taken = aj.engines.advance(
            problem, start, rates, steps, max_steps=steps, engine=engine
        )
        return aj.risk(problem, state), taken

    def train(axis: Any, engine: str) -> Any:
        over_second = jax.vmap(partial(one, engine=engine), in_axes=(None, 0))
        return jax.vmap(over_second, in_axes=(0, None))(axis, axis)

    contender = compiled(
        OURS_GPU,
        partial(train, engine="gpu"),
        axis,
        steps=steps,
        note="compared on every eighth rate",
    )
    risks, taken = contender.call()
    expected, expected_taken = jax.jit(partial(train, engine="xla"))(axis[::8])
    off = agree(OURS_GPU, [expected], [risks[::8, ::8]], tolerance=TOLERANCE["float32"])
    if not bool((expected_taken == taken[::8, ::8]).all()):
        raise ValueError(f"{OURS_GPU} takes another number of steps than the reference")
    count = 4 * 2 * 4**3 * side**2  # as `flops`, with the product by the moment: it is not white
    return race(
        "gpu", MANY_CASE, [contender], runs=side**2, repeats=repeats, differences=[off], flops=count
    )


def _peak(case: str, runs: int) -> Row:
    """The card's GFLOP/s in float32 without tensor cores, as a row to compare with."""
    device = jax.devices("cuda")[0]
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        megahertz = float(subprocess.run(query, capture_output=True, check=True).stdout.split()[0])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as error:
        return not_measured("gpu", case, PEAK, runs=runs, why=f"not known: {error}")
    # Multiply-adds a cycle of one multiprocessor; the A100 is the exception.
    lanes = 64 if device.compute_capability == "8.0" else 128
    return Row(
        "gpu",
        case,
        PEAK,
        runs,
        gflops=2 * lanes * device.core_count * megahertz / 1e3,
        note="computed from its clock",
    )
