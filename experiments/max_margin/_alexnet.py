"""AlexNet for images of 32 × 32 pixels, and its two starts."""

from __future__ import annotations

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

CHANNELS = (3, 64, 192, 384, 256, 256)
FIRST_STRIDE = 2
# after these convolutions, counted from 0
POOLED = (0, 1, 4)
DENSE_WIDTHS = (1024, 4096, 4096, 10)
# of 32 pixels a side, one stride and three poolings leave 2
SIDE_LEFT = 2
EQUAL_NORM = 4.0
# the library's switch to float64 must not double the cost of this network
DTYPE = jnp.float32


class AlexNet(eqx.Module):
    """Five convolutions, three poolings and three dense layers, with ReLUs; no dropout.

    It is the variant whose first convolution is 3 × 3 with stride 2, so that 256 channels of 2 × 2
    pixels, 1024 numbers, enter the dense layers; with the default widths these are the shapes that
    Ji & Telgarsky 2019 name.

    Attributes:
        convolutions: 3 × 3, padding 1.
        dense: weights of shapes ``(4096, 1024)``, ``(4096, 4096)``, ``(10, 4096)``, with biases.
    """

    convolutions: tuple[eqx.nn.Conv2d, ...]
    dense: tuple[eqx.nn.Linear, ...]

    def __init__(
        self,
        key: Array,
        channels: tuple[int, ...] = CHANNELS,
        dense_widths: tuple[int, ...] = DENSE_WIDTHS,
    ) -> None:
        """Start as PyTorch does by default: all uniform within ``fan_in ** -0.5`` of 0.

        Raises:
            ValueError: if what the convolutions leave does not fit the first dense layer.
        """
        left = channels[-1] * SIDE_LEFT**2
        if dense_widths[0] != left:
            raise ValueError(f"dense_widths[0]: expected {left}, got {dense_widths[0]}")
        keys = iter(jax.random.split(key, len(channels) + len(dense_widths) - 2))
        # Equinox draws weights and biases of both kinds of layer as PyTorch does
        self.convolutions = tuple(
            eqx.nn.Conv2d(*pair, 3, FIRST_STRIDE if i == 0 else 1, 1, dtype=DTYPE, key=next(keys))
            for i, pair in enumerate(pairwise(channels))
        )
        self.dense = tuple(
            eqx.nn.Linear(*pair, dtype=DTYPE, key=next(keys)) for pair in pairwise(dense_widths)
        )

    def __call__(self, image: Float[Array, "3 32 32"]) -> Float[Array, " classes"]:
        """The scores of one image's classes."""
        x = image
        for i, convolution in enumerate(self.convolutions):
            x = jax.nn.relu(convolution(x))
            if i in POOLED:
                x = pool(x)
        x = x.ravel()
        for layer in self.dense[:-1]:
            x = jax.nn.relu(layer(x))
        return self.dense[-1](x)


def pool(
    x: Float[Array, "channels rows columns"],
) -> Float[Array, "channels half_rows half_columns"]:
    """Largest values of blocks of 2 × 2; a maximum over axes is quick to differentiate."""
    channels, rows, columns = x.shape
    return x.reshape(channels, rows // 2, 2, columns // 2, 2).max(axis=(2, 4))


def with_equal_norms(network: AlexNet, key: Array, norm: float = EQUAL_NORM) -> AlexNet:
    """The network with dense weights that are Gaussian and rescaled to one Frobenius norm each.

    Convolutions and biases stay as they are.
    """
    weights = []
    for layer, layer_key in zip(
        network.dense, jax.random.split(key, len(network.dense)), strict=True
    ):
        draw = jax.random.normal(layer_key, layer.weight.shape, DTYPE)
        weights.append(norm / jnp.linalg.norm(draw) * draw)
    return eqx.tree_at(dense_weights, network, tuple(weights))


def dense_weights(network: AlexNet) -> tuple[Array, ...]:
    """The weights of the dense layers, first to last."""
    return tuple(layer.weight for layer in network.dense)


def risk(
    network: AlexNet, images: Float[Array, "n 3 32 32"], labels: Int[Array, " n"]
) -> Float[Array, ""]:
    """Mean cross-entropy."""
    scores = jax.vmap(network)(images)
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()
