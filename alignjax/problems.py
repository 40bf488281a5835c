"""What is learned: data or their moments, a loss, the risk and its gradient.

Rows are samples: ``X (n, k_0)``, ``Y (n, k_d)``. The risk of a network with end-to-end matrix ``W``
is ``(1/n) sum_i l(W x_i, y_i)``, and the squared loss is ``1/2 ||.||^2``. Moments are means:
``Sigma_xx = X^T X / n`` and ``Sigma_yx = Y^T X / n``.

Where there are fewer samples than inputs (``n < k_0``), the data lie in the span of ``n``
orthonormal directions, the problem's ``basis``, and everything is computed in coordinates of it: no
``(k_0, k_0)`` matrix is formed, and what ``W_1`` does outside of the span never moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from alignjax._validation import as_count, as_raw, as_real, as_weights, is_concrete
from alignjax.linalg import chain_gradients, guarded, join, leaves_finite, matmul, split_products
from alignjax.losses import Loss, as_loss, squared

__all__ = [
    "MomentProblem",
    "Problem",
    "SampleProblem",
    "SensingProblem",
    "autoencoding",
    "classification",
    "factorization",
    "from_moments",
    "gradient",
    "inversion",
    "regression",
    "risk",
    "risk_and_gradient",
    "sensing",
]

Half = Array | None
Evaluation = tuple[Array, Half, Half]


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

    def _evaluate(self, outer: Half, inner: Half) -> Evaluation:
        if outer is not None and inner is not None:
            # At a bottleneck the risk is expanded: its sign may be lost near the minimum, its size
            # is not, and nothing of shape (k_d, k_0) is formed.
            moved = matmul(inner, self.input_moment)
            square = matmul(moved, inner.T)
            gram = matmul(outer.T, outer)
            pulled = matmul(outer.T, self.cross_moment)
            value = 0.5 * (self.target_energy + jnp.vdot(gram, square)) - jnp.vdot(pulled, inner)
            into_outer = matmul(outer, square) - matmul(self.cross_moment, inner.T)
            return value, matmul(gram, moved) - pulled, into_outer
        product = join(outer, inner)
        slope = matmul(product, self.input_moment) - self.cross_moment
        off = product - self.minimizer
        value = self.minimum_risk + 0.5 * jnp.vdot(slope + self.minimizer_slope, off)
        return value, slope, slope

    def _batch(self, index: Array) -> SampleProblem:
        if self.inputs is None or self.targets is None:
            raise ValueError(
                "batch_size needs the samples, but this problem holds moments only: state it by "
                "regression(X, Y), or leave batch_size out"
            )
        return SampleProblem(self.inputs[index], self.targets[index], None, squared)


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

    def _risk(self, outer: Half, inner: Half) -> Array:
        return self.loss.values(self.outputs(outer, inner), self.targets).mean()

    def _evaluate(self, outer: Half, inner: Half) -> Evaluation:
        hidden = self.inputs if inner is None else matmul(self.inputs, inner.T)
        outputs = hidden if outer is None else matmul(hidden, outer.T)
        value = self.loss.values(outputs, self.targets).mean()
        slope = self.loss.derivatives(outputs, self.targets) / outputs.shape[0]
        pulled = slope if outer is None else matmul(slope, outer)
        return (
            value,
            None if inner is None else matmul(pulled.T, self.inputs),
            None if outer is None else matmul(slope.T, hidden),
        )

    def _batch(self, index: Array) -> SampleProblem:
        return replace(self, inputs=self.inputs[index], targets=self.targets[index], basis=None)


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

    def _errors(self, outer: Half, inner: Half) -> Array:
        flat = self.matrices.reshape(self.matrices.shape[0], -1)
        return matmul(flat, join(outer, inner).reshape(-1)) - self.values

    def _risk(self, outer: Half, inner: Half) -> Array:
        return 0.5 * (self._errors(outer, inner) ** 2).mean()

    def _evaluate(self, outer: Half, inner: Half) -> Evaluation:
        errors = self._errors(outer, inner)
        flat = self.matrices.reshape(errors.shape[0], -1)
        slope = (matmul(errors, flat) / errors.shape[0]).reshape(self.matrices.shape[1:])
        return (
            0.5 * (errors**2).mean(),
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


def _least_squares(input_moment: Array, cross_moment: Array) -> Array:
    """``Sigma_yx Sigma_xx^+``, the minimizer of least norm."""
    input_moment, cross_moment = lax.stop_gradient((input_moment, cross_moment))
    values, vectors = jnp.linalg.eigh(input_moment)
    cutoff = values.shape[0] * jnp.finfo(values.dtype).eps * jnp.abs(values).max()
    keep = values > cutoff
    inverse = jnp.where(keep, 1.0 / jnp.where(keep, values, 1.0), 0.0)
    return matmul(matmul(cross_moment, vectors) * inverse, vectors.T)


def _as_targets(Y: Any, samples: int, name: str = "Y") -> Array:
    targets = as_real(Y, name, ndim=(1, 2))
    if targets.shape[0] != samples:
        raise ValueError(
            f"{name} must have one row a sample: X has {samples} rows, {name} {targets.shape[0]}"
        )
    return targets[:, None] if targets.ndim == 1 else targets


def _in_span(inputs: Array) -> tuple[Array, Array | None]:
    """Coordinates of the inputs and the orthonormal basis they refer to, where ``n < k_0``."""
    if inputs.shape[0] >= inputs.shape[1]:
        return inputs, None
    basis, factor = jnp.linalg.qr(inputs.T)
    return factor.T, basis


def regression(X: Float[Array, "n k_0"], Y: Float[Array, "n k_d"]) -> MomentProblem:
    """Least squares: risk ``1/(2n) sum_i ||y_i - W x_i||^2``.

    Only the moments enter a step. A reference to the samples is kept for minibatches; where
    ``n < k_0`` their factor in an orthonormal basis of their span replaces the moments of the
    inputs. Derivatives in ``X`` exist in that case only where the samples are independent.

    Args:
        X: inputs, one row a sample, ``(n, k_0)``.
        Y: targets, ``(n, k_d)``, or ``(n,)`` for one output.

    Raises:
        TypeError: for complex, object or text arrays.
        ValueError: for empty, NaN or infinite data, or rows that do not match.

    Source: Radhakrishnan et al. 2020, eq. 2.

    Example:
        >>> import alignjax as aj
        >>> problem = aj.regression([[1.0, 0.0], [0.0, 2.0]], [[1.0], [1.0]])
        >>> aj.risk(problem, ([[1.0, 0.5]],)).item()
        0.0
    """
    inputs = as_real(X, "X", ndim=2)
    targets = _as_targets(Y, inputs.shape[0])
    dtype = jnp.result_type(inputs, targets)
    inputs, targets = inputs.astype(dtype), targets.astype(dtype)
    inputs, basis = _in_span(inputs)
    count = inputs.shape[0]
    input_moment = matmul(inputs.T, inputs) / count
    cross_moment = matmul(targets.T, inputs) / count
    minimizer = _least_squares(input_moment, cross_moment)
    errors = lax.stop_gradient(matmul(inputs, minimizer.T) - targets)
    return MomentProblem(
        input_moment,
        cross_moment,
        (targets**2).sum() / count,
        minimizer,
        0.5 * (errors**2).sum() / count,
        lax.stop_gradient(matmul(minimizer, input_moment) - cross_moment),
        basis,
        inputs,
        targets,
    )


def autoencoding(X: Float[Array, "n k_0"]) -> MomentProblem:
    """Least squares with the inputs as targets: ``regression(X, X)``.

    Source: Radhakrishnan et al. 2020, section 4.2.
    """
    return regression(X, X)


def factorization(M: Float[Array, "k_d k_0"]) -> MomentProblem:
    """Factorize ``M``: inputs are the identity, so the risk is ``1/(2 k_0) ||M - W||_F^2``.

    Args:
        M: the matrix, shape ``(k_d, k_0)``.

    Source: Radhakrishnan et al. 2020, section 4.2.
    """
    matrix = as_real(M, "M", ndim=2)
    return regression(jnp.eye(matrix.shape[1], dtype=matrix.dtype), matrix.T)


def inversion(M: Float[Array, "k_d k_0"]) -> MomentProblem:
    """Invert ``M``: inputs are its columns, targets the identity; ``W M = I`` is wanted.

    Args:
        M: the matrix, shape ``(k_0, n)``; the network has ``k_d = n`` outputs.

    Source: Radhakrishnan et al. 2020, section 4.2.
    """
    matrix = as_real(M, "M", ndim=2)
    return regression(matrix.T, jnp.eye(matrix.shape[1], dtype=matrix.dtype))


def from_moments(
    input_moment: Float[Array, "k_0 k_0"],
    cross_moment: Float[Array, "k_d k_0"],
    target_energy: Any,
) -> MomentProblem:
    """Least squares from moments alone, as :class:`alignjax.moments.Moments` collects them.

    Args:
        input_moment: ``Sigma_xx = X^T X / n``, symmetric and positive semidefinite.
        cross_moment: ``Sigma_yx = Y^T X / n``, with rows in the range of ``Sigma_xx``.
        target_energy: ``(1/n) sum ||y_i||^2``.

    Raises:
        ValueError: if the shapes do not match, ``input_moment`` is not symmetric or has a negative
            eigenvalue, or no data have these moments.
    """
    moment = as_real(input_moment, "input_moment", ndim=2)
    cross = as_real(cross_moment, "cross_moment", ndim=2)
    energy = as_real(target_energy, "target_energy", ndim=0)
    if moment.shape[0] != moment.shape[1]:
        raise ValueError(f"input_moment must be square, got shape {moment.shape}")
    if cross.shape[1] != moment.shape[0]:
        raise ValueError(
            f"cross_moment must be (k_d, {moment.shape[0]}) to match input_moment "
            f"{moment.shape}, got {cross.shape}"
        )
    dtype = jnp.result_type(moment, cross, energy)
    moment, cross, energy = moment.astype(dtype), cross.astype(dtype), energy.astype(dtype)
    minimizer = _least_squares(moment, cross)
    explained = lax.stop_gradient(jnp.vdot(minimizer, cross))
    if all(is_concrete(a) for a in (moment, cross, energy)):
        _check_moments(moment, cross, energy, minimizer, explained)
    floor = 0.5 * jnp.maximum(lax.stop_gradient(energy) - explained, 0.0)
    slope = lax.stop_gradient(matmul(minimizer, moment) - cross)
    return MomentProblem(moment, cross, energy, minimizer, floor, slope)


def _check_moments(
    moment: Array, cross: Array, energy: Array, minimizer: Array, explained: Array
) -> None:
    tolerance = 100 * moment.shape[0] * float(jnp.finfo(moment.dtype).eps)
    scale = float(jnp.linalg.norm(moment))
    skew = float(jnp.linalg.norm(moment - moment.T))
    if skew > tolerance * scale:
        raise ValueError(
            f"input_moment must be symmetric, but differs from its transpose by {skew:.3g}"
        )
    lowest = float(jnp.linalg.eigvalsh(moment)[0])
    if lowest < -tolerance * scale:
        raise ValueError(
            f"input_moment must be positive semidefinite, but has the eigenvalue {lowest:.3g}"
        )
    outside = float(jnp.linalg.norm(matmul(minimizer, moment) - cross))
    if outside > tolerance**0.5 * float(jnp.linalg.norm(cross)):
        raise ValueError(
            f"cross_moment must have its rows in the range of input_moment, but {outside:.3g} of "
            f"its norm lies outside: no data have these moments"
        )
    if float(energy) < float(explained) * (1 - tolerance**0.5):
        raise ValueError(
            f"target_energy must be at least {float(explained):.6g}, the energy that these moments "
            f"explain, got {float(energy):.6g}"
        )


def sensing(matrices: Float[Array, "n k_d k_0"], values: Float[Array, " n"]) -> SensingProblem:
    """Matrix sensing: risk ``1/(2n) sum_i (y_i - <M_i, W>)^2``.

    Args:
        matrices: measurement matrices ``M_i``, shape ``(n, k_d, k_0)``.
        values: measured values ``y_i``, shape ``(n,)``.

    Raises:
        ValueError: for empty or non-finite data, or shapes that do not match.

    Source: Radhakrishnan et al. 2020, section 4.2.
    """
    stack = as_real(matrices, "matrices", ndim=3)
    measured = as_real(values, "values", ndim=1)
    if stack.shape[0] != measured.shape[0]:
        raise ValueError(
            f"values must hold one number a matrix: {stack.shape[0]} matrices, got {measured.shape}"
        )
    dtype = jnp.result_type(stack, measured)
    return SensingProblem(stack.astype(dtype), measured.astype(dtype))


def classification(
    X: Float[Array, "n k_0"],
    labels: Shaped[Array, " n"],
    loss: str | Loss | Callable[[Any, Any], Any] = "logistic",
    *,
    classes: int | None = None,
) -> SampleProblem | MomentProblem:
    """Classification of the rows of ``X``.

    Args:
        X: inputs, ``(n, k_0)``.
        labels: -1 or +1 for one output (``"logistic"``, ``"exponential"``, ``"squared"``), ids from
            0 for one output a class (``"cross_entropy"``, ``"squared"`` on one-hot targets), or
            what a callable loss takes, one row a sample.
        loss: a name, an :class:`alignjax.losses.Loss` or a callable ``(outputs (k_d,), label) ->
            scalar``.
        classes: the number of classes, where the labels alone do not tell it.

    Raises:
        TypeError: if the loss is no loss.
        ValueError: for an unknown loss, labels outside its domain, or rows that do not match.

    Source: Radhakrishnan et al. 2020, section 6; Ji & Telgarsky 2019, section 1.1.
    """
    chosen = as_loss(loss)
    inputs = as_real(X, "X", ndim=2)
    ids = as_raw(labels, "labels")
    if ids.ndim == 0 or ids.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"labels must hold one label a sample: X has {inputs.shape[0]} rows, labels have shape "
            f"{ids.shape}"
        )
    if chosen is squared:
        signs = is_concrete(ids) and bool(np.isin(np.asarray(ids), (-1, 1)).all())
        if signs and (np.asarray(ids) == -1).any():
            return regression(inputs, jnp.asarray(ids, inputs.dtype))
        ids, count = _class_ids(ids, classes)
        return regression(inputs, jax.nn.one_hot(ids, count, dtype=inputs.dtype))
    outputs: int | None = None
    if chosen.targets == "signs":
        if classes is not None:
            raise ValueError(
                f"classes does not apply to the {chosen.name} loss, which has one output, "
                f"got {classes}"
            )
        _check_one_dimensional(ids)
        if is_concrete(ids) and not bool(np.isin(np.asarray(ids), (-1, 1)).all()):
            raise ValueError(
                f"labels must be -1 or +1 for the {chosen.name} loss, got values "
                f"{np.unique(np.asarray(ids))[:6].tolist()}"
            )
        targets, outputs = jnp.asarray(ids, inputs.dtype), 1
    elif chosen.targets == "classes":
        targets, outputs = _class_ids(ids, classes)
    else:
        targets = jnp.asarray(ids)
        if jnp.issubdtype(targets.dtype, jnp.floating):
            targets = as_real(labels, "labels").astype(inputs.dtype)
        if classes is not None:
            outputs = as_count(classes, "classes", minimum=1)
    inputs, basis = _in_span(inputs)
    return SampleProblem(inputs, targets, basis, chosen, outputs)


def _check_one_dimensional(labels: Any) -> None:
    if labels.ndim != 1:
        raise ValueError(f"labels must have 1 dimension(s), got shape {labels.shape}")


def _class_ids(labels: Any, classes: int | None) -> tuple[Array, int]:
    """Class ids as int32 and their number, checked."""
    _check_one_dimensional(labels)
    if not is_concrete(labels):
        if classes is None:
            raise TypeError("labels are traced, so the number of classes must be given: classes=")
        return labels.astype(jnp.int32), as_count(classes, "classes", minimum=2)
    ids = np.asarray(labels)
    if not np.isfinite(ids).all() or (ids != np.round(ids)).any() or ids.min() < 0:
        raise ValueError(
            f"labels must be class ids 0, 1, ... (or -1 and +1 where the loss has one output), got "
            f"values {np.unique(ids)[:6].tolist()}"
        )
    count = (
        max(int(ids.max()) + 1, 2) if classes is None else as_count(classes, "classes", minimum=2)
    )
    if ids.max() >= count:
        raise ValueError(f"labels must be below classes = {count}, got {int(ids.max())}")
    return jnp.asarray(ids, jnp.int32), count


def check_weights(problem: Problem, weights: Any) -> tuple[Array, ...]:
    """The layers in the common dtype of data and weights, once they fit the problem.

    Raises:
        TypeError: if ``problem`` is no problem or ``weights`` no sequence of real matrices.
        ValueError: if shapes do not chain or do not fit the data.
    """
    if not isinstance(problem, Problem):
        raise TypeError(
            f"problem must come from regression, classification, sensing, ..., got "
            f"{type(problem).__name__}"
        )
    layers = as_weights(weights)
    ends = layers[0].shape[1], layers[-1].shape[0]
    wanted = problem.input_width, problem.output_width
    if ends[0] != wanted[0]:
        raise ValueError(
            f"weights[0] takes {ends[0]} inputs, but the problem has k_0 = {wanted[0]}"
        )
    if wanted[1] is not None and ends[1] != wanted[1]:
        raise ValueError(
            f"weights[{len(layers) - 1}] gives {ends[1]} outputs, but the problem has "
            f"k_d = {wanted[1]}"
        )
    dtype = jnp.result_type(problem.dtype, layers[0].dtype)
    return tuple(w.astype(dtype) for w in layers)


def to_span(problem: Problem, weights: tuple[Array, ...]) -> tuple[Problem, tuple[Array, ...]]:
    """The same problem and network in coordinates of the span of the inputs."""
    core = problem._core()
    if problem.basis is None:
        return core, weights
    return core, (matmul(weights[0], problem.basis), *weights[1:])


def from_span(
    problem: Problem, start: tuple[Array, ...], moved: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Back from :func:`to_span`: what ``start`` does outside of the span is kept."""
    if problem.basis is None:
        return moved
    change = moved[0] - matmul(start[0], problem.basis)
    return (start[0] + matmul(change, problem.basis.T), *moved[1:])


def lift_gradient(problem: Problem, gradients: tuple[Array, ...]) -> tuple[Array, ...]:
    """The gradient in the layers from that in coordinates of the span of the inputs."""
    if problem.basis is None:
        return gradients
    return (matmul(gradients[0], problem.basis.T), *gradients[1:])


def risk(problem: Problem, weights: Any) -> Float[Array, ""]:
    """The risk ``(1/n) sum_i l(W_d...W_1 x_i, y_i)``.

    For the squared loss it is computed as minimum + ``1/2 <(W - W*) Sigma_xx, W - W*>``, which
    cannot turn negative by roundoff.

    Args:
        problem: what is learned.
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError: if the weights do not fit the problem.

    Source: Radhakrishnan et al. 2020, eq. 2 (whose 1/2 belongs to the squared loss here).
    """
    core, inside = to_span(problem, check_weights(problem, weights))
    return core._risk(*split_products(inside))


def outputs(problem: SampleProblem, weights: Any) -> Float[Array, "n k_d"]:
    """What the network gives for the problem's samples, ``(n, k_d)``.

    Raises:
        TypeError: if the problem holds no samples with a loss of their own.
    """
    if not isinstance(problem, SampleProblem):
        raise TypeError(f"problem must come from classification, got {type(problem).__name__}")
    _, inside = to_span(problem, check_weights(problem, weights))
    return problem.outputs(*split_products(inside))


def risk_and_gradient(
    problem: Problem, weights: Any
) -> tuple[Float[Array, ""], tuple[Float[Array, "k_i k_j"], ...]]:
    """The risk and :func:`gradient`, sharing all products between layers."""
    weights = check_weights(problem, weights)
    core, inside = to_span(problem, weights)
    _, gradients = chain_gradients(inside, core._evaluate)
    return core._risk(*split_products(inside)), lift_gradient(problem, gradients)


def gradient(problem: Problem, weights: Any) -> tuple[Float[Array, "k_i k_j"], ...]:
    """The gradient of the risk in every layer: ``dW_i = (W_d...W_{i+1})^T E (W_{i-1}...W_1)^T``.

    ``E`` is the gradient in the end-to-end matrix; for the squared loss, ``W Sigma_xx - Sigma_yx``.
    Written by hand: prefix and suffix products are shared, narrow widths are contracted first.

    Args:
        problem: what is learned.
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        A tuple shaped like ``weights``.

    Raises:
        TypeError, ValueError: if the weights do not fit the problem.

    Source: Radhakrishnan et al. 2020, Appendix A (eq. 5 under alignment).
    """
    return risk_and_gradient(problem, weights)[1]


def largest_risk(dtype: Any) -> float:
    """The largest risk that a run accepts: the square root of the largest float."""
    return float(jnp.finfo(dtype).max) ** 0.5


@guarded
def checked_gradient(
    problem: Problem, weights: tuple[Array, ...]
) -> tuple[tuple[Array, tuple[Array, ...]], Array]:
    """``((risk, gradient), ok)`` of a problem without basis, for the inner loop of a descent.

    ``ok`` says that risk and gradient are finite and the risk is at most :func:`largest_risk`.
    """
    value, gradients = chain_gradients(weights, problem._evaluate)
    ok = (value <= largest_risk(value.dtype)) & leaves_finite((value, gradients))
    return (value, gradients), ok
