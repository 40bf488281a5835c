"""Arcs: the one-dimensional pieces into which an aligned chain of layers falls.

Layers that common bases make diagonal split the network into arcs. An arc is born at one vertex,
as one direction of that width, is carried on by every layer with a nonzero singular value, and
ends where one vanishes. The arcs that pass through a vertex make up its basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product

import numpy as np

from alignjax.linalg import joint_diagonalize

Host = np.ndarray


def complete(columns: Host, size: int) -> Host:
    """An orthogonal ``(size, size)`` matrix whose first columns are ``columns``, orthonormalized.

    Columns come longest first: a short one is known least, so it is the one to be corrected.
    """
    if columns.shape[1] == 0:
        return np.eye(size)
    q, r = np.linalg.qr(columns, mode="complete")
    count = min(columns.shape)
    q[:, :count] *= np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return q


def polar_part(matrix: Host) -> Host:
    """``(M^T M)^{1/2}``, which unlike ``M^T M`` resolves small singular values."""
    _, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (vt.T * s) @ vt


def groups_of_ties(values: Host, tolerance: float) -> list[list[int]]:
    """Groups of columns of ``values (q, m)`` whose entries agree in every row, by chains."""
    left = list(range(values.shape[1]))
    groups = []
    while left:
        group, frontier = [], [left.pop(0)]
        while frontier:
            a = frontier.pop()
            group.append(a)
            near = [b for b in left if np.abs(values[:, a] - values[:, b]).max() <= tolerance]
            left = [b for b in left if b not in near]
            frontier += near
        groups.append(sorted(group))
    return groups


class ArcFinder:
    """Finds the arcs of a chain by carrying bases forward, layer by layer.

    Directions that nothing told apart so far form a cluster; a layer that does tell them apart
    rotates their whole past and splits the cluster.

    Args:
        layers: ``(W_1, ..., W_d)`` in float64.
        symmetric: matrices ``(k_0, k_0)`` that the first basis makes diagonal.
        link: a matrix ``(k_d, k_0)`` that the last and the first basis make diagonal.
        single: whether the numbers are only good to float32.
    """

    def __init__(
        self, layers: list[Host], symmetric: list[Host], link: Host, *, single: bool
    ) -> None:
        """Scale everything to unit norm and find the first basis."""
        self.layers = [_scaled(w) for w in layers]
        self.link = _scaled(link)
        self.tie = 1e-5 if single else 1e-10
        self.dead = 1e-5 if single else 1e-11
        self.widths = [layers[0].shape[1], *(w.shape[0] for w in layers)]
        self.start: list[int] = []  # per arc, the vertex of its birth
        self.columns: list[list[Host]] = []  # per arc, its direction at each vertex it meets
        self.clusters: list[list[int]] = []
        both = self.link.T @ reduce(lambda done, w: w @ done, self.layers)
        known = [*symmetric, *self._told_apart(0), _if_known(both + both.T)]
        self._give_birth(0, np.eye(self.widths[0]), known)

    def bases(self) -> list[Host]:
        """Full orthogonal bases ``P_0, ..., P_d``, arcs of equal index following each other."""
        for vertex in range(1, len(self.widths)):
            self._carry(vertex)
        return self._place(self._pair_broken_arcs())

    def _told_apart(self, vertex: int) -> list[Host]:
        """Matrices that tell directions at a vertex apart by what later layers make of them."""
        out: list[Host] = []
        product = np.eye(self.widths[vertex])
        for layer in self.layers[vertex:]:
            product = layer @ product
            out.append(polar_part(_if_known(product)))
        return [*out, polar_part(_if_known(self.link.T @ product))]

    def _give_birth(self, vertex: int, space: Host, known: list[Host]) -> None:
        """New arcs that span ``space``, told apart by the matrices ``known``."""
        if space.shape[1] == 0:
            return
        seen = [space.T @ _scaled(m) @ space for m in known]
        # The diagonalization scales what it is given, so roundoff must not reach it.
        seen = [m if np.linalg.norm(m) > self.dead else np.zeros_like(m) for m in seen]
        basis = joint_diagonalize(seen)
        values = np.stack([np.einsum("ja,jk,ka->a", basis, m, basis) for m in seen])
        first = len(self.start)
        for column in (space @ basis).T:
            self.start.append(vertex)
            self.columns.append([column])
        groups = groups_of_ties(values, self.tie)
        self.clusters += [[first + a for a in group] for group in groups]

    def _end(self, arc: int) -> int:
        return self.start[arc] + len(self.columns[arc]) - 1

    def _rotate(self, cluster: Sequence[int], rotation: Host) -> None:
        """Mix the arcs of a cluster, at every vertex that they have met."""
        for step in range(len(self.columns[cluster[0]])):
            mixed = np.stack([self.columns[a][step] for a in cluster], axis=1) @ rotation
            for index, arc in enumerate(cluster):
                self.columns[arc][step] = mixed[:, index]

    def _carry(self, vertex: int) -> None:
        """One layer on: images of the arcs alive, then new arcs for what no image reaches."""
        layer = self.layers[vertex - 1]
        alive = [c for c in self.clusters if self._end(c[0]) == vertex - 1]
        self.clusters = [c for c in self.clusters if self._end(c[0]) != vertex - 1]
        images: dict[int, Host] = {}
        # A weak image is known to few digits, so the strong ones go first ...
        weak = self._images(alive, layer, 1e-3, images)
        if weak:
            # ... and the weak get help from the gradient's direction, which has the same bases and
            # links a mode that is broken at this layer alone.
            mixed = layer + 0.618034 * self._gradient_direction(vertex)
            if images:
                strong = complete(self._sorted(images)[1], self.widths[vertex])[:, : len(images)]
                mixed = mixed - strong @ (strong.T @ mixed)
            self.clusters += self._images(weak, mixed, self.dead, images)
        arcs, columns = self._sorted(images)
        # More images than dimensions: no aligned chain does this; the defect will show it.
        lost = set(arcs[self.widths[vertex] :])
        arcs, columns = arcs[: self.widths[vertex]], columns[:, : self.widths[vertex]]
        self.clusters = [[a for a in c if a not in lost] for c in self.clusters if {*c} - lost]
        self.clusters += [[a] for a in lost]
        basis = complete(columns, self.widths[vertex])
        for index, arc in enumerate(arcs):
            self.columns[arc].append(basis[:, index])
        born = basis[:, len(arcs) :]
        self._give_birth(vertex, born, self._told_apart(vertex))

    def _sorted(self, images: dict[int, Host]) -> tuple[list[int], Host]:
        arcs = sorted(images, key=lambda a: -float(np.linalg.norm(images[a])))
        return arcs, np.stack([images[a] for a in arcs], axis=1) if arcs else np.zeros((1, 0))

    def _images(
        self, clusters: list[list[int]], layer: Host, floor: float, images: dict[int, Host]
    ) -> list[list[int]]:
        """Add images longer than ``floor`` to ``images``; return the clusters that have none."""
        lost = []
        for cluster in clusters:
            here = np.stack([self.columns[a][-1] for a in cluster], axis=1)
            u, s, vt = np.linalg.svd(layer @ here, full_matrices=True)
            values = np.zeros(len(cluster))
            values[: len(s)] = s
            values[values <= floor] = 0.0
            groups = groups_of_ties(values[None], self.tie)
            if len(groups) > 1:
                self._rotate(cluster, vt.T)
                vt = np.eye(len(cluster))
            for group in groups:
                arcs = [cluster[a] for a in group]
                if values[group[0]] == 0.0:
                    lost.append(arcs)
                    continue
                self.clusters.append(arcs)
                tied = u[:, group] @ vt[np.ix_(group, group)]
                images.update(
                    {a: s[g] * tied[:, i] for i, (a, g) in enumerate(zip(arcs, group, strict=True))}
                )
        return lost

    def _gradient_direction(self, vertex: int) -> Host:
        """``(W_d...W_{i+1})^T link (W_{i-1}...W_1)^T`` to unit norm, or 0 if it is roundoff."""
        out = self.link
        for layer in reversed(self.layers[vertex:]):
            out = layer.T @ out
        for layer in self.layers[: vertex - 1]:
            out = out @ layer.T
        return _scaled(_if_known(out))

    def _pair_broken_arcs(self) -> dict[int, int]:
        """Arcs from the input that end early, each with the arc at the output of its target."""
        depth = len(self.layers)
        heads = [c for c in self.clusters if self.start[c[0]] == 0 and self._end(c[0]) < depth]
        tails = [c for c in self.clusters if self.start[c[0]] > 0 and self._end(c[0]) == depth]
        partners: dict[int, int] = {}
        for head in heads:
            free = list(head)
            for tail in tails:
                if not free or not tail:
                    continue
                start = np.stack([self.columns[a][0] for a in free], axis=1)
                end = np.stack([self.columns[a][-1] for a in tail], axis=1)
                u, s, vt = np.linalg.svd(end.T @ self.link @ start, full_matrices=True)
                count = int((s > self.dead).sum())
                if count == 0:
                    continue
                self._rotate(free, vt.T)
                self._rotate(tail, u)
                partners.update(zip(free[:count], tail[:count], strict=True))
                free, tail[:] = free[count:], tail[count:]
        return partners

    def _place(self, partners: dict[int, int]) -> list[Host]:
        """Give every arc a column index that it keeps, and read off the bases.

        Index ``c`` exists at the vertices wider than ``c``, and the arcs that carry it must tile
        each run of such vertices. No greedy order is always right, so a few are tried; arcs that
        no order can place are put where there is room, and the defect will show it.
        """
        best: list[list[int | None]] | None = None
        for longest_first, partners_first in product((True, False), (True, False)):
            table = self._tiled(partners, longest_first, partners_first)
            if best is None or _gaps(table) < _gaps(best):
                best = table
        assert best is not None  # four orders were tried
        out = []
        for vertex, row in enumerate(best):
            placed = {a for a in row if a is not None}
            met = [a for a, s in enumerate(self.start) if s <= vertex <= self._end(a)]
            rest = iter([a for a in met if a not in placed])
            arcs = [next(rest) if a is None else a for a in row]
            out.append(np.stack([self.columns[a][vertex - self.start[a]] for a in arcs], axis=1))
        return out

    def _tiled(
        self, partners: dict[int, int], longest_first: bool, partners_first: bool
    ) -> list[list[int | None]]:
        """Which arc has which index at every vertex; None where no arc fitted."""
        table: list[list[int | None]] = [[None] * width for width in self.widths]
        bound = {*partners, *partners.values()}
        free: list[list[int]] = [[] for _ in self.widths]
        for arc, start in enumerate(self.start):
            if arc not in bound:
                free[start].append(arc)
        for arcs in free:
            arcs.sort(key=self._end, reverse=longest_first)
        pairs: list[tuple[int, ...]] = list(partners.items())

        for index in range(max(self.widths) - 1, -1, -1):
            runs = _runs([width > index for width in self.widths])
            options: list[tuple[int, ...]] = [(), *self._distinct(pairs)]
            for ends in options[1:] + options[:1] if partners_first else options:
                tiles = self._tile_all(free, self._without(runs, ends))
                if tiles is not None:
                    break
            else:
                ends, tiles = (), [t for run in runs for t in self._tiles(free, *run) or []]
            if ends:
                pairs.remove(ends)
            for arc in tiles:
                free[self.start[arc]].remove(arc)
            for arc in (*ends, *tiles):
                for vertex in range(self.start[arc], self._end(arc) + 1):
                    table[vertex][index] = arc
        return table

    def _distinct(self, pairs: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """One pair of partners of each extent."""
        return list({(self._end(h), self.start[t]): (h, t) for h, t in reversed(pairs)}.values())

    def _without(
        self, runs: list[tuple[int, int]], ends: tuple[int, ...]
    ) -> list[tuple[int, int]] | None:
        """What is left to tile once a pair of partners holds both ends; None if it does not fit."""
        if not ends:
            return runs
        head, tail = self._end(ends[0]), self.start[ends[1]]
        (first, head_room), (tail_room, last) = runs[0], runs[-1]
        whole = first == 0 and last == len(self.layers)
        if not (whole and head <= head_room and tail >= tail_room):
            return None
        spans = [(max(a, head + 1), min(b, tail - 1)) for a, b in runs]
        return [(a, b) for a, b in spans if a <= b]

    def _tile_all(
        self, free: list[list[int]], spans: list[tuple[int, int]] | None
    ) -> list[int] | None:
        """Tiles of all the spans, or None where one has none."""
        if spans is None:
            return None
        tiles = [self._tiles(free, *span) for span in spans]
        return None if None in tiles else [arc for some in tiles for arc in some or []]

    def _tiles(self, free: list[list[int]], first: int, last: int) -> list[int] | None:
        """Free arcs that follow each other from vertex ``first`` to ``last``, or None."""
        blocked: set[int] = set()

        def follow(vertex: int) -> list[int] | None:
            if vertex > last:
                return []
            tried = set()
            for arc in free[vertex] if vertex not in blocked else []:
                end = self._end(arc)
                if end <= last and end not in tried:
                    tried.add(end)
                    rest = follow(end + 1)
                    if rest is not None:
                        return [arc, *rest]
            blocked.add(vertex)
            return None

        return follow(first)


def _runs(inside: list[bool]) -> list[tuple[int, int]]:
    """First and last positions of the runs of True."""
    edges = np.flatnonzero(np.diff(np.array([False, *inside, False], int)))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def _gaps(table: list[list[int | None]]) -> int:
    return sum(row.count(None) for row in table)


def _scaled(matrix: Host) -> Host:
    """The matrix with largest singular value 1."""
    norm = np.linalg.norm(matrix, 2)
    return matrix / norm if norm > 0 else matrix


def _if_known(product: Host) -> Host:
    """A product of scaled matrices, or 0 where too much of it is roundoff."""
    return product if np.linalg.norm(product, 2) > 1e-6 else np.zeros_like(product)
