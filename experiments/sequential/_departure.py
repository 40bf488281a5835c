"""How far full-matrix training is from the closed form, for moments that do not commute."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from alignjax.closed_forms import mode_flow
from alignjax.linalg import matmul
from experiments.runs import require_finished
from experiments.sequential._modes import (
    Bases,
    problem_in,
    random_bases,
    start_in,
)


class Distances(NamedTuple):
    """How far full matrices are from the closed form, ``(..., times)``.

    Attributes:
        product: ``||W - W^0||_F`` of the end-to-end matrix.
        layers: the larger ``||W_i - W_i^0||_F`` of both layers.
    """

    product: np.ndarray
    layers: np.ndarray


def coupling(key: jax.Array, width: int) -> jax.Array:
    """A random symmetric matrix with a zero diagonal and spectral norm 1."""
    raw = jax.random.normal(key, (width, width))
    matrix = (raw + raw.T) * (1 - jnp.eye(width))
    return matrix / jnp.abs(jnp.linalg.eigvalsh(matrix)).max()


def closed_layers(bases: Bases, modes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both layers of the closed form, eq. 15, for modes ``(times, modes)``."""
    roots = jnp.sqrt(modes)[:, None, :]
    return matmul(bases.Q.T * roots, bases.V.T), matmul(bases.U * roots, bases.Q)


def departure(
    key: jax.Array,
    target: np.ndarray,
    inputs: np.ndarray,
    B: jax.Array,
    epsilons: Any,
    deltas: Any,
    t: np.ndarray,
) -> Distances:
    """Distances in random bases, for pairs of a coupling's size and a start, at rescaled times."""
    bases = random_bases(key, len(target))
    pairs = jnp.broadcast_arrays(*map(jnp.asarray, (epsilons, deltas)))
    flow, found = _departures(bases, target, inputs, B, t, *pairs)
    require_finished("perturbation", flow)
    return Distances(*map(np.asarray, found))


# Compiled whole, since one by one its operations take longer to compile than to run.
@jax.jit
@functools.partial(jax.vmap, in_axes=(None, None, None, None, None, 0, 0))
def _departures(
    bases: Bases,
    target: jax.Array,
    inputs: jax.Array,
    B: jax.Array,
    t: jax.Array,
    epsilon: jax.Array,
    delta: jax.Array,
) -> tuple[aj.Trajectory, Distances]:
    problem = problem_in(bases, target, inputs, epsilon * B)
    times = delta * t
    start = start_in(bases, delta)
    flow = aj.gradient_flow(problem, start, times=times, observe=_keep, solver="explicit")
    modes = mode_flow(times[:, None], jnp.exp(-2 * delta), target, inputs)
    expected = closed_layers(bases, modes)
    first, second = flow.observations
    product = matmul(second, first) - matmul(expected[1], expected[0])
    gaps = [norms(first - expected[0]), norms(second - expected[1])]
    return flow, Distances(norms(product), jnp.maximum(*gaps))


def tilting_rate(target: np.ndarray, inputs: np.ndarray) -> float:
    """How fast the first of two modes tilts towards the second, once it is learned.

    In units of its size the tilts a of its output direction and b of its input direction obey
    ``a' = -sigma_1 a + sigma_2 b`` and ``b' = sigma_2 a - sigma_1 (lambda_2 / lambda_1) b``, which
    is unstable if and only if ``sigma_2^2 / lambda_2 > sigma_1^2 / lambda_1``.
    """
    decay = target[0] * np.array([1.0, inputs[1] / inputs[0]])
    field = np.array([[-decay[0], target[1]], [target[1], -decay[1]]])
    return float(np.linalg.eigvalsh(field)[-1])


def _keep(weights: Any) -> Any:
    return weights


def norms(matrices: jax.Array) -> jax.Array:
    """Frobenius norms of stacked matrices."""
    return jnp.linalg.norm(matrices, axis=(-2, -1))


def final_distance(target: np.ndarray, inputs: np.ndarray, B: jax.Array, epsilon: float) -> float:
    """``||Sigma_yx (Sigma_xx^-1 - V diag(1 / lambda) V^T)||_F``, where both end."""
    inverse = jnp.linalg.inv(jnp.diag(inputs) + epsilon * B)
    return float(jnp.linalg.norm(target[:, None] * (inverse - np.diag(1 / inputs))))
