"""The three kinds of problem: by moments, by samples, by linear measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from alignjax.linalg import join, matmul
from alignjax.losses import Loss, squared
from alignjax.problems.by_outputs import MomentsByOutputs, SensingByOutputs

__all__ = ["MomentProblem", "Problem", "SampleProblem", "SensingProblem"]

Half = Array | None
Slopes = tuple[Array, Half, Half]
"""``(rough risk, A^T E, E B^T)``: see :func:`alignjax.linalg.chain_gradients`.

The rough risk has the risk's size and not its last digits: near 0 it may be negative. It judges
whether a run diverges, comes at no cost, and is for nobody to see; the risk itself is ``_risk``.
"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MomentProblem:
    """The squared loss, by its moments: a step costs the same for any number of samples.

    Attributes:
        input_moment: ``Sigma_xx``, shape ``(m, m)``, in coordinates of ``basis`` where that is set.
        cross_moment: ``Sigma_yx``, shape ``(k_d, m)``.
        target_energy: ``(1/n) sum ||y_i||^2``.
        minimizer: the end-to-end matrix of least risk and least norm, shape ``(k_d, m)``, as far
            as the precision resolves directions of little input.
        minimum_risk: the risk there.
        minimizer_slope: the gradient there, ``minimizer Sigma_xx - Sigma_yx``: roundoff, unless
            such directions were given up; the risk is centred at the minimizer all the same.
        basis: orthonormal columns ``(k_0, m)`` that span the inputs, or None for ``m = k_0``.
        inputs, targets: the samples, ``(n, m)`` and ``(n, k_d)``, kept for minibatches only.
    """

    input_moment: Array
    cross_moment: Array
    target_energy: Array
    minimizer: Array
    minimum_risk: Array
    minimizer_slope: Array
    basis: Array | None = None
    inputs: Array | None = None
    targets: Array | None = None

    @property
    def input_width(self) -> int:
        """``k_0``."""
        return (self.input_moment if self.basis is None else self.basis).shape[0]

    @property
    def output_width(self) -> int:
        """``k_d``."""
        return self.cross_moment.shape[0]

    @property
    def dtype(self) -> Any:
        """The precision of the data."""
        return self.cross_moment.dtype

    @property
    def sample_count(self) -> int | None:
        """``n``, or None where only moments are known."""
        return None if self.inputs is None else self.inputs.shape[0]

    def full_moments(self) -> tuple[Array, Array]:
        """``(Sigma_xx, Sigma_yx)`` of shapes ``(k_0, k_0)`` and ``(k_d, k_0)``."""
        if self.basis is None:
            return self.input_moment, self.cross_moment
        return (
            matmul(matmul(self.basis, self.input_moment), self.basis.T),
            matmul(self.cross_moment, self.basis.T),
        )

    def _core(self) -> MomentProblem:
        return replace(self, basis=None, inputs=None, targets=None)

    def _risk(self, outer: Half, inner: Half) -> Array:
        return _centred_risk(
            join(outer, inner),
            self.input_moment,
            self.cross_moment,
            self.target_energy,
            self.minimizer,
            self.minimum_risk,
            self.minimizer_slope,
        )

    def _slopes(self, outer: Half, inner: Half) -> Slopes:
        if outer is not None and inner is not None:
            # At a bottleneck the rough risk is expanded, so that nothing of shape (k_d, k_0) is
            # formed.
            moved = matmul(inner, self.input_moment)
            square = matmul(moved, inner.T)
            gram = matmul(outer.T, outer)
            pulled = matmul(outer.T, self.cross_moment)
            rough = 0.5 * (self.target_energy + jnp.vdot(gram, square)) - jnp.vdot(pulled, inner)
            into_outer = matmul(outer, square) - matmul(self.cross_moment, inner.T)
            return rough, matmul(gram, moved) - pulled, into_outer
        product = join(outer, inner)
        slope = matmul(product, self.input_moment) - self.cross_moment
        off = product - self.minimizer
        rough = self.minimum_risk + 0.5 * jnp.vdot(slope + self.minimizer_slope, off)
        return rough, slope, slope

    def by_outputs(self) -> MomentsByOutputs:
        """The same problem for networks that are known by their outputs."""
        moment = self.input_moment
        spectrum, directions = jnp.linalg.eigh(lax.stop_gradient(moment))

        def rows(matrix: Array) -> Array:
            return matmul(matrix, directions).T

        return MomentsByOutputs(
            inputs=directions.T if self.basis is None else rows(self.basis),
            directions=directions,
            spectrum=spectrum,
            input_moment=moment,
            cross_rows=rows(self.cross_moment),
            target_energy=self.target_energy,
            best=rows(self.minimizer),
            best_slope=rows(self.minimizer_slope),
            minimum_risk=self.minimum_risk,
        )

    def _batch(self, index: Array) -> SampleProblem:
        if self.inputs is None or self.targets is None:
            raise ValueError(
                "batch_size needs the samples, but this problem holds moments only: state it by "
                "regression(X, Y), or leave batch_size out"
            )
        return SampleProblem(self.inputs[index], self.targets[index], self.basis, squared)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SampleProblem:
    """Any loss, on samples.

    Attributes:
        inputs: ``(n, m)``, in coordinates of ``basis`` where that is set.
        targets: ``(n,)`` or ``(n, ...)``, as the loss takes them.
        basis: orthonormal columns ``(k_0, m)`` that span the inputs, or None.
        loss: the loss of one sample.
        classes: ``k_d`` where the targets tell it, else None.
    """

    inputs: Array
    targets: Array
    basis: Array | None
    loss: Loss = field(metadata={"static": True})
    classes: int | None = field(default=None, metadata={"static": True})

    @property
    def input_width(self) -> int:
        """``k_0``."""
        return self.inputs.shape[1] if self.basis is None else self.basis.shape[0]

    @property
    def output_width(self) -> int | None:
        """``k_d``, or None where a callable loss leaves it open."""
        return self.classes

    @property
    def dtype(self) -> Any:
        """The precision of the data."""
        return self.inputs.dtype

    @property
    def sample_count(self) -> int | None:
        """``n``."""
        return self.inputs.shape[0]

    def _core(self) -> SampleProblem:
        return replace(self, basis=None)

    def outputs(self, outer: Half, inner: Half) -> Array:
        """What the network with end-to-end matrix ``outer inner`` gives, shape ``(n, k_d)``."""
        hidden = self.inputs if inner is None else matmul(self.inputs, inner.T)
        return hidden if outer is None else matmul(hidden, outer.T)

    def by_outputs(self) -> SampleProblem:
        """The same problem without a basis, for networks that are known by their outputs."""
        if self.basis is None:
            return self
        return replace(self, inputs=matmul(self.inputs, self.basis.T), basis=None)

    def risk_of(self, outputs: Array) -> Array:
        """The mean loss of outputs ``(n, k_d)``."""
        return self.loss.values(outputs, self.targets).mean()

    def slope_at(self, outputs: Array) -> tuple[Array, Array]:
        """The mean loss and its gradient in the outputs, ``(n, k_d)``."""
        slope = self.loss.derivatives(outputs, self.targets) / outputs.shape[0]
        return self.risk_of(outputs), slope

    def _risk(self, outer: Half, inner: Half) -> Array:
        return self.risk_of(self.outputs(outer, inner))

    def _slopes(self, outer: Half, inner: Half) -> Slopes:
        return self.pull_back(outer, inner, self.slope_at)

    def pull_back(
        self, outer: Half, inner: Half, evaluate: Callable[[Array], tuple[Any, Array]]
    ) -> tuple[Any, Half, Half]:
        """What ``evaluate: outputs -> (value, slope (n, k_d))`` gives, in both halves."""
        hidden = self.inputs if inner is None else matmul(self.inputs, inner.T)
        value, slope = evaluate(hidden if outer is None else matmul(hidden, outer.T))
        pulled = slope if outer is None else matmul(slope, outer)
        return (
            value,
            None if inner is None else matmul(pulled.T, self.inputs),
            None if outer is None else matmul(slope.T, hidden),
        )

    def _batch(self, index: Array) -> SampleProblem:
        return replace(self, inputs=self.inputs[index], targets=self.targets[index])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SensingProblem:
    """Linear measurements of a matrix: risk ``1/(2n) sum_i (y_i - <M_i, W>)^2``.

    Attributes:
        matrices: ``M_i``, shape ``(n, k_d, k_0)``.
        values: ``y_i``, shape ``(n,)``.
    """

    matrices: Array
    values: Array

    @property
    def input_width(self) -> int:
        """``k_0``."""
        return self.matrices.shape[2]

    @property
    def output_width(self) -> int:
        """``k_d``."""
        return self.matrices.shape[1]

    @property
    def dtype(self) -> Any:
        """The precision of the data."""
        return self.matrices.dtype

    @property
    def sample_count(self) -> int | None:
        """``n``."""
        return self.values.shape[0]

    @property
    def basis(self) -> None:
        """Measurements have no span of inputs."""
        return None

    def _core(self) -> SensingProblem:
        return self

    def by_outputs(self) -> SensingByOutputs:
        """The same problem for networks that are known by their outputs."""
        identity = jnp.eye(self.input_width, dtype=self.dtype)
        return SensingByOutputs(identity, self.matrices, self.values)

    def _risk(self, outer: Half, inner: Half) -> Array:
        return self.by_outputs().risk_of(join(outer, inner).T)

    def _slopes(self, outer: Half, inner: Half) -> Slopes:
        value, slope_rows = self.by_outputs().slope_at(join(outer, inner).T)
        slope = slope_rows.T
        return (
            value,
            slope if outer is None else matmul(outer.T, slope),
            slope if inner is None else matmul(slope, inner.T),
        )

    def _batch(self, index: Array) -> SensingProblem:
        return SensingProblem(self.matrices[index], self.values[index])


Problem = MomentProblem | SampleProblem | SensingProblem


@jax.custom_jvp
def _centred_risk(
    product: Array,
    input_moment: Array,
    cross_moment: Array,
    target_energy: Array,
    minimizer: Array,
    minimum_risk: Array,
    minimizer_slope: Array,
) -> Array:
    """``R(W*) + <slope, W - W*> + 1/2 <(W - W*) Sigma_xx, W - W*>``, the slope being roundoff.

    Unlike the expansion around 0 it keeps its digits near the minimum.
    """
    off = product - minimizer
    square = 0.5 * jnp.vdot(matmul(off, input_moment), off)
    return jnp.maximum(minimum_risk + square + jnp.vdot(minimizer_slope, off), 0.0)


@_centred_risk.defjvp
def _centred_risk_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # The derivative of 1/2 (energy - 2 <W, Sigma_yx> + <W Sigma_xx, W>), so that nothing goes
    # through the decomposition behind the minimizer.
    product, input_moment, cross_moment, *_ = primals
    d_product, d_input, d_cross, d_energy, *_ = tangents
    slope = matmul(product, input_moment) - cross_moment
    tangent = (
        jnp.vdot(slope, d_product)
        + 0.5 * jnp.vdot(matmul(product, d_input), product)
        - jnp.vdot(product, d_cross)
        + 0.5 * d_energy
    )
    return _centred_risk(*primals), tangent
