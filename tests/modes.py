"""The recursion in singular values in any nest of batches, run by its kernel and by NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from alignjax.engines import library, recursion
from alignjax.problems import largest_risk
from alignjax.reduced import Reduced, reduced_descent

# Around the lanes of vectors and the groups of vectors that are padded.
EDGES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
STEPS = (0, 1, 2, 31, 32, 33, 63, 64, 65, 96, 97)  # around blocks of 32
PROBLEM = ("lambda", "lambda'", "p*", "floor")  # after the rates and before the layers
EXACT = "sse2"  # has no fused multiplication and addition, so its bits are NumPy's
# How far roundoff takes a run is told by how far a change of its start by so many eps does.
CHANGE = 1e3


@dataclass(frozen=True)
class Level:
    """One ``vmap``: how many, and which operands it batches: rates, those of PROBLEM, layers."""

    size: int
    batched: tuple[bool, ...]


@dataclass(frozen=True)
class Case:
    """What is run.

    Attributes:
        depth: layers.
        rank: modes.
        dtype: the precision, by name.
        levels: the nest of ``vmap``, the outermost first.
        steps: of every run.
        wild: the share of rates that are far too large, and less of that of bad numbers elsewhere.
        seed: of the numbers.
    """

    depth: int
    rank: int
    dtype: str
    levels: tuple[Level, ...]
    steps: int
    wild: float
    seed: int

    @property
    def batch(self) -> tuple[int, ...]:
        """How many at each level."""
        return tuple(level.size for level in self.levels)


@st.composite
def cases(draw: Any, most: int = 30_000) -> Case:
    """Cases of bounded cost; ``most`` bounds the singular values of all runs together."""
    depth = draw(st.integers(1, 11))
    rank = draw(st.sampled_from(EDGES) | st.integers(1, 200))
    rest = len(PROBLEM)
    batched = (
        st.just((True,) + (False,) * rest + (True,) * depth)  # starts and rates of one problem
        | st.just((True,) * (1 + rest + depth))
        | st.tuples(*[st.booleans()] * (1 + rest + depth)).filter(any)
    )
    levels = draw(st.lists(st.builds(Level, st.integers(1, 3), batched), max_size=3))
    if levels:  # more runs than one pack takes
        at = draw(st.sampled_from(range(len(levels))))
        others = int(np.prod([level.size for level in levels])) // levels[at].size
        many = max(1, min(300, most // (depth * rank * others)))
        levels[at] = Level(draw(st.integers(1, many)), levels[at].batched)
    return Case(
        depth,
        rank,
        draw(st.sampled_from(["float32", "float64"])),
        tuple(levels),
        draw(st.sampled_from(STEPS) | st.integers(0, 100)),
        draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        draw(st.integers(0, 2**32 - 1)),
    )


def operands(case: Case) -> list[np.ndarray]:
    """Rates, problem and layers, with the axes of those levels that batch them in front."""
    rng = np.random.default_rng(case.seed)
    huge = np.finfo(case.dtype).max ** 0.8
    bad = [np.nan, np.inf, -np.inf, huge, 1 / huge, 0.0, -0.0]

    def lead(operand: int) -> tuple[int, ...]:
        return tuple(level.size for level in case.levels if level.batched[operand])

    def spoiled(numbers: np.ndarray, share: float, by: list[float]) -> np.ndarray:
        """With one number of a share of the vectors replaced."""
        place = np.zeros(numbers.shape, bool)
        place[..., rng.integers(numbers.shape[-1])] = rng.random(numbers.shape[:-1]) < share
        return np.where(place, rng.choice(by, numbers.shape), numbers)

    def problem(low: float, high: float, at: int, core: int) -> np.ndarray:
        return rng.uniform(low, high, (*lead(at), core))

    rates = rng.uniform(0.005, 0.05, (*lead(0), case.depth))
    wild = rng.random((*lead(0), 1)) < case.wild
    rates = rates * np.where(wild, 10 ** rng.uniform(0, 10, wild.shape), 1)
    inputs = spoiled(
        problem(0.2, 1.5, 1, case.rank), case.wild / 8, [0.0, -0.0, -1.0, np.nan, huge]
    )
    target = spoiled(problem(-1.5, 1.5, 2, case.rank), case.wild / 8, bad)
    best = spoiled(problem(-1.5, 1.5, 3, case.rank), case.wild / 8, bad)
    limit = largest_risk(case.dtype)
    floor = spoiled(
        problem(0, 1, 4, 1), case.wild / 8, [0.6 * limit, 1.1 * limit, -1.0, np.inf, np.nan]
    )[..., 0]
    layers = [
        spoiled(
            rng.uniform(-1, 1, (*lead(1 + len(PROBLEM) + i), case.rank)),
            case.wild / (8 * case.depth),
            bad,
        )
        for i in range(case.depth)
    ]
    with np.errstate(all="ignore"):
        return [x.astype(case.dtype) for x in (rates, inputs, target, best, floor, *layers)]


def nested(case: Case, run: Callable) -> Callable:
    """``run(rates, *problem, *layers)`` under the levels of a case; stacks of runs in and out."""
    function = run
    for level in reversed(case.levels):
        function = jax.vmap(function, in_axes=tuple(0 if b else None for b in level.batched))
    function = jax.jit(function)

    def flat(given: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        layers, taken = function(*given)
        return np.asarray(layers).reshape(-1, case.depth, case.rank), np.asarray(taken).ravel()

    return flat


def by_kernel(case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Singular values ``(runs, d, r)`` and steps taken ``(runs)`` by each instruction set.

    Raises:
        AssertionError: if a bit depends on the place of a run.
    """

    def run(rates: Any, *rest: Any) -> Any:
        problem, layers = rest[: len(PROBLEM)], rest[len(PROBLEM) :]
        layers, taken = recursion.advance(
            *("cpu", None, layers, tuple(rates), jnp.int32(case.steps), *problem),
            max_steps=case.steps,
        )
        return jnp.stack(layers), taken

    function, given = nested(case, run), operands(case)
    turned = given
    if case.levels:
        first = case.levels[0].batched
        turned = [x[::-1] if b else x for x, b in zip(given, first, strict=True)]
    before, found = library.selected(), {}
    try:
        for name in library.instruction_sets():
            library.select(name)
            found[name] = function(given)
            for ours, others in zip(found[name], function(turned), strict=True):
                if case.levels:
                    others = others.reshape(case.batch[0], -1)[::-1].reshape(ours.shape)
                np.testing.assert_array_equal(ours, others, err_msg=f"{name}, turned: {case}")
    finally:
        library.select(before)
    return found


def by_xla(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """By the reference engine."""
    none, nothing = jnp.zeros((0, 0), case.dtype), jnp.zeros(0, case.dtype)

    def run(rates: Any, inputs: Any, target: Any, best: Any, floor: Any, *layers: Any) -> Any:
        values = jnp.stack(layers)
        bases = (none, none, (none,) * (case.depth - 1))
        spectra = (target, inputs, inputs, target, best, floor)
        reduced = Reduced(*bases, values, *spectra, (nothing,) * case.depth)
        last = reduced_descent(reduced, rates, steps=case.steps, engine="xla")
        return last.weights, last.stopped_at

    return nested(case, run)(operands(case))


def spread(case: Case) -> list[np.ndarray]:
    """The operands of every run, runs first; all layers in one."""

    def whole(i: int, x: np.ndarray) -> np.ndarray:
        lead = [level.size if level.batched[i] else 1 for level in case.levels]
        core = x.shape[sum(level.batched[i] for level in case.levels) :]
        return np.broadcast_to(x.reshape((*lead, *core)), (*case.batch, *core)).reshape(-1, *core)

    rates, *rest = (whole(i, x) for i, x in enumerate(operands(case)))
    return [rates, *rest[: len(PROBLEM)], np.stack(rest[len(PROBLEM) :], 1)]


def flushed(x: np.ndarray) -> np.ndarray:
    """Numbers below the smallest normal one are zero, as in the kernel."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x)


def look(s: np.ndarray, problem: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Risks and gradients of runs ``(runs, d, r)``, in the kernel's order of operations."""
    inputs, target, best, floor = problem
    depth, half = s.shape[1], s.dtype.type(0.5)
    before, after = [s[:, 0]], s[:, -1]
    for i in range(1, depth):
        before.append(flushed(before[-1] * s[:, i]))
    product = before[-1]
    slope = flushed(flushed(inputs * product) - target)
    gradient = [slope] * depth
    for i in reversed(range(depth) if depth > 1 else ()):
        others = before[i - 1] if i == depth - 1 else after
        if 0 < i < depth - 1:
            others = flushed(before[i - 1] * after)
        gradient[i] = flushed(others * slope)
        after = s[:, i] if i == depth - 1 else flushed(after * s[:, i])
    off = flushed(product - best)
    excess = flushed(flushed(half * flushed(inputs * off)) * off)
    # Unlike `sum`, `cumsum` adds one by one.
    return floor + excess.cumsum(-1)[:, -1], np.stack(gradient, 1)


@dataclass(frozen=True)
class Loop:
    """Runs by NumPy, and what roundoff may do to them.

    Attributes:
        layers: the last good singular values, ``(runs, d, r)``.
        taken: the steps to them, ``(runs)``.
        far: how far at most runs with changed starts came from them on the way, relative to the
            largest value at that time, ``(runs)``.
        clear: whether those stop at the same step and no risk and no gradient came near its
            largest, where roundoff decides, ``(runs)``.
    """

    layers: np.ndarray
    taken: np.ndarray
    far: np.ndarray
    clear: np.ndarray


def by_numpy(case: Case) -> Loop:
    """The runs of a case, beside others whose starts are multiplied by up to 1 +- CHANGE eps."""
    rates, *problem, s = (np.concatenate([x, x]) for x in spread(case))
    runs, dtype = len(s) // 2, s.dtype
    limit, finite = largest_risk(dtype), float(np.finfo(dtype).max)
    near, far = np.zeros(2 * runs, bool), np.zeros(runs)

    def good(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        risks, gradient = look(state, problem)
        top = np.abs(gradient).max((1, 2))
        near[:] |= (np.abs(risks) > limit / 3) & (np.abs(risks) < limit * 3)
        near[:] |= (top > finite / 3) & np.isfinite(top)
        return (risks <= dtype.type(limit)) & np.isfinite(gradient).all((1, 2)), gradient

    with np.errstate(all="ignore"):
        change = np.random.default_rng(1).uniform(-1, 1, s[runs:].shape)
        s[runs:] *= (1 + CHANGE * np.finfo(dtype).eps * change).astype(dtype)
        ok, gradient = good(s)
        taken = np.zeros(2 * runs, np.int32)
        for _ in range(case.steps):
            moved = flushed(s - flushed(rates[..., None] * gradient))
            passed, slopes = good(moved)
            ok = ok & passed
            s = np.where(ok[:, None, None], moved, s)
            gradient = np.where(ok[:, None, None], slopes, gradient)
            taken += ok
            far = np.fmax(far, distance(s[:runs], s[runs:]))
    clear = (taken[:runs] == taken[runs:]) & ~near[:runs] & ~near[runs:]
    return Loop(s[:runs], taken[:runs], far, clear)


def distance(layers: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of runs, relative to the largest value of the first, or 1."""
    with np.errstate(all="ignore"):
        size = np.maximum(np.abs(layers).max((1, 2)), 1)
        return np.abs(layers.astype(float) - others).max((1, 2)) / size


def compare(case: Case, found: tuple[np.ndarray, np.ndarray], loop: Loop) -> np.ndarray:
    """Which runs could be compared with the loop: those that do not blow roundoff up.

    Raises:
        AssertionError: if one of them stops at another step, or further from the loop than the
            changed ones came.
    """
    values, taken = found
    still = loop.clear & (loop.taken == 0)  # perhaps with a start that is not finite
    moving = loop.clear & ~still & (loop.far < 0.01)
    same = still | moving
    np.testing.assert_array_equal(taken[same], loop.taken[same], err_msg=repr(case))
    np.testing.assert_array_equal(values[still], loop.layers[still], err_msg=repr(case))
    error = distance(loop.layers[moving], values[moving])
    worst = loop.far[moving] + CHANGE * np.finfo(case.dtype).eps
    assert (error <= worst).all(), ((error / worst).max(), case)
    return same


def check(case: Case, xla: bool = False) -> dict[str, int]:
    """Compares every instruction set, and if so told XLA, with the loop.

    Returns:
        How many runs there are, diverge, and are compared beyond the instruction set EXACT.

    Raises:
        AssertionError: if they differ by more than roundoff, or if it is EXACT by a bit.
    """
    loop, found = by_numpy(case), by_kernel(case)
    if EXACT in found:
        for ours, others in zip(found[EXACT], (loop.layers, loop.taken), strict=True):
            np.testing.assert_array_equal(ours, others, err_msg=repr(case))
    if xla:
        found["xla"] = by_xla(case)
    for each in found.values():
        compared = compare(case, each, loop)
    diverging = int((loop.taken < case.steps).sum())
    return {"runs": len(compared), "diverging": diverging, "compared": int(compared.sum())}
