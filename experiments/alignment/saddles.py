"""Corollary 1 along saddles: where the aligned set itself is unstable."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from alignjax.problems import MomentProblem
from alignjax.reduced import Reduced
from alignjax.theory.alignment import stability_threshold
from experiments.alignment._aligned import (
    PAPER,
    off_diagonal_share,
    pushed,
    relative_errors,
    well_conditioned,
)
from experiments.context import Context
from experiments.registry import experiment

WIDTH = 4
DEPTHS = (6, 8)
SHARES = (1 / 2, 1 / 4, 1 / 8)
# The lower ends of the starts' singular values, which are uniform up to 1.
LARGE, SMALL = 0.3, 0.001
# Every start is pushed off the aligned set by this share of each layer, far above roundoff: how
# that falls differs between processors, and what grows is any push.
PUSH = 1e-8
# Above this share of a layer off the diagonals a run has left the aligned set.
LEFT = 0.1


@partial(jax.jit, static_argnames="steps")
def compare(
    problem: MomentProblem,
    reduced: Reduced,
    starts: Any,
    values: jax.Array,
    rates: jax.Array,
    *,
    steps: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Times and off-diagonal shares along all runs, and the recursion's errors at their ends."""
    share = partial(off_diagonal_share, reduced=reduced)

    def one(start: Any, s: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        full = aj.gradient_descent(
            problem, start, rate, steps=steps, save_at=aj.log_steps(steps, 50), observe=share
        )
        short = aj.reduced_descent(reduced, rate, steps=steps, singular_values=s)
        errors = relative_errors(full.weights, aj.expand(reduced, short.weights))
        return full.time, full.observations, errors.max()

    return jax.vmap(one)(starts, values, rates)


def follow(key: jax.Array, depth: int, low: float, count: int, duration: float) -> dict[str, Any]:
    """Train from many starts at several rates, all to the same time, and compare.

    What is found has the rates first and the starts next; the largest share has that shape.
    """
    widths = (WIDTH,) * (depth + 1)
    data_key, bases_key, values_key, push_key = jax.random.split(key, 4)
    problem = well_conditioned(data_key, widths)
    certificate = aj.theory.alignment.certify(problem)
    values = jax.random.uniform(values_key, (count, depth, WIDTH), minval=low)
    begin = jax.vmap(partial(aj.initializers.aligned, bases_key, certificate, widths))
    starts = begin(values)
    # The bases are those of every start: only the singular values differ.
    reduced = aj.reduce(problem, jax.tree.map(lambda w: w[0], starts))
    push = jax.vmap(partial(pushed, size=PUSH))
    starts = push(jax.random.split(push_key, count), starts)
    # Each start has its own minimum, unbalanced and sharper than the balanced one.
    thresholds = jnp.stack(
        [stability_threshold(replace(reduced, singular_values=s)) for s in values]
    )
    found: dict[str, list[np.ndarray]] = {"time": [], "path": [], "error": []}
    for factor in SHARES:
        steps = round(duration / factor)
        time, path, error = compare(
            problem, reduced, starts, values, factor * thresholds, steps=steps
        )
        for name, value in (("time", time), ("path", path), ("error", error)):
            found[name].append(np.asarray(value))
    # Save points differ between rates.
    largest = np.stack([path.max(axis=1) for path in found["path"]])
    return {"depth": depth, "low": low, "largest": largest, **found}


@experiment(
    "alignment/saddles",
    title="Along saddles the smallest push leaves the aligned set at any learning rate",
    source=f"{PAPER}, Corollary 1",
)
def saddles(context: Context) -> None:
    """Measure how a push off the diagonals grows from large and from small starts."""
    count = context.pick(quick=16, standard=24, full=100)
    duration = context.pick(quick=2000, standard=10_000, full=30_000)
    depths = context.pick(quick=(8,), standard=DEPTHS, full=DEPTHS)
    cases = [(depth, low) for depth in depths for low in (LARGE, SMALL)]
    found = [
        follow(jax.random.fold_in(context.key, depth), depth, low, count, duration)
        for depth, low in context.track(cases, "depths and starts")
    ]
    rows = [
        (f, rate, start) for f in found for rate in range(len(SHARES)) for start in range(count)
    ]
    context.table(
        "growth",
        {
            "depth": [f["depth"] for f, _, _ in rows],
            "lower end of singular values": [f["low"] for f, _, _ in rows],
            "start": [start for _, _, start in rows],
            "learning rate / threshold": [SHARES[rate] for _, rate, _ in rows],
            "largest off-diagonal share": [f["largest"][rate, s] for f, rate, s in rows],
            "relative error of the recursion at the end": [f["error"][r][s] for f, r, s in rows],
        },
        f"How far full matrices leave the aligned set, from a push of {PUSH:g} of each layer.",
    )
    _draw(context, found)
    _claims(context, found, count)


def _claims(context: Context, found: list[dict[str, Any]], count: int) -> None:
    source = f"{PAPER}, Corollary 1"
    large, small = ([f for f in found if f["low"] == low] for low in (LARGE, SMALL))
    context.claim_below(
        "large_starts",
        f"{source}, corrected, for layers that are aligned but for a push of {PUSH:g}",
        f"from singular values of at least {LARGE:g} full training is the recursion, to the size "
        "of the push: relative error of the worst layer at the end, median of "
        f"{count} starts, worst of depths and {len(SHARES)} learning rates",
        bound=10 * PUSH,
        measured=max(np.median(error) for f in large for error in f["error"]),
    )
    context.claim_close(
        "large_leave",
        source,
        f"no such start leaves the aligned set: runs whose off-diagonal share passes {LEFT:g}",
        predicted=0,
        measured=sum(int((f["largest"] > LEFT).sum()) for f in large),
    )
    context.claim_close(
        "small_starts",
        source,
        f"the same from starts down to {SMALL:g}, where alignment is as exact in real numbers",
        predicted=0,
        measured=sum(int((f["largest"] > LEFT).sum()) for f in small),
        expected="refuted",
    )
    left = np.concatenate([f["largest"] > LEFT for f in small], axis=1)
    context.claim_above(
        "any_rate",
        "not in the paper: the stability threshold is necessary, not sufficient",
        f"whatever the rate, some starts down to {SMALL:g} leave the aligned set: starts of "
        f"{left.shape[1]} that do so at every one of the rates "
        f"{', '.join(f'{share:g}' for share in SHARES)} of the threshold",
        bound=1,
        measured=int(left.all(axis=0).sum()),
    )
    grown = np.log(np.concatenate([f["largest"] for f in small], axis=1) / PUSH)
    context.claim_above(
        "same_starts",
        "not in the paper: the growth is of the flow, not of the step",
        "a quarter of the rate saves no start: ln(share / push) at the smallest rate over that at "
        "the largest, least of the starts that leave there",
        bound=0.75,
        measured=(grown[-1] / grown[0]).min(initial=np.inf, where=left[0]),
    )


def _draw(context: Context, found: list[dict[str, Any]]) -> None:
    with context.figure(
        "growth",
        f"What a push of {PUSH:g} of each layer becomes off the diagonals along training, one "
        f"line a start, at {SHARES[-1]:g} of the stability threshold. Starts with singular values "
        f"in ({SMALL:g}, 1) stay near saddles for long; starts in ({LARGE:g}, 1) do not.",
        columns=len(found) // 2,
        width="double" if len(found) > 2 else "single",
        height=2.4,
    ) as (_, axes):
        for panel, depth in zip(
            np.atleast_1d(axes), sorted({f["depth"] for f in found}), strict=True
        ):
            for f in (f for f in found if f["depth"] == depth):
                small = f["low"] == SMALL
                lines = panel.plot(
                    f["time"][-1][:, 1:].T,
                    f["path"][-1][:, 1:].T,
                    color="#D55E00" if small else "#0072B2",
                    lw=0.7,
                    zorder=1 if small else 2,
                )
                lines[0].set_label(f"start in ({f['low']:g}, 1)")
            panel.set(xscale="log", yscale="log", ylim=(PUSH / 100, 5), title=f"depth {depth}")
            panel.set(xlabel=r"time $\sum\eta$", ylabel=r"$\max_i$ off-diagonal share of $W_i$")
            panel.legend(loc="upper left")
