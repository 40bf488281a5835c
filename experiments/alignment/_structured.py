"""What the experiments on structured layers share: starts, images, metrics of one run or many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import alignjax as aj
from alignjax import datasets
from alignjax.linalg import matmul, traceless
from alignjax.structures import Conv2d, Structure
from experiments.images import training_digits

Coefficients = tuple[jax.Array, ...]

DEPTH = 3
KERNEL = 3
# Deep-learning frameworks draw the taps of a layer from U(-b, b) with b = 1 / sqrt(fan-in).
DEFAULT_BOUND = 1 / KERNEL
# A share of a Gram matrix below which nothing but roundoff is left of its anisotropic part.
ISOTROPIC = 1e-10


def default_start(key: jax.Array) -> Coefficients:
    """The default taps of 3x3 convolutions of one channel without biases: U(-1/3, 1/3)."""
    bound = DEFAULT_BOUND
    keys = jax.random.split(key, DEPTH)
    return tuple(jax.random.uniform(k, (KERNEL**2,), minval=-bound, maxval=bound) for k in keys)


def aligned_start(key: jax.Array) -> Coefficients:
    """Taps of layers that are aligned to each other exactly, at the scale of the default start.

    A kernel that equals its rotation by half a turn gives a symmetric matrix, with either padding,
    and multiples of one symmetric matrix share its eigenvectors.
    """
    kernel_key, scale_key = jax.random.split(key)
    (taps, *_) = default_start(kernel_key)
    taps = (taps + taps[::-1]) / 2
    # the expected norm of default taps is 1 / sqrt(3) whatever the number of taps
    taps = taps / (jnp.linalg.norm(taps) * 3**0.5)
    return tuple(s * taps for s in jax.random.uniform(scale_key, (DEPTH,), minval=0.5, maxval=1.5))


def image_rows(count: int, *, shrink: int) -> tuple[np.ndarray, str]:
    """The first training images, standardized, one a row, and a note on what they are.

    Args:
        count: how many images.
        shrink: side of the blocks of pixels that are averaged where the images are MNIST's.
    """
    images = training_digits()[:count]
    rows = datasets.flatten(images)
    if images.name == "MNIST":
        return block_means(rows, shrink), "MNIST"
    return rows, f"{images.name} stand in for MNIST"


def block_means(rows: np.ndarray, side: int) -> np.ndarray:
    """Square images, one a row, with each block of ``side x side`` pixels replaced by its mean."""
    size = image_size(rows) // side
    return rows.reshape(-1, size, side, size, side).mean((2, 4)).reshape(len(rows), -1)


def image_size(rows: np.ndarray) -> int:
    """The side of the square images in the rows."""
    return round(rows.shape[1] ** 0.5)


def loss_per_risk(rows: np.ndarray) -> float:
    """The mean of squared errors over images and pixels, over this library's risk."""
    return 2 / rows.shape[1]


def orthonormal_rate(structure: Conv2d, rate: float) -> float:
    """The rate in orthonormal coordinates that is comparable to ``rate`` on raw taps.

    Descent on raw taps has the rate ``rate * norms[j]**2`` in orthonormal coordinates; this is the
    mean over the taps.
    """
    return rate * float((structure.norms**2).mean())


@partial(jax.jit, static_argnames="structure")
def misalignment(structure: Structure, coefficients: Coefficients) -> tuple[jax.Array, jax.Array]:
    """How far networks are from aligned: the plain metric and one that leaves scalars out.

    The first is the largest over pairs of layers of ``1 - alignment``. The second is the largest of
    ``||[M, N]|| / (sqrt(2) ||M_0|| ||N_0||)``, in [0, 1], where ``M = W_{i+1}^T W_{i+1}``,
    ``N = W_i W_i^T``, and ``M_0``, ``N_0`` are without their multiples of the identity, which
    commute with everything. A network on its way to multiples of the identity looks aligned to the
    first and not to the second.

    Args:
        structure: of all layers.
        coefficients: one vector a layer, each with a leading axis of networks.

    Returns:
        Two arrays of shape ``(m,)``. Networks come one after the other, to bound the memory.
    """

    def one(c: Coefficients) -> tuple[jax.Array, jax.Array]:
        layers = aj.structures.matrices(structure, c)
        plain = 1 - aj.metrics.alignment(layers).min()
        return plain, jnp.stack([_directional(w, v) for w, v in pairwise(layers)]).max()

    return lax.map(one, coefficients)


def _directional(below: jax.Array, above: jax.Array) -> jax.Array:
    n, share_n = _anisotropic(matmul(below, below.T))
    m, share_m = _anisotropic(matmul(above.T, above))
    product = matmul(m, n)
    commutator = jnp.linalg.norm(product - product.T) / 2**0.5
    return jnp.where(jnp.minimum(share_n, share_m) > ISOTROPIC, commutator, 0.0)


def _anisotropic(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The traceless part at unit norm, and its share of the matrix's norm."""
    rest = traceless(gram)
    size = jnp.linalg.norm(rest)
    return rest / jnp.maximum(size, jnp.finfo(gram.dtype).tiny), size / jnp.linalg.norm(gram)


def off_centre(structure: Conv2d, coefficients: Coefficients) -> jax.Array:
    """The largest over layers of ``||W - c I||_F / ||W||_F``, ``c`` the centre's tap."""
    weight = jnp.ones(structure.dim) if structure.coordinates == "orthonormal" else structure.norms
    centre = jnp.arange(structure.dim) == structure.dim // 2
    shares = []
    for c in coefficients:
        energy = (jnp.asarray(weight) * c) ** 2
        shares.append(jnp.sqrt(jnp.where(centre, 0.0, energy).sum(-1) / energy.sum(-1)))
    return jnp.stack(shares).max(0)


def require_converged(name: str, statuses: Sequence[Any]) -> None:
    """Stop where a run diverged: its numbers would be of another experiment.

    Raises:
        RuntimeError: a status is ``DIVERGED``.
    """
    if any((np.asarray(status) == aj.Status.DIVERGED).any() for status in statuses):
        raise RuntimeError(f"{name}: training diverged")
