"""Proposition 2: the factorization of least norm is balanced and aligned."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import alignjax as aj
from alignjax.metrics import alignment, balancedness
from alignjax.theory.alignment import minimum_norm, minimum_norm_factorization
from experiments.alignment._aligned import PAPER
from experiments.context import Context
from experiments.registry import experiment

DEPTHS = (2, 3, 4)
WIDTH, OUTPUTS, INPUTS = 6, 3, 4
RATE, DECAY = 0.1, 0.02


def squared_norm(weights: Sequence[jax.Array]) -> jax.Array:
    """``sum_i ||W_i||_F^2``."""
    return sum(jnp.sum(w**2) for w in weights)


def excess(weights: Sequence[jax.Array]) -> jax.Array:
    """How far the squared norm lies above the least one for the same product, relative to it."""
    least = minimum_norm(aj.end_to_end(weights), len(weights))
    return squared_norm(weights) / least - 1.0


def refactorize(key: jax.Array, weights: Sequence[jax.Array], spread: jax.Array) -> Any:
    """Another factorization of the same product: ``W_i -> G_i W_i G_{i-1}^{-1}``."""
    keys = jax.random.split(key, len(weights) - 1)
    inner = [w.shape[0] for w in weights[:-1]]
    turns = [
        jnp.eye(k) + spread * jax.random.normal(one, (k, k)) / jnp.sqrt(k)
        for one, k in zip(keys, inner, strict=True)
    ]
    turns = [jnp.eye(weights[0].shape[1]), *turns, jnp.eye(weights[-1].shape[0])]
    return tuple(
        jnp.linalg.solve(into.T, (out @ w).T).T
        for w, (into, out) in zip(weights, pairwise(turns), strict=True)
    )


def observed(weights: Sequence[jax.Array]) -> dict[str, jax.Array]:
    """What is followed along training."""
    return {
        "excess": excess(weights),
        "imbalance": balancedness(weights).max(),
        "misalignment": 1.0 - alignment(weights).min(),
    }


def trained(key: jax.Array, matrix: jax.Array, depth: int, steps: int) -> aj.Trajectory:
    """Descent with weight decay from a random start, far from the least norm."""
    widths = (INPUTS, *[WIDTH] * (depth - 1), OUTPUTS)
    start = aj.initializers.gaussian(key, widths, 0.5)
    optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE))
    return aj.optimizer_descent(
        aj.factorization(matrix),
        start,
        optimizer,
        steps=steps,
        save_at=aj.log_steps(steps, 50),
        observe=observed,
    )


@experiment(
    "alignment/proposition_2",
    title="The factorization of least norm is balanced and aligned",
    source=f"{PAPER}, Proposition 2",
)
def proposition_2(context: Context) -> None:
    """Compare the least norm with random factorizations and with what weight decay finds."""
    count = context.pick(quick=500, standard=5000, full=50_000)
    steps = context.pick(quick=10_000, standard=20_000, full=50_000)
    target, spread_key, draws, starts = jax.random.split(context.key, 4)
    matrix = jax.random.normal(target, (OUTPUTS, INPUTS))
    spread = 10 ** jax.random.uniform(spread_key, (count,), minval=-4, maxval=0)
    others, runs, rows = {}, {}, []
    for depth in context.track(DEPTHS, "depths"):
        widths = (INPUTS, *[WIDTH] * (depth - 1), OUTPUTS)
        layers = minimum_norm_factorization(matrix, depth, widths)
        keys = jax.random.split(jax.random.fold_in(draws, depth), count)
        again = jax.vmap(refactorize, in_axes=(0, None, 0))(keys, layers, spread)
        least = minimum_norm(matrix, depth)
        others[depth] = np.asarray(jax.vmap(squared_norm)(again) / least - 1.0)
        runs[depth] = trained(jax.random.fold_in(starts, depth), matrix, depth, steps)
        gap = jnp.linalg.norm(aj.end_to_end(layers) - matrix) / jnp.linalg.norm(matrix)
        last = {name: float(v[-1]) for name, v in runs[depth].observations.items()}
        rows.append(
            {
                "depth": depth,
                "least squared norm": float(least),
                "squared norm of the construction": float(squared_norm(layers)),
                "relative error of its product": float(gap),
                "least excess of random factorizations": others[depth].min(),
                "excess at the start of training": float(runs[depth].observations["excess"][0]),
                **{f"{name} after training": value for name, value in last.items()},
            }
        )
    context.table(
        "norms",
        {name: [row[name] for row in rows] for name in rows[0]},
        "Squared norms of factorizations of one matrix; an excess is relative to the least.",
    )
    _draw(context, np.asarray(spread), others, runs)
    _claims(context, matrix, rows, count)


def _claims(context: Context, matrix: jax.Array, rows: list[dict[str, Any]], count: int) -> None:
    source = f"{PAPER}, Proposition 2"
    nuclear = float(jnp.linalg.svd(matrix, compute_uv=False).sum())
    context.claim_close(
        "nuclear",
        source,
        "two aligned, balanced layers have squared norm twice the nuclear norm of their product",
        predicted=2 * nuclear,
        measured=rows[0]["squared norm of the construction"],
        tolerance=1e-12,
        relative=True,
    )
    context.claim_below(
        "depth",
        f"{source}, at any depth d: d times the sum of sigma^(2/d)",
        f"the construction reaches it at depths {DEPTHS}, with the right product: relative error",
        bound=1e-12,
        measured=max(
            max(
                abs(r["squared norm of the construction"] / r["least squared norm"] - 1),
                r["relative error of its product"],
            )
            for r in rows
        ),
    )
    context.claim_above(
        "never_below",
        f"{source}, at any depth",
        f"no other factorization has a smaller norm: least relative excess of {3 * count:,}",
        bound=0.0,
        measured=min(r["least excess of random factorizations"] for r in rows),
        tolerance=1e-12,
    )
    for name, text in (
        ("excess", "the squared norm's excess over the least for its product"),
        ("misalignment", "1 - alignment of neighbouring layers"),
    ):
        context.claim_below(
            f"decay_{name}",
            source,
            f"training with weight decay from random starts ends at the least norm: {text}",
            bound=1e-10,
            measured=max(r[f"{name} after training"] for r in rows),
        )


def _draw(
    context: Context, spread: np.ndarray, others: dict[int, np.ndarray], runs: dict[int, Any]
) -> None:
    with context.figure(
        "norms",
        "Squared norm above the least for the same product. Left: random factorizations of one "
        "matrix, against their distance from the balanced aligned one. Right: training with "
        "weight decay from Gaussian starts.",
        columns=2,
        width="double",
    ) as (_, (left, right)):
        for depth in DEPTHS:
            left.plot(spread, others[depth], ".", ms=2, label=f"depth {depth}", rasterized=True)
            run = runs[depth]
            right.plot(
                run.step[1:],
                np.maximum(run.observations["excess"][1:], 1e-16),
                label=f"depth {depth}",
            )
        left.set(xscale="log", yscale="log", ylabel=r"$\sum\|W_i\|_F^2\,/\,\min - 1$")
        left.set(xlabel=r"size of the change of basis, $\|G - I\|$")
        right.set(xscale="log", yscale="log", xlabel="step", ylim=(1e-16, 10))
        right.set(ylabel=r"$\sum\|W_i\|_F^2\,/\,\min - 1$")
        left.legend(markerscale=4)
        right.legend()
