"""What fits on the chip, and how it is laid out there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.linalg import narrowest
from alignjax.problems import largest_risk

__all__ = ["Plan", "applies", "make_plan"]

_LANES_WIDTH, _LANES_ENTRIES = 4, 64
# By the largest width: as few warps as keep their share of a product in their registers.
_WARPS = {"float32": {8: 1, 16: 1, 32: 2, 64: 8}, "float64": {16: 1, 32: 4, 64: 8}}
# Half of the registers of a warp, 32 KB, for the weights. Products want twice their size in shared
# memory, of which a program has 227 KB.
_WARP_BYTES, _PROGRAM_BYTES = 16 * 1024, 96 * 1024
# Older versions of JAX lower no product of tiles below 16, and none does in float64.
_SMALLEST = {"float32": 8 if jax.__version_info__ >= (0, 10, 2) else 16, "float64": 16}


@dataclass(frozen=True)
class Plan:
    """How one network is laid out; static, so that it can be a key.

    Attributes:
        widths: ``(k_0, ..., k_d)`` on the chip, zeros appended.
        vertex: where the chain of layers is cut, see :func:`alignjax.linalg.narrowest`.
        dtype: the precision, by name.
        lanes: whether a network is one lane, or else a program.
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

    @property
    def whole(self) -> bool:
        """Whether the chain is not cut, so that the end-to-end matrix is formed."""
        return self.vertex in (0, self.depth)

    @property
    def moments(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each array in :attr:`moment_names`."""
        square, cross = (self.widths[0],) * 2, (self.widths[-1], self.widths[0])
        return (square, cross, cross, cross, ()) if self.whole else (square, cross, ())

    @property
    def moment_names(self) -> tuple[str, ...]:
        """Which attributes of a :class:`alignjax.problems.MomentProblem` a step needs."""
        if self.whole:
            centre = ("minimizer", "minimizer_slope", "minimum_risk")
            return ("input_moment", "cross_moment", *centre)
        return ("input_moment", "cross_moment", "target_energy")

    @property
    def largest(self) -> float:
        """The largest risk of a good state."""
        return largest_risk(self.dtype)

    @property
    def warps(self) -> int:
        """Warps of a program by tiles."""
        return _WARPS[self.dtype][max(self.widths)]

    def split(self, refs: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        """Moments, weights, results and the steps taken, from all of them in a row."""
        first, second = len(self.moments), len(self.moments) + self.depth
        return refs[:first], refs[first:second], refs[second:-1], refs[-1]


def applies(widths: Sequence[int], dtype: Any) -> bool:
    """Whether networks of these widths stay on the chip for all steps."""
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
    return Plan(padded, narrowest(widths), jnp.dtype(dtype).name, lanes)


def _layout(widths: Sequence[int], dtype: Any) -> tuple[tuple[int, ...], bool] | None:
    """Widths on the chip, and whether by lanes; None where they do not fit."""
    if dtype.name not in _WARPS:
        return None
    if max(widths) <= _LANES_WIDTH and _entries(widths) <= _LANES_ENTRIES:
        return tuple(widths), True
    padded = tuple(max(_SMALLEST[dtype.name], 1 << (k - 1).bit_length()) for k in widths)
    warps = _WARPS[dtype.name].get(max(padded), 0)
    room = min(warps * _WARP_BYTES, _PROGRAM_BYTES)
    return (padded, False) if _entries(padded) * dtype.itemsize <= room else None


def _entries(widths: Sequence[int]) -> int:
    return sum(a * b for a, b in pairwise(widths))
