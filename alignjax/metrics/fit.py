"""How well a network fits its problem, where the risk itself under- or overflows."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax.linalg import join, narrowest_vertex
from alignjax.metrics._norms import to_unit_norm, unit
from alignjax.problems import Problem, SampleProblem, check_weights, outputs, risk

__all__ = ["log_risk", "margin"]


def log_risk(problem: Problem, weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, ""]:
    """The natural logarithm of the risk, exact also where the losses underflow.

        log (1/n) sum_i l(W x_i, y_i) = logsumexp_i log l(W x_i, y_i) - log n

    for a problem that keeps its samples, from the loss's own logarithm; the logarithm of the risk
    for other problems.

    Args:
        problem: any problem.
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        A scalar; ``-inf`` where the risk is exactly zero.

    Raises:
        TypeError: if ``problem`` is no problem or ``weights`` no sequence of real matrices.
        ValueError: if ``weights`` do not fit ``problem``.

    Source: the risk of Ji & Telgarsky 2019, section 2, whose rates are read off its logarithm.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.metrics import log_risk
        >>> problem = aj.classification(jnp.array([[1.0]]), jnp.array([1.0]), loss="exponential")
        >>> log_risk(problem, (jnp.array([[1e4]]),)).item()
        -10000.0
    """
    layers = check_weights(problem, weights)
    if not isinstance(problem, SampleProblem):
        return jnp.log(risk(problem, layers))
    logs = problem.loss.log_values(outputs(problem, layers), problem.targets)
    return jax.nn.logsumexp(logs) - jnp.log(logs.shape[0])


def margin(problem: Problem, weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, ""]:
    """The normalized margin of the end-to-end matrix ``W = W_d ... W_1``.

        min_i y_i <w, x_i> / ||w||                          labels -1 or +1, w = W as a vector
        min_i (z_y - max_{j != y} z_j) / ||W||_F, z = W x_i  class ids

    Args:
        problem: a classification problem.
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        A scalar in units of the inputs, negative where a sample is misclassified; 0 for ``W = 0``.
        Layers are scaled before they are multiplied, so no scale of theirs matters.

    Raises:
        TypeError: if ``problem`` has no labels of that kind.
        ValueError: if ``weights`` do not fit ``problem``.

    Source: Ji & Telgarsky 2019, section 2.2.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.metrics import margin
        >>> X, labels = jnp.array([[1.0, 0.0], [0.0, -2.0]]), jnp.array([1.0, -1.0])
        >>> problem = aj.classification(X, labels)
        >>> margin(problem, (jnp.array([[3.0, 4.0]]),)).round(3).item()
        0.6
    """
    if not isinstance(problem, SampleProblem) or problem.loss.targets == "values":
        loss = f" with the loss {problem.loss.name!r}" if isinstance(problem, SampleProblem) else ""
        raise TypeError(
            "problem must be a classification with labels -1 or +1 or class ids, got "
            f"{type(problem).__name__}{loss}"
        )
    z = outputs(problem, (_direction(check_weights(problem, weights)),))
    y = problem.targets
    if problem.loss.targets == "signs":
        return (y * z[:, 0]).min()
    own = jnp.arange(z.shape[1]) == y[:, None]
    return (jnp.where(own, z, 0.0).sum(1) - jnp.where(own, -jnp.inf, z).max(1)).min()


def _direction(layers: tuple[Array, ...]) -> Array:
    """``W / ||W||_F`` of the end-to-end matrix, each product of the chain brought back to scale."""
    b = narrowest_vertex(layers)
    outer: Array | None = None
    for w in layers[b:]:
        outer = unit(join(unit(w), outer))
    inner: Array | None = None
    for w in reversed(layers[:b]):
        inner = unit(join(inner, unit(w)))
    return to_unit_norm(join(outer, inner))
