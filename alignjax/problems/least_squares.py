"""Problems with the squared loss, from data, from moments and from linear measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alignjax._meshes import on_automatic_axes
from alignjax._roundoff import above, relative_roundoff
from alignjax._validation import as_real, is_concrete
from alignjax.linalg import leaves_finite, matmul
from alignjax.problems.kinds import MomentProblem, SensingProblem

__all__ = [
    "autoencoding",
    "factorization",
    "from_moments",
    "inversion",
    "regression",
    "sensing",
]


def _minimizer(input_moment: Array, cross_moment: Array) -> Array:
    """``Sigma_yx Sigma_xx^+``, the minimizer of least norm."""
    input_moment, cross_moment = lax.stop_gradient((input_moment, cross_moment))
    values, vectors = jnp.linalg.eigh(input_moment)
    keep = above(values, relative_roundoff(values.dtype, *input_moment.shape))
    inverse = jnp.where(keep, 1.0 / jnp.where(keep, values, 1.0), 0.0)
    return matmul(matmul(cross_moment, vectors) * inverse[None], vectors.T)


def _as_targets(Y: Any, samples: int, name: str = "Y") -> Array:
    targets = as_real(Y, name, ndim=(1, 2))
    if targets.shape[0] != samples:
        raise ValueError(
            f"{name} must have one row a sample: X has {samples} rows, {name} {targets.shape[0]}"
        )
    return targets[:, None] if targets.ndim == 1 else targets


@jax.custom_jvp
def _independent(basis: Array, factor: Array) -> tuple[Array, Array]:
    """The same two factors; their derivatives are NaN where the samples are dependent.

    The derivative of a QR factorization exists only for independent columns. Elsewhere it comes
    out finite and wrong, by roundoff.
    """
    return basis, factor


@_independent.defjvp
def _independent_jvp(primals: tuple, tangents: tuple) -> tuple:
    pivots = jnp.abs(jnp.diagonal(primals[1]))
    independent = above(pivots, relative_roundoff(pivots.dtype, *primals[0].shape)).all()
    honest = jnp.where(independent, 1.0, jnp.nan).astype(pivots.dtype)
    return primals, (tangents[0] * honest, tangents[1] * honest)


def in_span(inputs: Array) -> tuple[Array, Array | None]:
    """Coordinates of the inputs and the orthonormal basis they refer to, where ``n < k_0``."""
    if inputs.shape[0] >= inputs.shape[1]:
        return inputs, None
    basis, factor = _independent(*jnp.linalg.qr(inputs.T))
    return factor.T, basis


def _check_range(problem: MomentProblem, names: str) -> MomentProblem:
    """The problem, once its moments are known to be finite."""
    moments = (problem.input_moment, problem.cross_moment, problem.target_energy)
    if all(is_concrete(a) for a in moments) and not bool(leaves_finite(moments)):
        largest = float(jnp.finfo(problem.dtype).max)
        raise ValueError(
            f"{names} must have moments below {largest:.3g}, the largest {problem.dtype}, but "
            f"their squares overflow: scale the data"
        )
    return problem


def _check_underflow(X: Array, Y: Array) -> None:
    """Refuse samples that are not zero and whose moments would be."""
    if not (is_concrete(X) and is_concrete(Y)):
        return
    least = float(jnp.finfo(X.dtype).tiny)
    inputs, targets = float(jnp.abs(X).max()), float(jnp.abs(Y).max())
    for name, size in (("X", inputs), ("Y", targets)):
        if inputs and size and inputs * size < least:
            raise ValueError(
                f"X and Y must have moments of at least {least:.3g}, the least normal {X.dtype}, "
                f"but the products of entries of X (at most {inputs:.3g}) and {name} (at most "
                f"{size:.3g}) underflow: scale the data"
            )


def regression(X: Float[Array, "n k_0"], Y: Float[Array, "n k_d"]) -> MomentProblem:
    """Least squares: risk ``1/(2n) sum_i ||y_i - W x_i||^2``.

    Only the moments enter a step. A reference to the samples is kept for minibatches; where
    ``n < k_0`` their factor in an orthonormal basis of their span replaces the moments of the
    inputs. Derivatives in ``X`` exist in that case only where the samples are independent.

    Args:
        X: inputs, one row a sample, ``(n, k_0)``.
        Y: targets, ``(n, k_d)``, or ``(n,)`` for one output.

    Raises:
        TypeError: for complex, object or text arrays.
        ValueError: for empty, NaN or infinite data, rows that do not match, or moments that
            overflow or underflow.

    Source: Radhakrishnan et al. 2020, eq. 2.

    Example:
        >>> import alignjax as aj
        >>> problem = aj.regression([[1.0, 0.0], [0.0, 2.0]], [[1.0], [1.0]])
        >>> aj.risk(problem, ([[1.0, 0.5]],)).item()
        0.0
    """
    inputs = as_real(X, "X", ndim=2)
    targets = _as_targets(Y, inputs.shape[0])
    dtype = jnp.result_type(inputs, targets)
    inputs, targets = inputs.astype(dtype), targets.astype(dtype)
    _check_underflow(inputs, targets)
    problem, span = _moments_of(inputs, targets)
    basis, coordinates = (None, inputs) if span is None else span  # samples stay where they lie
    problem = replace(problem, basis=basis, inputs=coordinates, targets=targets)
    return _check_range(problem, "X and Y")


@on_automatic_axes
def _moments_of(inputs: Array, targets: Array) -> tuple[MomentProblem, tuple[Array, Array] | None]:
    """What sums over samples, and where ``n < k_0`` the basis and coordinates in it."""
    inputs, basis = in_span(inputs)
    count = inputs.shape[0]
    input_moment = matmul(inputs.T, inputs) / count
    cross_moment = matmul(targets.T, inputs) / count
    minimizer = _minimizer(input_moment, cross_moment)
    errors = lax.stop_gradient(matmul(inputs, minimizer.T) - targets)
    problem = MomentProblem(
        input_moment,
        cross_moment,
        (targets**2).sum() / count,
        minimizer,
        0.5 * (errors**2).sum() / count,
        lax.stop_gradient(matmul(minimizer, input_moment) - cross_moment),
    )
    return problem, None if basis is None else (basis, inputs)


def autoencoding(X: Float[Array, "n k_0"]) -> MomentProblem:
    """Least squares with the inputs as targets: ``regression(X, X)``.

    Source: Radhakrishnan et al. 2020, section 4.2.
    """
    return regression(X, X)


def factorization(M: Float[Array, "k_d k_0"]) -> MomentProblem:
    """Factorize ``M``: inputs are the identity, so the risk is ``1/(2 k_0) ||M - W||_F^2``.

    Args:
        M: the matrix, shape ``(k_d, k_0)``.

    Source: Radhakrishnan et al. 2020, section 4.2.
    """
    matrix = as_real(M, "M", ndim=2)
    return regression(jnp.eye(matrix.shape[1], dtype=matrix.dtype), matrix.T)


def inversion(M: Float[Array, "k_d k_0"]) -> MomentProblem:
    """Invert ``M``: inputs are its columns, targets the identity; ``W M = I`` is wanted.

    Args:
        M: the matrix, shape ``(k_0, n)``; the network has ``k_d = n`` outputs.

    Source: Radhakrishnan et al. 2020, section 4.2.
    """
    matrix = as_real(M, "M", ndim=2)
    return regression(matrix.T, jnp.eye(matrix.shape[1], dtype=matrix.dtype))


def from_moments(
    input_moment: Float[Array, "k_0 k_0"],
    cross_moment: Float[Array, "k_d k_0"],
    target_energy: Any,
) -> MomentProblem:
    """Least squares from moments alone, as :class:`alignjax.moments.Moments` collects them.

    Args:
        input_moment: ``Sigma_xx = X^T X / n``, symmetric and positive semidefinite.
        cross_moment: ``Sigma_yx = Y^T X / n``, with rows in the range of ``Sigma_xx``.
        target_energy: ``(1/n) sum ||y_i||^2``.

    Raises:
        ValueError: if the shapes do not match, ``input_moment`` is not symmetric or has a negative
            eigenvalue, or no data have these moments.
    """
    moment = as_real(input_moment, "input_moment", ndim=2)
    cross = as_real(cross_moment, "cross_moment", ndim=2)
    energy = as_real(target_energy, "target_energy", ndim=0)
    if moment.shape[0] != moment.shape[1]:
        raise ValueError(f"input_moment must be square, got shape {moment.shape}")
    if cross.shape[1] != moment.shape[0]:
        raise ValueError(
            f"cross_moment must be (k_d, {moment.shape[0]}) to match input_moment "
            f"{moment.shape}, got {cross.shape}"
        )
    dtype = jnp.result_type(moment, cross, energy)
    moment, cross, energy = moment.astype(dtype), cross.astype(dtype), energy.astype(dtype)
    moment, cross, energy, minimizer, explained = _explained(moment, cross, energy)
    if all(is_concrete(a) for a in (moment, cross, energy)):
        _check_moments(moment, cross, energy, minimizer, explained)
    floor = 0.5 * jnp.maximum(lax.stop_gradient(energy) - explained, 0.0)
    slope = lax.stop_gradient(matmul(minimizer, moment) - cross)
    return MomentProblem(moment, cross, energy, minimizer, floor, slope)


@on_automatic_axes
def _explained(moment: Array, cross: Array, energy: Array) -> tuple[Array, ...]:
    """The moments, the minimizer and the energy that it explains."""
    minimizer = _minimizer(moment, cross)
    return moment, cross, energy, minimizer, lax.stop_gradient(jnp.vdot(minimizer, cross))


def refuse_indefinite(moment: Array) -> None:
    """Stop at what is no moment of inputs: not symmetric, or with a negative eigenvalue.

    Entries may differ from their mirror images by ``100 eps`` of the largest one, and eigenvalues
    lie ``30 sqrt(k_0) eps`` of the largest one below 0: more than roundoff ever does to a mean of
    squares, and as little for wide inputs as for narrow ones.

    Raises:
        ValueError: if it is neither.
    """
    # NumPy throughout: JAX would trace these constants where the caller is being traced.
    matrix, eps = np.asarray(moment), float(np.finfo(moment.dtype).eps)
    largest = float(np.abs(matrix).max())
    if largest == 0:
        return
    matrix = matrix / matrix.dtype.type(largest)  # norms of it neither overflow nor vanish
    skew = float(np.abs(matrix - matrix.T).max())
    if skew > 100 * eps:
        raise ValueError(
            f"input_moment must be symmetric, but an entry differs from its mirror image by "
            f"{skew * largest:.3g}"
        )
    tolerance = 30 * len(matrix) ** 0.5 * eps * _largest_eigenvalue(matrix)
    try:
        # It exists if and only if no eigenvalue is below -tolerance, at a fraction of their cost.
        np.linalg.cholesky(matrix + tolerance * np.eye(len(matrix), dtype=matrix.dtype))
    except np.linalg.LinAlgError as error:
        lowest = float(np.linalg.eigvalsh(matrix)[0]) * largest
        raise ValueError(
            f"input_moment must be positive semidefinite, but has the eigenvalue {lowest:.3g}"
        ) from error


def _largest_eigenvalue(matrix: np.ndarray) -> float:
    """A lower bound of the largest absolute one, rarely far from it: ten steps of its power."""
    vector = matrix[int(np.abs(matrix).max(0).argmax())]
    size = float(np.linalg.norm(vector))
    for _ in range(10):
        vector = matrix @ (vector / size)
        size = float(np.linalg.norm(vector))
    return size


def _check_moments(
    moment: Array, cross: Array, energy: Array, minimizer: Array, explained: Array
) -> None:
    refuse_indefinite(moment)
    tolerance = 100 * moment.shape[0] * float(jnp.finfo(moment.dtype).eps)
    size = jnp.abs(cross).max()
    unit = jnp.where(size > 0, size, 1.0)  # no square of what is left of it overflows
    outside = float(jnp.linalg.norm((matmul(minimizer, moment) - cross) / unit))
    if outside > tolerance**0.5 * float(jnp.linalg.norm(cross / unit)):
        raise ValueError(
            f"cross_moment must have its rows in the range of input_moment, but "
            f"{outside * float(unit):.3g} of its norm lies outside: no data have these moments"
        )
    if float(energy) < float(explained) * (1 - tolerance**0.5):
        raise ValueError(
            f"target_energy must be at least {float(explained):.6g}, the energy that these moments "
            f"explain, got {float(energy):.6g}"
        )


def sensing(matrices: Float[Array, "n k_d k_0"], values: Float[Array, " n"]) -> SensingProblem:
    """Matrix sensing: risk ``1/(2n) sum_i (y_i - <M_i, W>)^2``.

    Args:
        matrices: measurement matrices ``M_i``, shape ``(n, k_d, k_0)``.
        values: measured values ``y_i``, shape ``(n,)``.

    Raises:
        ValueError: for empty or non-finite data, or shapes that do not match.

    Source: Radhakrishnan et al. 2020, section 4.2.
    """
    stack = as_real(matrices, "matrices", ndim=3)
    measured = as_real(values, "values", ndim=1)
    if stack.shape[0] != measured.shape[0]:
        raise ValueError(
            f"values must hold one number a matrix: {stack.shape[0]} matrices, got {measured.shape}"
        )
    dtype = jnp.result_type(stack, measured)
    return SensingProblem(stack.astype(dtype), measured.astype(dtype))
