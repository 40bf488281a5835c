"""What Table 1's rows cost: moments of a training set, streamed, and the two gaps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import alignjax as aj
from alignjax import datasets
from alignjax.theory.sequential import commutation_gap, isotropy_gap
from benchmarks.timing import Contender, Row, differences, not_measured, race

__all__ = ["PEER", "run"]

NAME = "alignjax: streamed"
PEER = "NumPy: all samples at once"
BATCH = 2_000
CLASSES = 10
ROWS: Mapping[str, Callable[[], datasets.Images]] = {
    "MNIST": datasets.mnist,
    "CIFAR-10": datasets.cifar10,
}


def _streamed(images: datasets.Images) -> np.ndarray:
    moments = aj.accumulate(datasets.batches(images, BATCH, classes=CLASSES))
    return np.array([[commutation_gap(moments), isotropy_gap(moments)]])


def _at_once(images: datasets.Images) -> np.ndarray:
    X = images.images.reshape(len(images), -1) / np.array(255, jnp.result_type(float))
    Y = np.eye(CLASSES, dtype=X.dtype)[images.labels]
    inputs, cross = X.T @ X / len(X), X.T @ Y / len(X)
    U = np.linalg.svd(cross, full_matrices=False)[0]
    moved = U.T @ inputs @ U
    B = moved - np.diag(np.diag(moved))
    size = np.linalg.norm(inputs)
    rest = inputs / size - np.eye(len(inputs)) / len(inputs) ** 0.5
    return np.array([[np.linalg.norm(B) / size, np.linalg.norm(rest) / 2]])


def run(*, repeats: int, rows: Mapping[str, Callable[[], Any]] = ROWS) -> list[Row]:
    """Time to go from images in memory to a row; reading the files is not timed."""
    found: list[Row] = []
    for case, load in rows.items():
        try:
            images = load()
        except datasets.DataUnavailableError:
            why = f"not measured: {case} is not available"
            found.append(not_measured("table_1", case, NAME, runs=1, why=why))
            continue
        note = f"{len(images):,} images, once a call; {jnp.result_type(float)}"
        contenders = [
            Contender(NAME, lambda images=images: _streamed(images), 1, note=note),
            Contender(PEER, lambda images=images: _at_once(images), 1, note=note),
        ]
        found += race(
            "table_1",
            case,
            contenders,
            runs=1,
            repeats=repeats,
            differences=differences(contenders, tolerance=1e-3, layers=lambda row: [row]),
        )
    return found
