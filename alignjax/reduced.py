"""Training of an aligned network as a recursion in its singular values.

Where layers and data have common bases, gradient descent on matrices is gradient descent on
``(d, r)`` numbers: ``O(d r)`` a step, and exact. This is the independent oracle of the descents; it
shares no gradient with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignjax._validation import as_count, as_learning_rate, as_real, describe
from alignjax.bases import chain_bases
from alignjax.bases.moments import ProblemMatrices, spectra
from alignjax.engines.loop import guarded_steps
from alignjax.linalg import guarded, leave_one_out_products, leaves_finite, matmul
from alignjax.problems import MomentProblem
from alignjax.trajectory import Trajectory, record, save_points

__all__ = ["Reduced", "expand", "reduce", "reduced_descent", "reduced_gradient", "reduced_risk"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reduced:
    """An aligned network and problem in common bases; ``r = min k_i`` modes take part.

    Attributes:
        U: ``P_d``, shape ``(k_d, k_d)``.
        V: ``P_0``, shape ``(k_0, k_0)``.
        inner_bases: ``(P_1, ..., P_{d-1})``, ``P_i`` of shape ``(k_i, k_i)``.
        singular_values: the start's first ``r`` diagonal entries of ``P_i^T W_i P_{i-1}``, shape
            ``(d, r)``; signed in the last layer only.
        target_spectrum: ``diag(U^T Sigma_yx V)``, shape ``(r,)``, at least 0 and descending (for
            sensing of any sign).
        input_spectrum: ``diag(V^T Sigma_xx V)``, shape ``(r,)``; for sensing the Gram matrix
            ``(r, r)`` of the measurements' diagonals.
        full_input_spectrum: all ``k_0`` diagonal entries of ``V^T Sigma_xx V``; for sensing the
            Gram matrix again.
        minimizer: the products ``p`` of least risk and least norm, shape ``(r,)``.
        minimum_risk: the least risk that the ``r`` modes can reach.
        frozen: per layer the diagonal entries beyond ``r``, which no gradient moves.
    """

    U: Array
    V: Array
    inner_bases: tuple[Array, ...]
    singular_values: Array
    target_spectrum: Array
    input_spectrum: Array
    full_input_spectrum: Array
    minimizer: Array
    minimum_risk: Array
    frozen: tuple[Array, ...]

    @property
    def depth(self) -> int:
        """``d``."""
        return len(self.frozen)

    @property
    def rank(self) -> int:
        """``r``."""
        return self.target_spectrum.shape[-1]


def reduce(
    problem: Any, weights: Sequence[Float[Array, "k_i k_j"]], *, tolerance: float | None = None
) -> Reduced:
    """Common bases of a problem and weights, and their diagonals there.

    Finds ``P_i^T W_i P_{i-1} = diag(s_i)``, ``U^T Sigma_yx V`` and ``V^T Sigma_xx V`` diagonal,
    also where singular values repeat, vanish, are negative or unsorted. Host-only.

    Args:
        problem: a problem with the squared loss, or a sensing problem.
        weights: layers ``(W_1, ..., W_d)`` of any widths.
        tolerance: the largest relative off-diagonal part; 1e-9 in float64, 1e-4 in float32.

    Returns:
        A :class:`Reduced`, in the promoted dtype of problem and weights.

    Raises:
        NotAlignedError: if there are no common bases, with the measured ``defect``.
        TypeError: if anything is traced, or the loss is another one.
        ValueError: if shapes do not fit.

    Source: Radhakrishnan et al. 2020, Definition 2 and Corollary 1.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
        >>> aj.reduce(problem, aj.initializers.identity((2, 2, 2), 0.5)).singular_values.shape
        (2, 2)
    """
    found = chain_bases(problem, weights, tolerance=tolerance)
    bases, data = found.bases, found.matrices
    r = min(b.shape[0] for b in bases)
    layers = [np.asarray(w, np.float64) for w in weights]
    diagonals = [np.diagonal(bases[i + 1].T @ w @ bases[i]).copy() for i, w in enumerate(layers)]
    target, full = spectra(bases[-1], bases[0], data)
    inputs = full[:r] if full.ndim == 1 else full[:r, :r]
    minimizer, floor = _minimum(problem, data, bases, target[:r], inputs)
    dtype = jnp.result_type(data.dtype, *(jnp.asarray(w).dtype for w in weights))
    as_jax = partial(jnp.asarray, dtype=dtype)
    return Reduced(
        U=as_jax(bases[-1]),
        V=as_jax(bases[0]),
        inner_bases=tuple(as_jax(b) for b in bases[1:-1]),
        singular_values=as_jax(np.stack([s[:r] for s in diagonals])),
        target_spectrum=as_jax(target[:r]),
        input_spectrum=as_jax(inputs),
        full_input_spectrum=as_jax(full if full.ndim == 1 else inputs),
        minimizer=as_jax(minimizer),
        minimum_risk=as_jax(floor),
        frozen=tuple(as_jax(s[r:]) for s in diagonals),
    )


def _minimum(
    problem: Any,
    data: ProblemMatrices,
    bases: Sequence[np.ndarray],
    target: np.ndarray,
    inputs: np.ndarray,
) -> tuple[np.ndarray, float]:
    """The least-norm minimizer in the modes, and the risk that is left there."""
    r = len(target)
    if data.values is not None:
        modes = np.stack([np.diagonal(bases[-1].T @ m @ bases[0])[:r] for m in data.cross])
        best = np.linalg.lstsq(modes, data.values, rcond=None)[0]
        return best, 0.5 * float(np.mean((modes @ best - data.values) ** 2))
    positive = inputs > np.finfo(np.float64).eps * len(bases[0]) * max(inputs.max(), 0.0)
    best = np.where(positive, target, 0.0) / np.where(positive, inputs, 1.0)
    # What a network of full width would still fit beyond the r modes.
    beyond = (bases[-1].T @ data.link @ bases[0])[r:, r:]
    moment = (bases[0].T @ data.symmetric[0] @ bases[0])[r:, r:]
    missed = 0.5 * float(np.sum(beyond @ np.linalg.pinv(moment, hermitian=True) * beyond))
    assert isinstance(problem, MomentProblem)
    return best, float(problem.minimum_risk) + missed


def _slope(reduced: Reduced, product: Array) -> Array:
    """The derivative of the risk in the modes' products ``p``."""
    if reduced.input_spectrum.ndim == 2:
        return matmul(reduced.input_spectrum, product) - reduced.target_spectrum
    return reduced.input_spectrum * product - reduced.target_spectrum


def reduced_risk(reduced: Reduced, singular_values: Float[Array, "d r"]) -> Float[Array, ""]:
    """The risk in terms of singular values, centred at its minimum.

        R = R_min + 1/2 sum_k lambda_k (p_k - p*_k)^2,    p_k = prod_i s_{i,k}

    Args:
        reduced: what :func:`reduce` returned.
        singular_values: shape ``(d, r)``.
    """
    off = jnp.prod(singular_values, axis=0) - reduced.minimizer
    spectrum = reduced.input_spectrum
    moved = matmul(spectrum, off) if spectrum.ndim == 2 else spectrum * off
    return reduced.minimum_risk + 0.5 * jnp.sum(moved * off)


def reduced_gradient(reduced: Reduced, singular_values: Float[Array, "d r"]) -> Float[Array, "d r"]:
    """``dR/ds_{i,k} = prod_{j != i} s_{j,k} (lambda_k p_k - lambda'_k)``, shape ``(d, r)``.

    Source: Radhakrishnan et al. 2020, Corollary 1, eq. 6; the printed form differs: its product
    runs over all ``j``.
    """
    product = jnp.prod(singular_values, axis=0)
    return leave_one_out_products(singular_values) * _slope(reduced, product)


def reduced_descent(
    reduced: Reduced,
    learning_rate: Float[Array, ""] | Float[Array, " d"] | float,
    *,
    steps: int,
    singular_values: Float[Array, "d r"] | None = None,
    save_at: Sequence[int] | None = None,
) -> Trajectory:
    """Gradient descent on the singular values, exactly as on the full matrices.

        s_i <- s_i + eta prod_{j != i} s_j (lambda' - lambda prod_j s_j),

    mode by mode, with both spectra divided by ``n``; for sensing the modes couple through the Gram
    matrix. Runs under ``vmap`` and ``grad``; freezes on divergence as ``gradient_descent`` does.

    Args:
        reduced: what :func:`reduce` returned.
        learning_rate: eta, a scalar, or one rate a layer, shape ``(d,)``.
        steps: how many steps.
        singular_values: another start, shape ``(d, r)``; may be traced.
        save_at: increasing steps at which to observe; by default the start and the end.

    Returns:
        A :class:`alignjax.Trajectory`; its ``weights`` are the final singular values ``(d, r)``,
        its observations ``{"singular_values": (saves, d, r), "risk": (saves,)}``.

    Raises:
        TypeError, ValueError: for arguments that do not fit, before anything is traced.

    Source: Radhakrishnan et al. 2020, Corollary 1, eq. 6; the printed form differs: its product
    runs over all ``j``, which is off by tens of percent in one step.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
        >>> reduced = aj.reduce(problem, aj.initializers.identity((2, 2, 2), 0.5))
        >>> run = aj.reduced_descent(reduced, 0.1, steps=1000)
        >>> bool(jnp.allclose(run.weights.prod(axis=0), jnp.array([2.0, 1.0])))
        True
    """
    _check_reduced(reduced)
    rate = as_learning_rate(learning_rate, reduced.depth)
    start = _as_singular_values(reduced, singular_values)
    steps = as_count(steps, "steps")
    points = save_points(save_at, steps)
    return _reduced_descent(reduced, start, rate.astype(start.dtype), steps=steps, save_at=points)


@partial(jax.jit, static_argnames=("steps", "save_at"))
def _reduced_descent(
    reduced: Reduced, start: Array, rate: Array, *, steps: int, save_at: tuple[int, ...]
) -> Trajectory:
    largest = float(np.sqrt(jnp.finfo(start.dtype).max))
    per_layer = rate if rate.ndim == 0 else rate[:, None]

    @guarded
    def checked(reduced: Reduced, s: Array) -> tuple[Array, Array]:
        slope = reduced_gradient(reduced, s)
        # NaN fails the comparison too.
        return slope, leaves_finite(slope) & (reduced_risk(reduced, s) <= largest)

    def advance(s: Array, _: Array, count: Array, max_count: int) -> tuple[Array, Array]:
        return guarded_steps(
            lambda s, _: checked(reduced, s),
            lambda s, slope: s - per_layer * slope,
            s,
            count,
            max_steps=max_count,
        )

    def observe(s: Array) -> dict[str, Array]:
        return {"singular_values": s, "risk": reduced_risk(reduced, s)}

    final, seen, taken, status, stopped_at = record(advance, start, observe, save_at, steps)
    time = taken.astype(rate.dtype).reshape(-1, *[1] * rate.ndim) * rate
    return Trajectory(jnp.asarray(save_at, jnp.int32), time, seen, final, status, stopped_at)


def expand(
    reduced: Reduced, singular_values: Float[Array, "d r"]
) -> tuple[Float[Array, "k_i k_j"], ...]:
    """Full layers ``W_i = P_i diag(s_i) P_{i-1}^T``, with the frozen entries beyond ``r``.

    Args:
        reduced: what :func:`reduce` returned.
        singular_values: shape ``(d, r)``; may be traced.

    Returns:
        ``(W_1, ..., W_d)``, ``W_i`` of shape ``(k_i, k_{i-1})``.

    Raises:
        TypeError, ValueError: for another shape, or what :func:`reduce` did not return.

    Source: Radhakrishnan et al. 2020, Definition 2.
    """
    _check_reduced(reduced)
    values = _as_singular_values(reduced, singular_values)
    bases = (reduced.V, *reduced.inner_bases, reduced.U)
    layers = []
    for s, rest, into, out in zip(values, reduced.frozen, bases, bases[1:], strict=False):
        diagonal = jnp.concatenate([s, rest])
        count = diagonal.shape[0]
        layers.append(matmul(out[:, :count] * diagonal, into[:, :count].T))
    return tuple(layers)


def _check_reduced(reduced: Any) -> None:
    if not isinstance(reduced, Reduced):
        raise TypeError(f"reduced must be what reduce returned, got {describe(reduced)}")


def _as_singular_values(reduced: Reduced, singular_values: Any) -> Array:
    if singular_values is None:
        return reduced.singular_values
    values = as_real(singular_values, "singular_values", finite=False)
    expected = (reduced.depth, reduced.rank)
    if values.shape != expected:
        raise ValueError(
            f"singular_values must have shape (d, r) = {expected}, got {tuple(values.shape)}; "
            f"to run many starts at once use jax.vmap"
        )
    return values.astype(jnp.result_type(values, reduced.target_spectrum))
