"""Chains of structured layers: their matrices, their outputs, and the checks of both arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._validation import as_count, describe
from alignjax.structures.base import Structure

__all__ = ["as_structures", "check_coefficients", "forward", "matrices"]


def as_structures(
    structure: Structure | Sequence[Structure], depth: int | None = None
) -> tuple[Structure, ...]:
    """One structure a layer, of shapes that chain.

    Args:
        structure: one structure, used for each of ``depth`` layers, or a sequence, one a layer.
        depth: the number of layers; None takes the length of ``structure``.

    Returns:
        A tuple of ``depth`` structures.

    Raises:
        TypeError: if ``structure`` is no structure or sequence of them.
        ValueError: if there are not ``depth`` of them, or their shapes do not chain.

    Example:
        >>> from alignjax.structures import Diagonal
        >>> as_structures(Diagonal(3), depth=2) == (Diagonal(3), Diagonal(3))
        True
    """
    if depth is not None:
        depth = as_count(depth, "depth", minimum=1)
    if isinstance(structure, Structure):
        layers: tuple[Structure, ...] = (structure,) * (1 if depth is None else depth)
    elif isinstance(structure, Sequence) and not isinstance(structure, (str, bytes)):
        layers = tuple(structure)
        for i, layer in enumerate(layers):
            if not isinstance(layer, Structure):
                raise TypeError(f"structure[{i}] must be a layer structure, got {describe(layer)}")
    else:
        raise TypeError(
            f"structure must be a layer structure, as Conv2d(28, 3), or a tuple of them, one a "
            f"layer, got {describe(structure)}"
        )
    if not layers:
        raise ValueError("structure must hold at least one layer, got an empty sequence")
    if depth is not None and len(layers) != depth:
        raise ValueError(
            f"structure must hold one structure a layer, or be one for all: got {len(layers)} for "
            f"{depth} layers"
        )
    for i in range(1, len(layers)):
        if layers[i].shape[1] != layers[i - 1].shape[0]:
            raise ValueError(
                f"structure does not chain: layer {i} of shape {layers[i].shape} takes "
                f"{layers[i].shape[1]} inputs, but layer {i - 1} of shape {layers[i - 1].shape} "
                f"gives {layers[i - 1].shape[0]}"
            )
    return layers


def check_coefficients(
    structure: Structure | Sequence[Structure],
    coefficients: Sequence[Float[Array, " dim"]],
    *,
    name: str = "weights",
) -> tuple[tuple[Structure, ...], tuple[Array, ...]]:
    """The layers' structures, and their coefficients in one dtype.

    Args:
        structure: one structure for all layers, or one a layer.
        coefficients: ``(c_1, ..., c_d)``, ``c_i`` of shape ``(dim_i,)``: lists, numpy or JAX
            arrays.
        name: what messages call the coefficients.

    Returns:
        ``(structures, coefficients)``, two tuples of length ``d``.

    Raises:
        TypeError: if either is no sequence of what it should be.
        ValueError: if their number or lengths do not fit, or values are not finite.

    Example:
        >>> from alignjax.structures import Diagonal
        >>> check_coefficients(Diagonal(2), ([1, 2], [3, 4]))[1]
        (Array([1., 2.], dtype=float64), Array([3., 4.], dtype=float64))
    """
    return _check(structure, coefficients, name, finite=True)


def matrices(
    structure: Structure | Sequence[Structure], state: Sequence[Float[Array, " dim"]]
) -> tuple[Array, ...]:
    """The layers' matrices ``(W_1, ..., W_d)`` of a state of coefficients.

    Args:
        structure: one structure for all layers, or one a layer.
        state: the coefficients ``(c_1, ..., c_d)``, ``c_i`` of shape ``(dim_i,)``.

    Returns:
        ``(W_1, ..., W_d)``, ``W_i`` of shape ``(k_i, k_{i-1})``.

    Raises:
        TypeError, ValueError: as :func:`check_coefficients`.

    Source: Radhakrishnan et al. 2020, Definition 4.

    Example:
        >>> from alignjax.structures import Diagonal
        >>> [W.shape for W in matrices(Diagonal(2), ([1, 2], [3, 4]))]
        [(2, 2), (2, 2)]
    """
    layers, vectors = _check(structure, state, "state", finite=False)
    return tuple(layer.matrix(c) for layer, c in zip(layers, vectors, strict=True))


def forward(
    structure: Structure | Sequence[Structure],
    coefficients: Sequence[Float[Array, " dim"]],
    x: Float[Array, "*n k_0"],
) -> Float[Array, "*n k_d"]:
    """The network's outputs ``W_d ... W_1 x``, layer by layer, by each structure's own operation.

    Args:
        structure: one structure for all layers, or one a layer.
        coefficients: ``(c_1, ..., c_d)``, ``c_i`` of shape ``(dim_i,)``.
        x: inputs in rows, shape ``(..., k_0)``.

    Returns:
        Outputs, shape ``(..., k_d)``.

    Raises:
        TypeError, ValueError: as :func:`check_coefficients`, or if ``x`` does not fit.

    Example:
        >>> from alignjax.structures import Diagonal
        >>> forward(Diagonal(2), ([1, 2], [3, 4]), [[1, 1]])
        Array([[3., 8.]], dtype=float64)
    """
    layers, vectors = _check(structure, coefficients, "coefficients", finite=False)
    out: Any = x
    for layer, c in zip(layers, vectors, strict=True):
        out = layer.apply(c, out)
    return out


def _check(
    structure: Any, coefficients: Any, name: str, *, finite: bool
) -> tuple[tuple[Structure, ...], tuple[Array, ...]]:
    if not isinstance(coefficients, Sequence) or isinstance(coefficients, (str, bytes)):
        raise TypeError(
            f"{name} must be a tuple (c_1, ..., c_d) of coefficients, one vector a layer, got "
            f"{describe(coefficients)}"
        )
    if len(coefficients) == 0:
        raise ValueError(f"{name} must hold at least one layer, got an empty sequence")
    layers = as_structures(structure, len(coefficients))
    vectors = []
    for i, (layer, given) in enumerate(zip(layers, coefficients, strict=True)):
        vectors.append(layer.check(given, f"{name}[{i}]", finite=finite))
    dtype = jnp.result_type(*vectors)
    return layers, tuple(c.astype(dtype) for c in vectors)
