"""Moments of data that come in batches, for data that do not fit in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._meshes import on_automatic_axes
from alignjax._validation import as_count, as_dtype, as_real, describe, is_concrete
from alignjax.linalg import matmul

__all__ = ["Moments", "accumulate"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Means over the samples seen so far.

    Attributes:
        count: samples seen.
        input_moment: ``X^T X / n``, shape ``(k_0, k_0)``.
        cross_moment: ``Y^T X / n``, shape ``(k_d, k_0)``.
        target_energy: ``(1/n) sum ||y_i||^2``.
    """

    count: Array
    input_moment: Array
    cross_moment: Array
    target_energy: Array

    @staticmethod
    def zero(input_width: int, output_width: int, dtype: Any = None) -> Moments:
        """Nothing seen yet, for ``k_0`` inputs and ``k_d`` outputs."""
        k_0 = as_count(input_width, "input_width", minimum=1)
        k_d = as_count(output_width, "output_width", minimum=1)
        dtype = as_dtype(dtype)
        return Moments(
            jnp.zeros((), jnp.int32),
            jnp.zeros((k_0, k_0), dtype),
            jnp.zeros((k_d, k_0), dtype),
            jnp.zeros((), dtype),
        )

    def update(self, X: Float[Array, "n k_0"], Y: Float[Array, "n k_d"]) -> Moments:
        """The moments with a further batch: means move by the batch's share, sums never grow.

        Raises:
            ValueError: if the batch does not have the widths of the moments, or is not finite.
        """
        return _absorb(self, *self._checked(X, Y))

    def _checked(self, X: Any, Y: Any) -> tuple[Array, Array]:
        """A batch in the dtype of the moments, if it has their widths."""
        inputs = as_real(X, "X", ndim=2)
        targets = as_real(Y, "Y", ndim=(1, 2))
        targets = targets[:, None] if targets.ndim == 1 else targets
        wanted = self.cross_moment.shape
        if (targets.shape[1], inputs.shape[1]) != wanted or len(inputs) != len(targets):
            raise ValueError(
                f"X and Y must be (n, {wanted[1]}) and (n, {wanted[0]}), got {inputs.shape} and "
                f"{targets.shape}"
            )
        dtype = self.cross_moment.dtype
        if is_concrete(self.count) and int(self.count) + inputs.shape[0] >= 2**31:
            raise ValueError(f"X brings the count of samples beyond 2**31 - 1, from {self.count}")
        return inputs.astype(dtype), targets.astype(dtype)


@on_automatic_axes
def _absorb(moments: Moments, inputs: Array, targets: Array) -> Moments:
    count = moments.count + inputs.shape[0]
    share = inputs.shape[0] / count.astype(inputs.dtype)

    def blend(old: Array, new: Array) -> Array:
        return old + share * (new / inputs.shape[0] - old)

    return Moments(
        count,
        blend(moments.input_moment, matmul(inputs.T, inputs)),
        blend(moments.cross_moment, matmul(targets.T, inputs)),
        blend(moments.target_energy, (targets**2).sum()),
    )


# Moments of 12,288 inputs take 1.2 GB: the stream's own are overwritten, never copied.
_absorb_in_place = partial(jax.jit, donate_argnums=0)(_absorb)


def accumulate(batches: Iterable[tuple[Any, Any]]) -> Moments:
    """The moments of a stream of batches ``(X, Y)``, one held in memory at a time.

    Raises:
        ValueError: if the stream is empty or its batches differ in width.

    Example:
        >>> import alignjax as aj, numpy as np
        >>> m = aj.accumulate((np.ones((5, 2)), np.ones((5, 1))) for _ in range(3))
        >>> problem = aj.from_moments(m.input_moment, m.cross_moment, m.target_energy)
        >>> int(m.count), problem.input_width
        (15, 2)
    """
    moments: Moments | None = None
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(f"batches must hold pairs (X, Y), got {describe(batch)}")
        X, Y = batch
        inputs, targets = as_real(X, "X", ndim=2), as_real(Y, "Y", ndim=(1, 2))
        if moments is None:
            width = 1 if targets.ndim == 1 else targets.shape[1]
            dtype = jnp.result_type(inputs, targets)
            moments = Moments.zero(inputs.shape[1], width, dtype)
        moments = _absorb_in_place(moments, *moments._checked(inputs, targets))
    if moments is None:
        raise ValueError("batches must hold at least one pair (X, Y), got an empty stream")
    return moments
