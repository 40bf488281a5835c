"""What bases must make diagonal, read off a problem, and how far from diagonal a matrix is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from alignjax._roundoff import cleared, cross_scale, norm_roundoff, relative_roundoff, ties
from alignjax._validation import as_real, describe, require_concrete
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
        roundoff: the share of an eigenvalue that may be roundoff in the problem's dtype.
        norm_roundoff: the share of a norm that may be.
        input_size: what the roundoff of ``Sigma_xx`` is judged against, its trace.
        cross_size: the same for ``link``: inputs and targets, not ``Sigma_yx`` itself.
    """

    symmetric: list[Host]
    cross: list[Host]
    link: Host
    single: bool
    dtype: Any
    values: Host | None
    roundoff: float
    norm_roundoff: float
    input_size: float
    cross_size: float

    @property
    def cross_noise(self) -> float:
        """The norm that the roundoff of ``link`` may have."""
        return self.norm_roundoff * self.cross_size

    @property
    def known_link(self) -> Host:
        """``link``, and 0 where all of it is roundoff."""
        known = np.linalg.norm(self.link) > self.cross_noise
        return self.link if known else np.zeros_like(self.link)


def problem_matrices(problem: Any, function: str) -> ProblemMatrices:
    """The matrices whose common bases decide alignment.

    Raises:
        TypeError: if the problem is traced, or is not described by moments or measurements.
        ValueError: if they overflow.
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
        _refuse_overflow(np.stack(cross), "matrices", function)
        # Fixed generic weights: the same problem always gets the same bases.
        weights = np.random.default_rng(0).standard_normal((3, len(cross)))
        mixes = list(np.tensordot(weights, np.stack(cross), axes=1))
        symmetric = [polar_part(m) for m in mixes]
        symmetric += [a.T @ b + b.T @ a for i, a in enumerate(mixes) for b in mixes[:i]]
        link, values = mixes[0], np.asarray(problem.values, np.float64)
        sizes, samples = (1.0, float(np.linalg.norm(link))), None
    else:
        inputs, target = problem.full_moments()
        dtype = inputs.dtype
        link, values = np.asarray(target, np.float64), None
        _refuse_overflow(np.asarray(inputs, np.float64), "Sigma_xx", function)
        _refuse_overflow(link, "Sigma_yx", function)
        moment, energy = np.asarray(inputs, np.float64), float(problem.target_energy)
        sizes = float(np.trace(moment)), float(cross_scale(moment, energy))
        samples = problem.sample_count
        cross, symmetric = [link], [moment, polar_part(link)]
    return ProblemMatrices(
        symmetric,
        cross,
        link,
        dtype != np.float64,
        dtype,
        values,
        relative_roundoff(dtype, *link.shape, samples=samples),
        norm_roundoff(dtype, *link.shape, samples=samples),
        *sizes,
    )


def _refuse_overflow(matrix: Host, name: str, function: str) -> None:
    """Finite data may have moments that their dtype cannot hold."""
    with np.errstate(over="ignore"):
        norm = np.linalg.norm(matrix)
    if not np.isfinite(norm):
        raise ValueError(
            f"{function} needs a problem whose {name} has a finite norm, but it overflows (norm "
            f"{norm}): scale the data down"
        )


def as_tolerance(value: Any, name: str, function: str) -> float:
    """A concrete number of at least 0.

    Raises:
        TypeError: if it is traced or no number.
        ValueError: if it is negative or NaN.
    """
    require_concrete(value, name, function)
    number = float(as_real(value, name, ndim=0, finite=False))
    if not number >= 0:
        raise ValueError(f"{name} must be at least 0, got {number}")
    return number


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
    norms = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    if 0 in norms:
        return 0.0
    first, second = first / norms[0], second / norms[1]
    return float(np.linalg.norm(first @ second - second @ first))


def spectra(u: Host, v: Host, data: ProblemMatrices, modes: int) -> tuple[Host, Host]:
    """Target and input spectrum in these bases, exactly 0 where they are roundoff.

    The first ``modes`` targets descend exactly: :func:`mode_order` has sorted them up to ties, and
    those that tie become equal. For sensing the second is the Gram matrix of the modes, and nothing
    is cleared.
    """
    count = min(len(u), len(v))
    if data.values is not None:
        diagonals = np.stack([np.diagonal(u.T @ m @ v)[:count] for m in data.cross])
        n = len(diagonals)
        return data.values @ diagonals / n, diagonals.T @ diagonals / n
    target, inputs = diagonal_spectra(u, v, data)
    target[:modes] = np.minimum.accumulate(target[:modes])
    return target, inputs


def diagonal_spectra(u: Host, v: Host, data: ProblemMatrices) -> tuple[Host, Host]:
    """Diagonals of ``U^T Sigma_yx V`` and ``V^T Sigma_xx V``, exactly 0 where they are roundoff."""
    target = np.array(np.diagonal(u.T @ data.link @ v))
    inputs = np.einsum("ja,jk,ka->a", v, data.symmetric[0], v)
    inputs = cleared(inputs, data.roundoff)
    # Where no input is resolved, a target counts only beyond what such an input would explain.
    seen = inputs[: len(target)] > 0
    noise = np.where(seen, data.cross_noise, max(data.cross_noise, data.roundoff * data.cross_size))
    return np.where(np.abs(target) > noise, target, 0.0), inputs


def mode_order(target: Host, inputs: Host) -> Host:
    """The order of modes by descending target, and by descending input where targets tie."""
    order = np.argsort(-target, kind="stable")
    group = np.empty(len(order), int)
    group[order] = ties(target[order], relative_roundoff(np.float64, len(order)))
    return np.lexsort((-inputs, group))
