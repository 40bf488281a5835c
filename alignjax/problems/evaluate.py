"""Risk and gradients of a network on a problem."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._meshes import on_automatic_axes
from alignjax._validation import as_weights
from alignjax.linalg import chain_gradients, guarded, leaves_finite, matmul, split_products
from alignjax.problems.kinds import Problem, SampleProblem

__all__ = ["gradient", "outputs", "risk", "risk_and_gradient"]


def check_weights(problem: Problem, weights: Any) -> tuple[Array, ...]:
    """The layers in the common dtype of data and weights, once they fit the problem.

    Raises:
        TypeError: if ``problem`` is no problem or ``weights`` no sequence of real matrices.
        ValueError: if shapes do not chain or do not fit the data.
    """
    _check_problem(problem)
    layers = as_weights(weights)
    check_fit(problem, layers[0].shape[1], layers[-1].shape[0], "weights", len(layers))
    dtype = jnp.result_type(problem.dtype, layers[0].dtype)
    return tuple(w.astype(dtype) for w in layers)


def _check_problem(problem: Any) -> None:
    if not isinstance(problem, Problem):
        raise TypeError(
            f"problem must come from regression, classification, sensing, ..., got "
            f"{type(problem).__name__}"
        )


def check_fit(problem: Problem, inputs: int, outputs: int, name: str, depth: int) -> None:
    """Check that layers called ``name``, of these outer widths, fit the problem.

    Raises:
        TypeError: if ``problem`` is no problem.
        ValueError: if the widths differ.
    """
    _check_problem(problem)
    wanted = problem.input_width, problem.output_width
    if inputs != wanted[0]:
        raise ValueError(f"{name}[0] takes {inputs} inputs, but the problem has k_0 = {wanted[0]}")
    if wanted[1] is not None and outputs != wanted[1]:
        raise ValueError(
            f"{name}[{depth - 1}] gives {outputs} outputs, but the problem has k_d = {wanted[1]}"
        )


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
    return _risk_and_gradient(problem, check_weights(problem, weights))


@on_automatic_axes
def _risk_and_gradient(
    problem: Problem, weights: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...]]:
    core, inside = to_span(problem, weights)
    _, gradients = chain_gradients(inside, core._slopes)
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
) -> tuple[tuple[Array, ...], Array]:
    """``(gradient, ok)`` of a problem without basis, for the inner loop of a descent.

    ``ok`` says that risk and gradient are finite and the risk is at most :func:`largest_risk`.
    """
    rough, gradients = chain_gradients(weights, problem._slopes)
    ok = (rough <= largest_risk(rough.dtype)) & leaves_finite((rough, gradients))
    return gradients, ok
