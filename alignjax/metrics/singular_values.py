"""What layers' Gram matrices and singular values tell: balance, and the nearness to rank 1."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._validation import as_weights
from alignjax.linalg import matmul
from alignjax.metrics._norms import largest, norm, ratio, stack, unit

__all__ = ["balancedness", "spectral_ratio"]


def balancedness(weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, " d-1"]:
    """How far neighbouring layers are from balanced.

        ||W_{i+1}^T W_{i+1} - W_i W_i^T||_F

    Gradient flow conserves each difference. Gradient descent with learning rate ``eta`` changes it
    by ``eta^2 (G_{i+1}^T G_{i+1} - G_i G_i^T)`` in a step, with ``G_i`` the gradients: the drift is
    of order ``eta^2`` a step, hence of order ``eta`` over a fixed time, which takes ``1 / eta``
    steps.

    Args:
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        Shape ``(d-1,)``, in squared units of the weights; 0 for balanced layers, ``inf`` where no
        float is large enough.

    Raises:
        TypeError, ValueError: if ``weights`` are no real matrices that chain.

    Source: Ji & Telgarsky 2019, eq. 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import balancedness
        >>> balancedness((jnp.array([[2.0]]), jnp.array([[3.0]]))).tolist()
        [5.0]
    """
    layers = as_weights(weights)
    values = []
    for before, after in pairwise(layers):
        # Taken out before squaring: layers of 1e200 may be balanced, but have no finite squares.
        scale = jnp.maximum(largest(before), largest(after))
        a, b = (ratio(w, scale, otherwise=0.0) for w in (before, after))
        values.append(scale * (scale * norm(matmul(b.T, b) - matmul(a, a.T))))
    return stack(values, layers[0].dtype)


def spectral_ratio(weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, " d"]:
    """The spectral over the Frobenius norm of each layer, ``||W_i||_2 / ||W_i||_F``.

    It lies between ``min(k_i, k_{i-1}) ** -0.5`` and 1, and is 1 exactly for rank 1. A zero layer
    gets 1: no rank-1 part is missing from it.

    Args:
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        Shape ``(d,)``.

    Raises:
        TypeError, ValueError: if ``weights`` are no real matrices that chain.

    Source: Ji & Telgarsky 2019, Figure 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import spectral_ratio
        >>> spectral_ratio((jnp.diag(jnp.array([3.0, 4.0])), jnp.zeros((2, 2)))).round(3).tolist()
        [0.8, 1.0]
    """
    layers = [unit(w) for w in as_weights(weights)]
    ratios = [ratio(jnp.linalg.norm(w, 2), norm(w), otherwise=1.0) for w in layers]
    return jnp.minimum(jnp.stack(ratios), 1.0)
