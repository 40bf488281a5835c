"""How smooth a risk is where the layers are bounded."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float

from alignjax._validation import as_count, as_real, is_concrete
from alignjax.losses import as_loss

__all__ = ["smoothness"]


def smoothness(
    loss: Any,
    depth: int,
    radius: Float[Array, ""] | float,
    *,
    input_norm: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """A Lipschitz constant of the risk's gradient where all layers have norm at most ``radius``.

        beta(R) = 2 L^2 R^{2L-2} (beta B^2 + G B),    R >= 1, ||x_i|| <= B

    for a loss that is ``beta``-smooth and ``G``-Lipschitz and has one output.

    Args:
        loss: a name or an :class:`alignjax.losses.Loss` with both constants.
        depth: ``L``, at least 1.
        radius: ``R``, at least 1.
        input_norm: ``B``; the paper has inputs of norm at most 1.

    Raises:
        TypeError: if the loss is none.
        ValueError: if the loss lacks a constant (the exponential loss has neither), ``radius`` is
            below 1, or ``input_norm`` below 0.

    Source: Ji & Telgarsky 2019, Lemma 5.

    Example:
        >>> from alignjax.problems import smoothness
        >>> smoothness("logistic", 2, 1.0).item()
        10.0
    """
    chosen = as_loss(loss)
    if chosen.smoothness is None or chosen.lipschitz is None:
        raise ValueError(
            f"loss must be smooth and Lipschitz (Assumption 4), with its constants in "
            f"Loss(smoothness=, lipschitz=), got {chosen.name} with smoothness "
            f"{chosen.smoothness} and lipschitz {chosen.lipschitz}"
        )
    layers = as_count(depth, "depth", minimum=1)
    r = as_real(radius, "radius", ndim=0)
    if is_concrete(r) and float(r) < 1:
        raise ValueError(f"radius must be at least 1, got {radius}")
    b = as_real(input_norm, "input_norm", ndim=0)
    if is_concrete(b) and float(b) < 0:
        raise ValueError(f"input_norm must be at least 0, got {input_norm}")
    slope = chosen.smoothness * b**2 + chosen.lipschitz * b
    return 2 * layers**2 * r ** (2 * layers - 2) * slope
