"""What the experiments on linear autoencoders share: starts, projectors, distances to them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.closed_forms import mode_flow
from alignjax.linalg import matmul

PAPER = "Gidel et al. 2019"


def symmetric_start(key: jax.Array, width: int, hidden: int, delta: float) -> tuple[jax.Array, ...]:
    """A Gaussian ``W_1 = W_2^T`` whose product has mean ``e^{-2 delta} hidden / width I``."""
    inner = jnp.exp(-delta) * jax.random.normal(key, (hidden, width)) / jnp.sqrt(width)
    return inner, inner.T


def principal_components(moment: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues, largest first, and eigenvectors in columns: uncentred PCA."""
    values, vectors = jnp.linalg.eigh(moment)
    return values[::-1], vectors[:, ::-1]


def leading_projectors(vectors: jax.Array, count: int) -> jax.Array:
    """The projectors on the first 1, ..., ``count`` columns, shape ``(count, k, k)``."""
    columns = vectors[:, :count].T
    return jnp.cumsum(columns[:, :, None] * columns[:, None, :], axis=0)


def distances(products: jax.Array, projectors: jax.Array) -> jax.Array:
    """``||W - P_k||_F`` for each ``W`` ``(T, k, k)`` and projector, shape ``(T, count)``."""
    return jnp.linalg.norm(products[:, None] - projectors, axis=(-2, -1))


def predicted_distances(spectrum: np.ndarray, start: np.ndarray, delta: float) -> np.ndarray:
    """How near the closed form's path comes to the projectors, from modes at ``start`` ``(K,)``."""
    times = np.geomspace(0.5 / spectrum[0], 3 / spectrum[-1], 4000)[:, None] * delta
    modes = np.asarray(mode_flow(times, start, spectrum, spectrum))
    return np.linalg.norm(modes[:, None] - np.tri(len(start)), axis=-1).min(0)


def expected_error(product: jax.Array, signal: jax.Array, noise: jax.Array) -> jax.Array:
    """The error on new samples ``x = s + e`` of the estimate ``W x`` of ``s``, relative.

    ``(tr[(W - I) C (W - I)^T] + noise^2 ||W||_F^2) / tr C`` with ``C = E[s s^T]``, ``e`` white.
    """
    off = product - jnp.eye(product.shape[0])
    lost = jnp.vdot(matmul(off, signal), off)
    return (lost + noise**2 * jnp.sum(product**2)) / jnp.trace(signal)
