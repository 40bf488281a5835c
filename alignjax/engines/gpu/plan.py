"""What the kernels take, and how a network is laid out on the chip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax.numpy as jnp

from alignjax.linalg import narrowest

__all__ = ["Plan", "applies", "make_plan"]

# As `with_lane` in csrc/gpu/kernels.h: the most layers that registers hold, by width.
_LANES = {"float32": {2: 4, 3: 4, 4: 4}, "float64": {2: 4, 3: 4, 4: 3}}
_WIDEST = 64
_DEEPEST = 48  # as in csrc/gpu/job.h
# Of layers; products of theirs want as much again, of the 227 KB of shared memory of a block.
_LAYERS_BYTES = 96 * 1024


@dataclass(frozen=True)
class Plan:
    """How one network is laid out; static, so that it can be a key.

    Attributes:
        widths: ``(k_0, ..., k_d)`` on the chip; where a network is a lane, zeros are appended to
            make its layers square.
        vertex: where the chain of layers is cut, see :func:`alignjax.linalg.narrowest`.
        dtype: the precision, by name.
        lanes: whether a network is a thread's, or else a block's.
    """

    widths: tuple[int, ...]
    vertex: int
    dtype: str
    lanes: bool

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self.widths) - 1

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """The shape of every layer."""
        return tuple((b, a) for a, b in pairwise(self.widths))


def applies(widths: Sequence[int], dtype: Any) -> bool:
    """Whether there is a kernel for networks of these widths."""
    return _layout(widths, jnp.dtype(dtype)) is not None


def make_plan(widths: Sequence[int], dtype: Any) -> Plan:
    """The layout of a network on the chip.

    Raises:
        ValueError: if it does not fit there.
    """
    layout = _layout(widths, jnp.dtype(dtype))
    if layout is None:
        raise ValueError(
            f"weights must fit on the chip, see alignjax.engines.gpu: got widths {tuple(widths)} "
            f"in {jnp.dtype(dtype)}"
        )
    padded, lanes = layout
    return Plan(padded, narrowest(padded), jnp.dtype(dtype).name, lanes)


def _layout(widths: Sequence[int], dtype: Any) -> tuple[tuple[int, ...], bool] | None:
    """Widths on the chip, and whether by lanes; None where they do not fit."""
    if dtype.name not in _LANES:
        return None
    widest, depth = max(widths), len(widths) - 1
    if depth <= _LANES[dtype.name].get(max(widest, 2), 0):
        return (max(widest, 2),) * (depth + 1), True
    size = sum(a * b for a, b in pairwise(widths)) * dtype.itemsize
    fits = widest <= _WIDEST and depth <= _DEEPEST and size <= _LAYERS_BYTES
    return (tuple(widths), False) if fits else None
