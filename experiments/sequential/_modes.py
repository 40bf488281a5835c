"""What the audits of sequential learning share: problems and starts in random common bases."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

import alignjax as aj
from alignjax.linalg import matmul
from alignjax.problems import MomentProblem


class Bases(NamedTuple):
    """Orthogonal ``(k, k)`` matrices: ``U`` of the outputs, ``V`` of the inputs, ``Q`` between."""

    U: jax.Array
    V: jax.Array
    Q: jax.Array


def random_bases(key: jax.Array, width: int) -> Bases:
    """Independent and uniformly random bases."""
    return Bases(*jax.random.orthogonal(key, width, (3,)))


def problem_in(
    bases: Bases, target: ArrayLike, inputs: ArrayLike, coupling: ArrayLike = 0.0
) -> MomentProblem:
    """``Sigma_yx = U diag(target) V^T`` and ``Sigma_xx = V (diag(inputs) + coupling) V^T``."""
    target, inner = jnp.asarray(target), jnp.diag(jnp.asarray(inputs)) + jnp.asarray(coupling)
    moment = matmul(matmul(bases.V, inner), bases.V.T)
    cross = matmul(bases.U * target, bases.V.T)
    # Targets of this energy leave no error at the minimum.
    energy = jnp.vdot(target, jnp.diagonal(jnp.linalg.inv(inner)) * target)
    return aj.from_moments((moment + moment.T) / 2, cross, energy)


def start_in(bases: Bases, delta: Any) -> tuple[jax.Array, jax.Array]:
    """Balanced layers whose product is ``e^{-2 delta}`` in every mode."""
    scale = jnp.exp(-jnp.asarray(delta))
    return scale * matmul(bases.Q.T, bases.V.T), scale * matmul(bases.U, bases.Q)


def seen_from(bases: Bases, product: jax.Array) -> jax.Array:
    """``U^T W V``: a matrix, or a stack of them, in the bases of the problem."""
    return matmul(matmul(bases.U.T, product), bases.V)
