"""The same problems, seen through what a network gives for a few inputs.

Layers that are not stored as matrices are known by what they do to vectors. All that a problem asks
of such a network is its outputs ``O`` at certain inputs, one row each: the samples where any loss
is allowed, and for the squared loss the eigenvectors of the inputs' moment, at most ``min(n, k_0)``
of them, on which the risk is a sum over rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax.linalg import matmul

__all__ = ["ByOutputs", "MomentsByOutputs", "SensingByOutputs"]


class ByOutputs(Protocol):
    """A risk as a function of the outputs ``(m, k_d)`` at ``inputs (m, k_0)``."""

    @property
    def inputs(self) -> Array:
        """The inputs to look at, ``(m, k_0)``."""

    def by_outputs(self) -> ByOutputs:
        """Itself."""

    def risk_of(self, outputs: Array) -> Array:
        """The risk, a scalar."""

    def slope_at(self, outputs: Array) -> tuple[Array, Array]:
        """The risk up to roundoff, at no cost, and its gradient in the outputs, ``(m, k_d)``."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MomentsByOutputs:
    """The squared loss: ``R = R_min + <S, O - O*> + 1/2 sum_i lambda_i ||o_i - o*_i||^2``.

    Attributes:
        inputs: eigenvectors ``v_i`` of ``Sigma_xx``, one a row, ``(m, k_0)``.
        directions: the same in the problem's own coordinates, as columns, ``(m, m)``.
        spectrum: ``lambda_i``, ``(m,)``.
        input_moment: ``Sigma_xx`` in the problem's coordinates, for derivatives in the data.
        cross_rows: ``v_i^T Sigma_yx^T``, ``(m, k_d)``.
        target_energy: ``(1/n) sum ||y_i||^2``.
        best: the outputs ``o*_i`` of the minimizer, ``(m, k_d)``.
        best_slope: ``S``, the gradient there: roundoff.
        minimum_risk: the least risk.
    """

    inputs: Array
    directions: Array
    spectrum: Array
    input_moment: Array
    cross_rows: Array
    target_energy: Array
    best: Array
    best_slope: Array
    minimum_risk: Array

    def by_outputs(self) -> MomentsByOutputs:
        """Itself."""
        return self

    def risk_of(self, outputs: Float[Array, "m k_d"]) -> Float[Array, ""]:
        """The risk, centred at its minimum."""
        return _centred(
            outputs,
            self.input_moment,
            self.cross_rows,
            self.target_energy,
            (self.directions, self.spectrum, self.best, self.best_slope, self.minimum_risk),
        )

    def slope_at(
        self, outputs: Float[Array, "m k_d"]
    ) -> tuple[Float[Array, ""], Float[Array, "m k_d"]]:
        """The risk up to roundoff, of either sign near 0, and ``Lambda O - C``."""
        moved = _moved(outputs, self.input_moment, (self.directions, self.spectrum))
        slope = moved - self.cross_rows
        off = outputs - self.best
        return self.minimum_risk + 0.5 * jnp.vdot(slope + self.best_slope, off), slope


# The eigenvectors stand still when the data move: any orthogonal directions describe the same
# problem, so derivatives in the data need none of an eigendecomposition, which ties would spoil.
def _turned(directions: Array, d_moment: Array, outputs: Array) -> Array:
    return matmul(directions.T, matmul(d_moment, matmul(directions, outputs)))


@jax.custom_jvp
def _moved(outputs: Array, moment: Array, known: tuple[Array, Array]) -> Array:
    """``V^T Sigma_xx V O``, where ``V^T Sigma_xx V`` is diagonal."""
    return known[1][:, None] * outputs


@_moved.defjvp
def _moved_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    outputs, _, (directions, spectrum) = primals
    d_outputs, d_moment, _ = tangents
    tangent = spectrum[:, None] * d_outputs + _turned(directions, d_moment, outputs)
    return _moved(*primals), tangent


@jax.custom_jvp
def _centred(outputs: Array, moment: Array, cross: Array, energy: Array, known: Any) -> Array:
    _, spectrum, best, best_slope, minimum_risk = known
    off = outputs - best
    square = 0.5 * jnp.vdot(spectrum[:, None] * off, off)
    return jnp.maximum(minimum_risk + square + jnp.vdot(best_slope, off), 0.0)


@_centred.defjvp
def _centred_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # Of the expanded form, so that nothing goes through the minimizer.
    outputs, _, cross, _, (directions, spectrum, *_) = primals
    d_outputs, d_moment, d_cross, d_energy, _ = tangents
    tangent = (
        jnp.vdot(spectrum[:, None] * outputs - cross, d_outputs)
        + 0.5 * jnp.vdot(_turned(directions, d_moment, outputs), outputs)
        - jnp.vdot(outputs, d_cross)
        + 0.5 * d_energy
    )
    return _centred(*primals), tangent


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SensingByOutputs:
    """Linear measurements of the end-to-end matrix, whose columns are the outputs at ``e_j``.

    Attributes:
        inputs: the identity ``(k_0, k_0)``.
        matrices: ``M_i``, ``(n, k_d, k_0)``.
        values: ``y_i``, ``(n,)``.
    """

    inputs: Array
    matrices: Array
    values: Array

    def by_outputs(self) -> SensingByOutputs:
        """Itself."""
        return self

    def _errors(self, outputs: Array) -> Array:
        flat = self.matrices.reshape(self.matrices.shape[0], -1)
        return matmul(flat, outputs.T.reshape(-1)) - self.values

    def risk_of(self, outputs: Float[Array, "k_0 k_d"]) -> Float[Array, ""]:
        """``1/(2n) sum_i (<M_i, W> - y_i)^2``."""
        return 0.5 * (self._errors(outputs) ** 2).mean()

    def slope_at(
        self, outputs: Float[Array, "k_0 k_d"]
    ) -> tuple[Float[Array, ""], Float[Array, "k_0 k_d"]]:
        """The risk and ``(1/n) sum_i error_i M_i^T``."""
        errors = self._errors(outputs)
        flat = self.matrices.reshape(errors.shape[0], -1)
        slope = (matmul(errors, flat) / errors.shape[0]).reshape(self.matrices.shape[1:])
        return 0.5 * (errors**2).mean(), slope.T
