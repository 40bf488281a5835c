"""Which numbers are roundoff: the one rule for ranks, floors and zeros.

A part of a computed matrix counts as zero where it is at most some ``eps`` of the size of what it
was computed from:

- an eigenvalue of ``Sigma_xx``, or a singular value of a given matrix, where it is at most
  ``relative_roundoff`` of the largest one;
- a part of ``Sigma_yx`` where its norm is at most ``norm_roundoff`` of :func:`cross_scale`, which
  bounds the norm of ``Sigma_yx`` for any data and which cancellation does not shrink.

All of it takes NumPy and JAX arrays, traced ones too.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

A = TypeVar("A", bound=Any)
"""A NumPy or a JAX array; the answer is of the same kind."""


def relative_roundoff(dtype: Any, *sizes: int, samples: int | None = None) -> float:
    """The share of the largest eigenvalue or singular value that roundoff may be.

        eps (8 + max(sizes) + sqrt(n) / 4)

    The convention for the rank of a matrix, ``max(sizes) eps``, is too strict for small matrices,
    which pass through several operations too, and for means of ``n`` products, whose roundoff is a
    random walk.

    Args:
        dtype: the precision that the data had, however precise the arrays at hand are.
        sizes: the matrix's dimensions.
        samples: ``n``, if the matrix is a mean over samples and their number is known.
    """
    return _eps(dtype) * (8 + max(sizes, default=1) + _walk(samples))


def norm_roundoff(dtype: Any, *sizes: int, samples: int | None = None) -> float:
    """The share of a Frobenius norm that the norm of the roundoff may be.

        eps (8 + sqrt(max(sizes)) + sqrt(n) / 4)

    Args:
        dtype: the precision that the data had.
        sizes: the matrix's dimensions.
        samples: ``n``, if the matrix is a mean over samples and their number is known.
    """
    return _eps(dtype) * (8 + max(sizes, default=1) ** 0.5 + _walk(samples))


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def _walk(samples: int | None) -> float:
    return 0.25 * (samples or 0) ** 0.5


def above(values: A, roundoff: float, scale: Any = None) -> A:
    """Which values are more than ``roundoff`` of ``scale``, by default of the largest size.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax._roundoff import above, relative_roundoff
        >>> above(jnp.array([2.0, 1e-17, -1.0]), relative_roundoff(float, 3, 3)).tolist()
        [True, False, False]
    """
    if scale is None:
        scale = abs(values).max(initial=0)
    return values > roundoff * scale


def cleared(values: A, roundoff: float, scale: Any = None) -> A:
    """The values, and exactly 0 where they are not :func:`above` roundoff."""
    xp = np if isinstance(values, np.ndarray) else jnp
    return xp.where(above(values, roundoff, scale), values, xp.zeros_like(values))


def power(values: A, exponent: float) -> A:
    """``values^exponent`` of values of at least 0, with finite derivatives at exact zeros.

    A root makes roundoff large: clear the values first.
    """
    xp = np if isinstance(values, np.ndarray) else jnp
    known = values > 0
    return xp.where(known, xp.where(known, values, 1) ** exponent, 0).astype(values.dtype)


def row_rank(rows: np.ndarray, dtype: Any) -> int:
    """The rank of rows, each in units of its norm: a small row is not a dependent one.

    Args:
        rows: shape ``(m, n)``.
        dtype: the precision that the rows had; not a float means that they are exact.
    """
    rows = np.asarray(rows, np.float64)
    rows = rows / np.maximum(abs(rows).max(axis=1, keepdims=True), np.finfo(float).tiny)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.linalg.svd(rows / np.where(norms > 0, norms, 1.0), compute_uv=False)
    known = dtype if jnp.issubdtype(dtype, jnp.floating) else np.float64
    return int(above(values, relative_roundoff(known, *rows.shape)).sum())


def cross_scale(input_moment: A, target_energy: Any) -> A:
    """``sqrt(tr Sigma_xx) sqrt(mean ||y||^2)``, the size that ``Sigma_yx`` is judged against."""
    xp = np if isinstance(input_moment, np.ndarray) else jnp
    # Two roots: the product of the two could overflow.
    trace = xp.maximum(xp.trace(input_moment), 0)
    return xp.sqrt(trace) * xp.sqrt(xp.maximum(target_energy, 0))


def ties(values: np.ndarray, roundoff: float) -> np.ndarray:
    """For descending values, the number of each one's group: those within roundoff of its first.

    Example:
        >>> import numpy as np
        >>> from alignjax._roundoff import ties
        >>> ties(np.array([2.0, 1.0, 1.0 - 1e-16, 0.0]), 1e-15).tolist()
        [0, 1, 1, 2]
    """
    groups: list[int] = []
    first: float | None = None
    allowed = roundoff * abs(values).max(initial=0)
    for value in values.tolist():
        if first is None or first - value > allowed:
            groups.append(groups[-1] + 1 if groups else 0)
            first = value
        else:
            groups.append(groups[-1])
    return np.array(groups, int)
