"""Arcs: the one-dimensional pieces into which an aligned chain of layers falls.

Layers that common bases make diagonal split the network into arcs. An arc is born at one vertex,
as one direction of that width, is carried on by every layer with a nonzero singular value, and
ends where one vanishes. The arcs that pass through a vertex make up its basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from alignjax.bases.tiling import columns_of_arcs
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
        blur: how many times more roundoff ``link`` holds than a matrix of its norm would.
    """

    def __init__(
        self,
        layers: list[Host],
        symmetric: list[Host],
        link: Host,
        *,
        single: bool,
        blur: float = 1.0,
    ) -> None:
        """Scale everything to unit norm and find the first basis."""
        self.layers = [_scaled(w) for w in layers]
        self.link = _scaled(link)
        self.blur = blur
        self.single = single
        self.tie = 1e-5 if single else 1e-10
        self.dead = 1e-5 if single else 1e-11
        self.widths = [layers[0].shape[1], *(w.shape[0] for w in layers)]
        self.start: list[int] = []  # per arc, the vertex of its birth
        self.columns: list[list[Host]] = []  # per arc, its direction at each vertex it meets
        self.clusters: list[list[int]] = []
        both = self.link.T @ reduce(lambda done, w: w @ done, self.layers)
        blurred = [polar_part(link), *self._linked(0), _if_known(both + both.T)]
        self._give_birth(0, np.eye(self.widths[0]), [*symmetric, *self._told_apart(0)], blurred)

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
        return out

    def _linked(self, vertex: int) -> list[Host]:
        """What the link and all later layers together make of directions at a vertex."""
        product = reduce(
            lambda done, w: w @ done, self.layers[vertex:], np.eye(self.widths[vertex])
        )
        return [polar_part(_if_known(self.link.T @ product))]

    def _give_birth(self, vertex: int, space: Host, known: list[Host], blurred: list[Host]) -> None:
        """New arcs that span ``space``, told apart by ``known`` and by what comes of the link."""
        if space.shape[1] == 0:
            return
        seen = [space.T @ _scaled(m) @ space for m in [*known, *blurred]]
        # The diagonalization scales what it is given, so roundoff must not reach it.
        seen = [m if np.linalg.norm(m) > self.dead else np.zeros_like(m) for m in seen]
        # Each in units of its roundoff: that of a small link would turn the bases of all others.
        units = np.array([1.0] * len(known) + [self.blur] * len(blurred))
        basis = joint_diagonalize(seen, sizes=units * [np.linalg.norm(m) for m in seen])
        values = np.stack([np.einsum("ja,jk,ka->a", basis, m, basis) for m in seen])
        # Values that differ by no more than roundoff tie.
        eps = np.finfo(np.float32 if self.single else np.float64).eps
        values /= np.maximum(1.0, 100 * eps * units / self.tie)[:, None]
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
        self._give_birth(vertex, born, self._told_apart(vertex), self._linked(vertex))

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

        Arcs that no cover can place are put where there is room, and the defect will show it.
        """
        extents = [(start, self._end(arc)) for arc, start in enumerate(self.start)]
        table = columns_of_arcs(self.widths, extents, partners)
        out = []
        for vertex, row in enumerate(table):
            placed = {a for a in row if a is not None}
            met = [a for a, s in enumerate(self.start) if s <= vertex <= self._end(a)]
            rest = iter([a for a in met if a not in placed])
            arcs = [next(rest) if a is None else a for a in row]
            out.append(np.stack([self.columns[a][vertex - self.start[a]] for a in arcs], axis=1))
        return out


def _scaled(matrix: Host) -> Host:
    """The matrix with largest singular value 1."""
    norm = np.linalg.norm(matrix, 2)
    return matrix / norm if norm > 0 else matrix


def _if_known(product: Host) -> Host:
    """A product of scaled matrices, or 0 where too much of it is roundoff."""
    return product if np.linalg.norm(product, 2) > 1e-6 else np.zeros_like(product)
