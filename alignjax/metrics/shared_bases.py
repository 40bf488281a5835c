"""Whether layers share bases, from commutators of their Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._validation import as_callable, as_count, as_key, as_weights, as_widths
from alignjax.linalg import matmul
from alignjax.metrics._norms import norm, ratio, stack, to_unit_norm, unit

__all__ = ["alignment", "chain_alignment", "chance_alignment"]


def alignment(weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, " d-1"]:
    """How nearly neighbouring layers share a basis, from the commutator of their Gram matrices.

        a_i = 1 - sqrt(2) ||[M, N]||_F / (||M||_F ||N||_F),  M = W_{i+1}^T W_{i+1},  N = W_i W_i^T

    It is 1 exactly where the pair commutes, hence where some usSVDs have ``U_i = V_{i+1}``. For
    positive semidefinite matrices the commutator is at most ``||M|| ||N|| / sqrt(2)``, so 0 is the
    least. Random layers are far from 0: independent Gaussian ones of width ``k`` come out near
    ``1 - 1/sqrt(k)``, .94 at 256, so compare with :func:`chance_alignment`. All pairs may be
    aligned while the chain is not: see :func:`chain_alignment`.

    Args:
        weights: layers ``(W_1, ..., W_d)``, ``W_i`` of shape ``(k_i, k_{i-1})``.

    Returns:
        Shape ``(d-1,)``, in [0, 1]; 1 where a layer of the pair is zero.

    Raises:
        TypeError, ValueError: if ``weights`` are no real matrices that chain.

    Source: a basis-free form of Radhakrishnan et al. 2020, Definition 2; the printed metric
    (section 6) differs and is :func:`singular_vector_alignment`.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import alignment
        >>> tilted = jnp.array([[1.0, 1.0], [0.0, 0.0]])
        >>> alignment((jnp.diag(jnp.array([2.0, 1.0])), jnp.eye(2), tilted)).round(3).tolist()
        [1.0, 1.0]
        >>> alignment((jnp.diag(jnp.array([1.0, 0.0])), tilted)).round(3).tolist()
        [0.0]
    """
    layers = [unit(w) for w in as_weights(weights)]
    return stack([_pair_alignment(a, b) for a, b in pairwise(layers)], layers[0].dtype)


def chance_alignment(
    key: Array,
    widths: Sequence[int],
    *,
    samples: int = 1000,
    of: Callable[[Sequence[Array]], Array] | None = None,
) -> Float[Array, " d-1"]:
    """The mean of a measure of alignment over independent Gaussian layers: its chance level.

    At a vertex of width ``k``, between widths ``m`` and ``n``, where
    ``E ||[M, N]||_F^2 = 2 k m n (k-1) (k+2)`` for entries of deviation 1, it is near

        1 - 2 sqrt((k-1) (k+2) / (k (m+k+1) (n+k+1)))    for alignment, 1 - 1/sqrt(k) if m = n = k,
        1 - 2 sqrt((k-1) (k+2) / (k^3 m n))              for chain_alignment, 1 - 2/k^1.5,

    as ratios of expectations, right to about .01 from ``k = 16`` on: .94 and .9995 at width 256.

    Args:
        key: a JAX random key.
        widths: ``(k_0, ..., k_d)``.
        samples: over how many networks the mean is taken.
        of: the measure, a function of the weights; None means :func:`alignment`.

    Returns:
        Shape ``(d-1,)``, in the default float; its standard error falls like ``samples ** -0.5``.

    Raises:
        TypeError, ValueError: if an argument is no key, no widths, no positive count or no
            function.

    Source: not in the papers; alignment means little without it.

    Example:
        >>> import jax
        >>> from alignjax.metrics import chain_alignment, chance_alignment
        >>> chance_alignment(jax.random.key(0), (4, 4, 4), samples=100).shape
        (1,)
        >>> chain = chance_alignment(jax.random.key(0), (64,) * 5, samples=10, of=chain_alignment)
        >>> chain.round(3).tolist()
        [0.996, 0.996, 0.996]
    """
    key, widths = as_key(key), as_widths(widths)
    measure = alignment if of is None else as_callable(of, "of")
    samples = as_count(samples, "samples", minimum=1)
    shapes = list(zip(widths[1:], widths[:-1], strict=True))

    def one(key: Array) -> Array:
        keys = jax.random.split(key, len(shapes))
        return measure([jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)])

    # Wide layers are drawn a few at a time, so that memory does not grow with the samples.
    batch = max(1, min(samples, 2**20 // sum(rows * columns for rows, columns in shapes)))
    return jax.lax.map(one, jax.random.split(key, samples), batch_size=batch).mean(0)


def chain_alignment(weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, " d-1"]:
    """How nearly the whole chain shares common bases, at every interior vertex.

        c_i = 1 - sqrt(2) max_{j < i < k} ||[A_j A_j^T, B_k^T B_k]||_F,
        A_j = W_i ... W_{j+1},  B_k = W_k ... W_{i+1},  of layers scaled to ||W_l||_F = 1

    Bases ``P_0, ..., P_d`` with all ``P_i^T W_i P_{i-1}`` diagonal make every ``c_i`` 1. The test
    of neighbours alone is weaker: with ``W_2 = I`` it passes whatever ``W_1`` and ``W_3`` are. The
    commutators are divided by the layers' norms, not by the products', because an aligned chain can
    have a zero product; products of many layers are small at that scale, and so is their defect.
    Chance is near 1 on this scale: four independent Gaussian layers of width ``k`` come out near
    ``1 - 2/k^1.5``, .996 at 64; see :func:`chance_alignment`.

    Args:
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        Shape ``(d-1,)``, in [0, 1], one value for each of the vertices ``1, ..., d-1``.

    Raises:
        TypeError, ValueError: if ``weights`` are no real matrices that chain.

    Source: Radhakrishnan et al. 2020, Definition 2 (the printed one leaves open whether one basis
    for each vertex is meant; here it is).

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import alignment, chain_alignment
        >>> w_1, w_3 = jnp.diag(jnp.array([1.0, 0.0])), jnp.array([[1.0, 1.0], [0.0, 0.0]])
        >>> alignment((w_1, jnp.eye(2), w_3)).round(3).tolist()
        [1.0, 1.0]
        >>> chain_alignment((w_1, jnp.eye(2), w_3)).round(3).tolist()
        [0.5, 0.5]
    """
    layers = [to_unit_norm(w) for w in as_weights(weights)]
    values = []
    for i in range(1, len(layers)):
        before, after = _running_products(layers, i)
        defects = jnp.stack([_commutator_norm(m, n) for m in after for n in before])
        values.append(jnp.clip(1.0 - 2**0.5 * defects.max(), 0.0, 1.0))
    return stack(values, layers[0].dtype)


def _commutator_norm(m: Array, n: Array) -> Array:
    """``||[M, N]||_F`` of symmetric matrices, from one product."""
    product = matmul(m, n)
    return norm(product - product.T)


def _pair_alignment(before: Array, after: Array) -> Array:
    m, n = matmul(after.T, after), matmul(before, before.T)
    defect = ratio(_commutator_norm(m, n), norm(m) * norm(n), otherwise=0.0)
    return jnp.clip(1.0 - 2**0.5 * defect, 0.0, 1.0)


def _running_products(layers: list[Array], vertex: int) -> tuple[list[Array], list[Array]]:
    """All ``A_j A_j^T`` below a vertex and all ``B_k^T B_k`` above it (see chain_alignment)."""
    before, after = [], []
    product = jnp.eye(layers[vertex].shape[1], dtype=layers[0].dtype)
    for w in reversed(layers[:vertex]):
        product = matmul(product, w)
        before.append(matmul(product, product.T))
    product = jnp.eye(layers[vertex].shape[1], dtype=layers[0].dtype)
    for w in layers[vertex:]:
        product = matmul(w, product)
        after.append(matmul(product.T, product))
    return before, after
