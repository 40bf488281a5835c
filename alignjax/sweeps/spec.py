"""What the executor and a store agree on: the layout of a sweep's results, block by block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Output:
    """One output of a run, without the dimensions of the sweep."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    units: str | None = None


@dataclass(frozen=True)
class Spec:
    """The layout of a sweep: every array has the sweep's dimensions first, then its own.

    Attributes:
        dims: the sweep's dimensions and their sizes, in order.
        block: the shape of a block over these dimensions; blocks at the end may be cut.
        outputs: what each run returns.
        coords: name -> (dimensions, values, attributes).
        attrs: provenance, strings and numbers.
        fingerprint: what results depend on, made of what JSON can hold; two sweeps with one
            fingerprint have the same results.
    """

    dims: dict[str, int]
    block: tuple[int, ...]
    outputs: dict[str, Output]
    coords: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]] = field(
        default_factory=dict
    )
    attrs: dict[str, Any] = field(default_factory=dict)
    fingerprint: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the sweep's dimensions."""
        return tuple(self.dims.values())

    @property
    def blocks_shape(self) -> tuple[int, ...]:
        """How many blocks there are along each dimension of the sweep."""
        return tuple(math.ceil(n / b) for n, b in zip(self.shape, self.block, strict=True))

    def blocks(self) -> Iterator[tuple[int, ...]]:
        """Every block's index, the last dimension fastest."""
        return itertools.product(*map(range, self.blocks_shape))

    def region(self, block: tuple[int, ...]) -> tuple[slice, ...]:
        """Where a block lies in the sweep's dimensions; cut at the end."""
        return tuple(
            slice(i * b, min((i + 1) * b, n))
            for i, b, n in zip(block, self.block, self.shape, strict=True)
        )


class Target(Protocol):
    """Where finished blocks go."""

    def missing(self) -> list[tuple[int, ...]]:
        """Indices of the blocks that are not complete yet."""

    def has(self, block: tuple[int, ...]) -> bool:
        """Whether a block is complete by now."""

    def write(self, block: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> None:
        """Keep one block, complete or not at all; called from several threads.

        ``arrays`` has every output, of shape (the block's region, the output's own shape).
        """

    def dataset(self) -> xarray.Dataset:
        """All results, with coordinates and attributes."""
