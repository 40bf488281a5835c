"""Aligned problems and starts that several experiments share, and distances between runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

import alignjax as aj
from alignjax.linalg import matmul
from alignjax.problems import MomentProblem
from alignjax.reduced import Reduced

Weights = tuple[jax.Array, ...]
PAPER = "Radhakrishnan et al. 2020"


def diagonal_problem(inputs: Sequence[float], target: Sequence[float]) -> MomentProblem:
    """A realizable problem with ``Sigma_xx = diag(inputs)`` and ``Sigma_yx`` diagonal too."""
    moment, cross = np.diag(inputs), np.zeros((len(target), len(inputs)))
    np.fill_diagonal(cross, target)
    return aj.from_moments(moment, cross, np.trace(cross @ np.linalg.solve(moment, cross.T)))


def rotated_problem(
    key: jax.Array, inputs: ArrayLike, target: ArrayLike, k_d: int
) -> MomentProblem:
    """Moments with these spectra in random common bases, ``k_d`` outputs."""
    inputs, target = jnp.asarray(inputs), jnp.asarray(target)
    input_key, output_key = jax.random.split(key)
    v = jax.random.orthogonal(input_key, len(inputs))
    u = jax.random.orthogonal(output_key, k_d)
    r = len(target)
    moment = matmul(v * inputs, v.T)
    cross = matmul(u[:, :r] * target, v[:, :r].T)
    return aj.from_moments((moment + moment.T) / 2, cross, 2.0 * r)


def well_conditioned(key: jax.Array, widths: Sequence[int]) -> MomentProblem:
    """Moments in random common bases, inputs in U(0.8, 1.2) and targets in U(0.6, 1).

    Small inputs go with large targets, so that a bottleneck keeps the modes of the most gain
    ``λ'^2 / λ``; the others' growth would leave the aligned set.
    """
    bases, input_key, target_key = jax.random.split(key, 3)
    r = min(widths[0], widths[-1])
    inputs = jnp.sort(jax.random.uniform(input_key, (widths[0],), minval=0.8, maxval=1.2))
    target = jnp.sort(jax.random.uniform(target_key, (r,), minval=0.6, maxval=1.0))[::-1]
    return rotated_problem(bases, inputs, target, widths[-1])


def relative_errors(found: Weights, expected: Weights) -> jax.Array:
    """``||dW_i||_F / ||W_i||_F`` of every layer, shape ``(d,)``."""
    pairs = zip(found, expected, strict=True)
    return jnp.stack([jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in pairs])


def pushed(key: jax.Array, weights: Weights, size: float) -> Weights:
    """Layers plus ``size * ||W_i||_F`` in a random direction each, most of it off the diagonals.

    What grows off the diagonals must come from somewhere, and roundoff differs between processors.
    """
    keys = jax.random.split(key, len(weights))
    noise = [jax.random.normal(k, w.shape) for k, w in zip(keys, weights, strict=True)]
    return tuple(
        w + size * jnp.linalg.norm(w) / jnp.linalg.norm(z) * z
        for w, z in zip(weights, noise, strict=True)
    )


def keep(weights: Any) -> Any:
    """Observe the state itself; one function, so that runs compile once."""
    return weights


def in_bases(weights: Weights, reduced: Reduced) -> Weights:
    """``P_i^T W_i P_{i-1}`` in the start's bases: diagonal while the run is aligned."""
    bases = (reduced.V, *reduced.inner_bases, reduced.U)
    pairs = zip(weights, bases, bases[1:], strict=False)
    return tuple(matmul(matmul(out.T, w), into) for w, into, out in pairs)


def off_diagonal_share(weights: Weights, reduced: Reduced) -> jax.Array:
    """The largest ``||off-diagonal part||_F / ||W_i||_F`` in the start's bases, shape ``()``."""
    shares = []
    for turned in in_bases(weights, reduced):
        rest = jnp.where(jnp.eye(*turned.shape, dtype=bool), 0.0, turned)
        shares.append(jnp.linalg.norm(rest) / jnp.linalg.norm(turned))
    return jnp.stack(shares).max()
