"""How nearly inputs and targets share their directions: the paper's standing assumption, measured.

Rows are samples here and matrices act on columns, so what the paper calls U, singular vectors on
the side of the inputs, is V as everywhere in this library.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._roundoff import above, cleared
from alignjax._validation import as_count, describe
from alignjax.closed_forms._elementary import without_derivative
from alignjax.linalg import matmul
from alignjax.problems import MomentProblem, from_moments
from alignjax.theory.sequential.moments import (
    CheckedMoments,
    Norm,
    as_norm,
    checked_moments,
    symmetric_norm,
)

__all__ = [
    "JointDecomposition",
    "commutation_gap",
    "isotropy_bound",
    "isotropy_gap",
    "joint_decomposition",
    "unperturbed",
]

Completion = Literal["thin", "full"]


class JointDecomposition(NamedTuple):
    """``Sigma_xx = V (diag(λ) + B) V^T`` and ``Sigma_yx = U D V^T`` with ``D`` diagonal.

    Attributes:
        U: orthonormal columns on the side of the outputs, ``(k_d, r)``, square in a full one.
        V: orthonormal columns on the side of the inputs, ``(k_0, r)``; in a full one ``(k_0, m)``,
            m the dimension of the span of the inputs where there are fewer samples than inputs,
            else ``k_0``.
        target_spectrum: σ, the diagonal of D, descending, ``(r,)`` with ``r = min(k_d, m)``;
            exactly 0 where it is roundoff.
        input_spectrum: λ, the diagonal of ``V^T Sigma_xx V``, one entry a column of V.
        B: the rest of ``V^T Sigma_xx V``, with a zero diagonal.
        epsilon: the spectral norm of B.
    """

    U: Array
    V: Array
    target_spectrum: Array
    input_spectrum: Array
    B: Array
    epsilon: Array


def joint_decomposition(problem: Any, *, completion: Completion = "full") -> JointDecomposition:
    """The singular vectors of ``Sigma_yx``, and what of ``Sigma_xx`` is not diagonal in them.

    Where singular values tie, all of ``Sigma_yx = U D V^T`` leaves a rotation open; the one that
    makes ``Sigma_xx`` diagonal among the tied directions is taken. Directions without a target are
    tied too, so that in them, the completion of V, ``Sigma_xx`` is diagonal.

    Args:
        problem: a problem with the squared loss, or :class:`alignjax.Moments`.
        completion: ``"full"`` for all directions of the inputs, which costs the eigenvectors of a
            ``(k_0, k_0)`` matrix, or ``"thin"`` for ``min(k_0, k_d)`` of them.

    Returns:
        A :class:`JointDecomposition`; a thin one does not give ``Sigma_xx`` back.

    Raises:
        TypeError: for another problem, or if its derivative is asked for: singular vectors have
            none where values tie.
        ValueError: for another ``completion``, or moments that are not symmetric and positive
            semidefinite.

    Source: Gidel et al. 2019, Assumption 1, eq. 13.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> parts = aj.theory.sequential.joint_decomposition(aj.autoencoding(jnp.eye(3)))
        >>> float(parts.epsilon)
        0.0
    """
    moments = checked_moments(problem, "joint_decomposition")
    U, V, sigma, moved = _decompose(moments, _as_completion(completion), "joint_decomposition")
    inputs = jnp.diagonal(moved)
    B = _off_diagonal(moved)
    if moments.basis is not None:
        V = matmul(moments.basis, V)
    return JointDecomposition(U, V, sigma, inputs, B, symmetric_norm(B, "spectral"))


def _as_completion(completion: Any) -> Completion:
    if not isinstance(completion, str) or completion not in ("thin", "full"):
        raise ValueError(f"completion must be 'thin' or 'full', got {completion!r}")
    return cast(Completion, completion)


def _off_diagonal(matrix: Array) -> Array:
    return matrix * (1 - jnp.eye(matrix.shape[0], dtype=matrix.dtype))


def _decompose(
    moments: CheckedMoments, completion: Completion, function: str
) -> tuple[Array, Array, Array, Array]:
    """``U``, ``V``, σ and ``V^T Sigma_xx V``, in coordinates of the span of the inputs."""
    inputs, cross = without_derivative(
        (moments.input_moment, moments.cross_moment),
        f"{function} has no derivative: it depends on singular vectors one by one, which turn "
        f"discontinuously where singular values tie",
    )
    U, sigma, Vt = jnp.linalg.svd(cross, full_matrices=completion == "full")
    sigma = cleared(sigma, 1.0, jnp.maximum(moments.roundoff * sigma[0], moments.cross_noise))
    V = Vt.T
    padded = jnp.zeros(V.shape[1], sigma.dtype).at[: sigma.shape[0]].set(sigma)
    apart = above(padded[:-1] - padded[1:], moments.roundoff, padded[0])
    cluster = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(apart)])
    turn = _diagonalize_clusters(matmul(matmul(V.T, inputs), V), cluster)
    V = matmul(V, turn)
    # U turns with V, but not in directions that no target reaches.
    reached = sigma > 0
    r = sigma.shape[0]
    turn_U = jnp.where(reached[:, None] & reached[None], turn[:r, :r], jnp.eye(r, dtype=turn.dtype))
    U = U.at[:, :r].set(matmul(U[:, :r], turn_U))
    return U, V, sigma, matmul(matmul(V.T, inputs), V)


def _diagonalize_clusters(matrix: Array, cluster: Array) -> Array:
    """An orthogonal matrix that diagonalizes each diagonal block of a semidefinite matrix.

    Blocks of one entry need no rotation. The others are scaled to norm 1 and shifted apart, so that
    each is diagonalized to the roundoff of its own size times the number of such blocks.
    """
    size = matrix.shape[0]
    mates = cluster[:, None] == cluster[None]
    blocks = jnp.where(mates, matrix, 0.0)
    # The largest sum of a row bounds the norm, and no square underflows.
    bound = jax.ops.segment_max(jnp.abs(blocks).sum(1), cluster, size)[cluster]
    blocks = blocks / jnp.where(bound > 0, bound, 1.0)[None]
    several = jax.ops.segment_sum(jnp.ones_like(cluster), cluster, size) > 1
    shift = jnp.where(several, jnp.cumsum(several) - 1, several.sum())[cluster]
    order = jnp.argsort(shift, stable=True)
    alone = ~several[cluster]
    blocks = jnp.where(alone[:, None], 0.0, blocks) - 2.0 * jnp.diag(shift.astype(matrix.dtype))
    turn = jnp.linalg.eigh(blocks[order][:, order])[1][:, ::-1]
    turn = jnp.zeros_like(turn).at[order[:, None], order].set(turn)
    turn = jnp.where(mates, turn, 0.0)
    turn = jnp.where(alone, jnp.eye(size, dtype=turn.dtype), turn)
    # One step of Newton's for the polar factor makes up for the roundoff that was set to 0.
    return turn + 0.5 * matmul(turn, jnp.eye(size, dtype=turn.dtype) - matmul(turn.T, turn))


def unperturbed(problem: MomentProblem) -> MomentProblem:
    """The same problem with ``B = 0``: ``Sigma_xx`` becomes ``V diag(λ) V^T``.

    Its moments commute, so it has a certificate and closed forms, which is what training on the
    problem itself is compared with to measure the effect of B.

    Args:
        problem: a problem with the squared loss.

    Returns:
        A problem with the same targets, without samples.

    Raises:
        TypeError: for another problem, or if its derivative is asked for.
        ValueError: for moments that are not symmetric and positive semidefinite.

    Source: Gidel et al. 2019, Theorem 1, eq. 15, the part for ``ε = 0``.

    Example:
        >>> import alignjax as aj, numpy as np
        >>> X, Y = np.random.default_rng(0).standard_normal((2, 20, 3))
        >>> problem = aj.theory.sequential.unperturbed(aj.regression(X, Y))
        >>> aj.theory.alignment.certify(problem).verdict
        'yes'
    """
    if not isinstance(problem, MomentProblem):
        raise TypeError(f"problem must have the squared loss, got {describe(problem)}")
    moments = checked_moments(problem, "unperturbed")
    _, V, _, moved = _decompose(moments, "full", "unperturbed")
    inputs = matmul(V * jnp.diagonal(moved)[None], V.T)
    plain = from_moments(0.5 * (inputs + inputs.T), moments.cross_moment, problem.target_energy)
    return replace(plain, basis=problem.basis)


def commutation_gap(
    moments: Any, *, norm: Norm = "fro", completion: Completion = "thin"
) -> Float[Array, ""]:
    """How far the singular vectors of ``Sigma_yx`` are from diagonalizing ``Sigma_xx``.

        Δxy = ||B|| / ||Sigma_xx||,   B = V^T Sigma_xx V without its diagonal

    Singular vectors are counted where singular values are above roundoff. That is the thin V, of at
    most ``k_d`` columns. A square V has more, of which ``Sigma_yx`` says nothing: those that a
    library returns are arbitrary, and so is the gap they give. ``"full"`` takes the ones that
    diagonalize ``Sigma_xx`` among themselves, the completion that the assumption asks for; what is
    added is the coupling between both parts. 0 for autoencoding and whitened inputs. Only matrices
    with ``k_d`` columns are decomposed, unless the norm of ``Sigma_xx`` needs its eigenvalues.

    Args:
        moments: :class:`alignjax.Moments`, or a problem with the squared loss.
        norm: ``"fro"``, ``"spectral"`` or ``"nuclear"``.
        completion: ``"thin"`` or ``"full"``.

    Returns:
        The gap; in [0, 1] for the Frobenius norm.

    Raises:
        TypeError: for other data, or if its derivative is asked for: singular vectors have none
            where values tie.
        ValueError: for another ``norm`` or ``completion``, no samples, or moments that are not
            symmetric and positive semidefinite.

    Source: Gidel et al. 2019, eq. 27, where the gap's norm and V's shape are left open: Frobenius
    norms and the thin V give the printed size.

    Example:
        >>> import alignjax as aj, numpy as np
        >>> X = np.random.default_rng(0).standard_normal((20, 3))
        >>> float(aj.theory.sequential.commutation_gap(aj.autoencoding(X))) < 1e-14
        True
    """
    name, chosen = as_norm(norm), _as_completion(completion)
    data = checked_moments(moments, "commutation_gap").of_unit_size()
    _, V, sigma, moved = _decompose(data, "thin", "commutation_gap")
    counted = sigma > 0
    B = _off_diagonal(jnp.where(counted[:, None] & counted[None], moved, 0.0))
    if chosen == "full":
        V = jnp.where(counted[None], V, 0.0)
        # What V couples to is known by its Gram matrix, of which a triangular root is enough.
        beyond = matmul(data.input_moment, V)
        beyond = beyond - matmul(V, matmul(V.T, beyond))
        beyond = beyond - matmul(V, matmul(V.T, beyond))
        coupling = jnp.linalg.qr(beyond, mode="r")
        B = jnp.block([[B, coupling.T], [coupling, jnp.zeros(2 * coupling.shape[:1], B.dtype)]])
    return symmetric_norm(B, name) / symmetric_norm(data.input_moment, name)


def isotropy_gap(moments: Any, *, norm: Norm = "fro") -> Float[Array, ""]:
    """How far ``Sigma_xx`` is from a multiple of the identity.

        Δx = 1/2 || Sigma_xx / ||Sigma_xx|| - I / ||I|| ||

    Args:
        moments: :class:`alignjax.Moments`, or a problem with the squared loss.
        norm: ``"fro"``, ``"spectral"`` or ``"nuclear"``.

    Returns:
        The gap, in [0, 1]; in the Frobenius norm at most :func:`isotropy_bound`. Differentiable;
        at multiples of the identity, where it has a kink, the derivative is given as 0.

    Raises:
        TypeError: for other data.
        ValueError: for another ``norm``, no samples, or moments that are not symmetric and positive
            semidefinite.

    Source: Gidel et al. 2019, eq. 27.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> float(aj.theory.sequential.isotropy_gap(aj.autoencoding(jnp.eye(4))))
        0.0
    """
    name = as_norm(norm)
    data = checked_moments(moments, "isotropy_gap").of_unit_size()
    inside, width = data.input_moment, data.input_width
    size = {"fro": width**0.5, "spectral": 1.0, "nuclear": float(width)}[name]
    m = inside.shape[0]
    scaled = inside / symmetric_norm(inside, name)
    gap = symmetric_norm(scaled - jnp.eye(m, dtype=inside.dtype) / size, name)
    if m < width:
        # Outside of the span of the inputs there is only the identity's part.
        outside = {"fro": (1 - m / width) ** 0.5, "spectral": 1.0, "nuclear": 1 - m / width}[name]
        if name == "fro":
            gap = jnp.hypot(gap, outside)
        else:
            gap = jnp.maximum(gap, outside) if name == "spectral" else gap + outside
    return 0.5 * gap


def isotropy_bound(input_width: int) -> float:
    """The largest isotropy gap that any inputs of width ``k_0`` can have, in Frobenius norms.

        Δx <= 1/2 sqrt(2 - 2 / sqrt(k_0))

    reached by inputs of rank 1, since ``tr Sigma_xx >= ||Sigma_xx||_F``.

    Args:
        input_width: ``k_0``, at least 1.

    Returns:
        The bound.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is below 1.

    Source: Gidel et al. 2019, Table 1, whose entry for MNIST is above it.

    Example:
        >>> import alignjax as aj
        >>> round(aj.theory.sequential.isotropy_bound(784), 3)
        0.694
    """
    width = as_count(input_width, "input_width", minimum=1)
    return 0.5 * (2 - 2 / width**0.5) ** 0.5
