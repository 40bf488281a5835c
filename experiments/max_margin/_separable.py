"""What the experiments on maximum margin share: separable data, starts, and angles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from alignjax.problems import Problem
from alignjax.theory.margin import (
    LateTimes,
    MaximumMargin,
    late_times,
    max_margin,
    support_spread,
)

PAPER = "Ji & Telgarsky 2019"
SLIDES = f"slides on {PAPER} (Yang 2021)"
OURS = f"not in the paper: {PAPER}"
DRAWS = 1000
LEAST_SPREAD = 0.02


class Separable(NamedTuple):
    """Data in general position, with their exact maximum margin.

    Attributes:
        inputs: ``(n, k_0)``, the longest of norm 1.
        labels: -1 or +1, ``(n,)``.
        found: The maximum margin.
        spread: alpha of Lemma 3, positive.
        late: What they decide about late times.
    """

    inputs: np.ndarray
    labels: np.ndarray
    found: MaximumMargin
    spread: float
    late: LateTimes

    def problem(self, loss: str) -> Problem:
        """The classification of these data."""
        return aj.classification(self.inputs, self.labels, loss=loss)


def separable(
    key: jax.Array, n: int, k_0: int, *, gap: float = 0.5, least_turn: float = 0.0
) -> Separable:
    """Gaussian points off a random hyperplane, labelled by their side of it.

    Points nearer to the hyperplane than ``gap`` deviations are drawn again, and so are data

    - whose support vectors do not surround the direction (Assumption 3, Lemma 3),
    - with another sample within a fifth of the margin above it, which would make time late only
      when ``t^-0.2`` is small,
    - whose ``gamma |w_perp|``, in the limit, is below ``least_turn``: at late times the angle is
      that over ``ln t``.
    """
    for draw in range(DRAWS):
        direction_key, point_key = jax.random.split(jax.random.fold_in(key, draw))
        u = np.asarray(jax.random.normal(direction_key, (k_0,)))
        u = u / np.linalg.norm(u)
        # those beyond the gap are a share of erfc(gap / sqrt 2): 62% at 0.5
        points = np.asarray(jax.random.normal(point_key, (20 * n, k_0)))
        points = points[np.abs(points @ u) > gap][:n]
        points = points / np.linalg.norm(points, axis=1).max()
        labels = np.where(points @ u > 0, 1, -1)
        found = max_margin(points, labels)
        margins = np.sort(labels * (points @ np.asarray(found.direction)))
        spread = support_spread(points, labels, found)
        if not (spread > LEAST_SPREAD and margins[len(found.support)] > 1.2 * margins[0]):
            continue
        late = late_times(points, labels, found)
        if late.margin * np.linalg.norm(late.offset) >= least_turn:
            return Separable(points, labels, found, spread, late)
    raise RuntimeError(f"no data of {n} points in {k_0} dimensions were fit in {DRAWS} draws")


def widths(k_0: int, depth: int, hidden: int) -> tuple[int, ...]:
    """``(k_0, hidden, ..., hidden, 1)``."""
    return (k_0,) + (hidden,) * (depth - 1) + (1,)


def start(
    key: jax.Array, problem: Problem, widths: Sequence[int], scale: float
) -> tuple[jax.Array, ...]:
    """A Gaussian start whose risk is at most that of zero weights (Assumption 2).

    Of ``W_1`` and ``-W_1`` one has it: the risk is convex in the product.
    """
    layers = aj.initializers.gaussian(key, widths, scale)
    flipped = (-layers[0], *layers[1:])
    keep = aj.risk(problem, layers) <= aj.risk(problem, flipped)
    return (jnp.where(keep, layers[0], flipped[0]), *layers[1:])


def starts(
    key: jax.Array, problem: Problem, widths: Sequence[int], scale: float, count: int
) -> tuple[jax.Array, ...]:
    """``count`` starts that satisfy Assumption 2, stacked along the first axis."""
    drawn = jax.vmap(lambda k: start(k, problem, widths, scale))(jax.random.split(key, 4 * count))
    zero = aj.risk(problem, tuple(jnp.zeros(w.shape[1:]) for w in drawn))
    risks = jax.vmap(lambda *w: aj.risk(problem, w))(*drawn)
    chosen = np.flatnonzero(np.asarray(risks <= zero))[:count]
    if len(chosen) < count:
        raise RuntimeError(f"only {len(chosen)} of {4 * count} starts satisfy Assumption 2")
    return tuple(w[chosen] for w in drawn)


def across(products: Any, direction: Any) -> np.ndarray:
    """The part of each row orthogonal to a unit vector."""
    w, u = np.asarray(products), np.asarray(direction)
    return w - (w @ u)[..., None] * u


def angles(products: Any, direction: Any) -> np.ndarray:
    """Angles between each row and a unit vector, in radians, exact also where they are tiny."""
    w, u = np.asarray(products), np.asarray(direction)
    return np.arctan2(np.linalg.norm(across(w, u), axis=-1), w @ u)
