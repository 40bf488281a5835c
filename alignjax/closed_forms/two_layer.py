"""The gradient flow of two layers, exactly: aligned with the data, or balanced and whitened."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from alignjax._roundoff import cleared, cross_scale, norm_roundoff, relative_roundoff
from alignjax._validation import as_raw, as_real, describe, is_concrete
from alignjax.bases import Certificate
from alignjax.closed_forms._elementary import (
    as_moment_problem,
    as_times,
    elapsed,
    without_derivative,
)
from alignjax.closed_forms.modes import mode_flow
from alignjax.linalg import matmul
from alignjax.problems import check_weights

__all__ = ["TwoLayerFlow", "aligned_two_layer_flow", "two_layer_flow"]

_DATA_DERIVATIVE = (
    "two_layer_flow is differentiable in weights and times, not in the data: differentiate "
    "a numerical integration there"
)
_SECOND_DERIVATIVE = (
    "second derivatives of two_layer_flow in the weights are not offered: differentiate once in "
    "the weights, or any number of times in the times"
)


class TwoLayerFlow(NamedTuple):
    """The blocks of ``Q Q^T``, ``Q = [W_1^T; W_2]``, along the flow.

    They are all that the flow's matrix Riccati equation determines: the layers themselves are known
    up to one rotation of the hidden units that both share.

    Attributes:
        product: ``W_2 W_1``, shape ``(k_d, k_0)`` or ``(T, k_d, k_0)``.
        input_gram: ``W_1^T W_1``, shape ``(k_0, k_0)`` or ``(T, k_0, k_0)``.
        output_gram: ``W_2 W_2^T``, shape ``(k_d, k_d)`` or ``(T, k_d, k_d)``.
    """

    product: Array
    input_gram: Array
    output_gram: Array


def aligned_two_layer_flow(
    certificate: Certificate,
    Q: Float[Array, "m k_1"],
    deltas: Float[Array, " r"] | float,
    times: Float[Array, " T"] | float,
) -> tuple[Float[Array, "T k_1 k_0"], Float[Array, "T k_d k_1"]]:
    """Both layers of a network that starts aligned with its data, under the gradient flow.

    ``W_1(t) = Q^T diag(sqrt(w)) V^T`` and ``W_2(t) = U diag(sqrt(w)) Q``, with
    ``w_i(t) = sigma_i / (lambda_i + (sigma_i e^{2 delta_i} - lambda_i) e^{-2 sigma_i t})`` from
    ``w_i(0) = e^{-2 delta_i}``: :func:`mode_flow` of every mode. The
    ``r = min(m, k_0, k_d)`` modes are those that both layers have; an entry of one layer alone
    would never move and is 0 here. A start above ``sigma_i / lambda_i`` is allowed: the theorem
    begins below, but the formula holds above too, where a mode shrinks to that height.

    Args:
        certificate: of the problem, from ``alignjax.theory.alignment.certify``.
        Q: the hidden basis, orthonormal rows ``(m, k_1)``, ``m <= k_1``; mode ``i`` uses row ``i``.
        deltas: ``delta_i > 0``, a scalar or ``(r,)``.
        times: a scalar, or increasing times ``(T,)``, at least 0; may be traced.

    Returns:
        ``(W_1, W_2)`` of shapes ``(k_1, k_0)`` and ``(k_d, k_1)``, times along a first axis.

    Raises:
        TypeError: if ``certificate`` is none, or is that of a sensing problem.
        ValueError: if its verdict is "no", ``Q`` is not orthogonal, a delta is not positive or its
            ``e^{-2 delta}`` underflows, or times are negative, not finite or unordered.

    Source: Gidel et al. 2019, Theorem 1 and eqs. 15 and 16 with no perturbation; printed form
        differs: any invertible ``Q`` is allowed there, but only orthogonal ones give a solution,
        and the second line of eq. 15 should begin with ``W_2``.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.closed_forms import aligned_two_layer_flow
        >>> found = aj.theory.alignment.certify(aj.autoencoding(jnp.eye(2)))
        >>> W_1, W_2 = aligned_two_layer_flow(found, jnp.eye(2), 3.0, jnp.array([0.0, 1e3]))
        >>> [round(x, 6) for x in (W_2 @ W_1)[:, 0, 0].tolist()]  # from e^-6 to the identity
        [0.002479, 1.0]
    """
    if not isinstance(certificate, Certificate):
        raise TypeError(f"certificate must be what certify returned, got {describe(certificate)}")
    if certificate.input_spectrum.ndim != 1:
        raise TypeError("certificate is that of a sensing problem, whose modes are coupled")
    if certificate.verdict == "no":
        raise ValueError(
            f"certificate says that the data have no common bases (residual "
            f"{certificate.residual:.3g}), so no network is aligned with them"
        )
    hidden = _as_hidden_basis(Q)
    U, V = certificate.U, certificate.V
    rank = min(hidden.shape[0], U.shape[0], V.shape[0])
    start = jnp.exp(-2.0 * _as_deltas(deltas, rank))
    if is_concrete(start) and not bool((start > 0).all()):
        raise ValueError(
            f"deltas must leave a start e^(-2 delta) above 0 in {start.dtype}, got {deltas}"
        )
    at = as_times(times)
    w = mode_flow(
        at[..., None],
        start,
        certificate.target_spectrum[:rank],
        certificate.input_spectrum[:rank],
    )
    scale = jnp.sqrt(w)[..., None, :]
    rows = hidden[:rank]
    like = (*[None] * (scale.ndim - 2), ...)  # as many axes, of times
    return matmul(rows.T[like] * scale, V[:, :rank].T), matmul(U[:, :rank][like] * scale, rows)


def _as_hidden_basis(Q: Any) -> Array:
    basis = as_real(Q, "Q", ndim=2)
    if basis.shape[0] > basis.shape[1]:
        raise ValueError(
            f"Q must have orthonormal rows, shape (m, k_1) with m <= k_1, got {basis.shape}"
        )
    if not is_concrete(as_raw(Q, "Q")):
        return basis
    rows = np.asarray(basis, np.float64)
    defect = float(np.abs(rows @ rows.T - np.eye(len(rows))).max())
    if defect > _tolerance(basis.dtype):
        raise ValueError(
            f"Q must be orthogonal, but Q Q^T differs from the identity by {defect:.3g}. The "
            f"printed theorem allows any invertible Q, but its layers solve the flow only if they "
            f"are balanced, W_2^T W_2 = W_1 W_1^T: at condition number 3 the printed layers end "
            f"0.4 of their norm away"
        )
    return basis


def _tolerance(dtype: Any) -> float:
    """How far from orthogonal or balanced the closed forms accept, relative to 1."""
    return 1e-10 if dtype == jnp.float64 else 1e-5


def _as_deltas(deltas: Any, rank: int) -> Array:
    values = as_real(deltas, "deltas")
    if values.shape not in ((), (rank,)):
        raise ValueError(
            f"deltas must be a scalar or one number a mode, shape () or ({rank},), got shape "
            f"{tuple(values.shape)}"
        )
    raw = as_raw(deltas, "deltas")
    if is_concrete(raw) and not bool((np.asarray(raw) > 0).all()):
        raise ValueError(f"deltas must be above 0, got {np.asarray(raw).min()}")
    return jnp.broadcast_to(values, (rank,))


def two_layer_flow(
    problem: Any,
    weights: Any,
    times: Float[Array, " T"] | float,
) -> TwoLayerFlow:
    """Two layers under the gradient flow from any balanced start, for whitened inputs.

    With ``Sigma_xx = c I``, ``W_2^T W_2 = W_1 W_1^T`` and ``F = [[0, Sigma_yx^T], [Sigma_yx, 0]]``,
    ``P = Q Q^T`` of ``Q = [W_1^T; W_2]`` obeys ``P' = F P + P F - c P^2``, which is solved by

        P(t) = e^{Ft} Q_0 (I + c Q_0^T C Q_0)^{-1} Q_0^T e^{Ft},    C = int_0^t e^{2Fs} ds.

    Any rank, any width, and any time: the growing directions are orthogonalized by growth before
    they are scaled, so that nothing overflows where ``e^{Ft}`` does. What a start has of a growing
    direction counts as nothing, and stays nothing, if it is below the roundoff of what it is read
    from, ``10 (k_0 + k_d) eps`` of the entries that its singular vectors add up, and of weaker
    modes that share its hidden direction. So modes may start at any scales where singular vectors
    are sparse, as for diagonal data, and their hidden directions orthogonal. Otherwise one that
    starts below the roundoff of the largest entries is lost.

    Args:
        problem: a problem with the squared loss whose inputs are white, ``Sigma_xx = c I``.
        weights: ``(W_1, W_2)``, balanced.
        times: a scalar, or increasing times ``(T,)``, at least 0; may be traced.

    Returns:
        A :class:`TwoLayerFlow`: product and Gram matrices, times stacked along a first axis.
        Differentiable in weights and times; where the start lacks a growing direction, derivatives
        in the weights grow like ``e^{sigma t}`` and leave the range of floats in the end.

    Raises:
        TypeError: if the problem has another loss, or derivatives in the data or second ones in the
            weights are asked.
        ValueError: if there are not two layers, they do not fit or are not balanced, the inputs are
            not white, or times are negative, not finite or unordered.

    Source: Fukumizu 1998 and Braun et al. 2022, in this project's notation; Gidel et al. 2019,
        eq. 12, is the flow.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.closed_forms import two_layer_flow
        >>> problem = aj.from_moments(jnp.eye(2), jnp.diag(jnp.array([2.0, 1.0])), 5.0)
        >>> start = 0.1 * jnp.array([[1.0, 1.0]])
        >>> late = two_layer_flow(problem, (start, start.T), 1e6).product
        >>> [[round(abs(x), 9) for x in row] for row in late.tolist()]  # one unit, one mode
        [[2.0, 0.0], [0.0, 0.0]]
    """
    problem = as_moment_problem(problem, "two_layer_flow")
    layers = check_weights(problem, weights)
    if len(layers) != 2:
        raise ValueError(f"weights must be two layers (W_1, W_2), got {len(layers)}")
    dtype = layers[0].dtype
    _refuse_coloured(problem)
    _refuse_unbalanced(*layers)
    at = as_times(times).astype(dtype)
    variance = (jnp.trace(problem.input_moment) / problem.input_width).astype(dtype)
    stacked = jnp.concatenate([layers[0].T, layers[1]])
    cross = problem.cross_moment.astype(dtype)
    share = norm_roundoff(problem.dtype, *cross.shape, samples=problem.sample_count)
    noise = share * cross_scale(problem.input_moment, problem.target_energy).astype(dtype)
    gram = _gram(stacked, cross, variance, jnp.atleast_1d(at), lax.stop_gradient(noise))
    gram = gram[0] if at.ndim == 0 else gram
    k = problem.input_width
    return TwoLayerFlow(gram[..., k:, :k], gram[..., :k, :k], gram[..., k:, k:])


def _refuse_coloured(problem: Any) -> None:
    if problem.basis is not None:
        raise ValueError(
            f"problem must have white inputs, Sigma_xx = c I, but its inputs span only "
            f"{problem.input_moment.shape[0]} of {problem.input_width} directions"
        )
    if not is_concrete(problem.input_moment):
        return
    moment = np.asarray(problem.input_moment, np.float64)
    variance = np.trace(moment) / len(moment)
    defect = float(np.abs(moment - variance * np.eye(len(moment))).max())
    if variance <= 0 or defect > _tolerance(problem.dtype) * variance:
        raise ValueError(
            f"problem must have white inputs, Sigma_xx = c I with c > 0, but Sigma_xx differs from "
            f"{variance:.6g} I by {defect:.3g}"
        )


def _refuse_unbalanced(inner: Array, outer: Array) -> None:
    if not (is_concrete(inner) and is_concrete(outer)):
        return
    first, second = np.asarray(inner, np.float64), np.asarray(outer, np.float64)
    left, right = second.T @ second, first @ first.T
    defect, size = float(np.abs(left - right).max()), float(np.abs(right).max())
    if defect > _tolerance(inner.dtype) * max(size, float(np.abs(left).max())):
        raise ValueError(
            f"weights must be balanced, W_2^T W_2 = W_1 W_1^T, but the two differ by {defect:.3g} "
            f"where the entries reach {size:.3g}; initializers.balanced makes such starts"
        )


class _Modes(NamedTuple):
    """``F = S diag(growth) S^T`` with the first ``rank`` modes growing, in descending order."""

    S: Array
    growth: Array
    rank: int


def _noise(dtype: Any, size: int) -> float:
    """The relative size below which a sum of ``size`` terms is roundoff."""
    return 10 * size * float(jnp.finfo(dtype).eps)


def _modes(cross: Array, roundoff: Array) -> _Modes:
    u, s, vt = jnp.linalg.svd(cross, full_matrices=True)
    outputs, inputs = cross.shape
    rank = min(cross.shape)
    # A singular value of roundoff is none: over a long time it would grow.
    s = cleared(s, 1.0, jnp.maximum(relative_roundoff(cross.dtype, *cross.shape) * s[0], roundoff))
    # So is an entry of a singular vector: what it mixes in would hide the start of a small mode.
    u, vt = (
        jnp.where(jnp.abs(side) > _noise(side.dtype, sum(cross.shape)), side, 0.0)
        for side in (u, vt)
    )
    v, half = vt.T, 0.5**0.5
    grow = jnp.concatenate([v[:, :rank], u[:, :rank]]) * half
    fade = jnp.concatenate([v[:, :rank], -u[:, :rank]]) * half
    rest_in = jnp.concatenate([v[:, rank:], jnp.zeros((outputs, inputs - rank), s.dtype)])
    rest_out = jnp.concatenate([jnp.zeros((inputs, outputs - rank), s.dtype), u[:, rank:]])
    still = jnp.zeros(inputs + outputs - 2 * rank, s.dtype)
    S = jnp.concatenate([grow, fade, rest_in, rest_out], axis=1)
    return _Modes(S, jnp.concatenate([s, -s, still]), rank)


class _Ordered(NamedTuple):
    """``B J`` of ``B = S^T Q``, lower triangular in its growing rows, ``J J^T = I``."""

    J: Array  # (k_1, rank + k_1)
    rows: Array  # B J, (N, rank + k_1)
    pivot: Array  # (rank,): whether a growing row adds a direction to those above it


def _order(stacked: Array, modes: _Modes) -> _Ordered:
    B, rank = matmul(modes.S.T, stacked), modes.rank
    # Row by row, by the terms of its sums: a small mode has less roundoff than a large one.
    relative = _noise(B.dtype, B.shape[0])
    terms = jnp.linalg.norm(matmul(jnp.abs(modes.S.T), jnp.abs(stacked)), axis=1)
    noise = relative * terms[:, None]

    def add(i: Array, J: Array) -> Array:
        new = B[i]
        for _ in range(2):  # the second pass removes what roundoff left of the first
            new = new - matmul(J, matmul(J.T, new))
        size = jnp.linalg.norm(new)
        unit = new / jnp.where(size > 0.0, size, 1.0)
        # Beside larger rows that share its direction, its own growth would drown in roundoff.
        shared = jnp.where(jnp.arange(len(B)) > i, _beyond(matmul(B, unit), noise[:, 0]), 0.0)
        real = (size > noise[i, 0]) & (size > relative * jnp.abs(shared).max())
        return J.at[:, i].set(jnp.where(real, unit, 0.0))

    J = lax.fori_loop(0, rank, add, jnp.zeros((B.shape[1], rank), B.dtype))
    rest = jnp.eye(B.shape[1], dtype=B.dtype) - matmul(J, J.T)
    J = jnp.concatenate([J, rest], axis=1)
    rows = _beyond(matmul(B, J), noise)
    return _Ordered(
        J, rows.at[:rank].set(jnp.tril(rows[:rank])), jnp.abs(J[:, :rank]).max(axis=0) > 0.0
    )


def _beyond(values: Array, noise: Array) -> Array:
    return jnp.where(jnp.abs(values) > noise, values, 0.0)


class _Solved(NamedTuple):
    """``P = S E Z Z^T E S^T`` at one time, and what its derivative needs."""

    Z: Array
    R: Array  # upper triangular
    decay: Array  # E
    spent: Array  # (1 - e^{-2|f|t}) / (2|f|)
    row_log: Array  # rows and columns are scaled by exponentials of these
    column_log: Array


def _solve(ordered: _Ordered, modes: _Modes, time: Array) -> _Solved:
    growth, rank = modes.growth, modes.rank
    row_log = jnp.maximum(growth, 0.0) * time
    width = ordered.rows.shape[1] - rank
    column_log = jnp.concatenate(
        [jnp.where(ordered.pivot, row_log[:rank], 0.0), jnp.zeros(width, growth.dtype)]
    )
    spent = elapsed(2.0 * jnp.abs(growth), time)
    scaled = _scaled(ordered.rows, row_log, column_log)
    tall = jnp.concatenate([jnp.diag(jnp.exp(-column_log)), jnp.sqrt(spent)[:, None] * scaled])
    # The normal equations of this least-squares problem are M; its QR keeps twice the digits.
    size = jnp.linalg.norm(tall, axis=0)
    R = jnp.linalg.qr(tall / size[None], mode="r") * size[None]
    Z = solve_triangular(R.T, scaled.T, lower=True).T
    return _Solved(Z, R, jnp.exp(jnp.minimum(growth, 0.0) * time), spent, row_log, column_log)


def _scaled(matrix: Array, row_log: Array, column_log: Array) -> Array:
    """``e^{row - column}`` times the matrix, 0 where the matrix is 0 whatever the exponent."""
    exponent = jnp.where(matrix == 0.0, 0.0, row_log[:, None] - column_log[None])
    return matrix * jnp.exp(exponent)


@jax.custom_jvp
def _gram(stacked: Array, cross: Array, variance: Array, times: Array, roundoff: Array) -> Array:
    """``P(t) = Q Q^T``, shape ``(T, N, N)``."""
    modes = _modes(cross, roundoff)
    ordered = _order(jnp.sqrt(variance) * stacked, modes)

    def at(time: Array) -> Array:
        solved = _solve(ordered, modes, time)
        half = matmul(modes.S, solved.decay[:, None] * solved.Z)
        return matmul(half, half.T) / variance

    return jax.vmap(at)(times)


def _gram_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    stacked, cross, variance, times, roundoff = primals
    d_stacked, d_cross, d_variance, d_times, _ = tangents
    if not isinstance(d_cross, SymbolicZero) or not isinstance(d_variance, SymbolicZero):
        raise TypeError(_DATA_DERIVATIVE)
    gram = _gram(*primals)
    tangent = jnp.zeros_like(gram)
    if not isinstance(d_times, SymbolicZero):
        k = cross.shape[1]
        pulled = jnp.concatenate([matmul(cross.T, gram[:, k:]), matmul(cross, gram[:, :k])], axis=1)
        slope = pulled + pulled.mT - variance * matmul(gram, gram)
        tangent += slope * d_times[:, None, None]
    if not isinstance(d_stacked, SymbolicZero):
        modes = _modes(cross, roundoff)
        root = jnp.sqrt(variance)
        ordered = _order(without_derivative(root * stacked, _SECOND_DERIVATIVE), modes)
        moved = matmul(matmul(modes.S.T, root * d_stacked), ordered.J)
        tangent += jax.vmap(lambda t: _through_start(moved, ordered, modes, t))(times) / variance
    return gram, tangent


_gram.defjvp(_gram_jvp, symbolic_zeros=True)


def _through_start(moved: Array, ordered: _Ordered, modes: _Modes, time: Array) -> Array:
    """The change of ``P(t)`` with that of ``B J``: ``Phi (dB B^T + B dB^T) Phi^T``.

    ``Phi = e^{Ft} (I + P_0 C)^{-1}`` overflows times a change of a growing row, unless the part
    ``dB = B c`` that the rows with a pivot explain is taken apart: there ``Phi B`` is known.
    """
    solved, rank, rows = _solve(ordered, modes, time), modes.rank, ordered.rows
    pivot = ordered.pivot
    corner = jnp.where(pivot[:, None], rows[:rank, :rank], jnp.zeros((), rows.dtype))
    corner = corner + jnp.diag(1.0 - pivot.astype(rows.dtype))
    explained = solve_triangular(corner, jnp.where(pivot[:, None], moved[:rank], 0.0), lower=True)
    left = moved - matmul(rows[:, :rank], explained)
    left = left.at[:rank].set(jnp.where(pivot[:, None], 0.0, left[:rank]))
    # Rows with a pivot have nothing left, and their scale would overflow for nothing.
    unexplained = solved.row_log.at[:rank].set(jnp.where(pivot, 0.0, solved.row_log[:rank]))
    left = _scaled_linear(left, unexplained, solved.column_log)
    explained = _scaled_linear(explained, -solved.column_log[:rank], solved.column_log)
    explained = jnp.pad(explained, ((0, rows.shape[1] - rank), (0, 0)))

    inner = solve_triangular(solved.R.T, explained, lower=True)
    inner = inner - matmul(solved.Z.T, solved.spent[:, None] * left)
    change = left + matmul(solved.Z, inner)  # Phi dB J, with scaled columns
    other = solve_triangular(solved.R, solved.Z.T)
    half = matmul(modes.S, solved.decay[:, None] * matmul(change, other))
    half = matmul(half * solved.decay, modes.S.T)
    return half + half.T


def _scaled_linear(matrix: Array, row_log: Array, column_log: Array) -> Array:
    """``e^{row - column}`` times a matrix of tangents, whose value must not decide anything."""
    return matrix * jnp.exp(row_log[:, None] - column_log[None])
