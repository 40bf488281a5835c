"""How much of each layer stays diagonal in bases that were fixed before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignjax._validation import as_raw, as_real, as_weights, describe, is_concrete
from alignjax.linalg import matmul
from alignjax.metrics._norms import ratio, unit

__all__ = ["invariance", "strong_invariance"]


def invariance(
    weights: Sequence[Float[Array, "k_i k_j"]],
    start: Sequence[Float[Array, "k_i k_j"]] | None = None,
    *,
    bases: Sequence[Float[Array, "k k"]] | None = None,
) -> Float[Array, " d"]:
    """How much of each layer stays diagonal in the start's bases, where alignment must keep them.

    With ``E(M)`` the share of ``||M||_F^2`` that lies on the diagonal of ``M``,

        E(U_i(0)^T W_i V_i(0))         1 < i < d,
        E(U_1(0)^T W_1 W_1^T U_1(0))   i = 1, whose right basis may move,
        E(V_d(0)^T W_d^T W_d V_d(0))   i = d, whose left basis may move.

    A single layer has no basis that must stay, and gets 1.

    Args:
        weights: layers ``(W_1, ..., W_d)`` now.
        start: the layers at the start, whose own singular vectors are the bases. These are
            arbitrary where singular values of a layer repeat, and then the result depends on the
            algorithm: pass ``bases`` instead.
        bases: ``(P_0, ..., P_d)``, ``P_i`` orthogonal ``(k_i, k_i)``, for ``U_i = P_i`` and
            ``V_i = P_{i-1}``; their entries of ``P_i^T P_i - I`` may reach the square root of
            their dtype's epsilon.

    Returns:
        Shape ``(d,)``, in [0, 1]; 1 for a zero layer.

    Raises:
        TypeError: if not exactly one of ``start`` and ``bases`` is given, or one is no sequence.
        ValueError: if shapes do not fit ``weights``, or concrete ``bases`` are not orthogonal.

    Source: Radhakrishnan et al. 2020, Definition 3; the printed metric (section 6) averages inner
    products of singular vectors and is ill defined.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import invariance
        >>> start = (jnp.diag(jnp.array([2.0, 1.0])), jnp.diag(jnp.array([2.0, 1.0])))
        >>> turned = start[0] @ jnp.array([[0.6, 0.8], [-0.8, 0.6]])
        >>> invariance((turned, start[1]), start).round(3).tolist()
        [1.0, 1.0]
    """
    layers, frames = _frames(weights, start, bases)
    last = len(layers) - 1
    if last == 0:
        return jnp.ones((1,), jnp.result_type(*layers, *frames[0]))
    shares = []
    for i, (w, (u, v)) in enumerate(zip(layers, frames, strict=True)):
        if i == 0:
            inside = matmul(u.T, w)
            shares.append(_diagonal_share(matmul(inside, inside.T)))
        elif i == last:
            inside = matmul(w, v)
            shares.append(_diagonal_share(matmul(inside.T, inside)))
        else:
            shares.append(_diagonal_share(matmul(matmul(u.T, w), v)))
    return jnp.stack(shares)


def strong_invariance(
    weights: Sequence[Float[Array, "k_i k_j"]],
    start: Sequence[Float[Array, "k_i k_j"]] | None = None,
    *,
    bases: Sequence[Float[Array, "k k"]] | None = None,
) -> Float[Array, " d"]:
    """How much of each layer stays diagonal in the start's bases, outer bases included.

        E(U_i(0)^T W_i V_i(0)),  E(M) = sum_j M_jj^2 / ||M||_F^2

    Args:
        weights: layers ``(W_1, ..., W_d)`` now.
        start: the layers at the start; see :func:`invariance` for repeated singular values.
        bases: ``(P_0, ..., P_d)`` in place of ``start``.

    Returns:
        Shape ``(d,)``, in [0, 1]; 1 for a zero layer.

    Raises:
        TypeError: if not exactly one of ``start`` and ``bases`` is given, or one is no sequence.
        ValueError: if shapes do not fit ``weights``, or concrete ``bases`` are not orthogonal.

    Source: Radhakrishnan et al. 2020, Definition 3 (strong alignment).

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import strong_invariance
        >>> turned = jnp.array([[0.6, 0.8], [-0.8, 0.6]])
        >>> strong_invariance((turned,), bases=(jnp.eye(2), jnp.eye(2))).round(3).tolist()
        [0.36]
    """
    layers, frames = _frames(weights, start, bases)
    return jnp.stack(
        [
            _diagonal_share(matmul(matmul(u.T, w), v))
            for w, (u, v) in zip(layers, frames, strict=True)
        ]
    )


def _diagonal_share(matrix: Array) -> Array:
    """The diagonal's share of the energy, as 1 minus the rest's: exact near 1."""
    rows, columns = matrix.shape
    diagonal = jnp.arange(rows)[:, None] == jnp.arange(columns)[None]
    rest = jnp.where(diagonal, 0.0, matrix**2).sum()
    return 1.0 - ratio(rest, rest + jnp.where(diagonal, matrix**2, 0.0).sum(), otherwise=0.0)


def _frames(
    weights: Sequence[Array], start: Sequence[Array] | None, bases: Sequence[Array] | None
) -> tuple[list[Array], list[tuple[Array, Array]]]:
    """Layers of unit scale, and for each the left and right basis ``(U_i, V_i)`` of the start."""
    layers = as_weights(weights)
    if (start is None) == (bases is None):
        raise TypeError(
            "exactly one of start and bases is expected, got "
            + ("neither" if start is None else "both")
        )
    if start is not None:
        frames = _singular_bases(as_weights(start, name="start"), [w.shape for w in layers])
    else:
        matrices = _as_bases(bases, (layers[0].shape[1], *(w.shape[0] for w in layers)))
        frames = list(zip(matrices[1:], matrices[:-1], strict=True))
    return [unit(w) for w in layers], frames


def _singular_bases(
    start: tuple[Array, ...], expected: list[tuple[int, ...]]
) -> list[tuple[Array, Array]]:
    shapes = [w.shape for w in start]
    if shapes != expected:
        raise ValueError(f"start must have the shapes of weights, {expected}, got {shapes}")
    decompositions = [jnp.linalg.svd(unit(w), full_matrices=True) for w in start]
    return [(u, vt.T) for u, _, vt in decompositions]


def _as_bases(bases: Any, widths: tuple[int, ...]) -> list[Array]:
    """``(P_0, ..., P_d)``, checked."""
    if not isinstance(bases, Sequence) or isinstance(bases, (str, bytes)):
        raise TypeError(f"bases must be a tuple (P_0, ..., P_d) of matrices, got {describe(bases)}")
    if len(bases) != len(widths):
        raise ValueError(
            f"bases must hold one matrix a width, {len(widths)} for the widths {widths}, got "
            f"{len(bases)}"
        )
    return [
        _as_orthogonal(p, f"bases[{i}]", k)
        for i, (p, k) in enumerate(zip(bases, widths, strict=True))
    ]


def _as_orthogonal(value: Any, name: str, size: int) -> Array:
    matrix = as_real(value, name, ndim=2)
    if matrix.shape != (size, size):
        raise ValueError(f"{name} must be of shape {(size, size)}, got {matrix.shape}")
    # What came, not the array made of it: that is traced where the call is.
    raw = as_raw(value, name)
    if is_concrete(raw):
        exact = np.asarray(raw, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            defect = np.abs(exact.T @ exact - np.eye(size)).max()
        allowed = float(jnp.finfo(matrix.dtype).eps) ** 0.5
        if not defect <= allowed:
            raise ValueError(
                f"{name} must be orthogonal, but P^T P differs from the identity by {defect:.3g}, "
                f"and {allowed:.2g} is allowed in {matrix.dtype}"
            )
    return matrix
