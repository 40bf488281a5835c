"""Chains of layers of any shape in any nest of batches, run by the kernels and by NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from alignjax.engines import fused, library, xla
from alignjax.problems import MomentProblem, largest_risk

# Around lengths of vectors, tiles of registers, and where vectors turn along the columns.
EDGES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49, 63, 64, 65)
EDGES += (113, 128, 129)  # long enough for one row to be taken in pieces of eight vectors
WITH_CODE_OF_THEIR_OWN = (2, 3, 4, 8, 9, 16)
# Healthy networks, relative to a layer's largest entry.
TOLERANCE = {"float64": 1e-10, "float32": 2e-3}
# Networks that diverge, relative to a layer's norm: each step multiplies an error by the depth.
LOOSE = {"float64": 1e-5, "float32": 0.1}


@dataclass(frozen=True)
class Level:
    """One ``vmap``: how many, and along which axis it batches an operand; None shares it.

    An axis beyond an array's last one means the last one.
    """

    size: int
    problem: int | None
    starts: int | None
    rates: int | None


@dataclass(frozen=True)
class Case:
    """What is run.

    Attributes:
        widths: ``(k_0, ..., k_d)``.
        dtype: the precision, by name.
        levels: the nest of ``vmap``, the outermost first.
        segments: steps between save points.
        per_layer: whether there is a rate a layer.
        layout: as in :func:`alignjax.engines.fused.on_cpu`.
        samples: how many.
        wild: the share of rates that are far too large, and half of that of starts that are bad.
        instruction_set: an index, modulo those that run here.
        seed: of the numbers.
    """

    widths: tuple[int, ...]
    dtype: str
    levels: tuple[Level, ...]
    segments: tuple[int, ...]
    per_layer: bool
    layout: str
    samples: int
    wild: float
    instruction_set: int
    seed: int

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self.widths) - 1

    def sizes(self, operand: str) -> tuple[int, ...]:
        """Of the levels that batch an operand."""
        return tuple(lv.size for lv in self.levels if getattr(lv, operand) is not None)


@st.composite
def cases(draw: Any, widest: int = 70) -> Case:
    """Cases of bounded cost; ``widest`` bounds the widths."""
    width = st.sampled_from([k for k in EDGES if k <= widest]) | st.integers(1, widest)
    square = st.builds(
        lambda k, depth: (k,) * (depth + 1),
        st.sampled_from([k for k in WITH_CODE_OF_THEIR_OWN if k <= widest]),
        st.integers(1, 6),
    )
    widths = draw(square | st.lists(width, min_size=2, max_size=7).map(tuple))
    wide = max(widths) > 24
    if wide:
        widths = widths[:5]
    axis = st.none() | st.integers(0, 3)
    level = st.builds(Level, st.integers(1, 2 if wide else 3), axis, axis, axis)
    levels = draw(
        st.lists(
            level.filter(lambda lv: (lv.problem, lv.starts, lv.rates) != (None, None, None)),
            max_size=3,
        )
    )
    if levels and not wide:  # more networks than a vector has lanes
        many = draw(st.sampled_from(range(len(levels))))
        levels[many] = Level(
            draw(st.integers(1, 40)), *(getattr(levels[many], n) for n in OPERANDS)
        )
    networks = int(np.prod([lv.size for lv in levels]))
    cost = 6 * len(widths) * max(max(widths), 4) ** 3 * networks
    most = max(3, 200_000_000 // cost)
    count = st.sampled_from([0, 1, 31, 32, 33, 63, 64, 65]) | st.integers(0, 70)
    count = count.map(lambda n: min(n, most))
    # A program that loops over segments takes longer to compile, so most have one.
    one = st.tuples(count)
    segments = draw(one | one | st.tuples(count, count, count))
    return Case(
        tuple(widths),
        draw(st.sampled_from(["float32", "float64"])),
        tuple(levels),
        segments,
        draw(st.booleans()),
        draw(st.sampled_from(fused.LAYOUTS)),
        draw(st.integers(1, 2 * max(widths))),
        draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        draw(st.integers(0, 2)),
        draw(st.integers(0, 2**32 - 1)),
    )


OPERANDS = ("problem", "starts", "rates")


def least_squares(X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, ...]:
    """The leaves of a problem without a basis, for stacks of samples."""
    n = X.shape[-2]
    moment, cross = X.mT @ X / n, Y.mT @ X / n
    best = cross @ np.linalg.pinv(moment, hermitian=True)
    energy = (Y**2).sum((-2, -1)) / n
    floor = 0.5 * np.maximum(energy - (best * cross).sum((-2, -1)), 0.0)
    return moment, cross, energy, best, floor, best @ moment - cross


def operands(case: Case) -> tuple[MomentProblem, tuple[np.ndarray, ...], np.ndarray]:
    """Problem, starts and rates, with the axes of those levels that batch them in front."""
    rng = np.random.default_rng(case.seed)
    lead = case.sizes("problem")
    X, Y = (rng.normal(size=(*lead, case.samples, case.widths[i])) for i in (0, -1))
    X, Y = (Z * case.samples**0.5 / np.linalg.norm(Z, 2, (-2, -1), keepdims=True) for Z in (X, Y))
    problem = MomentProblem(*(np.asarray(leaf, case.dtype) for leaf in least_squares(X, Y)))
    lead = case.sizes("starts")
    starts = tuple(
        (0.5 * rng.normal(size=(*lead, rows, cols)) / max(rows, cols) ** 0.5).astype(case.dtype)
        for cols, rows in pairwise(case.widths)
    )
    bad = rng.random(lead) < case.wild / 2
    huge = np.finfo(case.dtype).max ** 0.8
    starts[0][..., 0, 0] = np.where(
        bad, rng.choice([np.nan, np.inf, -np.inf, huge], lead), starts[0][..., 0, 0]
    )
    lead = case.sizes("rates")
    rates = rng.uniform(0.005, 0.05, (*lead, case.depth) if case.per_layer else lead)
    wild = 1e4 * (rng.random(lead) < case.wild)
    rates = rates + (wild[..., None] if case.per_layer else wild)
    return problem, starts, rates.astype(case.dtype)


def nested(case: Case, run: Callable) -> tuple[Callable, tuple[Any, ...]]:
    """``run(problem, starts, rates)`` under the levels of a case, and what it is given there."""
    given = operands(case)
    for at in reversed(range(len(case.levels))):
        axes = []
        for i, name in enumerate(OPERANDS):
            axis = getattr(case.levels[at], name)
            if axis is None:
                axes.append(None)
                continue
            # Outer levels that batch the operand have their axes in front still.
            front = sum(getattr(lv, name) is not None for lv in case.levels[:at])

            def where(leaf: Any, axis: int = axis, front: int = front) -> int:
                return min(axis, np.ndim(leaf) - front - 1)

            axes.append(jax.tree.map(where, given[i]))
            given = (
                *given[:i],
                jax.tree.map(
                    lambda leaf, a, front=front: np.moveaxis(leaf, front, front + a),
                    given[i],
                    axes[-1],
                ),
                *given[i + 1 :],
            )
        run = jax.vmap(run, in_axes=tuple(axes))
    return run, given


def by_segments(case: Case, advance: Callable) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Layers ``(networks, k_i, k_{i-1})`` and steps taken ``(networks, segments)``."""

    def run(problem: MomentProblem, starts: Any, rates: Any) -> Any:
        rates = jax.numpy.broadcast_to(rates, (case.depth,))

        def segment(state: Any, steps: Any) -> Any:
            return advance(problem, state, rates, steps)

        if len(case.segments) == 1:
            return segment(starts, np.int32(case.segments[0]))
        return jax.lax.scan(segment, starts, np.array(case.segments, np.int32))

    function, given = nested(case, run)
    moved, taken = jax.jit(function)(*given)
    moved = tuple(np.asarray(w).reshape(-1, *w.shape[-2:]) for w in moved)
    return moved, np.asarray(taken).reshape(len(moved[0]), -1)


def by_kernels(case: Case) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """By the compiled kernels, of the case's instruction set."""

    def advance(problem: MomentProblem, state: Any, rates: Any, steps: Any) -> Any:
        return fused.on_cpu(problem, state, rates, steps, layout=case.layout)

    before, names = library.selected(), library.instruction_sets()
    library.select(names[case.instruction_set % len(names)])
    try:
        return by_segments(case, advance)
    finally:
        library.select(before)


def by_xla(case: Case) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """By the reference engine."""

    def advance(problem: MomentProblem, state: Any, rates: Any, steps: Any) -> Any:
        return xla.advance(problem, state, rates, steps, max_steps=max(case.segments))

    return by_segments(case, advance)


def spread(case: Case) -> tuple[MomentProblem, tuple[np.ndarray, ...], np.ndarray]:
    """The operands of every network in float64, networks first."""
    sizes = tuple(lv.size for lv in case.levels)

    def whole(name: str, leaf: np.ndarray) -> np.ndarray:
        lead = [1 if getattr(lv, name) is None else lv.size for lv in case.levels]
        core = leaf.shape[len(case.sizes(name)) :]
        full = np.broadcast_to(leaf.reshape((*lead, *core)), (*sizes, *core))
        return full.reshape((-1, *core)).astype(np.float64)

    problem, starts, rates = (
        jax.tree.map(lambda leaf, name=name: whole(name, leaf), tree)
        for name, tree in zip(OPERANDS, operands(case), strict=True)
    )
    return problem, starts, np.broadcast_to(rates.reshape(len(rates), -1), (len(rates), case.depth))


def evaluate(problem: MomentProblem, layers: list[np.ndarray]) -> tuple[np.ndarray, list]:
    """Risks and gradients of a stack of networks."""
    below = list(accumulate(layers, lambda product, layer: layer @ product))
    above = list(accumulate(reversed(layers), lambda product, layer: product @ layer))[::-1]
    slope = below[-1] @ problem.input_moment - problem.cross_moment
    both = (slope + problem.minimizer_slope) * (below[-1] - problem.minimizer)
    risks = problem.minimum_risk + 0.5 * both.sum((-2, -1))
    gradients = []
    for i in range(len(layers)):
        left = slope if i == len(layers) - 1 else above[i + 1].mT @ slope
        gradients.append(left if i == 0 else left @ below[i - 1].mT)
    return risks, gradients


def by_numpy(case: Case) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """As :func:`by_segments`, in float64, and which networks come near the largest risk.

    Whether such a one passes it is up to roundoff.
    """
    problem, layers, rates = spread(case)
    largest, finite = largest_risk(case.dtype), float(np.finfo(case.dtype).max)
    near = np.zeros(len(rates), bool)

    def look(layers: list[np.ndarray]) -> tuple[np.ndarray, list]:
        risks, gradients = evaluate(problem, layers)
        near[:] |= np.abs(np.log(np.abs(risks) / largest)) < 1
        good = [(np.abs(g) <= finite).all((-2, -1)) for g in gradients]
        return (risks <= largest) & np.all(good, 0), gradients

    taken = []
    with np.errstate(all="ignore"):
        for steps in case.segments:
            ok, gradients = look(list(layers))
            count = np.zeros(len(rates), np.int32)
            for _ in range(steps):
                moved = [
                    w - rates[:, i, None, None] * g
                    for i, (w, g) in enumerate(zip(layers, gradients, strict=True))
                ]
                good, slopes = look(moved)
                ok = ok & good
                keep = ok[:, None, None]
                layers = [np.where(keep, a, b) for a, b in zip(moved, layers, strict=True)]
                gradients = [np.where(keep, a, b) for a, b in zip(slopes, gradients, strict=True)]
                count += ok
            taken.append(count)
    return layers, np.stack(taken, 1), near


def difference(case: Case, found: Any = None) -> float:
    """How far healthy networks of kernels and loop are apart, relative to a layer's largest entry.

    Networks that freeze must do so at the same step, in a state of the same size; those whose start
    is bad must stay as they are.

    Args:
        case: what is run.
        found: what to look at; by default what the kernels give.

    Raises:
        AssertionError: if they do not.
    """
    moved, taken = by_kernels(case) if found is None else found
    wanted, wanted_taken, near = by_numpy(case)
    np.testing.assert_array_equal(taken[~near], wanted_taken[~near], err_msg=repr(case))
    _, starts, rates = spread(case)
    still = ~near & (taken.sum(1) == 0)
    calm = ~near & ~still & (rates.max(1) < 1)
    wild = ~near & ~still & ~calm
    worst = 0.0
    for w, e, s in zip(moved, wanted, starts, strict=True):
        np.testing.assert_array_equal(w[still], s[still].astype(case.dtype), err_msg=repr(case))
        size = np.abs(e[calm]).max((-2, -1), initial=1e-30)
        worst = max(worst, (np.abs(w[calm] - e[calm]).max((-2, -1)) / size).max(initial=0))
        size = np.linalg.norm(e[wild], axis=(-2, -1)) + 1e-30
        far = np.linalg.norm(w[wild] - e[wild], axis=(-2, -1)) / size
        assert (far < LOOSE[case.dtype]).all(), (far.max(), case)
    return worst
