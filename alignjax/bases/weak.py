"""The weak condition of alignment, under which the first layer's input vectors may move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from alignjax._validation import describe
from alignjax.bases.moments import as_tolerance, off_diagonal, problem_matrices
from alignjax.linalg import joint_diagonalize
from alignjax.problems import MomentProblem


@dataclass(frozen=True)
class WeakCondition:
    """Whether all ``Sigma_yx Sigma_xx^j Sigma_yx^T`` commute.

    Attributes:
        holds: whether ``residual`` is at most the tolerance.
        U: the basis that makes them as diagonal as one basis can, shape ``(k_d, k_d)``.
        residual: the largest off-diagonal share that ``U`` leaves.
    """

    holds: bool
    U: Any
    residual: float


def weak_condition(problem: MomentProblem, *, tolerance: float | None = None) -> WeakCondition:
    """Decide the condition under which all layers but the first can stay aligned.

    It asks that ``B A^j B^T``, ``j = 0, 1, ...``, commute, with ``A = Sigma_xx`` and
    ``B = Sigma_yx``. It is sufficient, with ``W_1`` started in the Krylov spaces of ``B^T u_i``.
    Where ``B`` is invertible it is the data condition of :func:`certify`.

    Args:
        problem: a moment problem.
        tolerance: the largest residual accepted; 1e-8 in float64, 1e-4 in float32.

    Raises:
        TypeError: if the problem is traced or not described by moments.
        ValueError: if the tolerance is negative or NaN, or the moments overflow.

    Source: Radhakrishnan et al. 2020, the weaker form of alignment of Theorem 1, where the first
    layer may turn.
    """
    if not isinstance(problem, MomentProblem):
        raise TypeError(
            f"weak_condition takes a problem described by moments, got {describe(problem)}"
        )
    data = problem_matrices(problem, "weak_condition")
    limit = 1e-4 if data.single else 1e-8
    if tolerance is not None:
        limit = as_tolerance(tolerance, "tolerance", "weak_condition")
    a, b = data.symmetric[0], data.link / max(np.linalg.norm(data.link), np.finfo(float).tiny)
    # The span of B A^j B^T over all j is that of B (Pi_a) B^T over the spectral projectors of A,
    # and Chebyshev polynomials of A reach it without the loss of digits that powers bring.
    eigenvalues, vectors = np.linalg.eigh(a)
    low, high = float(eigenvalues[0]), float(eigenvalues[-1])
    nodes = (2 * eigenvalues - low - high) / (high - low) if high > low else 0 * eigenvalues
    turned = b @ vectors
    degrees = range(min(len(a), 32))
    family = [(turned * np.cos(j * np.arccos(np.clip(nodes, -1, 1)))) @ turned.T for j in degrees]
    u = joint_diagonalize(family)
    scale = np.linalg.norm(family[0])
    residual = max(
        float(np.linalg.norm(off_diagonal(u.T @ m @ u)) / scale) if scale > 0 else 0.0
        for m in family
    )
    return WeakCondition(residual <= limit, jnp.asarray(u, data.dtype), residual)
