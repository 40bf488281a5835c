"""The maximum margin of labelled data through the origin, exactly, or the proof that there is none.

With ``z_i = y_i x_i``, a direction of positive margin exists if and only if 0 is not in the convex
hull of the ``z_i``; the maximum margin is the hull's distance from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from alignjax._roundoff import above, relative_roundoff
from alignjax._validation import as_raw, as_real, describe, require_concrete

__all__ = ["MaximumMargin", "NotSeparableError", "UndecidedError", "max_margin"]

Host = np.ndarray

_TOLERANCE = 1e-12  # of a convex combination that counts as 0, in units of its samples' lengths
_CUT = 64  # violated samples that join the working set at once


class NotSeparableError(ValueError):
    """No direction classifies every sample.

    Attributes:
        combination: weights ``q >= 0`` of sum 1, shape ``(n,)``, with ``sum_i q_i y_i x_i = 0``:
            for every direction ``u`` that mean of the ``y_i <u, x_i>`` vanishes, so not all are
            positive.
        residual: ``||sum_i q_i y_i x_i||``, which no margin exceeds.
    """

    def __init__(self, combination: Host, residual: float) -> None:
        """Keep the certificate and say what it is."""
        self.combination, self.residual = combination, residual
        count = int((combination > 0).sum())
        super().__init__(
            f"labels are not separable by a hyperplane through the origin: {count} samples have a "
            f"convex combination of y_i x_i that is 0 (norm {residual:.1e}); see the error's "
            f"combination. A constant input, 1 for every sample, adds an offset"
        )


class UndecidedError(ValueError):
    """The data are so near the limit of separability that float64 does not decide."""


@dataclass(frozen=True)
class MaximumMargin:
    """The maximum-margin classifier through the origin, with the proof that it is.

    Attributes:
        direction: the unit vector of largest margin, shape ``(k_0,)``.
        margin: ``min_i y_i <direction, x_i>``, in units of the inputs.
        support: indices of the support vectors, the samples on the margin.
        dual: weights ``q >= 0`` of sum 1, shape ``(n,)``, zero off the support, with
            ``sum_i q_i y_i x_i = margin * direction``: since ``min_i y_i <u, x_i>`` is at most
            ``<u, sum_i q_i y_i x_i>``, no direction does better.
        gap: ``||sum_i q_i y_i x_i|| - margin``, at least 0 but for roundoff: how far the largest
            margin can be above ``margin``.
    """

    direction: Array
    margin: Array
    support: Host
    dual: Array
    gap: float


def max_margin(X: Float[Array, "n k_0"], labels: Shaped[Array, " n"]) -> MaximumMargin:
    """The maximum-margin direction ``argmax_{||u|| = 1} min_i y_i <u, x_i>``, without offset.

    The least distance problem ``min ||w||, y_i <w, x_i> >= 1`` is solved by nonnegative least
    squares on a working set that grows by the samples it misclassifies, so its size is that of the
    support and not of the data; the equations of the active samples are then solved once more, to
    the last digits. Host-only, in float64.

    Args:
        X: inputs, shape ``(n, k_0)``.
        labels: -1 or +1, shape ``(n,)``.

    Returns:
        A :class:`MaximumMargin`, in the dtype of ``X``.

    Raises:
        NotSeparableError: if no direction classifies every sample, with the certificate.
        TypeError: if anything is traced or no real number.
        UndecidedError: if the data are so near the limit that float64 does not decide.
        ValueError: for labels other than -1 and +1, or shapes that do not match.

    Source: Ji & Telgarsky 2019, section 1.2; the method is Lawson and Hanson's.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.theory.margin import max_margin
        >>> found = max_margin(jnp.array([[2.0, 1.0], [2.0, -1.0], [-3.0, 0.0]]), [1, 1, -1])
        >>> f"{found.direction[0]:.6f}", f"{found.margin:.6f}", found.support.tolist()
        ('1.000000', '2.000000', [0, 1])
    """
    require_concrete((X, labels), "X or labels", "max_margin")
    inputs = as_real(X, "X", ndim=2)
    signs = check_signs(labels, inputs.shape[0])
    z = np.asarray(inputs, np.float64) * signs[:, None]
    scale = float(np.abs(z).max())
    if scale == 0:
        raise NotSeparableError(np.full(len(z), 1 / len(z)), 0.0)
    z = z / scale
    length = float(np.linalg.norm(z, axis=1).max())
    z = z / length
    working, q = _least_distance(z)
    found = _polished(z, working[q > 0])
    if found is None:
        combination = np.zeros(len(z))
        combination[working] = q / q.sum()
        residual = float(np.linalg.norm(combination @ z))
        # of the samples that it combines: a short one alone is no proof
        if residual <= _TOLERANCE * float(combination @ np.linalg.norm(z, axis=1)):
            raise NotSeparableError(combination, residual * scale * length)
        raise UndecidedError(
            f"labels are separable by less than {residual * scale * length:.1e}, if at all, for "
            f"inputs as long as {scale * length:.3g}: float64 does not decide"
        )
    direction, margin, dual = found
    size = scale * length
    # each by its own length: beside a very long sample all others would seem to be on the margin
    support = np.flatnonzero(z @ direction <= margin + 1e-9 * np.linalg.norm(z, axis=1))
    return MaximumMargin(
        direction=jnp.asarray(direction, inputs.dtype),
        margin=jnp.asarray(margin * size, inputs.dtype),
        support=support,
        dual=jnp.asarray(dual, inputs.dtype),
        gap=(float(np.linalg.norm(dual @ z)) - margin) * size,
    )


def check_signs(labels: Any, samples: int) -> Host:
    """Labels -1 and +1 as float64, one a sample.

    Raises:
        TypeError: if they are no real numbers.
        ValueError: for other values or another shape.
    """
    signs = np.asarray(as_raw(labels, "labels"))
    if signs.shape != (samples,):
        raise ValueError(f"labels must have shape ({samples},), one a row of X, got {signs.shape}")
    if not np.isin(signs, (-1, 1)).all():
        raise ValueError(f"labels must be -1 or +1, got values {np.unique(signs)[:6].tolist()}")
    return signs.astype(np.float64)


class Across(NamedTuple):
    """What :func:`across_direction` returns."""

    points: Host
    basis: Host
    unit: float
    floor: float

    def rank(self, points: Host) -> int:
        """The dimensions that some of the points span, beyond roundoff."""
        if not points.size:
            return 0
        return int(above(np.linalg.svd(points, compute_uv=False), self.floor, 1.0).sum())


def across_direction(X: Any, labels: Any, found: Any, purpose: str) -> Across:
    """The ``y_i x_i`` less their part along the direction of ``found``, in their own span.

    Args:
        X: inputs, shape ``(n, k_0)``.
        labels: -1 or +1, shape ``(n,)``.
        found: what :func:`max_margin` returned for them.
        purpose: the function that messages name.

    Returns:
        ``(points (n, r), basis (r, k_0), unit, floor)`` in float64: coordinates in an orthonormal
        basis of their span, over the unit, so that squares neither over- nor underflow, and the
        singular value that the roundoff of the data may have.

    Raises:
        TypeError: if anything is traced, or ``found`` is no :class:`MaximumMargin`.
        ValueError: for shapes or labels that do not fit.
    """
    require_concrete((X, labels), "X or labels", purpose)
    if not isinstance(found, MaximumMargin):
        raise TypeError(f"found must come from max_margin, got {describe(found)}")
    given = as_real(X, "X", ndim=2)
    inputs = np.asarray(given, np.float64)
    z = inputs * check_signs(labels, len(inputs))[:, None]
    u = np.asarray(found.direction, np.float64)
    if u.shape != (z.shape[1],) or len(found.dual) != len(z):
        raise ValueError(
            f"found is for X of shape ({len(found.dual)}, {len(u)}), got shape {z.shape}"
        )
    # in float32 it is a unit vector to seven digits only
    u = u / np.linalg.norm(u)
    size = float(np.abs(z).max()) or 1.0
    z = z / size
    across = z - np.outer(z @ u, u)
    _, values, rows = np.linalg.svd(across, full_matrices=False)
    # Of the samples and the direction, both rounded; what is left across it may be much smaller.
    coarse = max(given.dtype, found.direction.dtype, key=lambda dtype: jnp.finfo(dtype).eps)
    share = relative_roundoff(coarse, *z.shape)
    floor = share * float(np.linalg.norm(z, 2))
    basis = rows[above(values, floor, 1.0)]
    return Across(across @ basis.T, basis, size, floor)


def _least_distance(z: Host) -> tuple[Host, Host]:
    """A working set of samples, and nonnegative weights of the hull's point nearest to 0."""
    from scipy.optimize import nnls

    working = np.array([int(np.argmin(np.linalg.norm(z, axis=1)))])
    right = np.append(np.zeros(z.shape[1]), 1.0)
    while True:
        rows = z[working]
        left = np.vstack([rows.T, np.ones(len(rows))])
        weights = nnls(left, right, maxiter=100 * left.shape[1])[0]
        point = weights @ rows
        distance = float(np.linalg.norm(point)) / weights.sum()
        if distance <= _TOLERANCE:
            return working, weights
        margins = z @ (point / np.linalg.norm(point))
        below = np.flatnonzero(margins < distance * (1 - 1e-13) - 1e-15)
        below = below[~np.isin(below, working)]
        if not below.size:
            return working, weights
        worst = below[np.argsort(margins[below], kind="stable")[:_CUT]]
        working = np.concatenate([working, worst])


def _polished(z: Host, active: Host) -> tuple[Host, float, Host] | None:
    """``(direction, margin, dual)`` from the active samples' equations; None if no margin is sure.

    On the active set ``w`` has least norm among the solutions of ``<w, z_i> = 1``.
    """
    w, *_ = np.linalg.lstsq(z[active], np.ones(len(active)), rcond=None)
    norm = float(np.linalg.norm(w))
    if norm == 0:
        return None
    direction = w / norm
    margin = float((z @ direction).min())
    # A product of float64 vectors of norm at most 1 is off by less.
    if margin <= 4 * np.finfo(np.float64).eps * np.sqrt(z.shape[1]):
        return None
    weights, *_ = np.linalg.lstsq(z[active].T, w, rcond=None)
    dual = np.zeros(len(z))
    dual[active] = np.maximum(weights, 0)
    return direction, margin, dual / dual.sum()
