"""Risk and gradient of structured layers in their coefficients, without a matrix."""

from __future__ import annotations

import jax
from jaxtyping import Array

from alignjax.linalg import guarded, leaves_finite
from alignjax.problems import ByOutputs, largest_risk
from alignjax.structures import Structure, forward

__all__ = ["checked_structured_gradient", "structured_risk"]

Coefficients = tuple[Array, ...]


def structured_risk(
    problem: ByOutputs, structures: tuple[Structure, ...], coefficients: Coefficients
) -> Array:
    """The risk of the network that the coefficients describe."""
    return problem.risk_of(forward(structures, coefficients, problem.inputs))


def checked_structured_gradient(
    problem: ByOutputs, structures: tuple[Structure, ...], coefficients: Coefficients
) -> tuple[Coefficients, Array]:
    """``(gradient, ok)``, as :func:`alignjax.problems.checked_gradient` for matrices.

    The gradient in coefficient ``j`` of layer ``i`` is ``<dR/dW_i, A_j>``, computed by the
    transposes of the layers' own operations.
    """

    @guarded
    def evaluate(problem: ByOutputs, coefficients: Coefficients) -> tuple[Coefficients, Array]:
        outputs, pullback = jax.vjp(lambda c: forward(structures, c, problem.inputs), coefficients)
        rough, slope = problem.slope_at(outputs)
        (gradients,) = pullback(slope)
        ok = (rough <= largest_risk(rough.dtype)) & leaves_finite((rough, gradients))
        return gradients, ok

    return evaluate(problem, coefficients)
