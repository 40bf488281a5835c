"""Figure 2: nuclear norm and reconstruction errors of linear autoencoders, one layer and two."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from alignjax.closed_forms import linear_descent
from alignjax.linalg import matmul
from alignjax.theory.sequential import transition_steps
from experiments.context import Context
from experiments.registry import experiment
from experiments.sequential._autoencoder import (
    PAPER,
    distances,
    expected_error,
    leading_projectors,
    predicted_distances,
    principal_components,
    symmetric_start,
)
from experiments.style import COLORS, band

SOURCE = f"{PAPER}, Figure 2 and section 4.2"
WIDTH, SAMPLES = 20, 1000
VARIANCES = (4.0, 2.0, 1.0, 0.5, 0.25)
RANK = len(VARIANCES)
NOISE = 1e-3
# The largest eigenvalue of the input moment stays below 70, so that 2 eta sigma_1 < 1.
RATE = 5e-3
STEPS = 20_000
DELTA = 10.0
# How near an integer the nuclear norm must be to count as on a step, and the path to a projector.
NEAR = 0.1
Paths = dict[str, np.ndarray]


def one_run(key: jax.Array, mixing: jax.Array, noise: jax.Array, points: tuple[int, ...]) -> Any:
    """Both models on one sample of the data, from one start.

    Returns:
        Arrays by name, those of the models with the depth ``L`` in front: ``(2, T)`` each.
    """
    latent_key, noise_key, start_key = jax.random.split(key, 3)
    latent = jax.random.normal(latent_key, (SAMPLES, RANK)) * jnp.sqrt(jnp.array(VARIANCES))
    clutter = noise * jax.random.normal(noise_key, (SAMPLES, WIDTH))
    problem = aj.autoencoding(matmul(latent, mixing.T) + clutter)
    start = symmetric_start(start_key, WIDTH, WIDTH, DELTA)
    single = aj.end_to_end(start)
    given = {"steps": points[-1], "save_at": points, "observe": aj.end_to_end}
    trained = aj.gradient_descent(problem, (single,), RATE, **given)
    two = aj.gradient_descent(problem, start, RATE, **given)
    one = linear_descent(problem, single, RATE, jnp.array(points))
    spectrum, vectors = principal_components(problem.input_moment)
    projectors = leading_projectors(vectors, RANK)
    signal = matmul(mixing * jnp.array(VARIANCES), mixing.T)

    def follow(products: jax.Array) -> dict[str, jax.Array]:
        away = distances(products, projectors)
        return {
            "nuclear": jnp.linalg.svd(products, compute_uv=False).sum(-1),
            "printed": jnp.linalg.norm(products - signal, axis=(-2, -1)) / jnp.linalg.norm(signal),
            "projector": away[:, -1] / jnp.sqrt(RANK),
            "nearest": away.min(0),
            "new samples": jax.vmap(lambda w: expected_error(w, signal, noise))(products),
        }

    modes = jnp.einsum("ki,tkl,li->ti", vectors[:, :RANK], two.observations, vectors[:, :RANK])
    return {
        "spectrum": spectrum,
        "modes": modes,
        "status": jnp.maximum(trained.status, two.status),
        "closed form": jnp.linalg.norm(one - trained.observations, axis=(-2, -1)).max(),
        **jax.tree.map(lambda *both: jnp.stack(both), follow(one), follow(two.observations)),
    }


def runs(
    keys: jax.Array, mixing: jax.Array, noise: float, points: tuple[int, ...], name: str
) -> Paths:
    """One run a key and mixing matrix, all at once."""
    found = jax.vmap(lambda key, b: one_run(key, b, jnp.asarray(noise), points))(keys, mixing)
    if np.any(found["status"]):
        raise RuntimeError(f"figure_2: a run diverged ({name})")
    return {key: np.asarray(value) for key, value in found.items()}


def between(found: Paths, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted transition steps ``(seeds, r)``, and both nuclear norms midway ``(2, seeds, r-1)``.

    Midway is in the logarithm of the step, where the linear model's course is as wide as the
    two-layer network's.
    """
    spectrum = found["spectrum"][:, :RANK]
    steps = np.asarray(transition_steps(spectrum, spectrum, DELTA, RATE))
    middle = np.sqrt(steps[:, 1:] * steps[:, :-1])
    at = [
        [
            np.interp(np.log(m), np.log(points[1:]), path[1:])
            for m, path in zip(middle, paths, strict=True)
        ]
        for paths in np.moveaxis(found["nuclear"], 1, 0)
    ]
    return steps, np.array(at)


@experiment(
    "sequential/figure_2",
    title="A linear autoencoder of two layers learns component by component",
    source=SOURCE,
)
def figure_2(context: Context) -> None:
    """Train one and two layers on many samples of the data, and follow what they have learned."""
    seeds = context.pick(quick=4, standard=48, full=300)
    noises = context.pick(
        quick=(NOISE, 0.3), standard=(NOISE, 0.01, 0.1, 0.3, 1.0), full=(NOISE, 0.01, 0.1, 0.3, 1.0)
    )
    points = aj.log_steps(STEPS, context.pick(quick=120, standard=200, full=200))
    mixing_key, redraw_key, fixed_key, run_key = jax.random.split(context.key, 4)
    fixed = jax.random.uniform(mixing_key, (WIDTH, RANK))
    redrawn = jax.random.uniform(redraw_key, (seeds, WIDTH, RANK))
    same = jnp.broadcast_to(fixed, redrawn.shape)
    main = runs(jax.random.split(fixed_key, seeds), same, NOISE, points, "fixed B")
    keys = jax.random.split(run_key, seeds)
    others = {
        noise: runs(keys, redrawn, noise, points, f"noise {noise:g}")
        for noise in context.track(noises, "noise levels")
    }
    axis = np.array(points)
    columns = {"step": axis}
    for name in ("nuclear", "printed", "projector", "new samples"):
        for depth in (0, 1):
            columns[f"L = {depth + 1}: {name}"] = np.median(main[name][:, depth], axis=0)
    context.table(
        "paths",
        columns,
        f"Medians over {seeds} samples of the data and starts: nuclear norm, relative error of eq. "
        "28 as printed, relative distance to the projector, relative error on new samples.",
    )
    _draw(context, axis, main, others)
    _claims_on_steps(context, axis, main, others[NOISE])
    _claims_on_errors(context, main, others)


def _claims_on_steps(context: Context, axis: np.ndarray, main: Paths, redrawn: Paths) -> None:
    context.claim_below(
        "closed_form",
        f"{PAPER}, eq. 21, corrected",
        "L = 1: the closed form is what training gives: largest difference in Frobenius norm",
        bound=1e-10,
        measured=max(main["closed form"].max(), redrawn["closed form"].max()),
    )
    for name, found, bound in (("fixed", main, 0.95), ("redrawn", redrawn, 0.75)):
        _, middle = between(found, axis)
        on_step = np.abs(middle - np.arange(1, RANK)) <= NEAR
        what = "one matrix B" if name == "fixed" else "B drawn anew for each run"
        for depth, expected in ((1, "refuted"), (2, "confirmed")):
            context.claim_above(
                f"steps_{name}_{depth}",
                SOURCE,
                f"L = {depth}: the nuclear norm climbs in unit steps: share of {len(middle[0])} "
                f"runs with a norm within {NEAR:g} of k midway between transitions k and k + 1, "
                f"for all k < {RANK} ({what})",
                bound=bound,
                measured=on_step[depth - 1].all(axis=1).mean(),
                expected=expected,
            )
    steps, _ = between(main, axis)
    half = np.array(
        [
            [np.exp(np.interp(0.5, mode, np.log(np.maximum(axis, 0.5)))) for mode in modes.T]
            for modes in main["modes"]
        ]
    )
    context.claim_below(
        "order",
        f"{PAPER}, Theorem 2 and Corollary 3",
        "components reach half their height in the order of their variance: latest ratio of a "
        "component's step to the next one's",
        bound=1.0,
        measured=(half[:, :-1] / half[:, 1:]).max(),
    )
    context.claim_close(
        "times",
        f"{PAPER}, eq. 25, corrected: delta / ln(1 + eta sigma)",
        "from Gaussian starts, aligned to nothing, they do so at the predicted steps: median of "
        "the worst ratio of a run",
        predicted=1.0,
        measured=np.median(np.exp(np.abs(np.log(half / steps)).max(axis=1))),
        tolerance=0.2,
    )
    nearest = main["nearest"]
    spectrum = np.median(main["spectrum"][:, :RANK], axis=0)
    # where components have nearly one variance, no path of this start tells them apart
    told_apart = predicted_distances(spectrum, np.full(RANK, np.exp(-2 * DELTA)), DELTA) < NEAR / 3
    context.claim_below(
        "visits",
        f"{PAPER}, Corollary 2 for an autoencoder",
        "L = 2: the path visits the projectors on the k leading components that the closed form "
        f"visits, {told_apart.sum()} of {RANK}: distance of the path to the projector, largest "
        "over k of the median run",
        bound=NEAR,
        measured=np.median(nearest[:, 1], axis=0)[told_apart].max(),
    )
    context.claim_above(
        "no_visits",
        f"{PAPER}, section 3.1",
        f"L = 1: the path visits none of them with k < {RANK}: the same distance, smallest over k "
        "and runs",
        bound=NEAR,
        measured=nearest[:, 0, :-1].min(),
    )


def _claims_on_errors(context: Context, main: Paths, others: dict[float, Paths]) -> None:
    context.claim_below(
        "printed_error",
        f"{PAPER}, eq. 28",
        "the error as printed, ||W - B D B^T||, falls as W learns: its last value over its first, "
        "L = 2, median",
        bound=0.5,
        measured=np.median(main["printed"][:, 1, -1] / main["printed"][:, 1, 0]),
        expected="refuted",
    )
    for depth in (1, 2):
        context.claim_below(
            f"projector_{depth}",
            f"{PAPER}, eq. 28, corrected: ||W - P_r||",
            f"L = {depth}: W converges to the projector on the learned directions: last relative "
            "distance, median",
            bound=1e-2,
            measured=np.median(main["projector"][:, depth - 1, -1]),
        )
    # What is white and of deviation e is learned by 1 - (1 - eta e^2)^t in each direction.
    noise_learned = -np.expm1(STEPS * np.log1p(-RATE * NOISE**2))
    context.claim_close(
        "stays_1",
        f"not in the paper: {SOURCE}",
        "L = 1: W goes on to learn the noise, √((k - r) / r) (1 - (1 - eta e²)^t): last relative "
        "distance to the projector, median",
        predicted=np.sqrt((WIDTH - RANK) / RANK) * noise_learned,
        measured=np.median(main["projector"][:, 0, -1]),
        # of the noise's energy in a sample: (1 + 15 / 1000)^(1/2), and what runs differ by
        tolerance=0.05,
        relative=True,
    )
    path = main["projector"][:, 1]
    context.claim_below(
        "stays_2",
        f"not in the paper: {SOURCE}",
        "L = 2: W stays there: last distance to the projector over the smallest, median",
        bound=1.1,
        measured=np.median(path[:, -1] / path.min(axis=-1)),
    )
    for noise, found in others.items():
        best = found["new samples"].min(axis=-1)
        at_print = noise == NOISE
        if noise != NOISE and noise < 0.1:
            continue
        context.claim_below(
            f"generalization_{noise:g}",
            SOURCE if at_print else f"not in the paper: {SOURCE} with more noise",
            "stopped at its best, L = 2 reconstructs new samples better than L = 1 by 1% or more: "
            f"ratio of errors with noise of deviation {noise:g}, median",
            bound=0.99,
            measured=np.median(best[:, 1] / best[:, 0]),
            expected="refuted" if at_print else "confirmed",
        )


def _draw(context: Context, axis: np.ndarray, main: Paths, others: dict[float, Paths]) -> None:
    seeds = len(main["nuclear"])
    with context.figure(
        "figure_2",
        f"A linear autoencoder with one layer (L = 1) and two (L = 2); medians and 10th to 90th "
        f"percentiles over {seeds} samples of the data and starts. (a) Nuclear norm; vertical "
        "lines: predicted transitions. (b) Distance to the projector on the five learned "
        "directions, and the error as printed, both relative. (c) How near the path comes to the "
        "projector on the k leading components. (d) Error on new samples at its best along the "
        "path, two layers over one, as the noise of the data grows (B drawn anew for each run).",
        rows=2,
        columns=2,
        width="double",
        height=4.9,
    ) as (_, ((norm, error), (visit, gain))):
        steps, _ = between(main, axis)
        for t in np.median(steps, axis=0):
            norm.axvline(t, color="#999999", lw=0.6, ls=":")
        for depth in (0, 1):
            label, color = f"$L={depth + 1}$", COLORS[depth]
            band(norm, axis[1:], main["nuclear"][:, depth, 1:], label, color=color)
            band(
                error,
                axis[1:],
                main["projector"][:, depth, 1:],
                rf"{label}: $\|W-P_r\|_F/\sqrt{{r}}$",
                color=color,
            )
            error.plot(
                axis[1:],
                np.median(main["printed"][:, depth, 1:], axis=0),
                color=color,
                ls=("--", (0, (1, 2)))[depth],
                label=rf"{label}: $\|W-BDB^\top\|_F/\|BDB^\top\|_F$",
            )
            low, middle, high = np.quantile(main["nearest"][:, depth], (0.1, 0.5, 0.9), axis=0)
            visit.errorbar(
                np.arange(1, RANK + 1) + 0.1 * (depth - 0.5),
                middle,
                (middle - low, high - middle),
                fmt="os"[depth],
                color=color,
                capsize=2,
                lw=0.8,
                label=label,
            )
        norm.set(xscale="log", xlabel="step", ylabel=r"nuclear norm $\|W\|_*$")
        norm.set(yticks=range(RANK + 1), xlim=(1, axis[-1]), title="(a)")
        norm.legend(loc="upper left")
        error.set(xscale="log", yscale="log", xlabel="step", ylabel="relative error")
        error.set(xlim=(1, axis[-1]), title="(b)")
        error.legend(loc="lower left")
        visit.set(yscale="log", xlabel="rank $k$", ylabel=r"$\min_t\|W(t)-P_k\|_F$")
        visit.set(xticks=range(1, RANK + 1), title="(c)")
        visit.legend(loc="center right")
        _draw_gain(gain, others)


def _draw_gain(panel: Any, others: dict[float, Paths]) -> None:
    best = [found["new samples"].min(axis=-1) for found in others.values()]
    ratio = np.array([one[:, 1] / one[:, 0] for one in best]).T
    low, middle, high = np.quantile(ratio, (0.1, 0.5, 0.9), axis=0)
    panel.axhline(1, color="#999999", lw=0.6, ls=":")
    panel.errorbar(
        list(others),
        middle,
        (middle - low, high - middle),
        fmt="D-",
        color=COLORS[2],
        capsize=2,
        lw=0.8,
    )
    panel.set(xscale="log", xlabel="deviation of the noise", title="(d)")
    panel.set(ylabel="best error on new samples,\n$L=2$ over $L=1$")
