"""What a closed form costs: many staircases of the two-layer network at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.closed_forms import mode_flow
from benchmarks.timing import Contender, Row, compiled, differences, race

__all__ = ["PEER", "run"]

PEER = "NumPy: the same formula on one array"


def run(*, repeats: int, runs: int = 10_000, modes: int = 3, times: int = 200) -> list[Row]:
    """Squared norms at rescaled times, for random small starts and random spectra."""
    random = np.random.default_rng(0)
    deltas = random.uniform(1.0, 40.0, runs).astype(np.float32)
    targets = np.sort(10 ** random.uniform(-3, 0, (runs, modes)), axis=1)[:, ::-1]
    targets = np.ascontiguousarray(targets, np.float32)
    # starts below every mode's final value, as in the statements
    inputs = (targets * random.uniform(0.5, 1.0, (runs, modes))).astype(np.float32)
    grid = np.geomspace(0.1, 1e4, times).astype(np.float32)

    def staircase(delta: Any, target: Any, spectrum: Any) -> Any:
        moments = delta * jnp.asarray(grid)[:, None]
        return jnp.sum(mode_flow(moments, jnp.exp(-2 * delta), target, spectrum) ** 2, axis=-1)

    def by_hand() -> Any:
        delta, grow = deltas[:, None, None], 2 * targets[:, None] * grid[:, None]
        start, ratio = np.exp(-2 * delta), inputs[:, None] / targets[:, None]
        rest = np.exp(-delta * grow)
        return ((start / (rest + start * ratio * (1 - rest))) ** 2).sum(-1)

    contenders = [
        compiled(
            "alignjax: vmap of closed_forms.mode_flow",
            jax.vmap(staircase),
            *map(jnp.asarray, (deltas, targets, inputs)),
            steps=times,
            note="a step is a point in time",
        ),
        Contender(PEER, by_hand, times, note="a step is a point in time"),
    ]
    return race(
        "staircase",
        f"{modes} modes, {times} times",
        contenders,
        runs=runs,
        repeats=repeats,
        # one layer: the staircases of all runs, one below the other
        differences=differences(contenders, tolerance=1e-4, layers=lambda found: [found]),
    )
