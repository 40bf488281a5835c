"""The job that every contender does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["DEPTH", "Job", "NotMeasured", "make_job"]

DEPTH = 3


class NotMeasured(Exception):
    """A contender that cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Job:
    """A batch of descents on one whitened regression.

    Attributes:
        X: inputs ``(n, k)`` with ``X^T X / n = I``.
        Y: targets ``(n, k)``.
        target: ``Y^T X / n``, shape ``(k, k)``; the risk is
            ``1/2 ||W_3 W_2 W_1 - target||^2`` and a constant.
        starts: three arrays ``(batch, k, k)``.
        rates: learning rates ``(batch,)``.
    """

    X: np.ndarray
    Y: np.ndarray
    target: np.ndarray
    starts: tuple[np.ndarray, ...]
    rates: np.ndarray

    @property
    def width(self) -> int:
        """The width k of all layers."""
        return self.target.shape[0]

    @property
    def batch(self) -> int:
        """Networks trained at once."""
        return self.rates.shape[0]


def make_job(width: int, batch: int, *, samples: int | None = None, dtype: Any = "float32") -> Job:
    """Whitened inputs, a random teacher with noise, Gaussian starts, rates from 0.005 to 0.05.

    Args:
        width: k.
        batch: networks.
        samples: n, 4 k by default.
        dtype: of everything.
    """
    random = np.random.default_rng(width)
    samples = samples or 4 * width
    X = np.linalg.qr(random.standard_normal((samples, width)))[0] * np.sqrt(samples)
    teacher = random.standard_normal((width, width)) / np.sqrt(width)
    Y = X @ teacher.T + 0.1 * random.standard_normal((samples, width))
    starts = tuple(
        (0.5 / np.sqrt(width) * random.standard_normal((batch, width, width), np.float32))
        for _ in range(DEPTH)
    )
    return Job(
        X.astype(dtype),
        Y.astype(dtype),
        (Y.T @ X / samples).astype(dtype),
        tuple(start.astype(dtype) for start in starts),
        np.linspace(0.005, 0.05, batch).astype(dtype),
    )
