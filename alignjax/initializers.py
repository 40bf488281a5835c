"""Starts of training: tuples of layers for widths ``(k_0, ..., k_d)``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._validation import as_dtype, as_key, as_real, as_widths, describe
from alignjax.bases import Certificate, NotAlignedError, certify
from alignjax.linalg import matmul
from alignjax.problems import Problem

__all__ = ["aligned", "balanced", "gaussian", "identity", "orthogonal"]

Weights = tuple[Float[Array, "k_i k_j"], ...]


def _keys(key: Array, widths: Sequence[int]) -> list[Array]:
    return list(jax.random.split(as_key(key), len(widths) - 1))


def _shapes(widths: Sequence[int]) -> list[tuple[int, int]]:
    return [(out, into) for into, out in pairwise(widths)]


def gaussian(key: Array, widths: Sequence[int], scale: Any, *, dtype: Any = None) -> Weights:
    """Independent Gaussian entries of mean 0 and standard deviation ``scale``.

    Args:
        key: a random key.
        widths: ``(k_0, ..., k_d)``.
        scale: the standard deviation of the entries; may be traced.
        dtype: of the weights; JAX's default float by default.

    Raises:
        TypeError, ValueError: for a key or widths that are none.
    """
    widths, scale = as_widths(widths), as_real(scale, "scale", ndim=0)
    dtype = as_dtype(dtype)
    return tuple(
        scale.astype(dtype) * jax.random.normal(k, shape, dtype)
        for k, shape in zip(_keys(key, widths), _shapes(widths), strict=True)
    )


def orthogonal(key: Array, widths: Sequence[int], scale: Any, *, dtype: Any = None) -> Weights:
    """``scale`` times independent uniformly random (semi-)orthogonal matrices.

    Args:
        key: a random key.
        widths: ``(k_0, ..., k_d)``.
        scale: all singular values of every layer.
        dtype: of the weights.
    """
    widths, scale = as_widths(widths), as_real(scale, "scale", ndim=0)
    dtype = as_dtype(dtype)
    draw = jax.nn.initializers.orthogonal()
    return tuple(
        scale.astype(dtype) * draw(k, shape, dtype)
        for k, shape in zip(_keys(key, widths), _shapes(widths), strict=True)
    )


def identity(widths: Sequence[int], scale: Any, *, dtype: Any = None) -> Weights:
    """``scale`` times (rectangular) identities.

    Args:
        widths: ``(k_0, ..., k_d)``.
        scale: the diagonal's value.
        dtype: of the weights.
    """
    widths, scale = as_widths(widths), as_real(scale, "scale", ndim=0)
    dtype = as_dtype(dtype)
    return tuple(scale.astype(dtype) * jnp.eye(*shape, dtype=dtype) for shape in _shapes(widths))


def balanced(key: Array, widths: Sequence[int], scale: Any, *, dtype: Any = None) -> Weights:
    """A random balanced chain: ``W_{i+1}^T W_{i+1} = W_i W_i^T`` at every interior vertex.

    The end-to-end matrix has the singular vectors of a Gaussian one. Every layer has the same
    singular values, those of a Gaussian ``(k_d, k_0)`` matrix of entries ``scale^d``, to the power
    ``1/d``, of which the ``r = min k_i`` largest are kept.

    Args:
        key: a random key.
        widths: ``(k_0, ..., k_d)``.
        scale: the entries of the end-to-end matrix have deviation ``scale^d`` before truncation.
        dtype: of the weights.

    Source: Arora et al. 2018, definition of balancedness.
    """
    widths, scale = as_widths(widths), as_real(scale, "scale", ndim=0)
    dtype = as_dtype(dtype)
    depth, rank = len(widths) - 1, min(widths)
    first, second = jax.random.split(as_key(key))
    product = jax.random.normal(first, (widths[-1], widths[0]), dtype)
    u, s, vt = jnp.linalg.svd(product, full_matrices=False)
    value = scale.astype(dtype) * s[:rank] ** (1 / depth)
    bases = _random_bases(second, widths[1:-1], rank, dtype)
    return _chain([vt.T[:, :rank], *bases, u[:, :rank]], jnp.broadcast_to(value, (depth, rank)))


def _random_bases(key: Array, widths: Sequence[int], rank: int, dtype: Any) -> list[Array]:
    """Uniformly random orthonormal columns ``(k_i, rank)``."""
    draw = jax.nn.initializers.orthogonal()
    keys = jax.random.split(key, max(len(widths), 1))
    return [draw(k, (width, rank), dtype) for k, width in zip(keys, widths, strict=False)]


def _chain(bases: Sequence[Array], singular_values: Array) -> Weights:
    """``W_i = P_i diag(s_i) P_{i-1}^T``."""
    return tuple(
        matmul(out * s[None], into.T)
        for s, into, out in zip(singular_values, bases, bases[1:], strict=False)
    )


def aligned(
    key: Array,
    problem_or_certificate: Any,
    widths: Sequence[int],
    singular_values: Float[Array, "d r"],
) -> Weights:
    """A start aligned layer to layer, and to the data: ``W_i = P_i diag(s_i) P_{i-1}^T``.

    ``P_0 = V`` and ``P_d = U`` come from the certificate, its modes in the order of descending
    target spectrum; the inner bases are uniformly random. With None for the certificate the outer
    bases are random too: the layers are aligned to each other and not to any data.

    Args:
        key: a random key.
        problem_or_certificate: a problem that meets the data condition (host-only then), what
            :func:`alignjax.theory.alignment.certify` returned, or None.
        widths: ``(k_0, ..., k_d)``.
        singular_values: ``(d, r)`` with ``r = min k_i``, any signs and order; may be traced.

    Raises:
        NotAlignedError: if the problem does not meet the data condition.
        ValueError: if shapes do not fit.

    Source: Radhakrishnan et al. 2020, Definition 2 and Theorem 1.
    """
    widths = as_widths(widths)
    values = as_real(singular_values, "singular_values", ndim=2)
    shape = (len(widths) - 1, min(widths))
    if values.shape != shape:
        raise ValueError(
            f"singular_values must be (d, r) = {shape} for widths {widths}, got {values.shape}"
        )
    first, inner, last = jax.random.split(as_key(key), 3)
    bases = _random_bases(inner, widths[1:-1], shape[1], values.dtype)
    if problem_or_certificate is None:
        ends = [
            _random_bases(k, [width], shape[1], values.dtype)[0]
            for k, width in ((first, widths[0]), (last, widths[-1]))
        ]
        return _chain([ends[0], *bases, ends[1]], values)
    certificate = problem_or_certificate
    if isinstance(certificate, Problem):
        certificate = certify(certificate)
    if not isinstance(certificate, Certificate):
        raise TypeError(
            f"problem_or_certificate must be a problem, a certificate or None, got "
            f"{describe(certificate)}"
        )
    if certificate.verdict != "yes":
        raise NotAlignedError(
            f"the data of problem_or_certificate have no common bases (verdict "
            f"{certificate.verdict!r}, residual {float(certificate.residual):.3g}), so no start is "
            f"aligned with them; pass None for layers aligned to each other only",
            float(certificate.residual),
        )
    U, V = jnp.asarray(certificate.U, values.dtype), jnp.asarray(certificate.V, values.dtype)
    if (V.shape[0], U.shape[0]) != (widths[0], widths[-1]):
        raise ValueError(
            f"widths must start with k_0 = {V.shape[0]} and end with k_d = {U.shape[0]} to fit the "
            f"data, got {widths}"
        )
    return _chain([V[:, : shape[1]], *bases, U[:, : shape[1]]], values)
