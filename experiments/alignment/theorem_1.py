"""Theorem 1: when alignment is invariant, and where its "only if" needs more than is printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import alignjax as aj
from alignjax import initializers, metrics
from alignjax.datasets import aligned_regression, gaussian_regression
from alignjax.theory.alignment import certify, one_dimensional_start
from experiments.context import Context
from experiments.registry import experiment
from experiments.style import COLORS

THEOREM = "Radhakrishnan et al. 2020, Theorem 1"
CORRECTED = f"{THEOREM}, corrected"
SENSING = "Radhakrishnan et al. 2020, condition for matrix sensing"

DEPTH, SIZE, RATE = 3, 4, 0.02
WIDTHS = (SIZE,) * (DEPTH + 1)
FLOOR = 1e-17  # where a logarithmic axis shows a defect of exactly zero

Weights = tuple[Array, ...]
Seen = dict[str, np.ndarray]


def observe_alignment(problem: Any, start: Weights) -> Callable[[Weights], dict[str, Array]]:
    """What is left of alignment, as the least value over the layers, and the risk."""

    def observe(weights: Weights) -> dict[str, Array]:
        return {
            "alignment": metrics.chain_alignment(weights).min(),
            "invariance": metrics.invariance(weights, start).min(),
            "strong invariance": metrics.strong_invariance(weights, start).min(),
            "risk": aj.risk(problem, weights),
        }

    return observe


def defect(seen: Seen, *, strong: bool = False) -> np.ndarray:
    """How far alignment or invariance, whichever is worse, is from 1."""
    invariance = seen["strong invariance" if strong else "invariance"]
    return 1 - np.minimum(seen["alignment"], invariance)


@partial(jax.jit, static_argnames=("steps", "save_at"))
def _train(problem: Any, start: Weights, *, steps: int, save_at: tuple[int, ...]) -> Any:
    """What is observed of every run; a function of its own, so that families compile once."""

    def run(problem: Any, start: Weights) -> Any:
        return aj.gradient_descent(
            problem,
            start,
            RATE,
            steps=steps,
            save_at=save_at,
            observe=observe_alignment(problem, start),
        ).observations

    return jax.vmap(run)(problem, start)


def _descend(cases: Sequence[tuple[Any, Weights]], steps: int, save_at: tuple[int, ...]) -> Seen:
    """Train every ``(problem, start)`` at once; observations have shape ``(cases, saves)``."""
    problem, start = jax.tree.map(lambda *leaves: np.stack(leaves), *cases)
    found = _train(problem, start, steps=steps, save_at=save_at)
    return {name: np.asarray(value) for name, value in found.items()}


def _singular_values(key: Array) -> Array:
    return jax.random.uniform(key, (DEPTH, SIZE), minval=0.6, maxval=1.2)


def _aligned_data(key: Array) -> tuple[Any, Weights]:
    """Data that meet the condition, and a start aligned with them."""
    spectra, sample, values, start = jax.random.split(key, 4)
    inputs = jax.random.uniform(spectra, (SIZE,), minval=0.5, maxval=1.5)
    data = aligned_regression(sample, inputs, inputs * jnp.linspace(2.0, 0.8, SIZE))
    problem = aj.regression(data.inputs, data.targets)
    return problem, initializers.aligned(start, problem, WIDTHS, _singular_values(values))


def _violating_data(key: Array) -> tuple[Any, Weights]:
    """Gaussian data, and a start whose layers are aligned with each other in random bases."""
    sample, values, start = jax.random.split(key, 3)
    inputs, targets = gaussian_regression(sample, 10 * SIZE, SIZE, SIZE)
    problem = aj.regression(inputs, targets)
    return problem, initializers.aligned(start, None, WIDTHS, _singular_values(values))


def _rank_one(key: Array) -> tuple[Any, Weights]:
    """Family (i): rank-1 targets in a square network whose layers have rank 1."""
    sample, start, output = jax.random.split(key, 3)
    inputs, goal = gaussian_regression(sample, 10 * SIZE, SIZE, 1)
    direction = jax.random.normal(output, (SIZE, 1))
    direction /= jnp.linalg.norm(direction)
    goal = goal[:SIZE] / jnp.linalg.norm(goal[:SIZE])
    problem = aj.regression(inputs, inputs @ goal @ direction.T)
    *layers, last = one_dimensional_start(start, (*WIDTHS[:-1], 1), 1.0)
    return problem, (*layers, direction @ last)


def _coupled_pair(key: Array, still: int) -> tuple[Any, Weights]:
    """Family (ii): inputs couple modes 0 and 1, and ``still`` of the two are fitted at the start.

    Off the diagonal ``U^T Sigma_yx V = diag(p) V^T Sigma_xx V``, so the first step moves no basis,
    and only modes that stay where they are keep this equation; the coupling violates the data
    condition.
    """
    values, start_key = jax.random.split(key)
    start = initializers.aligned(start_key, None, WIDTHS, _singular_values(values))
    u, product, vt = jnp.linalg.svd(aj.end_to_end(start))
    inner = jnp.diag(jnp.linspace(1.3, 0.7, SIZE)).at[0, 1].set(0.4).at[1, 0].set(0.4)
    push = jnp.where(jnp.arange(SIZE) < still, 0.0, 0.4)
    cross = product[:, None] * inner + jnp.diag(push)
    minimizer = u @ jnp.linalg.solve(inner, cross.T).T @ vt
    energies, vectors = jnp.linalg.eigh(inner)
    inputs = SIZE**0.5 * (vectors * jnp.sqrt(energies)).T @ vt
    return aj.regression(inputs, inputs @ minimizer.T), start


def _sensing_pair(key: Array) -> tuple[Any, Weights]:
    """Measurements ``U (L + O) V^T`` and ``U (L - O) V^T`` of equal values; ``O`` has no diagonal.

    A network with bases ``U`` and ``V`` measures ``L`` twice, and ``O`` drops out of its gradient.
    """
    values, start_key, off, diagonal = jax.random.split(key, 4)
    start = initializers.aligned(start_key, None, WIDTHS, _singular_values(values))
    u, _, vt = jnp.linalg.svd(aj.end_to_end(start))
    kept = jnp.diag(jax.random.uniform(diagonal, (SIZE,), minval=0.5, maxval=1.5))
    dropped = 0.5 * jax.random.normal(off, (SIZE, SIZE)) * (1 - jnp.eye(SIZE))
    matrices = jnp.stack([u @ (kept + sign * dropped) @ vt for sign in (1.0, -1.0)])
    return aj.sensing(matrices, jnp.full(2, 4.0)), start


FAMILIES: dict[str, Callable[[Array], tuple[Any, Weights]]] = {
    "aligned data": _aligned_data,
    "violating data": _violating_data,
    "rank-1 targets": _rank_one,
    "two modes still": partial(_coupled_pair, still=2),
    "one mode still": partial(_coupled_pair, still=1),
    "no mode still": partial(_coupled_pair, still=0),
    "sensing pair": _sensing_pair,
}


@experiment(
    "alignment/theorem_1",
    title="The data condition suffices for alignment; for 'only if', modes must move",
    source=THEOREM,
)
def theorem_1(context: Context) -> None:
    """Train all families in many seeds, and hold the two directions of the theorem to them."""
    seeds = context.pick(quick=4, standard=40, full=200)
    steps = context.pick(quick=2000, standard=4000, full=4000)
    save_at = tuple(sorted({2, *aj.log_steps(steps, context.pick(quick=20, standard=40, full=40))}))
    runs: dict[str, Seen] = {}
    residuals: dict[str, np.ndarray] = {}
    for index, (name, make) in enumerate(context.track(FAMILIES.items(), "families of data")):
        keys = jax.random.split(jax.random.fold_in(context.key, index), seeds)
        cases = [make(key) for key in keys]
        residuals[name] = np.array([certify(problem).residual for problem, _ in cases])
        runs[name] = _descend(cases, steps, save_at)
    _draw(context, save_at, runs, residuals)
    _tabulate(context, seeds, runs, residuals)
    _claim_if(context, runs)
    _claim_only_if(context, runs, residuals)
    _claim_corrected(context, save_at, runs)


def _claim_if(context: Context, runs: dict[str, Seen]) -> None:
    kept, lost = runs["aligned data"], runs["violating data"]
    context.claim_below(
        "if_alignment",
        THEOREM,
        "Data that meet the condition keep an aligned start strongly aligned: 1 - alignment and "
        "1 - strong invariance stay at roundoff, in all seeds and at all save points.",
        bound=1e-12,
        measured=defect(kept, strong=True).max(),
    )
    context.claim_below(
        "if_risk",
        THEOREM,
        "Meanwhile the risk falls to zero: largest final risk over that at the start.",
        bound=1e-12,
        measured=(kept["risk"][:, -1] / kept["risk"][:, 0]).max(),
    )
    context.claim_above(
        "violating_data",
        THEOREM,
        "On Gaussian data, which violate the condition, aligned layers lose alignment or "
        "invariance in every seed: least over the seeds of the largest defect.",
        bound=1e-3,
        measured=defect(lost).max(axis=1).min(),
    )


def _claim_only_if(
    context: Context, runs: dict[str, Seen], residuals: dict[str, np.ndarray]
) -> None:
    named = {
        "rank_one": ("rank-1 targets", THEOREM, "rank-1 targets and layers, square network"),
        "still_modes": ("two modes still", THEOREM, "full-rank layers, two modes fitted already"),
        "sensing": ("sensing pair", SENSING, "sensing by a pair L + O and L - O"),
    }
    for id, (name, source, what) in named.items():
        seen = runs[name]
        context.claim_below(
            f"{id}_kept",
            CORRECTED if source == THEOREM else f"{source}, corrected",
            f"Alignment and invariance stay 1 to roundoff for {what}, though the data violate the "
            "condition: largest defect.",
            bound=1e-12,
            measured=defect(seen).max(),
        )
        context.claim_below(
            f"{id}_risk",
            CORRECTED if source == THEOREM else f"{source}, corrected",
            f"The risk falls to zero for {what}: largest final risk over that at the start.",
            bound=1e-12,
            measured=(seen["risk"][:, -1] / seen["risk"][:, 0]).max(),
        )
        context.claim_below(
            f"{id}_only_if",
            f"{source}, 'only if' as printed",
            f"Where alignment is invariant the data meet the condition ({what}): least residual "
            "off the diagonals that common bases leave.",
            bound=1e-10,
            measured=residuals[name].min(),
            expected="refuted",
        )
    turned = runs["rank-1 targets"]["strong invariance"][:, -1]
    context.claim_above(
        "rank_one_turns",
        CORRECTED,
        "With rank-1 targets and layers the first layer's input vector turns: least over the seeds "
        "of 1 - strong invariance at the end, far above roundoff.",
        # it starts in a random direction: as near as 1e-3 to the target's, once in 1e9 seeds
        bound=1e-6,
        measured=1 - turned.max(),
    )


def _claim_corrected(context: Context, save_at: Sequence[int], runs: dict[str, Seen]) -> None:
    one, two = save_at.index(1), save_at.index(2)
    context.claim_above(
        "one_step",
        CORRECTED,
        "From full-rank layers in random bases, one step on Gaussian data leaves a defect: least "
        "over the seeds, far above roundoff.",
        bound=1e-9,
        measured=defect(runs["violating data"])[:, one].min(),
    )
    pair = [runs["no mode still"], runs["one mode still"]]
    context.claim_below(
        "delayed",
        CORRECTED,
        "Data tuned to the start, sigma_ij = p_i(0) a_ij off the diagonal, hide their violation "
        "from the first step: largest defect after it.",
        bound=1e-12,
        measured=max(defect(seen)[:, one].max() for seen in pair),
    )
    context.claim_above(
        "at_most_one_still",
        CORRECTED,
        "With full-rank layers and at most one still mode even tuned data lose alignment, by the "
        "second step: least defect over the seeds.",
        bound=1e-9,
        measured=min(defect(seen)[:, two].min() for seen in pair),
    )


def _tabulate(
    context: Context, seeds: int, runs: dict[str, Seen], residuals: dict[str, np.ndarray]
) -> None:
    context.table(
        "theorem_1",
        {
            "family": np.repeat(list(runs), seeds),
            "seed": np.tile(np.arange(seeds), len(runs)),
            "data residual": np.concatenate([residuals[name] for name in runs]),
            "least alignment": np.concatenate([s["alignment"].min(1) for s in runs.values()]),
            "least invariance": np.concatenate([s["invariance"].min(1) for s in runs.values()]),
            "least strong invariance": np.concatenate(
                [s["strong invariance"].min(1) for s in runs.values()]
            ),
            "risk at start": np.concatenate([s["risk"][:, 0] for s in runs.values()]),
            "risk at end": np.concatenate([s["risk"][:, -1] for s in runs.values()]),
        },
        "Least alignment and invariance over the save points of a run, for each family and seed.",
    )


def _lines(axes: Any, steps: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    """The median over the seeds, in the band from the least to the largest."""
    axes.plot(steps, np.median(values, axis=0), color=color, label=label)
    axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)


def _draw(
    context: Context,
    save_at: Sequence[int],
    runs: dict[str, Seen],
    residuals: dict[str, np.ndarray],
) -> None:
    steps = np.array(save_at)
    counter = ("rank-1 targets", "two modes still", "sensing pair")
    panels = (
        ("(a) the condition decides ...", ("aligned data", "violating data")),
        ("(b) ... but not always ...", counter),
        ("(c) ... unless modes move", ("two modes still", "one mode still", "no mode still")),
    )
    colors = dict(zip(FAMILIES, COLORS, strict=True))
    caption = (
        "Defect of alignment or invariance, whichever is larger, while networks of three 4x4 "
        "layers learn; line: median, band: range over the seeds; exact zeros are drawn at 1e-17. "
        "(a) Data that meet the condition of Theorem 1, and Gaussian data. (b) Data that violate "
        "it and keep alignment; numbers: least residual of the data. (c) Two coupled modes, of "
        "which two, one or none are fitted at the start. (d) Risk over its value at the start."
    )
    with context.figure("theorem_1", caption, rows=2, columns=2, width="double") as (_, axes):
        for panel, (title, names) in zip(axes.flat, panels, strict=False):
            for name in names:
                label = name
                if name in counter and names == counter:
                    label = f"{name} ({residuals[name].min():.1g})"
                _lines(panel, steps, np.maximum(defect(runs[name]), FLOOR), colors[name], label)
            panel.set(title=title, ylabel="1 $-$ alignment", ylim=(FLOOR / 2, 30))
            panel.legend(loc="center right")
        for name in ("aligned data", *counter):
            seen = runs[name]
            _lines(axes[1, 1], steps, seen["risk"] / seen["risk"][:, :1], colors[name], name)
        axes[1, 1].set(title="(d) while the risk falls to zero", ylabel="risk / initial risk")
        axes[1, 1].set(ylim=(1e-32, 10))
        axes[1, 1].legend(loc="lower left")
        for panel in axes.flat:
            panel.set(yscale="log", xlabel="step")
            panel.set_xscale("symlog", linthresh=1)
            panel.set_xlim(0, steps[-1])
