"""Matrices whose every entry is a vector over networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add, mul, sub
from typing import Any

import jax
from jaxtyping import Array

__all__ = ["Lanes"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lanes:
    """A batch of matrices, entry by entry; what is computed with it is unrolled.

    Attributes:
        rows: rows of entries, each of shape ``(networks,)``, or ``()`` if they all share it.
    """

    rows: tuple[tuple[Array, ...], ...]

    @classmethod
    def read(cls, ref: Any, shape: Sequence[int], at: Any) -> Lanes:
        """From a reference of shape ``(entries, networks)``, row by row, the networks ``at``."""
        height, width = shape
        return cls(
            tuple(tuple(ref[i * width + j, at] for j in range(width)) for i in range(height))
        )

    @property
    def shape(self) -> tuple[int, int]:
        """That of one matrix."""
        return len(self.rows), len(self.rows[0])

    @property
    def T(self) -> Lanes:
        """Transposed."""
        return Lanes(tuple(zip(*self.rows, strict=True)))

    def entries(self) -> tuple[Array, ...]:
        """All of them, row by row."""
        return tuple(entry for row in self.rows for entry in row)

    def sum(self) -> Array:
        """The sum of the entries of each matrix."""
        return reduce(add, self.entries())

    def __matmul__(self, other: Lanes) -> Lanes:
        """Products of matrices."""
        columns = other.T.rows
        return Lanes(tuple(tuple(_dot(row, column) for column in columns) for row in self.rows))

    def __add__(self, other: Lanes) -> Lanes:
        """Entry by entry."""
        return self._with(add, other)

    def __sub__(self, other: Lanes) -> Lanes:
        """Entry by entry."""
        return self._with(sub, other)

    def __mul__(self, other: Any) -> Lanes:
        """Entry by entry, or with one number a network or for all."""
        return self._with(mul, other)

    def _with(self, operation: Callable[[Any, Any], Array], other: Any) -> Lanes:
        if not isinstance(other, Lanes):
            other = Lanes(((other,) * self.shape[1],) * self.shape[0])
        pairs = zip(self.rows, other.rows, strict=True)
        return Lanes(tuple(tuple(map(operation, a, b)) for a, b in pairs))


def _dot(row: Sequence[Array], column: Sequence[Array]) -> Array:
    return reduce(add, map(mul, row, column))
