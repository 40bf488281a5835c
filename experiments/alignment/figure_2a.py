"""Figure 2a: factorization by Toeplitz layers, where alignment is not an invariant of training."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from alignjax.linalg import matmul
from alignjax.problems import MomentProblem
from alignjax.structures import Dense, Structure, Toeplitz
from experiments.alignment._aligned import PAPER
from experiments.alignment._structured import DEPTH, Coefficients, require_converged
from experiments.context import Context
from experiments.registry import experiment
from experiments.style import band

SOURCE = f"{PAPER}, Figure 2a"
OWN = f"this project, on {SOURCE}"
WIDTH = 4
# in orthonormal coordinates, where a step is a projected step on the matrices (Theorem 2)
LEARNING_RATE = 0.1
TOEPLITZ, DENSE = Toeplitz(WIDTH), Dense((WIDTH, WIDTH))
CASES = ("Gaussian target", "symmetric target", "symmetric target, dense layers")
# below this risk, of targets of size 1, a run counts as fitted
FITTED = 1e-6
# what moves a share by this is not roundoff
MOVED = 1e-6
QUANTITIES = ("alignment", "invariance", "strong invariance")


def draw_gaussian(key: jax.Array) -> tuple[MomentProblem, Coefficients, tuple[jax.Array, ...]]:
    """A Gaussian 4 × 4 target, an aligned Toeplitz start, and the bases of that start.

    The layers are multiples of one symmetric Toeplitz matrix of norm 2, so that they share its
    eigenvectors, and no layer is a multiple of the identity.
    """
    target_key, layer_key, scale_key = jax.random.split(key, 3)
    target = jax.random.normal(target_key, (WIDTH, WIDTH))
    half = jax.random.normal(layer_key, (WIDTH,))
    taps = jnp.concatenate([half[:0:-1], half])
    c = taps * jnp.asarray(TOEPLITZ.norms)
    c = 2.0 * c / jnp.linalg.norm(c)
    scales = jax.random.uniform(scale_key, (DEPTH,), minval=0.5, maxval=1.0)
    basis = jnp.linalg.eigh(TOEPLITZ.matrix(c))[1]
    return aj.factorization(target), tuple(s * c for s in scales), (basis,) * (DEPTH + 1)


def draw_symmetric(
    key: jax.Array, structure: Structure
) -> tuple[MomentProblem, Coefficients, tuple[jax.Array, ...]]:
    """A symmetric positive target, layers 0.8 I, which is aligned to it, and its eigenvectors."""
    basis_key, value_key = jax.random.split(key)
    basis = jax.random.orthogonal(basis_key, WIDTH)
    values = jax.random.uniform(value_key, (WIDTH,), minval=0.5, maxval=2.0)
    target = matmul(basis * values, basis.T)
    start = structure.coefficients(0.8 * np.eye(WIDTH))
    problem = aj.factorization((target + target.T) / 2)
    return problem, (start,) * DEPTH, (basis,) * (DEPTH + 1)


@partial(jax.jit, static_argnames=("structure", "steps"))
def train(keys: jax.Array, gaussian: bool, *, structure: Structure, steps: int) -> aj.Trajectory:
    """One run for each key; the targets' kind is an argument, so that a structure compiles once."""
    return jax.vmap(partial(_train, gaussian=gaussian, structure=structure, steps=steps))(keys)


def _train(
    key: jax.Array, *, gaussian: jax.Array, structure: Structure, steps: int
) -> aj.Trajectory:
    """One run, observed on its way."""
    problem, start, bases = draw_symmetric(key, structure)
    if structure == TOEPLITZ:
        problem, start, bases = jax.tree.map(
            partial(jnp.where, gaussian), draw_gaussian(key), (problem, start, bases)
        )

    def observe(coefficients: Coefficients) -> dict[str, jax.Array]:
        weights = aj.structures.matrices(structure, coefficients)
        return {
            "risk": aj.risk(problem, weights),
            "alignment": aj.metrics.alignment(weights).mean(),
            "invariance": aj.metrics.invariance(weights, bases=bases).mean(),
            "strong invariance": aj.metrics.strong_invariance(weights, bases=bases).mean(),
        }

    return aj.gradient_descent(
        problem,
        start,
        LEARNING_RATE,
        steps=steps,
        save_at=aj.log_steps(steps, 50),
        observe=observe,
        structure=structure,
    )


def chance_level(key: jax.Array, samples: int = 1000) -> float:
    """The mean alignment of independent Gaussian Toeplitz layers."""

    def one(key: jax.Array) -> jax.Array:
        c = jax.random.normal(key, (2, TOEPLITZ.dim)) * jnp.asarray(TOEPLITZ.norms)
        return aj.metrics.alignment(aj.structures.matrices(TOEPLITZ, (c[0], c[1])))[0]

    return float(jax.vmap(one)(jax.random.split(key, samples)).mean())


@experiment(
    "alignment/figure_2a",
    title="Alignment is not an invariant of factorization by Toeplitz layers",
    source=SOURCE,
)
def figure_2a(context: Context) -> None:
    """Factorize 4 × 4 matrices from aligned starts, one seed as the paper and many at once."""
    count = context.pick(quick=5, standard=40, full=500)
    steps = context.pick(quick=2_000, standard=20_000, full=100_000)
    chance_key, run_key = jax.random.split(context.key)
    keys = jax.random.split(run_key, count)
    runs = {
        case: train(
            keys,
            case == CASES[0],
            structure=DENSE if "dense" in case else TOEPLITZ,
            steps=steps,
        )
        for case in context.track(CASES, "cases")
    }
    require_converged("figure_2a", [run.status for run in runs.values()])
    seen = {
        case: {name: np.asarray(values) for name, values in run.observations.items()}
        for case, run in runs.items()
    }
    context.note(
        f"{DEPTH} layers of width {WIDTH}, {count} seeds a case, learning rate {LEARNING_RATE:g} "
        "in orthonormal coordinates."
    )
    step = np.asarray(runs[CASES[0]].step[0])
    _draw_figure(context, step, seen, chance_level(chance_key))
    _write_tables(context, step, seen)
    _claim(context, keys, seen)


def _draw_figure(
    context: Context, step: np.ndarray, seen: dict[str, dict[str, np.ndarray]], chance: float
) -> None:
    caption = (
        "Factorization of 4 × 4 matrices by three Toeplitz layers from starts that are aligned. "
        "Left: one seed, a Gaussian target. Middle: alignment over all seeds, for Gaussian targets "
        "and for symmetric ones to which the start is aligned too; dense layers on the latter are "
        "the control. Right: the risk, in the same colours, with 1e-16 for all that is less. "
        "Lines are medians, bands the 10th to the 90th percentile."
    )
    with context.figure("figure_2a", caption, columns=3, width="double", height=2.3) as (_, axes):
        for name in QUANTITIES:
            axes[0].plot(step, seen[CASES[0]][name][0], label=name)
        axes[0].set(title="one seed, Gaussian target")
        for case in CASES:
            band(axes[1], step, seen[case]["alignment"], case)
            # single runs fall to roundoff, which is no part of a risk's shape
            band(axes[2], step, np.maximum(seen[case]["risk"], 1e-16), case)
        axes[1].set(title="alignment, all seeds")
        for panel in axes[:2]:
            panel.axhline(chance, color="0.5", linestyle=":", label="alignment by chance")
            panel.set(ylim=(0, 1.04), ylabel="share (1 = kept)")
            panel.legend(loc="lower left", fontsize=6.5)
        axes[2].set(yscale="log", ylabel="risk", title="training")
        for panel in axes:
            # step 0 has its place on the axis
            panel.set_xscale("symlog", linthresh=1)
            panel.set(xlabel="step", xlim=(0, step[-1]))
            panel.set_xticks([0, *(10.0 ** np.arange(0, np.log10(step[-1]), 2))])


def _write_tables(
    context: Context, step: np.ndarray, seen: dict[str, dict[str, np.ndarray]]
) -> None:
    columns = {"step": step}
    for case in CASES:
        for name, values in seen[case].items():
            for label, quantile in (("10 %", 0.1), ("median", 0.5), ("90 %", 0.9)):
                columns[f"{case}: {name}, {label}"] = np.quantile(values, quantile, axis=0)
    context.table("curves", columns, "Quantiles over the seeds at each save point.")
    rows = [(case, seed) for case in CASES for seed in range(len(seen[case]["risk"]))]
    table = {"case": [row[0] for row in rows], "seed": [row[1] for row in rows]}
    table["risk at the end"] = [seen[case]["risk"][seed, -1] for case, seed in rows]
    for name in QUANTITIES:
        table[f"least {name}"] = [seen[case][name][seed].min() for case, seed in rows]
        table[f"{name} at the end"] = [seen[case][name][seed, -1] for case, seed in rows]
    context.table("seeds", table, "Each run's least values over the steps and its last ones.")


def _claim(context: Context, keys: jax.Array, seen: dict[str, dict[str, np.ndarray]]) -> None:
    gaussian, symmetric, dense = (seen[case] for case in CASES)
    context.claim_close(
        "dimension",
        SOURCE,
        "Toeplitz layers of width k = 4 have dimension r = 7, at which Theorem 3 says nothing: "
        "r ≥ k − 1",
        predicted=7,
        measured=TOEPLITZ.dim,
    )
    context.claim_below(
        "start",
        SOURCE,
        "The Toeplitz layers are aligned at the start (largest 1 − alignment over seeds and cases)",
        bound=1e-12,
        measured=max(1 - seen[case]["alignment"][:, 0].min() for case in CASES),
    )
    for name in QUANTITIES:
        context.claim_above(
            name,
            SOURCE,
            "Alignment is not an invariant of training although r ≥ k − 1: "
            f"1 − {name} (least over the seeds of its maximum over the steps; roundoff is 1e-15)",
            bound=MOVED,
            measured=1 - gaussian[name].min(axis=1).max(),
        )
    fitted = gaussian["risk"][:, -1] <= FITTED
    statement = (
        f"Networks that fit the Gaussian target (risk at most {FITTED:g}) are not aligned at the "
        "end (least 1 − alignment among them)"
    )
    if fitted.any():
        context.claim_above(
            "fitted",
            SOURCE,
            statement,
            bound=MOVED,
            measured=1 - gaussian["alignment"][fitted, -1].max(),
        )
    else:
        context.not_measured("fitted", SOURCE, statement, reason="no seed fits its target")
    problems = [draw_symmetric(key, TOEPLITZ)[0] for key in keys]
    context.claim_below(
        "data condition",
        OWN,
        "Symmetric targets meet the data condition of Theorem 1, and 0.8 I is strongly aligned to "
        "them (largest residual over the seeds)",
        bound=1e-12,
        measured=max(aj.theory.alignment.certify(p).residual for p in problems),
    )
    context.claim_below(
        "dense control",
        OWN,
        "Dense layers keep alignment from that start (largest 1 − alignment over seeds and steps)",
        bound=1e-10,
        measured=1 - dense["alignment"].min(),
    )
    context.claim_above(
        "structure",
        OWN,
        "Toeplitz layers lose it from the same start on the same targets, so it is the structure "
        "that breaks it (least over the seeds of the largest 1 − alignment)",
        bound=MOVED,
        measured=1 - symmetric["alignment"].min(axis=1).max(),
    )
