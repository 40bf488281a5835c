"""Which column of the bases each arc is: an exact cover of all columns at all vertices.

Column ``c`` exists at the vertices wider than ``c``. The arcs that carry it must tile each run of
such vertices, and an arc from the input and an arc to the output that a target links must carry the
same one. Arcs of equal extent can stand for each other, so what is left to do is known by counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

Extent = tuple[int, int]
"""First and last vertex of an arc; for partners the head's last and the tail's first."""

_MOST_TRIES = 2_000
"""Choices in one search; a first choice that was wrong is quicker left than corrected."""

_SEARCHES = 10
"""Each prefers other arcs. Where no cover exists, this is where looking for one ends."""


def columns_of_arcs(
    widths: Sequence[int], extents: Sequence[Extent], partners: dict[int, int]
) -> list[list[int | None]]:
    """The arc of each column at every vertex; None where none could be placed.

    Args:
        widths: the number of columns at each vertex.
        extents: first and last vertex of each arc.
        partners: arcs from the input that end early, each with the arc to the output that has to
            carry the same column.
    """
    free: dict[Extent, list[int]] = defaultdict(list)
    pairs: dict[Extent, list[tuple[int, int]]] = defaultdict(list)
    bound = {*partners, *partners.values()}
    for arc, extent in enumerate(extents):
        if arc not in bound:
            free[extent].append(arc)
    for head, tail in partners.items():
        pairs[extents[head][1], extents[tail][0]].append((head, tail))
    table: list[list[int | None]] = [[None] * width for width in widths]
    first = max(widths) - 1
    best: list[Choice] = []
    for search in range(_SEARCHES):
        found = _search(widths, free, pairs, search)
        best = max(best, found, key=len)
        if len(best) > first:
            break
    for step, (ends, tiles) in enumerate(best):
        arcs = [free[extent].pop() for extent in tiles]
        if ends is not None:
            arcs += pairs[ends].pop()
        for arc in arcs:
            for vertex in range(extents[arc][0], extents[arc][1] + 1):
                table[vertex][first - step] = arc
    return table


Choice = tuple[Extent | None, tuple[Extent, ...]]


def _search(
    widths: Sequence[int], free: dict[Extent, list[int]], pairs: dict[Extent, list], seed: int
) -> list[Choice]:
    """A choice for every column, the last one first, or for as many as were ever reached."""
    # Partners with little between them have the fewest ways, and go first; so do long arcs. Later
    # searches stray from that, by fixed random numbers.
    noise = np.random.default_rng(seed)
    size = seed * len(widths) / _SEARCHES

    def ordered(extents: dict, longest_first: bool) -> dict[Extent, int]:
        sign = -1 if longest_first else 1
        rank = {e: sign * (e[1] - e[0]) + size * noise.uniform(-1, 1) for e in sorted(extents)}
        return {e: len(extents[e]) for e in sorted(rank, key=lambda e: rank[e])}

    spare, spare_pairs = ordered(free, True), ordered(pairs, False)
    by_start: dict[int, list[int]] = defaultdict(list)
    for start, end in spare:
        by_start[start].append(end)
    columns = range(max(widths) - 1, -1, -1)
    runs = [_runs([width > column for width in widths]) for column in columns]
    depth = len(widths) - 1
    done: list[Choice] = []
    best: list[Choice] = []
    hopeless: set[tuple] = set()
    levels = [_choices(runs[0], depth, spare, spare_pairs, by_start)]

    def count(choice: Choice, by: int) -> None:
        ends, tiles = choice
        if ends is not None:
            spare_pairs[ends] += by
        for tile in tiles:
            spare[tile] += by

    for _ in range(_MOST_TRIES + len(runs)):
        choice = next(levels[-1], None)
        if choice is None:
            hopeless.add(_state(len(done), spare, spare_pairs))
            levels.pop()
            if not levels:
                break
            count(done.pop(), 1)
            continue
        count(choice, -1)
        done.append(choice)
        if len(done) > len(best):
            best = list(done)
        if len(done) == len(runs):
            break
        if _state(len(done), spare, spare_pairs) in hopeless:
            count(done.pop(), 1)
            continue
        levels.append(_choices(runs[len(done)], depth, spare, spare_pairs, by_start))
    return best


def _state(step: int, spare: dict[Extent, int], spare_pairs: dict[Extent, int]) -> tuple:
    return step, tuple(spare.values()), tuple(spare_pairs.values())


def _choices(
    runs: list[Extent],
    depth: int,
    spare: dict[Extent, int],
    spare_pairs: dict[Extent, int],
    by_start: dict[int, list[int]],
) -> Iterator[Choice]:
    """What can carry one column: partners or none, and arcs for the vertices between."""
    some = [ends for ends, number in spare_pairs.items() if number]
    for ends in [*some, None]:
        spans = _without(runs, depth, ends)
        if spans is not None:
            for tiles in _tilings(spans, spare, by_start):
                yield ends, tiles


def _without(runs: list[Extent], depth: int, ends: Extent | None) -> list[Extent] | None:
    """What is left to tile once partners hold both ends; None if they do not fit."""
    if ends is None:
        return runs
    head, tail = ends
    (first, head_room), (tail_room, last) = runs[0], runs[-1]
    if not (first == 0 and last == depth and head <= head_room and tail >= tail_room):
        return None
    spans = [(max(a, head + 1), min(b, tail - 1)) for a, b in runs]
    return [(a, b) for a, b in spans if a <= b]


def _tilings(
    spans: list[Extent], spare: dict[Extent, int], by_start: dict[int, list[int]]
) -> Iterator[tuple[Extent, ...]]:
    """All ways to tile the spans with arcs that are left, in the order of ``by_start``.

    Tiles of one column start at different vertices, so that none is needed twice.
    """
    onward: dict[int, list[int]] = {}  # for each vertex, where tiles from it end that lead on
    starts = []
    for first, last in spans:
        for vertex in range(last, first - 1, -1):
            onward[vertex] = [
                end
                for end in by_start.get(vertex, [])
                if end <= last and spare[vertex, end] and (end == last or onward[end + 1])
            ]
        if not onward[first]:
            return
        starts.append(first)
    following = {last: start for (_, last), start in zip(spans, starts[1:], strict=False)}

    # Depth first, without recursion: networks may have a thousand layers.
    if not spans:
        yield ()
        return
    path: list[Extent] = []
    waiting = [[(starts[0], end) for end in reversed(onward[starts[0]])]]
    while waiting:
        if not waiting[-1]:
            waiting.pop()
            if path:
                path.pop()
            continue
        tile = waiting[-1].pop()
        path.append(tile)
        vertex = following.get(tile[1], tile[1] + 1)
        if tile[1] == spans[-1][1]:
            yield tuple(path)
            path.pop()
        else:
            waiting.append([(vertex, end) for end in reversed(onward[vertex])])


def _runs(inside: list[bool]) -> list[Extent]:
    """First and last positions of the runs of True."""
    edges = np.flatnonzero(np.diff(np.array([False, *inside, False], int)))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]
