"""What the package sets out to reach, as ratios within one run: shown, never asserted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks import threads
from benchmarks.engine import OURS, STEPS, case_name, width_of
from benchmarks.gpu import MANY_CASE, OURS_GPU, PEAK
from benchmarks.peers import C_KERNEL, PLAIN, TORCH
from benchmarks.scaling import SERIES
from benchmarks.timing import Row

__all__ = ["Check", "checks"]

WIDTHS = tuple(STEPS)


def _torch_goal(width: int) -> float:
    """How many times PyTorch's rate is wanted."""
    return 10.0 if width < 16 else 3.0 if width == 16 else 0.9


GOALS: tuple[tuple[str, Callable[[int], float]], ...] = (
    (TORCH, _torch_goal),
    (PLAIN, lambda width: 1.0),
    (C_KERNEL, lambda width: 0.6),
)
"""The peer, and the wanted share of its rate by width."""
BETWEEN: tuple[tuple[str, float, int], ...] = ((PLAIN, 1.0, 2), (TORCH, 0.9, 32))
"""The peer, the wanted share of its rate, and the width from which on it is wanted everywhere."""
GPU_GOALS: tuple[tuple[str, float, tuple[int, ...]], ...] = (
    (PLAIN, 20.0, (2, 4, 8, 9, 16)),
    (PEAK, 0.4, (16, 32)),
)
"""The peer on the same card, the wanted share of its rate, and the widths."""
MANY_SECONDS = 1.0
"""Time of the map of 16.8 million networks: at most this."""
LINEAR = 1.1
"""Time per unit of cost and that at the smallest size differ by at most this factor."""
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
    return [*_widths(rows), *_between(rows), *_linear(rows), *_copies(rows), *_gpu(rows)]


def _widths(rows: Sequence[Row]) -> Iterator[Check]:
    for peer, goal in GOALS:
        for width in WIDTHS:
            yield from _share(rows, "engine", OURS, peer, width, goal(width))


def _between(rows: Sequence[Row]) -> Iterator[Check]:
    """The least of our rates over a peer's at the widths between :data:`WIDTHS`."""
    mine = [row for row in rows if row.benchmark == "widths"]
    for peer, goal, first in BETWEEN:
        # A row's ratio is its time over ours.
        found = {width_of(row): row.ratio for row in mine if row.contender == peer}
        wanted = {width: ratio for width, ratio in found.items() if width >= first}
        if not wanted:
            continue
        claim = f"≥ {goal:g}× {peer.partition(':')[0]} at {len(wanted)} other widths from {first}"
        measured = {width: ratio for width, ratio in wanted.items() if ratio is not None}
        if len(measured) < len(wanted):
            yield Check(claim, None, False)
        else:
            worst = min(measured, key=measured.__getitem__)
            yield _at_least(f"{claim}, least at k = {worst}", measured[worst], goal)


def _gpu(rows: Sequence[Row]) -> Iterator[Check]:
    for peer, goal, widths in GPU_GOALS:
        for width in widths:
            yield from _share(rows, "gpu", OURS_GPU, peer, width, goal)
    for row in rows:
        if (row.benchmark, row.case, row.contender) == ("gpu", MANY_CASE, OURS_GPU):
            took = row.run_seconds
            claim = f"≤ {MANY_SECONDS:g} s for {row.runs:,} networks of width 4 on a GPU"
            yield Check(claim, took, took is not None and took <= MANY_SECONDS)


def _share(
    rows: Sequence[Row], benchmark: str, own: str, peer: str, width: int, goal: float
) -> Iterator[Check]:
    """Our rate over a peer's at one width; nothing if ours was no part of the run."""
    rates = {
        row.contender: row.gflops
        for row in rows
        if (row.benchmark, row.case) == (benchmark, case_name(width, "float32"))
    }
    if own not in rates:
        return
    mine, theirs = rates[own], rates.get(peer)
    reached = mine / theirs if mine and theirs else None
    where = " on a GPU" if benchmark == "gpu" else ""
    yield _at_least(f"≥ {goal:g}× {peer.partition(':')[0]} at k = {width}{where}", reached, goal)


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
            worst = max(max(ratio, 1 / ratio) for ratio in ratios)
            yield Check(f"{what} {series} up to {LINEAR:g}×", worst, worst <= LINEAR)


def _copies(rows: Sequence[Row]) -> Iterator[Check]:
    for row in rows:
        if row.benchmark == "threads" and row.contender == threads.TWO:
            width = row.case.partition(",")[0]
            yield _at_least(f"≥ {COPIES:g}× two processes, {width}", row.ratio, COPIES)
