"""Losses of one sample, with the constants that theorems about them ask for.

A loss ``l(z, y)`` takes the network's outputs ``z`` of one sample, shape ``(k_d,)``, and its target
``y``. The risk is the mean over samples (see :mod:`alignjax.problems`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._validation import describe

__all__ = [
    "Loss",
    "as_loss",
    "cross_entropy",
    "exponential",
    "logistic",
    "squared",
]

Targets = Literal["signs", "classes", "values"]


@dataclass(frozen=True)
class Loss:
    """A loss ``l(z, y)`` of one sample, and what is known about it.

    JAX keeps the functions of a loss that it has differentiated for the life of the process, and
    with them all that they close over: let them close over numbers, not over data.

    Attributes:
        value: ``(z (k_d,), y) -> scalar``.
        name: what messages and figures call it.
        targets: what ``y`` is: ``"signs"`` (-1 or +1, one output), ``"classes"`` (an id from 0 to
            ``k_d - 1``) or ``"values"`` (anything the function takes).
        smoothness: the Lipschitz constant of the gradient in ``z``, or None where there is none.
        lipschitz: the Lipschitz constant of the loss in ``z``, or None where there is none.
        derivative: ``(z, y) -> (k_d,)``, by hand where it is cheaper or safer than autodiff.
        log_value: ``(z, y) -> log l(z, y)``, exact also where ``l`` underflows; None means
            ``log(value)``.
        log_slope: ``(z, y) -> (log s, v)`` with ``dl/dz = s v`` and ``v`` of order 1, exact also
            where the slope underflows; None where the loss has no exponential tail.
    """

    value: Callable[[Any, Any], Any]
    name: str = "custom"
    targets: Targets = "values"
    smoothness: float | None = None
    lipschitz: float | None = None
    derivative: Callable[[Any, Any], Any] | None = None
    log_value: Callable[[Any, Any], Any] | None = None
    log_slope: Callable[[Any, Any], Any] | None = None

    def values(self, outputs: Float[Array, "n k_d"], targets: Array) -> Float[Array, " n"]:
        """The losses of all samples, shape ``(n,)``."""
        values = jax.vmap(self.value)(outputs, targets)
        if values.ndim != 1:
            raise TypeError(
                f"loss must return one number a sample, but {self.name} returns shape "
                f"{values.shape[1:]} for outputs of shape {outputs.shape[1:]}"
            )
        return values

    def derivatives(self, outputs: Float[Array, "n k_d"], targets: Array) -> Float[Array, "n k_d"]:
        """The gradients in the outputs of all samples, shape ``(n, k_d)``."""
        if self.derivative is None:
            self.values(outputs, targets)  # a loss that is no scalar is refused by name
        derivative = jax.grad(self.value) if self.derivative is None else self.derivative
        return jax.vmap(derivative)(outputs, targets)

    def log_values(self, outputs: Float[Array, "n k_d"], targets: Array) -> Float[Array, " n"]:
        """The logarithms of the losses of all samples, shape ``(n,)``."""
        if self.log_value is None:
            return jnp.log(self.values(outputs, targets))
        return jax.vmap(self.log_value)(outputs, targets)


# Functions of the module and no lambdas, so that losses can be pickled and compared afterwards.


def _squared(z: Array, y: Array) -> Array:
    return 0.5 * jnp.sum((z - y) ** 2)


def _squared_derivative(z: Array, y: Array) -> Array:
    return z - y


def _logistic(z: Array, y: Array) -> Array:
    return jax.nn.softplus(-y * z[0])


def _logistic_derivative(z: Array, y: Array) -> Array:
    return -y * jax.nn.sigmoid(-y * z)


def _logistic_log_slope(z: Array, y: Array) -> tuple[Array, Array]:
    return -jax.nn.softplus(y * z[0]), -y[None]


def _logistic_log(z: Array, y: Array) -> Array:
    margin = y * z[0]
    # Beyond a margin of 40, log1p(exp(-m)) is exp(-m) to the last bit of float64, and for large m
    # the exponential underflows; the inner `where` keeps the unused branch's derivative finite.
    large = margin > 40
    safe = jnp.where(large, 0.0, margin)
    return jnp.where(large, -margin, jnp.log(jax.nn.softplus(-safe)))


def _is_class(z: Array, y: Array) -> Array:
    """Which output is that of the class."""
    ids = jnp.arange(z.shape[0])
    # Not the other way round: small integers, as labels often are, do not hold every id.
    return ids == jnp.asarray(y, ids.dtype)


def _cross_entropy_excess(z: Array, y: Array) -> Array:
    """``log sum_{j != y} exp(z_j - z_y)``, so that the loss is the softplus of it."""
    others = jnp.where(_is_class(z, y), -jnp.inf, z - z[y])
    return jax.nn.logsumexp(others)


def _exponential(z: Array, y: Array) -> Array:
    return jnp.exp(-y * z[0])


def _exponential_derivative(z: Array, y: Array) -> Array:
    return -y * jnp.exp(-y * z)


def _exponential_log(z: Array, y: Array) -> Array:
    return -y * z[0]


def _exponential_log_slope(z: Array, y: Array) -> tuple[Array, Array]:
    return -y * z[0], -y[None]


def _cross_entropy(z: Array, y: Array) -> Array:
    return jax.nn.softplus(_cross_entropy_excess(z, y))


def _cross_entropy_log(z: Array, y: Array) -> Array:
    return _logistic_log(-_cross_entropy_excess(z, y)[None], jnp.ones((), z.dtype))


def _cross_entropy_derivative(z: Array, y: Array) -> Array:
    p = jax.nn.softmax(z)
    own = _is_class(z, y)
    others = jnp.where(own, 0.0, p)
    # 1 - p_y is the sum of the others: the difference would round to 0 for confident outputs.
    return jnp.where(own, -others.sum(), p)


def _cross_entropy_log_slope(z: Array, y: Array) -> tuple[Array, Array]:
    excess = _cross_entropy_excess(z, y)
    own = _is_class(z, y)
    others = jnp.exp(jnp.where(own, 0.0, z - z[y] - excess))
    return -jax.nn.softplus(-excess), jnp.where(own, -1.0, others)


squared = Loss(
    _squared,
    name="squared",
    smoothness=1.0,
    derivative=_squared_derivative,
)
"""``1/2 ||z - y||^2``: 1-smooth, not Lipschitz."""

logistic = Loss(
    _logistic,
    name="logistic",
    targets="signs",
    smoothness=0.25,
    lipschitz=1.0,
    derivative=_logistic_derivative,
    log_value=_logistic_log,
    log_slope=_logistic_log_slope,
)
"""``ln(1 + exp(-y z))``: 1/4-smooth, 1-Lipschitz. Source: Ji & Telgarsky 2019, section 1.1."""

exponential = Loss(
    _exponential,
    name="exponential",
    targets="signs",
    derivative=_exponential_derivative,
    log_value=_exponential_log,
    log_slope=_exponential_log_slope,
)
"""``exp(-y z)``: neither smooth nor Lipschitz. Source: Ji & Telgarsky 2019, section 1.1."""

cross_entropy = Loss(
    _cross_entropy,
    name="cross_entropy",
    targets="classes",
    smoothness=0.5,
    lipschitz=2**0.5,
    derivative=_cross_entropy_derivative,
    log_value=_cross_entropy_log,
    log_slope=_cross_entropy_log_slope,
)
"""``log sum_j exp(z_j) - z_y``: the Hessian ``diag(p) - p p^T`` is at most 1/2."""

_BY_NAME = {loss.name: loss for loss in (squared, logistic, exponential, cross_entropy)}


def as_loss(loss: str | Loss | Callable[[Any, Any], Any]) -> Loss:
    """The loss of that name, the loss itself, or a callable wrapped as one.

    Raises:
        ValueError: for an unknown name.
        TypeError: for what is neither a name, a :class:`Loss` nor callable.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in _BY_NAME:
            raise ValueError(f"loss must be one of {sorted(_BY_NAME)} or a callable, got {loss!r}")
        return _BY_NAME[loss]
    if not callable(loss):
        raise TypeError(
            f"loss must be a name, an alignjax.losses.Loss or a callable (outputs, target) -> "
            f"scalar, got {describe(loss)}"
        )
    if getattr(loss, "__hash__", None) is None:
        raise TypeError(
            f"loss must be hashable, since problems are compared by it, got {describe(loss)}"
        )
    return Loss(loss, name=getattr(loss, "__name__", "custom"))
