"""What the functions of a problem's moments take, and the checks that it really holds moments."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, cast, get_args, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from alignjax._roundoff import cross_scale, norm_roundoff, relative_roundoff
from alignjax._validation import as_real, describe, is_concrete
from alignjax.problems import MomentProblem
from alignjax.problems.least_squares import refuse_indefinite

Norm = Literal["fro", "spectral", "nuclear"]


@runtime_checkable
class StreamedMoments(Protocol):
    """Moments as :class:`alignjax.Moments` accumulates them."""

    count: Any
    input_moment: Any
    cross_moment: Any


class CheckedMoments(NamedTuple):
    """Moments in coordinates of the span of the inputs.

    Attributes:
        input_moment: ``Sigma_xx``, shape ``(m, m)``.
        cross_moment: ``Sigma_yx``, shape ``(k_d, m)``.
        basis: orthonormal columns ``(k_0, m)``, or None where ``m = k_0``.
        cross_noise: the norm that the roundoff of ``Sigma_yx`` may have, judged against inputs and
            targets where their energy is known.
        roundoff: the share of the largest singular value that may be roundoff.
    """

    input_moment: Array
    cross_moment: Array
    basis: Array | None
    cross_noise: Array
    roundoff: float

    @property
    def input_width(self) -> int:
        """``k_0``."""
        return (self.input_moment if self.basis is None else self.basis).shape[0]

    def of_unit_size(self) -> CheckedMoments:
        """The same up to factors: both moments with a largest entry of 1, whose squares exist."""
        inputs, cross = _size(self.input_moment), _size(self.cross_moment)
        return self._replace(
            input_moment=self.input_moment / inputs,
            cross_moment=self.cross_moment / cross,
            cross_noise=self.cross_noise / cross,
        )


def checked_moments(value: Any, function: str) -> CheckedMoments:
    """The moments of a problem or of a stream.

    Raises:
        TypeError: if ``value`` is neither.
        ValueError: if no sample was seen, shapes do not match, or the input moment vanishes, is not
            symmetric or has a negative eigenvalue.
    """
    if not isinstance(value, (MomentProblem, StreamedMoments)):
        raise TypeError(
            f"{function} takes Moments, or a problem with the squared loss as made by regression, "
            f"autoencoding, factorization, inversion or from_moments, got {describe(value)}"
        )
    basis = None
    if isinstance(value, MomentProblem):
        basis = value.basis
    elif is_concrete(value.count) and int(value.count) == 0:
        raise ValueError(f"{function} takes moments of at least one sample, got count = 0")
    inputs = as_real(value.input_moment, "input_moment", ndim=2)
    cross = as_real(value.cross_moment, "cross_moment", ndim=2)
    if inputs.shape != (cross.shape[1],) * 2:
        raise ValueError(
            f"input_moment must be (k_0, k_0) and cross_moment (k_d, k_0), got {inputs.shape} and "
            f"{cross.shape}"
        )
    dtype = jnp.result_type(inputs, cross)
    inputs, cross = inputs.astype(dtype), cross.astype(dtype)
    if is_concrete(inputs):
        if not np.asarray(inputs).any():
            raise ValueError("input_moment must not vanish, got zeros only")
        refuse_indefinite(inputs)
    samples = value.sample_count if isinstance(value, MomentProblem) else None
    # A stream of moments need not know the energy of its targets.
    energy = jnp.asarray(getattr(value, "target_energy", 0.0), dtype)
    noise = norm_roundoff(dtype, *cross.shape, samples=samples) * cross_scale(inputs, energy)
    roundoff = relative_roundoff(dtype, *cross.shape, samples=samples)
    return CheckedMoments(inputs, cross, basis, lax.stop_gradient(noise), roundoff)


def _size(matrix: Array) -> Array:
    size = lax.stop_gradient(jnp.abs(matrix).max())
    return jnp.where(size > 0, size, 1.0)


def as_norm(norm: Any) -> Norm:
    """The name of a norm of symmetric matrices.

    Raises:
        ValueError: for another name.
    """
    if not isinstance(norm, str) or norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")
    return cast(Norm, norm)


def symmetric_norm(matrix: Array, norm: Norm) -> Array:
    """The norm of a symmetric matrix, by its eigenvalues where entries do not tell."""
    if norm == "fro":
        squares = (matrix**2).sum()
        positive = squares > 0  # the root's derivative at 0 is infinite
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
    values = jnp.abs(jnp.linalg.eigvalsh(matrix))
    return values.max() if norm == "spectral" else values.sum()
