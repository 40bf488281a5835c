"""NumPy's stacked products in a Python loop, the gradient by hand."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.job import Job
from benchmarks.timing import Contender, uncompiled

__all__ = ["NUMPY", "train_in_numpy"]

NUMPY = "NumPy: loop of batched matmul"


def train_in_numpy(job: Job, steps: int) -> Contender:
    """The descent in NumPy."""
    rate = job.rates[:, None, None]

    def call() -> list[np.ndarray]:
        first, second, third = (w.copy() for w in job.starts)
        for _ in range(steps):
            inner = second @ first
            error = third @ inner - job.target
            back = third.mT @ error
            slopes = second.mT @ back, back @ first.mT, error @ inner.mT
            for w, slope in zip((first, second, third), slopes, strict=True):
                w -= rate * slope
        return [first, second, third]

    return uncompiled(NUMPY, call, steps=steps)
