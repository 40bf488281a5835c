"""The printed alignment metric, which compares singular vectors one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._validation import as_weights
from alignjax.metrics._norms import stack, unit

__all__ = ["singular_vector_alignment"]


def singular_vector_alignment(weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, " d-1"]:
    """The mean inner product of corresponding sorted singular vectors of neighbouring layers.

        s_i = mean_j <u_{i,j}, v_{i+1,j}>,  singular values sorted downwards

    **Ill defined**: signs are the algorithm's choice, repeated singular values rotate the vectors,
    and layers that are aligned in another order do not match, so exactly aligned networks give
    anything up to 1, negative values too. Kept for comparison with the paper; use
    :func:`alignment` and :func:`chain_alignment`. Not to be differentiated.

    Args:
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        Shape ``(d-1,)``, in [-1, 1]; the mean is over the singular vectors that both layers have.

    Raises:
        TypeError, ValueError: if ``weights`` are no real matrices that chain.

    Source: Radhakrishnan et al. 2020, section 6, as printed.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import alignment, singular_vector_alignment
        >>> opposite_orders = jnp.diag(jnp.array([2.0, 1.0])), jnp.diag(jnp.array([1.0, 2.0]))
        >>> alignment(opposite_orders).tolist(), singular_vector_alignment(opposite_orders).tolist()
        ([1.0], [0.0])
    """
    layers = [unit(w) for w in as_weights(weights)]
    values = []
    for before, after in pairwise(layers):
        u = jnp.linalg.svd(before, full_matrices=False)[0]
        vt = jnp.linalg.svd(after, full_matrices=False)[2]
        count = min(u.shape[1], vt.shape[0])
        values.append(jnp.clip((u[:, :count] * vt[:count].T).sum(0).mean(), -1.0, 1.0))
    return stack(values, layers[0].dtype)
