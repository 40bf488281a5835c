"""Risk and gradient of exponential-tailed losses, where both are far below the smallest float."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from alignjax.linalg import chain_gradients, guarded, leaves_finite
from alignjax.losses import Loss
from alignjax.problems.evaluate import largest_risk
from alignjax.problems.kinds import SampleProblem

__all__ = ["check_tail", "checked_log_gradient", "log_risk_and_gradient"]


def check_tail(problem: Any, purpose: str) -> SampleProblem:
    """The problem itself, if its loss has an exponential tail.

    Raises:
        ValueError: if it has none; the message names ``purpose``.
    """
    if isinstance(problem, SampleProblem) and problem.loss.log_slope is not None:
        return problem
    came = f"the loss {problem.loss.name!r}" if isinstance(problem, SampleProblem) else "no samples"
    raise ValueError(
        f"{purpose} needs a classification whose loss decays like an exponential (logistic, "
        f"exponential, cross_entropy, or a Loss with log_slope), got a problem with {came}"
    )


def log_risk_and_gradient(
    problem: SampleProblem, weights: tuple[Array, ...]
) -> tuple[Array, Array, tuple[Array, ...]]:
    """``(log R, s, G)`` with ``dR/dW_i = exp(s) G_i``, of a problem without basis.

    ``s`` is the largest logarithm of a sample's slope, so that ``G`` keeps its digits where every
    loss underflows; 0 for a loss without ``log_slope``. Weights enter as they are: only what the
    losses make of them is in logarithms.
    """
    loss = problem.loss

    def evaluate(outputs: Array) -> tuple[tuple[Array, Array], Array]:
        values = loss.log_values(outputs, problem.targets)
        scale, slopes = _scaled_slopes(loss, outputs, problem.targets)
        return (jax.nn.logsumexp(values) - jnp.log(len(outputs)), scale), slopes / len(outputs)

    (value, scale), gradients = chain_gradients(
        weights, lambda outer, inner: problem.pull_back(outer, inner, evaluate)
    )
    return value, scale, gradients


def _scaled_slopes(loss: Loss, outputs: Array, targets: Array) -> tuple[Array, Array]:
    """``(s, V)``, where the losses' slopes are ``exp(s) V``."""
    if loss.log_slope is None:
        return jnp.zeros((), outputs.dtype), loss.derivatives(outputs, targets)
    logs, directions = jax.vmap(loss.log_slope)(outputs, targets)
    largest = lax.stop_gradient(logs.max())
    return largest, jnp.exp(logs - largest)[:, None] * directions


@guarded
def checked_log_gradient(
    problem: SampleProblem, weights: tuple[Array, ...]
) -> tuple[tuple[Array, Array, tuple[Array, ...]], Array]:
    """``((log R, s, G), ok)``, as :func:`alignjax.problems.checked_gradient` in logarithms."""
    found = log_risk_and_gradient(problem, weights)
    ok = leaves_finite(found) & (found[0] <= math.log(largest_risk(found[0].dtype)))
    return found, ok
