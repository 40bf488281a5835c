"""The data condition of alignment: do a problem's moments have common bases?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from alignjax.bases.arcs import complete, polar_part
from alignjax.bases.moments import (
    ProblemMatrices,
    as_tolerance,
    commutator,
    diagonal_spectra,
    mode_order,
    off_diagonal,
    problem_matrices,
    spectra,
)
from alignjax.linalg import joint_diagonalize

Host = np.ndarray
Verdict = Literal["yes", "no", "cannot tell"]


@dataclass(frozen=True)
class Certificate:
    """Whether a problem satisfies the data condition of alignment, and the bases that show it.

    Attributes:
        verdict: ``"yes"``, ``"no"`` or, between the two tolerances, ``"cannot tell"``: whether the
            bases exist, and with them starts that are aligned with the data and stay so.
        U: orthogonal, shape ``(k_d, k_d)``.
        V: orthogonal, shape ``(k_0, k_0)``.
        target_spectrum: the diagonal of ``U^T Sigma_yx V``, at least 0 and descending, exactly 0
            where it is roundoff, shape ``(min(k_0, k_d),)``; for sensing the mean of
            ``y_i diag(U^T M_i V)``, unsorted.
        input_spectrum: the whole diagonal of ``V^T Sigma_xx V``, at least 0, exactly 0 where it is
            roundoff, shape ``(k_0,)``; its first entries match ``target_spectrum``, the rest
            descends. For sensing the Gram matrix ``1/n sum_i m_i m_i^T`` of
            ``m_i = diag(U^T M_i V)``.
        residual: the largest off-diagonal share that ``U`` and ``V`` leave, in Frobenius norms.
        commutator: ``||[Sigma_xx, B^T B]|| / (||Sigma_xx|| ||B^T B||)`` with ``B = Sigma_yx``; for
            sensing the largest one among pairs of generic combinations of the ``M_i``.
    """

    verdict: Verdict
    U: Any
    V: Any
    target_spectrum: Any
    input_spectrum: Any
    residual: float
    commutator: float

    @property
    def holds(self) -> bool:
        """Whether the verdict is "yes"."""
        return self.verdict == "yes"


def certify(
    problem: Any, *, tolerance_yes: float | None = None, tolerance_no: float | None = None
) -> Certificate:
    """Decide whether starts can be aligned with a problem, and construct the bases that show it.

    Orthogonal ``U`` and ``V`` with ``U^T Sigma_yx V`` and ``V^T Sigma_xx V`` diagonal exist if and
    only if ``[Sigma_xx, Sigma_yx^T Sigma_yx] = 0``. ``V`` comes from a joint diagonalization of
    ``Sigma_xx`` and ``(Sigma_yx^T Sigma_yx)^{1/2}``, so repeated eigenvalues and missing ranks do
    no harm; the verdict rests on what ``U`` and ``V`` leave off the diagonals. Of each moment that
    much is never held against the data which roundoff may have made, judged by the sizes of inputs
    and targets; a ``Sigma_yx`` that is all roundoff counts as 0, and "yes". Where roundoff is more
    than a tenth of ``Sigma_yx``, the verdict is "cannot tell".

    "yes" means that aligned starts exist, and stay aligned. "no" means that no start is aligned
    with the data. Its layers may be aligned with each other and stay so all the same, while the
    vectors that the first layer reads turn: see :func:`weak_condition`. With one output, ``k_d =
    1``, they do so on any data: see :func:`alignjax.theory.alignment.one_dimensional_start`.

    For a sensing problem the condition is that one pair makes every ``M_i`` diagonal. Then an
    aligned start stays aligned; unlike what the paper says, the converse fails.

    Args:
        problem: a moment problem or a sensing problem.
        tolerance_yes: the largest residual called "yes"; 1e-10 in float64, 2e-5 in float32.
        tolerance_no: the smallest residual called "no"; 1e-6 in float64, 1e-3 in float32.

    Returns:
        The certificate; its arrays have the problem's dtype.

    Raises:
        TypeError: if ``problem`` is traced or has another loss.
        ValueError: if the tolerances are not ``0 <= tolerance_yes <= tolerance_no``, or the moments
            overflow.

    Source: Radhakrishnan et al. 2020, Theorem 1 and the condition for matrix sensing. The printed
    construction from shared singular vectors fails where eigenvalues repeat.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> aj.theory.alignment.certify(aj.autoencoding(jnp.diag(jnp.arange(1.0, 4.0)))).verdict
        'yes'
    """
    data = problem_matrices(problem, "certify")
    yes, no = 2e-5 if data.single else 1e-10, 1e-3 if data.single else 1e-6
    if tolerance_yes is not None:
        yes = as_tolerance(tolerance_yes, "tolerance_yes", "certify")
    no = max(no, yes)
    if tolerance_no is not None:
        no = as_tolerance(tolerance_no, "tolerance_no", "certify")
    if not yes <= no:
        raise ValueError(
            f"tolerances must satisfy 0 <= tolerance_yes <= tolerance_no, got {yes} and {no}"
        )
    u, v, count = _bases(data)
    matched = data.values is None
    # What is off the diagonal, the whole, and how large roundoff may make the former.
    parts = [(off_diagonal(u.T @ c @ v), c, data.cross_noise) for c in data.cross]
    if matched:
        moment = data.symmetric[0]
        noise = data.norm_roundoff * data.input_size
        parts.append((off_diagonal(v.T @ moment @ v), moment, noise))
    else:
        parts = [(off, whole, 0.0) for off, whole, _ in parts]
    sizes = [(float(np.linalg.norm(a)), float(np.linalg.norm(b)), c) for a, b, c in parts]
    sizes = [(off, whole, noise) for off, whole, noise in sizes if whole > noise]
    # Roundoff is held against nobody, and proves nothing where it is a tenth of the whole.
    if all(
        off <= max(yes * whole, noise if 10 * noise <= whole else 0.0)
        for off, whole, noise in sizes
    ):
        verdict: Verdict = "yes"
    elif any(off >= max(no * whole, 10 * noise) for off, whole, noise in sizes):
        verdict = "no"
    else:
        verdict = "cannot tell"
    target, inputs = spectra(u, v, data, count)
    a, b = data.symmetric[0], data.known_link
    return Certificate(
        verdict=verdict,
        U=jnp.asarray(u, data.dtype),
        V=jnp.asarray(v, data.dtype),
        target_spectrum=jnp.asarray(target, data.dtype),
        input_spectrum=jnp.asarray(inputs, data.dtype),
        residual=max((float(off / whole) for off, whole, _ in sizes), default=0.0),
        commutator=commutator(a, (b.T / (np.linalg.norm(b) or 1.0)) @ b)
        if matched
        else _sensing_commutator(data),
    )


def _bases(data: ProblemMatrices) -> tuple[Host, Host, int]:
    """``U`` and ``V``, and the number of modes that stand in order."""
    link, symmetric, sizes = data.known_link, data.symmetric, None
    if data.values is None:
        moment = symmetric[0]
        # Each in units of its roundoff: that of a small Sigma_yx would turn the bases of Sigma_xx.
        norm = float(np.linalg.norm(moment))
        sizes = (norm, data.cross_size * norm / (data.input_size or 1.0))
        symmetric = [moment, polar_part(link)]
    v = joint_diagonalize(symmetric, sizes=sizes)
    images = link @ v
    lengths = np.linalg.norm(images, axis=0)
    order = np.argsort(-lengths, kind="stable")
    reached = [a for a in order if lengths[a] > data.cross_noise][: len(link)]
    rest = [a for a in order if a not in set(reached)]
    u = complete(images[:, reached], len(link))
    v = v[:, [*reached, *rest]]
    if data.values is not None:
        return u, v, 0
    count = len(reached)
    target, inputs = diagonal_spectra(u, v, data)
    # Unmatched inputs are free to stand beside a vanishing target; the largest go first.
    free = count + np.argsort(-inputs[count:], kind="stable")
    first = mode_order(target[:count], inputs[:count])
    u = np.concatenate([u[:, first], u[:, count:]], axis=1)
    return u, v[:, np.concatenate([first, free]).astype(int)], min(len(u), len(v))


def _sensing_commutator(data: ProblemMatrices) -> float:
    matrices = data.symmetric
    return max(commutator(a, b) for i, a in enumerate(matrices) for b in matrices[:i])
