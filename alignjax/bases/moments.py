"""What bases must make diagonal, read off a problem, and how far from diagonal a matrix is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from alignjax._validation import describe, require_concrete
from alignjax.bases.arcs import polar_part
from alignjax.problems import MomentProblem, SensingProblem

Host = np.ndarray


@dataclass(frozen=True)
class ProblemMatrices:
    """What bases must make diagonal, as float64 arrays on the host.

    Attributes:
        symmetric: matrices ``(k_0, k_0)`` whose eigenvectors are ``V``.
        cross: matrices ``(k_d, k_0)`` to be made diagonal by ``U`` and ``V``.
        link: one generic member of the span of ``cross``, which pairs ``V`` with ``U``.
        single: whether the tolerance is that of float32.
        dtype: the problem's dtype, in which results are given.
        values: the measured values of a sensing problem, else None.
    """

    symmetric: list[Host]
    cross: list[Host]
    link: Host
    single: bool
    dtype: Any
    values: Host | None


def problem_matrices(problem: Any, function: str) -> ProblemMatrices:
    """The matrices whose common bases decide alignment.

    Raises:
        TypeError: if the problem is traced, or is not described by moments or measurements.
    """
    if not isinstance(problem, (MomentProblem, SensingProblem)):
        raise TypeError(
            f"{function} takes a problem with the squared loss, as made by regression, "
            f"autoencoding, factorization, inversion, from_moments or sensing, "
            f"got {describe(problem)}"
        )
    require_concrete(problem, "problem", function)
    if isinstance(problem, SensingProblem):
        dtype = problem.matrices.dtype
        cross = list(np.asarray(problem.matrices, np.float64))
        # Fixed generic weights: the same problem always gets the same bases.
        weights = np.random.default_rng(0).standard_normal((3, len(cross)))
        mixes = list(np.tensordot(weights, np.stack(cross), axes=1))
        symmetric = [polar_part(m) for m in mixes]
        symmetric += [a.T @ b + b.T @ a for i, a in enumerate(mixes) for b in mixes[:i]]
        link, values = mixes[0], np.asarray(problem.values, np.float64)
    else:
        inputs, target = problem.full_moments()
        dtype = inputs.dtype
        link, values = np.asarray(target, np.float64), None
        cross, symmetric = [link], [np.asarray(inputs, np.float64), polar_part(link)]
    return ProblemMatrices(symmetric, cross, link, dtype != np.float64, dtype, values)


def off_diagonal(matrix: Host) -> Host:
    """The matrix with its main diagonal set to zero."""
    out = np.array(matrix)
    np.fill_diagonal(out, 0.0)
    return out


def relative(part: Host, whole: Host) -> float:
    """``||part|| / ||whole||`` in Frobenius norms; 0 where both vanish."""
    norm = float(np.linalg.norm(whole))
    return float(np.linalg.norm(part)) / norm if norm > 0 else 0.0


def commutator(first: Host, second: Host) -> float:
    """``||[A, B]|| / (||A|| ||B||)`` in Frobenius norms; 0 where one of them vanishes."""
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.linalg.norm(first @ second - second @ first)) / norms if norms > 0 else 0.0


def spectra(u: Host, v: Host, data: ProblemMatrices) -> tuple[Host, Host]:
    """Target and input spectrum in these bases; for sensing the Gram matrix of the modes."""
    count = min(len(u), len(v))
    if data.values is None:
        target = np.diagonal(u.T @ data.link @ v)
        return target.copy(), np.diagonal(v.T @ data.symmetric[0] @ v).copy()
    modes = np.stack([np.diagonal(u.T @ m @ v)[:count] for m in data.cross])
    n = len(modes)
    return data.values @ modes / n, modes.T @ modes / n
