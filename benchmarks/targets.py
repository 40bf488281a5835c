"""What the package sets out to reach, as ratios within one run: shown, never asserted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks import threads
from benchmarks.engine import OURS, case_name
from benchmarks.peers import C_KERNEL, PLAIN, TORCH
from benchmarks.scaling import SERIES
from benchmarks.timing import Row

__all__ = ["Check", "checks"]

WIDTHS = (2, 4, 9, 16, 32, 64, 128, 256)


def _torch_goal(width: int) -> float:
    """How many times PyTorch's rate is wanted."""
    return 10.0 if width < 16 else 3.0 if width == 16 else 0.9


GOALS: tuple[tuple[str, Callable[[int], float]], ...] = (
    (TORCH, _torch_goal),
    (PLAIN, lambda width: 1.0),
    (C_KERNEL, lambda width: 0.6),
)
"""The peer, and the wanted share of its rate by width."""
LINEAR = 1.1
"""Time per unit of cost over that at the smallest size: at most this."""
COPIES = 0.95
"""Rate of two threads over that of two processes: at least this."""


@dataclass(frozen=True)
class Check:
    """A target and what was reached.

    Attributes:
        claim: what is wanted.
        reached: the ratio measured, None where it was not.
        ok: whether that meets the target.
    """

    claim: str
    reached: float | None
    ok: bool

    def __str__(self) -> str:
        """As a line: claim, number, mark."""
        if self.reached is None:
            return f"{self.claim}: not measured"
        return f"{self.claim}: {self.reached:.3g} {'✓' if self.ok else '✗'}"


def checks(rows: Sequence[Row]) -> list[Check]:
    """All targets that the rows speak of."""
    return [*_widths(rows), *_linear(rows), *_copies(rows)]


def _widths(rows: Sequence[Row]) -> Iterator[Check]:
    for peer, goal in GOALS:
        for width in WIDTHS:
            rates = {
                row.contender: row.gflops
                for row in rows
                if (row.benchmark, row.case) == ("engine", case_name(width, "float32"))
            }
            if OURS not in rates:
                continue
            mine, theirs = rates[OURS], rates.get(peer)
            reached = mine / theirs if mine and theirs else None
            name = peer.partition(":")[0]
            yield _at_least(f"≥ {goal(width):g}× {name} at k = {width}", reached, goal(width))


def _at_least(claim: str, reached: float | None, goal: float) -> Check:
    return Check(claim, reached, reached is not None and reached >= goal)


def _linear(rows: Sequence[Row]) -> Iterator[Check]:
    for series in SERIES:
        ratios = [
            row.ratio
            for row in rows
            if (row.benchmark, row.case) == ("scaling", series) and row.ratio is not None
        ]
        if ratios:
            what = "flat in" if series == "samples" else "linear in"
            worst = max(ratios)
            yield Check(f"≤ {LINEAR:g}× {what} {series}", worst, worst <= LINEAR)


def _copies(rows: Sequence[Row]) -> Iterator[Check]:
    for row in rows:
        if row.benchmark == "threads" and row.contender == threads.TWO:
            width = row.case.partition(",")[0]
            yield _at_least(f"≥ {COPIES:g}× two processes, {width}", row.ratio, COPIES)
