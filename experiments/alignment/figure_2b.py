"""Figure 2b: a linear convolutional autoencoder of one image, and what its padding does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax import lax

import alignjax as aj
from alignjax.structures import Conv2d
from experiments.alignment._aligned import PAPER
from experiments.alignment._structured import (
    DEPTH,
    KERNEL,
    Coefficients,
    aligned_start,
    default_start,
    image_rows,
    image_size,
    loss_per_risk,
    misalignment,
    off_centre,
    orthonormal_rate,
    require_converged,
)
from experiments.context import Context
from experiments.registry import experiment

SOURCE = f"{PAPER}, Figure 2b"
OWN = f"this project, on {SOURCE}"
LEARNING_RATE = 1e-2
LOSS_REACHED = 1e-4
RAW, ORTHONORMAL, CIRCULAR = "raw taps", "orthonormal", "raw taps, circular padding"
DEFAULT, ALIGNED = "default", "aligned"
# far above the roundoff of 784 x 784 layers
MOVED = 1e-6
ROUNDOFF = 1e-10
FLOOR = 1e-17


@dataclass(frozen=True)
class Run:
    """What one training left at its save points.

    Attributes:
        step: save points up to the stop, ``(m,)``.
        loss: mean squared error over pixels, ``(m,)``.
        plain: largest ``1 - alignment`` of a pair, ``(m,)``.
        directional: the same without multiples of the identity, ``(m,)``.
        off: largest ``||W - c I|| / ||W||`` of a layer, ``(m,)``.
        taps: raw taps of the layers, each ``(m, 9)``.
    """

    step: np.ndarray
    loss: np.ndarray
    plain: np.ndarray
    directional: np.ndarray
    off: np.ndarray
    taps: Coefficients


def variants(size: int) -> dict[str, Conv2d]:
    """The structures that are compared."""
    return {
        RAW: Conv2d(size, KERNEL, coordinates="raw"),
        ORTHONORMAL: Conv2d(size, KERNEL),
        CIRCULAR: Conv2d(size, KERNEL, padding="circular", coordinates="raw"),
    }


def train(
    image: jax.Array,
    structure: Conv2d,
    taps: Coefficients,
    points: tuple[int, ...],
    factor: float,
) -> list[Run]:
    """Train from every start, given as raw taps with one leading axis, and look at save points."""
    problem = aj.autoencoding(image)
    raw = structure.coordinates == "raw"
    convert = jax.vmap(structure.raw), jax.vmap(structure.orthonormal)
    start = taps if raw else tuple(convert[1](c) for c in taps)
    # the gradient of c * risk is c times the risk's, so the rate takes the factor
    rate = LEARNING_RATE * factor
    if not raw:
        rate = orthonormal_rate(structure, rate)

    def one(start: Coefficients) -> aj.Trajectory:
        return aj.gradient_descent(
            problem,
            start,
            rate,
            steps=points[-1],
            save_at=points,
            structure=structure,
            observe=partial(_look, image, structure),
            until=LOSS_REACHED / factor,
        )

    found = jax.vmap(one)(start)
    require_converged("figure_2b", [found.status])
    runs = []
    for i in range(len(found.status)):
        # a run that stopped repeats its last state on the save points after
        kept = np.asarray(found.step[i]) <= int(found.stopped_at[i])
        path = tuple(c[i][kept] for c in found.observations["coefficients"])
        plain, directional = map(np.asarray, misalignment(structure, path))
        off = np.asarray(off_centre(structure, path))
        loss = factor * np.asarray(found.observations["risk"][i])[kept]
        in_taps = path if raw else tuple(convert[0](c) for c in path)
        runs.append(Run(np.asarray(found.step[i])[kept], loss, plain, directional, off, in_taps))
    return runs


def _look(image: jax.Array, structure: Conv2d, c: Coefficients) -> dict:
    outputs = aj.structures.forward(structure, c, image)
    return {"coefficients": c, "risk": ((outputs - image) ** 2).sum() / 2}


@partial(jax.jit, static_argnames="structure")
def singular_values(structure: Conv2d, taps: Coefficients) -> jax.Array:
    """Singular values of all layers, ``(m, d, k)``, of taps with one leading axis."""

    def of_layer(c: jax.Array) -> jax.Array:
        return jnp.linalg.svd(structure.matrix(c), compute_uv=False)

    return lax.map(lambda c: lax.map(of_layer, c), jnp.stack(taps, axis=1))


@jax.jit
def _kept_shares(weights: tuple[jax.Array, ...], basis: jax.Array) -> tuple[jax.Array, ...]:
    bases = (basis,) * (DEPTH + 1)
    return (
        aj.metrics.invariance(weights, bases=bases).min(),
        aj.metrics.strong_invariance(weights, bases=bases).min(),
    )


def invariance_at_the_end(structure: Conv2d, run: Run) -> tuple[float, float]:
    """Least invariance and strong invariance of a layer, in the bases of an aligned start."""
    basis = jnp.linalg.eigh(structure.matrix(run.taps[0][0]))[1]
    last = tuple(c[-1] for c in run.taps)
    weak, strong = _kept_shares(aj.structures.matrices(structure, last), basis)
    return float(weak), float(strong)


@experiment(
    "alignment/figure_2b",
    title="Alignment of a convolutional autoencoder of one image, and what its padding does",
    source=SOURCE,
)
def figure_2b(context: Context) -> None:
    """Train on the first image in raw taps and orthonormal coordinates, and with each padding."""
    rows, name = image_rows(1, shrink=context.pick(quick=2, standard=1, full=1))
    steps = context.pick(quick=2_000, standard=30_000, full=100_000)
    points = aj.log_steps(steps, context.pick(quick=8, standard=12, full=30))
    size, factor = image_size(rows), loss_per_risk(rows)
    image = jnp.asarray(rows)
    structures = variants(size)
    start_key, aligned_key, chance_key = jax.random.split(context.key, 3)
    starts = jax.tree.map(
        lambda a, b: jnp.stack([a, b]), default_start(start_key), aligned_start(aligned_key)
    )
    runs: dict[tuple[str, str], Run] = {}
    for label, structure in context.track(list(structures.items()), "structures"):
        found = train(image, structure, starts, points, factor)
        runs[label, DEFAULT], runs[label, ALIGNED] = found
    draws = context.pick(quick=4, standard=8, full=32)
    taps = jax.vmap(default_start)(jax.random.split(chance_key, draws))
    chance = float(misalignment(structures[RAW], taps)[0].mean())
    # singular value decompositions are dear: a few of the save points do
    few = context.pick(quick=4, standard=4, full=12)
    spectra = {}
    for label in (RAW, ORTHONORMAL):
        run = runs[label, DEFAULT]
        at = np.unique(np.linspace(0, len(run.step) - 1, few).round().astype(int))
        chosen = tuple(c[at] for c in run.taps)
        spectra[label] = run.step[at], np.asarray(singular_values(structures[RAW], chosen))
    context.note(
        f"First training image of {name}, {size} × {size} pixels, {DEPTH} layers of one {KERNEL} × "
        f"{KERNEL} filter without biases (the paper's code has them), learning rate "
        f"{LEARNING_RATE:g} for the mean over pixels; in orthonormal coordinates times the mean of "
        "the taps' squared norms."
    )
    _draw(context, runs, spectra, chance)
    _write(context, runs, spectra)
    _claim(context, runs, structures, chance, name)


def _draw(
    context: Context,
    runs: dict[tuple[str, str], Run],
    spectra: dict[str, tuple[np.ndarray, np.ndarray]],
    chance: float,
) -> None:
    caption = (
        "Autoencoding of one image by three linear 3 × 3 convolutions, from the default start of "
        "deep-learning frameworks and from one whose layers are aligned to each other. Top left: "
        "the loss. Top right: the loss of alignment, largest of a pair; 1e-15 is "
        "roundoff and 1e-17 stands for zero. Bottom: singular values of the middle layer from the "
        "default start, in raw taps and in orthonormal coordinates, at some of the save points."
    )
    with context.figure("figure_2b", caption, rows=2, columns=2, width="double", height=4.8) as (
        _,
        axes,
    ):
        for (label, start), run in runs.items():
            color = {RAW: "C0", ORTHONORMAL: "C1", CIRCULAR: "C2"}[label]
            style = {"color": color, "linestyle": "-" if start == DEFAULT else "--"}
            name = f"{label}, {start} start"
            axes[0, 0].plot(run.step, run.loss, label=name, **style)
            axes[0, 1].plot(run.step, np.maximum(run.plain, FLOOR), label=name, **style)
        axes[0, 0].axhline(LOSS_REACHED, color="0.5", linestyle=":", label="loss at which to stop")
        chance_line = axes[0, 1].axhline(
            chance, color="0.5", linestyle="-.", label="independent default layers"
        )
        least = min(run.loss.min() for run in runs.values())
        # room for the legend, which serves both panels, below the curves
        axes[0, 0].set(yscale="log", ylabel="loss (mean squared error)", ylim=(1e-5 * least, None))
        axes[0, 1].set(yscale="log", ylabel="1 − alignment", ylim=(FLOOR, 1))
        axes[0, 0].legend(loc="lower left", fontsize=6)
        axes[0, 1].legend(handles=[chance_line], loc="center right", fontsize=6.5)
        last = max(run.step[-1] for run in runs.values())
        for panel in axes[0]:
            # step 0 has its place on the axis
            panel.set_xscale("symlog", linthresh=1)
            panel.set(xlabel="step", xlim=(0, last))
        top = max(values[:, 1].max() for _, values in spectra.values())
        for panel, (label, (step, values)) in zip(axes[1], spectra.items(), strict=True):
            for i, at in enumerate(step):
                shade = 0.15 + 0.7 * i / max(1, len(step) - 1)
                color = matplotlib.colormaps["cividis"](shade)
                panel.plot(values[i, 1], color=color, label=f"step {at:,}")
            panel.set(title=label, xlabel="index", ylabel="singular value of layer 2")
            panel.set(xlim=(0, values.shape[2] - 1), ylim=(0, 1.5 * top))
            panel.legend(loc="upper right", fontsize=6.5)


def _write(
    context: Context,
    runs: dict[tuple[str, str], Run],
    spectra: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    rows = [(*key, run, i) for key, run in runs.items() for i in range(len(run.step))]
    context.table(
        "curves",
        {
            "structure": [row[0] for row in rows],
            "start": [row[1] for row in rows],
            "step": [row[2].step[row[3]] for row in rows],
            "mean squared error": [row[2].loss[row[3]] for row in rows],
            "1 - alignment": [row[2].plain[row[3]] for row in rows],
            "the same without multiples of I": [row[2].directional[row[3]] for row in rows],
            "distance of the layers from multiples of I": [row[2].off[row[3]] for row in rows],
        },
        "Every run at its save points; the worst pair of layers.",
    )
    columns = {}
    for label, (step, values) in spectra.items():
        for i, at in enumerate(step):
            for layer in range(DEPTH):
                columns[f"{label}, step {at}, layer {layer + 1}"] = values[i, layer]
    context.table(
        "singular_values", columns, "Singular values of the layers from the default start, sorted."
    )


def _claim(
    context: Context,
    runs: dict[tuple[str, str], Run],
    structures: dict[str, Conv2d],
    chance: float,
    images: str,
) -> None:
    context.claim_close(
        "dimension",
        SOURCE,
        "A 3 × 3 filter is a structure of dimension r = 9",
        predicted=9,
        measured=structures[RAW].dim,
    )
    context.claim_below(
        "default start",
        OWN,
        "The figure's start, the framework's default, is aligned, so that there is something to "
        f"lose (1 − alignment; independent layers have {chance:.2g} in the mean)",
        bound=ROUNDOFF,
        measured=runs[RAW, DEFAULT].plain[0],
        expected="refuted",
    )
    context.claim_below(
        "aligned start",
        OWN,
        "Multiples of one filter that equals its half turn are aligned (1 − alignment)",
        bound=ROUNDOFF,
        measured=runs[RAW, ALIGNED].plain[0],
    )
    for label in (RAW, ORTHONORMAL):
        run = runs[label, ALIGNED]
        context.claim_above(
            f"lost, {label}",
            SOURCE,
            f"Alignment is not an invariant of autoencoding one image, {label}, from an aligned "
            "start (largest 1 − alignment over the steps; roundoff is 1e-15)",
            bound=MOVED,
            measured=run.plain.max(),
        )
        for name, value in zip(
            ("invariance", "strong invariance"),
            invariance_at_the_end(structures[RAW], run),
            strict=True,
        ):
            context.claim_above(
                f"{name}, {label}",
                SOURCE,
                f"The aligned start's bases are lost, {label} (1 − {name} of the worst layer at "
                "the end)",
                bound=MOVED,
                measured=1 - value,
            )
        _claim_loss(context, label, runs[label, DEFAULT], images)
    context.claim_below(
        "circular",
        OWN,
        "With circular padding layers are aligned whatever the start and the data: such "
        "filters commute with their transposes and each other (largest 1 − alignment over steps "
        "and starts)",
        bound=ROUNDOFF,
        measured=max(runs[CIRCULAR, start].plain.max() for start in (DEFAULT, ALIGNED)),
    )
    raw, orthonormal = runs[RAW, DEFAULT], runs[ORTHONORMAL, DEFAULT]
    both = np.intersect1d(raw.step, orthonormal.step)
    distance = 0.0
    for a, b in zip(raw.taps, orthonormal.taps, strict=True):
        a, b = (np.asarray(c)[np.isin(r.step, both)] for c, r in ((a, raw), (b, orthonormal)))
        apart = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
        distance = max(distance, apart.max())
    context.claim_above(
        "coordinates",
        f"{PAPER}, footnote 3",
        "Raw taps and orthonormal coordinates take different paths from the same start at the same "
        "mean rate (largest relative distance of a layer's taps)",
        bound=1e-3,
        measured=distance,
    )


def _claim_loss(context: Context, label: str, run: Run, images: str) -> None:
    key, source = f"loss, {label}", f"{SOURCE}, with biases there"
    statement = (
        "The loss on MNIST's first image reaches 1e-4 within 100,000 steps from the default "
        f"start, {label}"
    )
    ended = f"after {run.step[-1]:,} steps the loss is {run.loss[-1]:.2g}"
    if images != "MNIST":
        context.not_measured(key, source, statement, reason=f"{images}: {ended}")
    elif context.scale == "full" or run.loss[-1] <= LOSS_REACHED:
        context.claim_below(
            key,
            source,
            statement,
            bound=LOSS_REACHED,
            measured=run.loss[-1],
            # without biases this start ends in shifts by a row, which lose one to the zero padding
            expected="refuted",
        )
    else:
        reason = f"{ended}, all of this scale; the full scale runs to the end"
        context.not_measured(key, source, statement, reason=reason)
