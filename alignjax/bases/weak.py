"""The weak condition of alignment, under which the first layer's input vectors may move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from alignjax._validation import describe
from alignjax.bases.certificate import Verdict
from alignjax.bases.moments import as_tolerance, off_diagonal, problem_matrices
from alignjax.linalg import joint_diagonalize
from alignjax.problems import MomentProblem

Host = np.ndarray

_MIXES = 6
"""Generic combinations that stand for the family: one has ties by accident, six have none."""

_POLISHED = 128
"""The widest output whose basis is polished; the polish takes minutes at a width of 784."""


@dataclass(frozen=True)
class WeakCondition:
    """Whether all ``Sigma_yx Sigma_xx^j Sigma_yx^T`` commute.

    Attributes:
        verdict: ``"yes"``, ``"no"``, or ``"cannot tell"`` where that hangs on eigenvalues of
            ``Sigma_xx`` so near each other that roundoff mixes their eigenvectors, or on a
            ``Sigma_yx`` of which roundoff is more than a tenth.
        U: the basis that makes them as diagonal as one basis can, shape ``(k_d, k_d)``.
        residual: the largest off-diagonal share that ``U`` leaves of a ``B Pi_c B^T``.
    """

    verdict: Verdict
    U: Any
    residual: float

    @property
    def holds(self) -> bool:
        """Whether the verdict is "yes"."""
        return self.verdict == "yes"


def weak_condition(problem: MomentProblem, *, tolerance: float | None = None) -> WeakCondition:
    """Decide the condition under which all layers but the first can stay aligned.

    It asks that ``B A^j B^T``, ``j = 0, 1, ...``, commute, with ``A = Sigma_xx`` and
    ``B = Sigma_yx``. They span the same matrices as ``B Pi_c B^T``, with ``Pi_c`` the projector on
    the eigenvectors of each distinct eigenvalue of ``A``, and it is these that are looked at.
    Eigenvalues that differ by roundoff count as one, and members that are roundoff as 0. The
    condition is sufficient, with ``W_1`` started in the Krylov spaces of ``B^T u_i``.
    Where ``B`` is invertible it is the data condition of :func:`certify`.

    Args:
        problem: a moment problem.
        tolerance: the largest residual accepted; 1e-8 in float64, 1e-4 in float32.

    Raises:
        TypeError: if the problem is traced or not described by moments.
        ValueError: if the tolerance is negative or NaN, or the moments overflow.

    Source: Radhakrishnan et al. 2020, the weaker form of alignment of Theorem 1, where the first
    layer may turn.

    Example:
        >>> import alignjax as aj, numpy as np
        >>> problem = aj.regression(np.diag([1.0, 2.0, 3.0]), np.ones((3, 1)))
        >>> aj.theory.alignment.weak_condition(problem).verdict
        'yes'
    """
    if not isinstance(problem, MomentProblem):
        raise TypeError(
            f"weak_condition takes a problem described by moments, got {describe(problem)}"
        )
    data = problem_matrices(problem, "weak_condition")
    limit = 1e-4 if data.single else 1e-8
    if tolerance is not None:
        limit = as_tolerance(tolerance, "tolerance", "weak_condition")
    size = float(np.linalg.norm(data.link))
    roundoff = data.roundoff
    eigenvalues, vectors = np.linalg.eigh(data.symmetric[0])
    turned = (data.link / (size or 1.0)) @ vectors
    # Against the inputs and targets that B comes from: B itself may have cancelled.
    noise = roundoff * (data.cross_size / size if size else 1.0)

    def look(gap: float, noise: float = noise) -> tuple[Host, float]:
        members = _members(turned, eigenvalues, gap * abs(float(eigenvalues[-1])), noise)
        return _common_basis(members, len(turned), noise)

    u, residual = look(roundoff)
    verdict: Verdict = "yes"
    # As for certify: roundoff is held against nobody, and proves nothing where it is much of B.
    doubtful = data.cross_noise < size < 10 * data.cross_noise
    if residual <= limit and doubtful and look(roundoff, 0.0)[1] > limit:
        verdict = "cannot tell"
    if residual > limit:
        # Projectors are known to roundoff over the gap beside them: what is within the tolerance
        # once near eigenvalues count as one may be no more than that.
        coarse = look(roundoff / limit if limit > 0 else 0.0)[1]
        verdict = "no" if coarse > limit else "cannot tell"
    return WeakCondition(verdict, jnp.asarray(u, data.dtype), residual)


def _members(turned: Host, eigenvalues: Host, gap: float, noise: float) -> list[Host]:
    """``B V_c``, of shape ``(k_d, size)``, for each cluster of ascending eigenvalues."""
    ends = np.flatnonzero(np.diff(eigenvalues) > gap) + 1
    return [m for m in np.split(turned, ends, axis=1) if np.linalg.norm(m) > noise]


def _common_basis(members: list[Host], size: int, noise: float) -> tuple[Host, float]:
    """A basis that makes every ``F F^T`` diagonal, and the largest share that it leaves off."""
    if not members:
        return np.eye(size), 0.0
    lengths = [float(np.linalg.norm(m)) for m in members]
    # Fixed generic weights: the same data always give the same basis. Over the lengths, so that
    # each member brings the same roundoff.
    weights = np.random.default_rng(0).uniform(0.5, 1.5, (_MIXES, len(members)))
    polished = size <= _POLISHED
    mixes = []
    for row in weights if polished else weights[:1]:
        columns = [m * (w / n) ** 0.5 for m, w, n in zip(members, row, lengths, strict=True)]
        together = np.concatenate(columns, axis=1)
        mixes.append(together @ together.T)
    u = joint_diagonalize(mixes, max_sweeps=30 if polished else 0)
    worst = 0.0
    for member, length in zip(members, lengths, strict=True):
        off, whole = _norms(u.T @ member)
        worst = max(worst, (off - 4 * noise * length) / whole)
    return u, worst


def _norms(factor: Host) -> tuple[float, float]:
    """Frobenius norms of the off-diagonal part of ``F F^T`` and of all of it."""
    if factor.shape[1] > 1:
        gram = factor @ factor.T
        return float(np.linalg.norm(off_diagonal(gram))), float(np.linalg.norm(gram))
    # One column: sum_{i != j} f_i^2 f_j^2, in time of the order of its length.
    squares = factor[:, 0] ** 2
    others = squares.sum() - squares
    first = int(squares.argmax())
    others[first] = np.delete(squares, first).sum()  # the one difference that would cancel
    return float(squares @ others) ** 0.5, float(squares.sum())
