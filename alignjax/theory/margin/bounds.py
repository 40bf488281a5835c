"""The bounds of Ji & Telgarsky 2019, as functions of networks and data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import comb
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignjax._validation import as_count, as_real, as_weights
from alignjax.linalg import matmul
from alignjax.losses import as_loss, exponential, logistic
from alignjax.theory.margin.maximum_margin import MaximumMargin, across_direction

__all__ = [
    "alignment_bound",
    "balance_drift",
    "balancedness_constant",
    "first_layer_threshold",
    "neighbour_alignment",
    "norm_gap",
    "support_spread",
]

Weights = Sequence[Float[Array, "k_i k_j"]]

MOST_FACETS = 10_000_000
"""Facets that a hull may have before its construction is refused: seconds, and a gigabyte."""


def balancedness_constant(weights: Weights) -> Float[Array, ""]:
    """How unbalanced a start is, the constant of Lemma 2.

        D = max_k ||W_k||_F^2 - ||W_L||_F^2 + sum_{k<L} ||W_k W_k^T - W_{k+1}^T W_{k+1}||_2

    The bounds that it enters are those of a network with one output, whose last layer is a row.

    Args:
        weights: the start ``(W_1, ..., W_L)``.

    Returns:
        A scalar, in squared units of the weights; 0 for balanced layers.

    Raises:
        TypeError, ValueError: if ``weights`` are no real matrices that chain.

    Source: Ji & Telgarsky 2019, section 2.1.
    """
    layers = as_weights(weights)
    energies = jnp.stack([(w**2).sum() for w in layers])
    steps = [_spectral(matmul(a, a.T) - matmul(b.T, b)) for a, b in pairwise(layers)]
    return energies.max() - energies[-1] + sum(steps, jnp.zeros((), energies.dtype))


def _spectral(matrix: Array) -> Array:
    return jnp.linalg.svd(matrix, compute_uv=False)[0]


def norm_gap(weights: Weights) -> Float[Array, " L"]:
    """What each layer has beyond its first singular value, ``||W_k||_F^2 - ||W_k||_2^2``.

    With one output, along gradient flow from a start with the constant ``D``, it is at most ``D``;
    along descent under Assumption 5 at most ``D + 2 R(W(0))``.

    Source: Ji & Telgarsky 2019, Lemmas 2 and 8.
    """
    return jnp.stack([(_singular_values(w)[1:] ** 2).sum() for w in as_weights(weights)])


def _singular_values(matrix: Array) -> Array:
    return jnp.linalg.svd(matrix, compute_uv=False)


def neighbour_alignment(weights: Weights) -> Float[Array, " L-1"]:
    """``<v_{k+1}, u_k>^2`` of the first singular vectors of neighbouring layers.

    Where a first singular value is repeated its vectors are not determined, and neither is this.

    Source: Ji & Telgarsky 2019, Theorem 1.
    """
    layers = as_weights(weights)
    factors = [jnp.linalg.svd(w, full_matrices=False) for w in layers]
    values = [jnp.vdot(b[2][0], a[0][:, 0]) ** 2 for a, b in pairwise(factors)]
    return jnp.stack(values) if values else jnp.zeros((0,), layers[0].dtype)


def alignment_bound(
    start: Weights, weights: Weights, *, start_risk: Float[Array, ""] | float | None = None
) -> Float[Array, " L-1"]:
    """What :func:`neighbour_alignment` is at least, given the start.

        <v_{k+1}, u_k>^2 >= 1 - (D + ||W_{k+1}(0)||_2^2 + ||W_k(0)||_2^2) / ||W_{k+1}||_2^2

    along gradient flow, and with ``D + 3 R(W(0))`` along descent under Assumption 5, for networks
    with one output. It says nothing (it is negative) before the weights have outgrown the start.

    Args:
        start: ``(W_1(0), ..., W_L(0))``.
        weights: ``(W_1, ..., W_L)`` at a later time.
        start_risk: ``R(W(0))`` for descent; None for the flow.

    Raises:
        TypeError, ValueError: if either are no real matrices that chain, shapes differ, or the
            network has more than one output.

    Source: Ji & Telgarsky 2019, Lemmas 2 and 8.
    """
    first, now = as_weights(start, name="start"), as_weights(weights)
    if [w.shape for w in first] != [w.shape for w in now]:
        raise ValueError(
            f"start and weights must have the same shapes, got {[w.shape for w in first]} and "
            f"{[w.shape for w in now]}"
        )
    if len(now[-1]) != 1:
        raise ValueError(
            f"weights must have one output (a last layer of one row), got {len(now[-1])}"
        )
    constant = balancedness_constant(first)
    if start_risk is not None:
        constant = constant + 3 * as_real(start_risk, "start_risk", ndim=0)
    sizes = jnp.stack([_spectral(w) ** 2 for w in first])
    reached = jnp.stack([_spectral(w) ** 2 for w in now[1:]]) if len(now) > 1 else sizes[:0]
    return 1 - (constant + sizes[1:] + sizes[:-1]) / reached


def balance_drift(
    gradients: Weights, learning_rate: Float[Array, ""] | float
) -> tuple[Float[Array, "k_i k_i"], ...]:
    """What one step of descent adds to ``W_{k+1}^T W_{k+1} - W_k W_k^T``, exactly.

        eta^2 (G_{k+1}^T G_{k+1} - G_k G_k^T),    G_k = dR/dW_k

    The first order cancels, as the flow's conservation says.

    Args:
        gradients: ``(dR/dW_1, ..., dR/dW_L)`` before the step.
        learning_rate: eta, one for all layers.

    Returns:
        One matrix ``(k_k, k_k)`` a pair of neighbours.

    Source: Ji & Telgarsky 2019, eqs. 28 to 32; the printed form differs: the signs of the terms in
    ``eta^2`` are flipped.
    """
    slopes = as_weights(gradients, name="gradients")
    rate = as_real(learning_rate, "learning_rate", ndim=0)
    return tuple(rate**2 * (matmul(b.T, b) - matmul(a, a.T)) for a, b in pairwise(slopes))


def first_layer_threshold(loss: Any, samples: int, spread: float) -> float:
    """How large ``w`` must be off the best direction for descent to shrink that part.

    For ``w`` in the span of the samples, ``<w, u> >= 0`` and a component of ``w`` orthogonal to the
    maximum-margin direction ``u`` that is longer than

        (1 + ln n) / alpha    (exponential loss),    2 n / (e alpha)    (logistic loss),

    the flow of that component points inwards: ``<w_perp, dR/dw> >= 0``.

    Args:
        loss: ``"exponential"`` or ``"logistic"``.
        samples: ``n``.
        spread: alpha, from :func:`support_spread`.

    Raises:
        ValueError: for another loss, or a spread that is not positive.

    Source: Ji & Telgarsky 2019, Lemma 4.
    """
    chosen = as_loss(loss)
    n = as_count(samples, "samples", minimum=1)
    if not spread > 0:
        raise ValueError(f"spread must be positive, got {spread}")
    if chosen == exponential:
        return (1 + float(np.log(n))) / spread
    if chosen == logistic:
        return 2 * n / (np.e * spread)
    raise ValueError(f"loss must be 'exponential' or 'logistic', got {chosen.name!r}")


def support_spread(X: Float[Array, "n k_0"], labels: Any, found: MaximumMargin) -> float:
    """How far the support vectors surround the maximum-margin direction ``u``.

        alpha = min_{||xi|| = 1, xi _|_ u}  max_{i in S} <xi, y_i x_i>,

    the distance from 0 to the boundary of the convex hull of the support vectors, projected onto
    the complement of ``u`` within the span of all samples: training moves nothing outside of it.
    Host-only.

    Args:
        X: inputs, shape ``(n, k_0)``.
        labels: -1 or +1, shape ``(n,)``.
        found: what :func:`max_margin` returned for them.

    Returns:
        alpha, in units of the inputs: positive where the support vectors span what all samples
        span (Assumption 3) and the dual weights are positive, else 0; infinite where nothing is
        orthogonal to ``u``.

    Raises:
        TypeError: if anything is traced, or ``found`` is no :class:`MaximumMargin`.
        ValueError: for shapes or labels that do not fit, or where the hull of so many support
            vectors in so many dimensions could have more than ``MOST_FACETS`` facets.

    Source: Ji & Telgarsky 2019, Lemma 3.
    """
    across = across_direction(X, labels, found, "support_spread")
    if not len(across.basis):
        return float("inf")
    points = across.points[found.support]
    # A hull that is flat has all of itself for a boundary.
    if across.rank(points - points[0]) < len(across.basis):
        return 0.0
    return across.unit * _distance_to_boundary(points)


def _distance_to_boundary(points: np.ndarray) -> float:
    """The distance from 0 to the boundary of a hull with 0 inside; 0 where it is not inside.

    The points' largest entry is about 1.
    """
    from scipy.spatial import ConvexHull

    count, dimension = points.shape
    if dimension == 1:
        return float(max(min(points.max(), -points.min()), 0.0))
    if count == dimension + 1:
        # A simplex: Qhull's work grows like a power of the dimension, this does not.
        sides = [np.delete(points, i, axis=0) for i in range(count)]
        return min(_distance_of_facet(facet, points) for facet in sides)
    facets = _most_facets(count, dimension)
    if facets > MOST_FACETS:
        raise ValueError(
            f"found has {count} support vectors in {dimension} dimensions across its direction: "
            f"their hull may have {facets:.1e} facets, more than {MOST_FACETS:.0e}"
        )
    hull = ConvexHull(points)
    return float(max(-hull.equations[:, -1].max(), 0.0))


def _most_facets(points: int, dimension: int) -> int:
    """The largest number of facets of a hull, by McMullen's upper bound theorem."""
    excess = points - dimension
    return comb(points - (dimension + 1) // 2, excess) + comb(points - (dimension + 2) // 2, excess)


def _distance_of_facet(facet: np.ndarray, points: np.ndarray) -> float:
    """The distance from 0 to the plane through a facet; 0 if 0 is not on its inner side."""
    normal, *_ = np.linalg.lstsq(facet, np.ones(len(facet)), rcond=None)
    on_plane = np.abs(facet @ normal - 1).max() <= 1e-9  # else the plane passes through 0
    if not on_plane or (points @ normal).max() > 1 + 1e-9:
        return 0.0
    return float(1 / np.linalg.norm(normal))
