"""Common bases of a problem together with a chain of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from alignjax._validation import as_weights, require_concrete
from alignjax.bases.arcs import ArcFinder
from alignjax.bases.moments import (
    ProblemMatrices,
    as_tolerance,
    diagonal_spectra,
    mode_order,
    off_diagonal,
    problem_matrices,
    relative,
)

Host = np.ndarray


class NotAlignedError(ValueError):
    """Weights and problem have no common bases.

    Attributes:
        defect: the largest relative off-diagonal part that the best bases found leave.
    """

    def __init__(self, message: str, defect: float) -> None:
        """Keep the measured defect beside the message."""
        super().__init__(message)
        self.defect = defect


@dataclass(frozen=True)
class ChainBases:
    """Bases ``P_0, ..., P_d`` as float64 arrays, and how well they do.

    Attributes:
        bases: ``P_i`` orthogonal, shape ``(k_i, k_i)``; the first ``r = min k_i`` columns are the
            modes that run through the whole network.
        defect: the largest relative off-diagonal part.
        matrices: what of the problem was made diagonal.
    """

    bases: tuple[Host, ...]
    defect: float
    matrices: ProblemMatrices


def chain_bases(
    problem: Any, weights: Sequence[Any], *, tolerance: float | None = None
) -> ChainBases:
    """Find the common bases of a problem and a chain of layers.

    Looks for orthogonal ``P_0, ..., P_d`` with ``P_i^T W_i P_{i-1}`` diagonal for every layer,
    ``P_d^T Sigma_yx P_0`` and ``P_0^T Sigma_xx P_0`` diagonal as far as the first ``r = min k_i``
    rows and columns go, which is all that training meets. Singular values may repeat, vanish, be
    negative and come in any order. Modes are sorted by descending target, and so are, among
    themselves, those dropped between two neighbouring widths. Singular values of all layers but the
    last are made nonnegative, and so is the target.

    Args:
        problem: a moment problem or a sensing problem.
        weights: layers ``(W_1, ..., W_d)``.
        tolerance: the largest defect accepted; 1e-9 in float64, 1e-4 in float32.

    Returns:
        The bases, the defect and the problem's matrices.

    Raises:
        TypeError: if anything is traced, or the problem has another loss.
        ValueError: if shapes do not fit the problem, the tolerance is negative or NaN, or the
            moments overflow.
        NotAlignedError: if the defect is above the tolerance.

    Source: Radhakrishnan et al. 2020, Definition 2. It asks more than that neighbouring layers
    share singular vectors pair by pair.
    """
    require_concrete(weights, "weights", "reduce")
    data = problem_matrices(problem, "reduce")
    checked = as_weights(weights)
    single = data.single or any(w.dtype != np.float64 for w in checked)
    layers = [np.asarray(w, np.float64) for w in checked]
    ends = (layers[-1].shape[0], layers[0].shape[1])
    if ends != data.link.shape:
        raise ValueError(
            f"weights map {ends[1]} inputs to {ends[0]} outputs, but the problem maps "
            f"{data.link.shape[1]} to {data.link.shape[0]}"
        )
    limit = (
        (1e-4 if single else 1e-9)
        if tolerance is None
        else as_tolerance(tolerance, "tolerance", "reduce")
    )
    # A Sigma_yx that is all roundoff tells nothing apart.
    link, symmetric, blur = data.known_link, data.symmetric, 1.0
    if data.values is None:
        symmetric = symmetric[:1]
        blur = max(1.0, data.cross_size / (float(np.linalg.norm(link)) or np.inf))
    bases = ArcFinder(layers, symmetric, link, single=single, blur=blur).bases()
    bases = _order_and_sign(bases, layers, data)
    defect, where = _defect(bases, layers, data, limit)
    if not defect <= limit:
        raise NotAlignedError(
            f"weights are not aligned with the problem: the best bases found leave {defect:.3g} "
            f"of {where} off the diagonal, more than the tolerance {limit:.3g}{_doubt(layers)}",
            defect,
        )
    return ChainBases(tuple(bases), defect, data)


def _doubt(layers: Sequence[Host]) -> str:
    """What a refusal may owe to roundoff: bases are carried through small singular values."""
    values = np.concatenate(
        [np.linalg.svd(w, compute_uv=False) / (np.linalg.norm(w) or 1.0) for w in layers]
    )
    small = values[values > 1e-12].min(initial=1.0)
    if small > 1e-2:
        return ""
    return (
        f" (a layer holds a singular value of {small:.1g} of its norm, by which roundoff is "
        f"divided where others tie: if that is the cause, give a larger tolerance)"
    )


def _order_and_sign(bases: list[Host], layers: list[Host], data: ProblemMatrices) -> list[Host]:
    bases = [b.copy() for b in bases]
    target, inputs = diagonal_spectra(bases[-1], bases[0], data)
    # Columns between two neighbouring widths stand in the same bases, so they can change places.
    # Those that no layer meets are sorted too, or their order would hang on roundoff.
    widths = {0, *(len(b) for b in bases)}
    for low, high in pairwise(sorted(w for w in widths if w <= len(target))):
        order = low + mode_order(np.abs(target[low:high]), inputs[low:high])
        for basis in bases:
            if len(basis) >= high:
                basis[:, low:high] = basis[:, order]
    for i, layer in enumerate(layers[:-1]):
        _flip(bases[i + 1], np.diagonal(bases[i + 1].T @ layer @ bases[i]))
    target, _ = diagonal_spectra(bases[-1], bases[0], data)
    last = np.diagonal(bases[-1].T @ layers[-1] @ bases[-2])
    signs = np.zeros(bases[-1].shape[1])
    signs[: len(last)] = last
    signs[: len(target)][target != 0] = target[target != 0]
    _flip(bases[-1], signs)
    return bases


def _flip(basis: Host, signs: Host) -> None:
    negative = np.flatnonzero(signs < 0)
    basis[:, negative] *= -1.0


def _defect(
    bases: list[Host], layers: list[Host], data: ProblemMatrices, limit: float
) -> tuple[float, str]:
    """The largest share off the diagonals, and where; roundoff of Sigma_yx is within the limit."""
    r = min(b.shape[0] for b in bases)
    parts = [
        (relative(off_diagonal(bases[i + 1].T @ w @ bases[i]), w), f"layer W_{i + 1}")
        for i, w in enumerate(layers)
    ]
    for index, matrix in enumerate(data.cross):
        rest = off_diagonal(bases[-1].T @ matrix @ bases[0])
        rest[r:, r:] = 0.0  # no layer's gradient ever meets this block
        name = "Sigma_yx" if data.values is None else f"the measurement matrix {index}"
        share = relative(rest, matrix)
        if data.values is None:
            share = min(share, limit * float(np.linalg.norm(rest)) / (data.cross_noise or np.inf))
        parts.append((share, name))
    if data.values is None:
        inputs = data.symmetric[0]
        parts.append(
            (relative(off_diagonal(bases[0].T @ inputs @ bases[0])[:r], inputs), "Sigma_xx")
        )
    return max(parts)
