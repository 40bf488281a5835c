"""Linear algebra of chains of layers: products, gradients through them, common bases.

A network is a tuple ``(W_1, ..., W_d)``, ``W_i`` of shape ``(k_i, k_{i-1})``, and maps ``x`` to
``W_d ... W_1 x``. Everything here asks for full-precision products, which accelerators do not give
by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce, wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignjax._validation import as_raw, as_real, as_weights

__all__ = [
    "chain_gradients",
    "end_to_end",
    "guarded",
    "joint_diagonalize",
    "leave_one_out_products",
    "matmul",
    "narrowest",
    "narrowest_vertex",
    "split_products",
    "traceless",
    "ussvd",
]

T = TypeVar("T")

matmul = partial(jnp.matmul, precision="highest")
"""Matrix product in full precision on every platform."""


def narrowest(widths: Sequence[int]) -> int:
    """The index ``b`` of the narrowest width ``k_b``; the output's, then the input's, wins ties.

    All products of a gradient can be arranged so that each has ``k_b`` as one of its dimensions.
    """
    smallest = min(widths)
    return len(widths) - 1 if widths[-1] == smallest else widths.index(smallest)


def narrowest_vertex(weights: Sequence[Array]) -> int:
    """:func:`narrowest` of the widths of these layers."""
    return narrowest([weights[0].shape[1], *(w.shape[0] for w in weights)])


def _products_to_the_left(layers: Sequence[Array]) -> list[Array | None]:
    """``[W_b...W_1, W_b...W_2, ..., W_b, None]`` for ``layers = (W_1, ..., W_b)``; None is I."""
    out: list[Array | None] = [None]
    for layer in reversed(layers):
        out.append(layer if out[-1] is None else matmul(out[-1], layer))
    return out[::-1]


def _products_to_the_right(layers: Sequence[Array]) -> list[Array | None]:
    """``[None, W_1, W_2 W_1, ..., W_b...W_1]`` for ``layers = (W_1, ..., W_b)``; None is I."""
    out: list[Array | None] = [None]
    for layer in layers:
        out.append(layer if out[-1] is None else matmul(layer, out[-1]))
    return out


def split_products(weights: Sequence[Array]) -> tuple[Array | None, Array | None]:
    """``(W_d...W_{b+1}, W_b...W_1)`` at the narrowest vertex ``b``; None is the identity."""
    b = narrowest_vertex(weights)
    return _products_to_the_right(weights[b:])[-1], _products_to_the_left(weights[:b])[0]


def end_to_end(weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, "k_d k_0"]:
    """The product ``W_d ... W_1`` of all layers, contracted from the narrowest width outwards.

    Args:
        weights: layers ``(W_1, ..., W_d)``, ``W_i`` of shape ``(k_i, k_{i-1})``.

    Returns:
        The end-to-end matrix, shape ``(k_d, k_0)``.

    Raises:
        TypeError: if ``weights`` is no sequence of real matrices.
        ValueError: if the shapes do not chain.

    Source: Radhakrishnan et al. 2020, eq. 1.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> aj.end_to_end((2.0 * jnp.eye(2), 3.0 * jnp.eye(2)))[0, 0].item()
        6.0
    """
    return join(*split_products(as_weights(weights)))


def join(outer: Array | None, inner: Array | None) -> Array:
    """The product of the two halves of :func:`split_products`."""
    if outer is None or inner is None:
        only = inner if outer is None else outer
        assert only is not None  # a network has at least one layer
        return only
    return matmul(outer, inner)


def chain_gradients(
    weights: Sequence[Array],
    pullback: Callable[[Array | None, Array | None], tuple[T, Array | None, Array | None]],
) -> tuple[T, tuple[Array, ...]]:
    """Gradients of a function of the end-to-end matrix in every layer, sharing all products.

    With ``A = W_d...W_{b+1}``, ``B = W_b...W_1`` at the narrowest vertex ``b`` and ``E`` the
    gradient in the product ``AB``,

        dW_i = (W_b...W_{i+1})^T (A^T E) (W_{i-1}...W_1)^T       for i <= b,
        dW_i = (W_d...W_{i+1})^T (E B^T) (W_{i-1}...W_{b+1})^T   for i > b,

    so that ``E`` itself need not be formed and every product has ``k_b`` as a dimension.

    Args:
        weights: layers that chain.
        pullback: ``(A, B) -> (value, A^T E, E B^T)``, with None for an identity ``A`` or ``B``; the
            part that its None makes useless is ignored.

    Returns:
        ``value`` and the tuple of gradients, shaped like ``weights``.
    """
    b = narrowest_vertex(weights)
    inner, outer = weights[:b], weights[b:]
    lefts = _products_to_the_left(inner)
    rights = _products_to_the_right(outer)
    value, into_inner, into_outer = pullback(rights[-1], lefts[0])

    gradients: list[Array] = []
    signal = into_inner
    for layer, left in zip(inner, lefts[1:], strict=True):
        assert signal is not None
        gradients.append(signal if left is None else matmul(left.T, signal))
        if left is not None:
            signal = matmul(signal, layer.T)

    tail: list[Array] = []
    signal = into_outer
    for layer, right in zip(reversed(outer), reversed(rights[:-1]), strict=True):
        assert signal is not None
        tail.append(signal if right is None else matmul(signal, right.T))
        if right is not None:
            signal = matmul(layer.T, signal)
    return value, (*gradients, *reversed(tail))


def leave_one_out_products(factors: Sequence[Float[Array, " r"]]) -> tuple[Array, ...]:
    """``out_i = prod_{j != i} factors_j`` entry by entry, without a division.

    A tuple, not an array: stacking would keep several steps of a recursion from becoming one pass.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.linalg import leave_one_out_products
        >>> [x.item() for x in leave_one_out_products(jnp.array([2.0, 3.0, 0.0]))]
        [0.0, 0.0, 6.0]
    """
    before, after = [jnp.ones_like(factors[0])], [jnp.ones_like(factors[0])]
    for i in range(len(factors) - 1):
        before.append(before[-1] * factors[i])
        after.append(after[-1] * factors[-1 - i])
    return tuple(b * a for b, a in zip(before, reversed(after), strict=True))


def traceless(matrix: Float[Array, "*batch k k"]) -> Float[Array, "*batch k k"]:
    """``M - (tr M / k) I``, what of a square matrix is no multiple of the identity.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.linalg import traceless
        >>> traceless(jnp.array([[3.0, 1.0], [1.0, 1.0]])).tolist()
        [[1.0, 1.0], [1.0, -1.0]]
    """
    k = matrix.shape[-1]
    mean = jnp.trace(matrix, axis1=-2, axis2=-1)[..., None, None] / k
    return matrix - mean * jnp.eye(k, dtype=matrix.dtype)


def ussvd(
    matrix: Float[Array, "m n"],
) -> tuple[Float[Array, "m m"], Float[Array, "m n"], Float[Array, "n n"]]:
    """An unsorted, signed singular value decomposition ``A = U S V^T`` with square ``U`` and ``V``.

    Any order and any signs satisfy the definition; this returns the sorted, nonnegative one.

    Args:
        matrix: shape ``(m, n)``.

    Returns:
        ``U (m, m)`` orthogonal, ``S (m, n)`` diagonal, ``V (n, n)`` orthogonal.

    Raises:
        TypeError, ValueError: if ``matrix`` is no finite real matrix.

    Source: Radhakrishnan et al. 2020, Definition 1.
    """
    matrix = as_real(matrix, "matrix", ndim=2)
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=True)
    diagonal = jnp.zeros(matrix.shape, matrix.dtype)
    index = jnp.arange(s.shape[0])
    return u, diagonal.at[index, index].set(s), vt.T


def joint_diagonalize(
    matrices: Sequence[np.ndarray],
    *,
    sizes: Sequence[float] | None = None,
    tolerance: float = 1e-15,
    max_sweeps: int = 30,
) -> np.ndarray:
    """An orthogonal ``V`` that makes every ``V^T M V`` as diagonal as one basis can.

    Starts from the eigenvectors of a generic combination, which is exact unless its eigenvalues
    nearly tie, and polishes by Jacobi rotations, each the minimizer of the sum of squared
    off-diagonal entries of its plane. Host-only, in float64.

    Args:
        matrices: symmetric, all of shape ``(k, k)``.
        sizes: what each is divided by first, its norm by default. Where matrices commute up to
            errors only, sizes in proportion to the errors leave each its own share of them.
        tolerance: rotations smaller than this are not made.
        max_sweeps: an upper limit on passes over all planes.

    Returns:
        ``V``, shape ``(k, k)``.

    Source: Cardoso & Souloumiac 1996, "Jacobi angles for simultaneous diagonalization".
    """
    stack = np.stack(
        [np.asarray(as_raw(m, f"matrices[{i}]"), np.float64) for i, m in enumerate(matrices)]
    )
    norms = np.linalg.norm(stack, axis=(1, 2)) if sizes is None else np.asarray(sizes, np.float64)
    known = (norms > 0) & (stack != 0).any(axis=(1, 2))
    stack = stack[known] / norms[known, None, None]
    size = np.asarray(matrices[0]).shape[0]
    if len(stack) == 0 or size == 1:
        return np.eye(size)
    # Fixed generic weights: the same data always give the same basis.
    mix = np.random.default_rng(0).uniform(0.5, 1.5, len(stack))
    basis = np.linalg.eigh(np.tensordot(mix, stack, axes=1))[1]
    stack = basis.T @ stack @ basis
    energy = _off_diagonal_energy(stack)
    for _ in range(max_sweeps):
        if not _jacobi_sweep(stack, basis, tolerance):
            break
        before, energy = energy, _off_diagonal_energy(stack)
        # Convergence is quadratic where the matrices commute; where they do not, the optimum is
        # approached slowly and its last percent decides nothing.
        if energy > 0.99 * before:
            break
    # Thousands of rotations drift from orthogonality by roundoff; one polar step brings it back.
    u, _, vt = np.linalg.svd(basis)
    return u @ vt


def _off_diagonal_energy(stack: np.ndarray) -> float:
    off = stack**2
    off[:, np.arange(off.shape[1]), np.arange(off.shape[1])] = 0.0
    return float(off.sum())


def _jacobi_sweep(stack: np.ndarray, basis: np.ndarray, tolerance: float) -> bool:
    """One pass of rotations over all planes, in place; whether any rotation mattered."""
    size = basis.shape[0]
    off = np.sqrt((stack**2).sum(0))
    np.fill_diagonal(off, 0.0)
    if off.max() <= tolerance:
        return False
    moved = False
    # Round-robin order: every round holds disjoint planes, so that its rotations are one operation.
    players = list(range(size + size % 2))
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = [
            (min(p, q), max(p, q))
            for p, q in zip(players[:half], players[: half - 1 : -1], strict=True)
            if max(p, q) < size
        ]
        players = [players[0], players[-1], *players[1:-1]]
        p, q = np.array(pairs).T
        large = np.sqrt((stack[:, p, q] ** 2).sum(0)) > tolerance
        if large.any():
            _rotate(stack, basis, p[large], q[large])
            moved = True
    return moved


def _rotate(stack: np.ndarray, basis: np.ndarray, p: np.ndarray, q: np.ndarray) -> None:
    """Rotate the disjoint planes ``(p, q)`` by the angles that minimize their off-diagonals."""
    gap = stack[:, p, p] - stack[:, q, q]
    cross = 2.0 * stack[:, p, q]
    on = (gap**2).sum(0) - (cross**2).sum(0)
    off = 2.0 * (gap * cross).sum(0)
    angle = 0.5 * np.arctan2(off, on + np.hypot(on, off))
    c, s = np.cos(angle), np.sin(angle)
    for rows in (stack.transpose(0, 2, 1), stack, basis[None]):
        # Columns p and q of each matrix, seen through a view that is written in place.
        left, right = rows[:, :, p].copy(), rows[:, :, q].copy()
        rows[:, :, p] = c * left + s * right
        rows[:, :, q] = c * right - s * left


def leaves_finite(tree: object) -> Array:
    """Whether every number in the tree is finite, as one boolean."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return reduce(jnp.logical_and, finite)


def guarded(function: Callable[..., tuple[T, Array]]) -> Callable[..., tuple[T, Array]]:
    """``(*args) -> (out, ok)`` whose derivatives are zero, not NaN, where it is not ok.

    A run that stops before a bad state is then differentiated as if the state had never been
    looked at.
    """

    # As a number: the tangent of a truth value is of a kind that cannot be told to vary along the
    # axes of `shard_map` as its value does.
    @jax.custom_jvp
    def checked(*args: Any) -> tuple[T, Array]:
        out, ok = function(*args)
        return out, ok.astype(jnp.float32)

    @checked.defjvp
    def rule(primals: tuple, tangents: tuple) -> tuple:
        out, number = checked(*primals)
        ok = number > 0

        def mask(tangent: Any) -> Any:
            is_float0 = getattr(tangent, "dtype", None) == jax.dtypes.float0
            return tangent if is_float0 else jnp.where(ok, tangent, jnp.zeros_like(tangent))

        # Masked on both sides: the transpose meets the masks in the opposite order.
        masked = jax.tree.map(mask, tangents)
        _, tangent_out = jax.jvp(lambda *args: function(*args)[0], primals, masked)
        tangent_out = jax.tree.map(mask, tangent_out)
        return (out, number), (tangent_out, 0 * number)

    @wraps(function)
    def with_truth(*args: Any) -> tuple[T, Array]:
        out, number = checked(*args)
        return out, number > 0

    return with_truth
