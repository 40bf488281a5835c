"""Theorem 2: descent on coefficients is projected descent on matrices, in which coordinates."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import alignjax as aj
from alignjax.problems import MomentProblem
from alignjax.structures import (
    Basis,
    Circulant,
    Conv2d,
    Dense,
    Diagonal,
    Sparse,
    Structure,
    Toeplitz,
)
from experiments.alignment._aligned import PAPER, keep, relative_errors
from experiments.context import Context
from experiments.registry import experiment

SOURCE = f"{PAPER}, Theorem 2"
FOOTNOTE = f"{PAPER}, footnote 3"
STEPS = 1_000
# one image size for the whole comparison: 5 x 5 pixels, layers of 25 x 25
SIDE = 5
WIDTH = SIDE**2
SAMPLES = 40
RATE = 0.02
# the images on which the taps' scales are those of MNIST
LARGE = 28
FLOOR = 1e-17

# each compiles on its own
QUICK = ("Dense", "Conv2d, zero padding", "Sparse", "Toeplitz, rectangular")

Weights = tuple[jax.Array, ...]


def structures(key: jax.Array) -> dict[str, tuple[Structure, ...]]:
    """Three layers of every structure, all of them 25 x 25 but for the rectangular ones."""
    mask_key, basis_key = jax.random.split(key)
    mask = np.array(jax.random.uniform(mask_key, (WIDTH, WIDTH)) < 0.3, int)
    basis = np.array(jax.random.normal(basis_key, (6, WIDTH, WIDTH)))
    same = {
        "Dense": Dense((WIDTH, WIDTH)),
        "Conv2d, zero padding": Conv2d(SIDE, 3),
        "Conv2d, circular padding": Conv2d(SIDE, 3, padding="circular"),
        "Toeplitz": Toeplitz(WIDTH),
        "Circulant": Circulant(WIDTH),
        "Diagonal": Diagonal(WIDTH),
        "Sparse": Sparse(mask),
        "Basis": Basis(basis),
    }
    layers: dict[str, tuple[Structure, ...]] = {name: (s,) * 3 for name, s in same.items()}
    rectangular = (Toeplitz((12, WIDTH)), Toeplitz((9, 12)), Toeplitz((WIDTH, 9)))
    return {**layers, "Toeplitz, rectangular": rectangular}


def raw_structures() -> dict[str, tuple[Structure, ...]]:
    """The structures whose taps differ in norm, in raw coordinates."""
    return {
        "Conv2d, raw taps": (Conv2d(SIDE, 3, coordinates="raw"),) * 3,
        "Toeplitz, raw taps": (Toeplitz(WIDTH, coordinates="raw"),) * 3,
    }


def random_start(key: jax.Array, layers: tuple[Structure, ...]) -> tuple[jax.Array, ...]:
    """Layers of random coefficients of one Frobenius norm, 0.6 times the square root of 25."""
    keys = jax.random.split(key, len(layers))
    start = []
    for k, layer in zip(keys, layers, strict=True):
        c = jax.random.normal(k, (layer.dim,))
        norm = jnp.linalg.norm(layer.orthonormal(c) if layer.coordinates == "raw" else c)
        start.append(c * 0.6 * WIDTH**0.5 / norm)
    return tuple(start)


def mean_rate(layer: Structure) -> float:
    """A rate on raw taps that is, in the mean over taps, the rate of the other structures."""
    return RATE / float((layer.norms**2).mean())


@partial(jax.jit, static_argnames=("layers", "scaled"))
def descend_on_matrices(
    problem: MomentProblem,
    weights: Weights,
    rate: float,
    steps: jax.Array,
    *,
    layers: tuple[Structure, ...],
    scaled: bool = False,
) -> Weights:
    """The other side of the theorem: gradient steps on matrices with a projected gradient.

    Args:
        problem: what is learned.
        weights: the start, matrices.
        rate: the learning rate.
        steps: how many steps.
        layers: one structure a layer.
        scaled: whether each raw direction of the projection is scaled by its squared norm.
    """

    def pull(layer: Structure, slope: jax.Array) -> jax.Array:
        inside = layer.project(slope)
        if not scaled:
            return inside
        # in raw coordinates these are the values of the taps
        return layer.matrix(layer.coefficients(inside) * layer.norms**2)

    def step(_: jax.Array, weights: Weights) -> Weights:
        slopes = aj.gradient(problem, weights)
        return tuple(
            w - rate * pull(layer, g) for layer, w, g in zip(layers, weights, slopes, strict=True)
        )

    return lax.fori_loop(0, steps, step, weights)


@partial(jax.jit, static_argnames="layers")
def error(layers: tuple[Structure, ...], found: Weights, expected: Weights) -> jax.Array:
    """The largest relative error of a layer, of coefficients against matrices."""
    return relative_errors(aj.structures.matrices(layers, found), expected).max()


def train(
    key: jax.Array,
    problem: MomentProblem,
    layers: tuple[Structure, ...],
    points: tuple[int, ...],
    rate: float,
) -> tuple[jax.Array, ...]:
    """The coefficients at the save points, one array a layer."""
    start = random_start(key, layers)
    run = aj.gradient_descent(
        problem, start, rate, steps=points[-1], save_at=points, structure=layers, observe=keep
    )
    if int(run.status) != aj.Status.COMPLETED:
        raise RuntimeError(f"training ended with status {int(run.status)}")
    return run.observations


def compare(
    problem: MomentProblem,
    layers: tuple[Structure, ...],
    points: tuple[int, ...],
    path: tuple[jax.Array, ...],
    rate: float,
    *,
    scaled: bool = False,
) -> dict[str, np.ndarray]:
    """Relative errors of the layers at the save points, and the risk at both ends."""
    weights = aj.structures.matrices(layers, tuple(c[0] for c in path))
    risks, errors = [aj.risk(problem, weights)], []
    for i, point in enumerate(points):
        steps = point - (points[i - 1] if i else 0)
        weights = descend_on_matrices(problem, weights, rate, steps, layers=layers, scaled=scaled)
        errors.append(float(error(layers, tuple(c[i] for c in path), weights)))
    risks.append(aj.risk(problem, weights))
    return {"error": np.array(errors), "risk": np.array(risks)}


def tap_scales(key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """One raw step of 3x3 layers on 28x28 images: change of each tap over the projection's.

    Returns:
        The ratio ``(change of the raw tap) / (-rate * tap of the projected gradient)`` of the
        middle layer, ``(9,)``, and the squared norms that it should be.
    """
    layer = Conv2d(LARGE, 3, coordinates="raw")
    image_key, start_key = jax.random.split(key)
    problem = aj.autoencoding(jax.random.normal(image_key, (4, LARGE**2)))
    start = tuple(0.3 * jax.random.normal(k, (9,)) for k in jax.random.split(start_key, 3))
    rate = 1e-2 / LARGE**2
    moved = aj.gradient_descent(problem, start, rate, steps=1, structure=layer).weights
    slope = aj.gradient(problem, aj.structures.matrices(layer, start))[1]
    projected = layer.coefficients(layer.project(slope))
    return np.asarray((start[1] - moved[1]) / (rate * projected)), layer.norms**2


@experiment(
    "alignment/theorem_2",
    title="Descent on orthonormal coefficients is projected descent; on raw taps it is not",
    source=SOURCE,
)
def theorem_2(context: Context) -> None:
    """Compare descent on coefficients with descent on matrices, for every structure."""
    data_key, structure_key, start_key, scale_key = jax.random.split(context.key, 4)
    first, second = jax.random.split(data_key)
    problem = aj.regression(
        jax.random.normal(first, (SAMPLES, WIDTH)), jax.random.normal(second, (SAMPLES, WIDTH))
    )
    count = context.pick(quick=6, standard=20, full=40)
    points = tuple(sorted({0, *np.geomspace(1, STEPS, count).round().astype(int).tolist()}))
    exact, raw, scaled = {}, {}, {}
    chosen = structures(structure_key)
    taps = raw_structures()
    if context.scale == "quick":
        chosen = {name: chosen[name] for name in QUICK}
        taps = {name: layers for name, layers in taps.items() if "Conv2d" in name}
    for name, layers in context.track(list(chosen.items()), "structures"):
        path = train(start_key, problem, layers, points, RATE)
        exact[name] = compare(problem, layers, points, path, RATE)
    for name, layers in taps.items():
        rate = mean_rate(layers[0])
        path = train(start_key, problem, layers, points, rate)
        # at the rate that the taps have in the mean, so that no common factor tells them apart
        raw[name] = compare(problem, layers, points, path, RATE)
        scaled[name] = compare(problem, layers, points, path, rate, scaled=True)
    measured, predicted = tap_scales(scale_key)
    _draw(context, points, exact, raw, scaled)
    _write(context, exact, raw, scaled, measured, predicted)
    _claim(context, exact, raw, scaled, measured)


def _draw(context: Context, points: tuple[int, ...], exact: dict, raw: dict, scaled: dict) -> None:
    caption = (
        "Largest relative error of a layer of descent on coefficients against descent on matrices "
        f"with the gradient projected onto the structure; layers of {WIDTH} × {WIDTH}, regression "
        "on Gaussian data. Left: orthonormal coordinates. Right: raw taps, against the projection "
        "at the rate that the taps have in the mean and against the projection with each tap "
        "scaled by its squared norm."
    )
    step = np.array(points)
    with context.figure("theorem_2", caption, columns=2, width="double", height=2.8) as (_, axes):
        for i, (name, found) in enumerate(exact.items()):
            style = {"linestyle": ("-", "--")[i // 7]}
            axes[0].plot(step, np.maximum(found["error"], FLOOR), label=name, **style)
        for name in raw:
            (line,) = axes[1].plot(step, np.maximum(raw[name]["error"], FLOOR), label=name)
            axes[1].plot(
                step,
                np.maximum(scaled[name]["error"], FLOOR),
                color=line.get_color(),
                linestyle="--",
                label=f"{name}, scaled projection",
            )
        for panel, title in zip(axes, ("orthonormal coordinates", "raw taps"), strict=True):
            panel.axhline(1e-12, color="0.5", linestyle=":", label="bound of the claim")
            panel.set_xscale("symlog", linthresh=1)
            panel.set(yscale="log", xlim=(0, step[-1]), ylim=(FLOOR, 30), title=title)
            panel.set(xlabel="step", ylabel="largest relative error of a layer")
        axes[0].legend(loc="upper left", ncols=2, fontsize=6.5)
        axes[1].legend(loc="center right", fontsize=6.5)


def _write(
    context: Context,
    exact: dict,
    raw: dict,
    scaled: dict,
    measured: np.ndarray,
    predicted: np.ndarray,
) -> None:
    found = [("projection", *item) for item in (*exact.items(), *raw.items())]
    found += [("projection scaled tap by tap", *item) for item in scaled.items()]
    context.table(
        "errors",
        {
            "structure": [name for _, name, _ in found],
            "compared with": [other for other, _, _ in found],
            f"largest relative error over {STEPS} steps": [f["error"].max() for _, _, f in found],
            "risk at the start": [f["risk"][0] for _, _, f in found],
            "risk at the end": [f["risk"][1] for _, _, f in found],
        },
        "Descent on coefficients against descent on matrices.",
    )
    rows, columns = np.indices((3, 3)).reshape(2, -1) - 1
    context.table(
        "taps",
        {
            "row offset": rows,
            "column offset": columns,
            "squared norm": predicted,
            "measured scale": measured,
        },
        f"One step on raw taps of a 3 × 3 convolution of {LARGE} × {LARGE} images: change of each "
        "tap over that of projected descent.",
    )


def _claim(context: Context, exact: dict, raw: dict, scaled: dict, measured: np.ndarray) -> None:
    for name, found in exact.items():
        context.claim_below(
            name.lower().replace(", ", "_").replace(" ", "_"),
            SOURCE,
            f"{name}: descent on orthonormal coefficients is projected descent on matrices over "
            f"{STEPS:,} steps (largest relative error of a layer)",
            bound=1e-12,
            measured=found["error"].max(),
        )
    for name, found in raw.items():
        short = name.split(",")[0].lower()
        context.claim_below(
            f"{short}_raw",
            f"{SOURCE}, read without its footnote 3, which excepts bases that are not orthonormal",
            f"{name}, an orthogonal basis that is not orthonormal: the same, at the rate that the "
            "taps have in the mean",
            bound=1e-12,
            measured=found["error"].max(),
            expected="refuted",
        )
        context.claim_below(
            f"{short}_scaled",
            FOOTNOTE,
            f"{name}: descent is projected descent with each direction scaled by its squared norm, "
            f"over {STEPS:,} steps",
            bound=1e-12,
            measured=scaled[name]["error"].max(),
        )
    for offset, index, norm in (("centre", 4, 784), ("edge", 1, 756), ("corner", 0, 729)):
        context.claim_close(
            f"scale_{offset}",
            FOOTNOTE,
            f"A raw step of 3 × 3 convolutions of 28 × 28 images is the projection times "
            f"(28 − |a|)(28 − |b|), tap at the {offset}",
            predicted=norm,
            measured=measured[index],
            tolerance=1e-9,
            relative=True,
        )
