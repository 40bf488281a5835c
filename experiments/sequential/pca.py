"""A linear autoencoder started at W_1 = W_2^T recovers the principal components of images."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import alignjax as aj
from alignjax import datasets
from alignjax.theory.sequential import transition_steps
from experiments.context import Context
from experiments.images import training_digits
from experiments.registry import experiment
from experiments.sequential._autoencoder import PAPER, predicted_distances, symmetric_start
from experiments.style import COLORS, plt

SOURCE = f"{PAPER}, section 3.1, linear autoencoder"
HIDDEN = 9
DELTA = 15.0
# Where the closed form comes as near to P_k, delta tells component k from the next one.
RESOLVED = 0.2
# What is left of the first component left out at the end of the slowest rotation.
CONVERGED = 1e-4


def rows_of(context: Context) -> tuple[np.ndarray, str]:
    """Pixels in [0, 1], one image a row, and what they are."""
    count = context.pick(quick=1000, standard=10_000, full=60_000)
    images = training_digits()[:count]
    if images.name != "MNIST":
        return datasets.flatten(images, mean=0, std=1), f"{images.name} stand in for MNIST"
    stride = context.pick(quick=2, standard=1, full=1)
    thinned = images.images[:, ::stride, ::stride]
    every = "" if stride == 1 else f", every {stride}nd pixel"
    return datasets.flatten(thinned, mean=0, std=1), f"MNIST{every}"


def keep(weights: Any) -> Any:
    """Observe the layers themselves."""
    return weights


def overlaps(weights: Any, components: np.ndarray) -> np.ndarray:
    """``v_k^T W v_k`` for the columns ``v_k`` of ``components``, shape ``(..., K)``."""
    inner, outer = (np.asarray(w) for w in weights)
    return np.einsum("ik,...ih,...hj,jk->...k", components, outer, inner, components, optimize=True)


def distances(weights: Any, components: np.ndarray) -> np.ndarray:
    """``||W - P_k||_F`` for the projectors on the first k columns, ``(..., K)``.

    From ``||W||^2 - 2 tr(P_k W) + k``, so that no square matrix of pixels is formed; distances
    below the root of roundoff are not resolved.
    """
    inner, outer = (np.asarray(w) for w in weights)
    squares = np.einsum("...ih,...ig->...hg", outer, outer) * np.einsum(
        "...hj,...gj->...hg", inner, inner
    )
    inside = np.cumsum(overlaps(weights, components), axis=-1)
    ranks = np.arange(1, components.shape[1] + 1)
    return np.sqrt(np.maximum(squares.sum((-2, -1))[..., None] - 2 * inside + ranks, 0.0))


def effective_starts(inner: np.ndarray, components: np.ndarray) -> np.ndarray:
    """What a small ``W_1`` ``(..., h, k_0)`` gives each component of the product to start from.

    Modes that are learned take their hidden direction away from the later ones, so it is the
    squared diagonal of R in ``W_1 V = Q R``, shape ``(..., K)``.
    """
    triangle = np.linalg.qr(np.asarray(inner) @ components, mode="r")
    return np.diagonal(triangle, axis1=-2, axis2=-1) ** 2


def settling_rate(kept: float, left: float) -> float:
    """The slowest rate at which the last component ``kept`` turns away from the first one left.

    With a and b the share of the left direction in ``W_1`` and in ``W_2^T``, the flow near the
    projector is ``a' = left (b - a)``, ``b' = left a - kept b``: about half the gap, not the gap.
    """
    total = kept + left
    return (total - np.sqrt(total**2 - 4 * left * (kept - left))) / 2


def train(
    problem: Any, starts: Any, rate: float, steps: int, saves: int, until: float | None = None
) -> aj.Trajectory:
    """Descent from a batch of starts, its layers seen at ``saves`` points; refuses to diverge.

    With ``until`` a run rests at this risk.
    """
    points = aj.log_steps(steps, saves)
    runs = jax.vmap(
        lambda start: aj.gradient_descent(
            problem, start, rate, steps=steps, save_at=points, observe=keep, until=until
        )
    )(starts)
    if np.any(np.asarray(runs.status) == aj.Status.DIVERGED):
        raise RuntimeError("pca: a run diverged")
    return runs


@experiment(
    "sequential/pca",
    title="A linear autoencoder visits the principal components in order",
    source=SOURCE,
)
def pca(context: Context) -> None:
    """Train a bottleneck on images, and compare its path with PCA without centring."""
    rows, name = rows_of(context)
    context.note(f"Data: {name}, the first {len(rows):,} training images, not centred.")
    _, singular, vt = np.linalg.svd(rows, full_matrices=False)
    spectrum, components = singular**2 / len(rows), vt[:HIDDEN].T
    moment = rows.T @ rows / len(rows)
    problem = aj.from_moments(moment, moment, np.trace(moment))
    rate = 0.45 / spectrum[0]
    leading = spectrum[:HIDDEN]
    saves = context.pick(quick=150, standard=300, full=300)
    keys = jax.random.split(context.key, context.pick(quick=1, standard=1, full=8))
    width = rows.shape[1]
    starts = jax.vmap(lambda key: symmetric_start(key, width, HIDDEN, DELTA))(keys)
    begin = effective_starts(starts[0], components)
    transitions = np.asarray(transition_steps(leading, leading, -0.5 * np.log(begin), rate))
    kept, left = spectrum[HIDDEN - 1], spectrum[HIDDEN]
    # The last hidden direction may turn to the component left out first, a saddle that it leaves no
    # faster than it settles. So the budget is that of three such turns, and a run rests when the
    # share of the component left out has come down to CONVERGED.
    steps = round(
        1.3 * transitions.max() - 3 * np.log(CONVERGED) / (rate * settling_rate(kept, left))
    )
    rest = 0.5 * (spectrum[HIDDEN:].sum() + (kept - left) * CONVERGED**2)
    runs = train(problem, starts, rate, steps, saves, until=rest)
    # In the directions of PCA itself, the one start for which W_1 = W_2^T can be kept.
    turn = jax.random.orthogonal(context.key, HIDDEN)
    inner = (np.exp(-DELTA) * turn @ components.T)[None]
    learned = float(transition_steps(leading[-1], leading[-1], DELTA, rate))
    aligned = train(problem, (inner, inner.mT), rate, round(1.5 * learned), saves)
    found = {
        "steps": np.asarray(runs.step[0]),
        "aligned steps": np.asarray(aligned.step[0]),
        "modes": overlaps(runs.observations, components),
        "distances": distances(runs.observations, components),
        "asymmetry": _asymmetry(runs.observations),
        "aligned asymmetry": _asymmetry(aligned.observations),
        "transitions": transitions,
        "predicted": np.array([predicted_distances(leading, start, DELTA) for start in begin]),
    }
    nearest = found["distances"].min(axis=1)
    context.table(
        "components",
        {
            "component": np.arange(1, HIDDEN + 1),
            "variance (eigenvalue of X^T X / n)": leading,
            "predicted transition (step, median)": np.median(found["transitions"], axis=0),
            "half height (step, median)": np.median(half_heights(found), axis=0),
            "distance of the path to P_k (median)": np.median(nearest, axis=0),
            "the same, closed form": np.median(found["predicted"], axis=0),
        },
        f"The {HIDDEN} leading components, and how near training comes to the projectors on the "
        "first k of them.",
    )
    _draw(context, found)
    _draw_images(context, rows, components, jax.tree.map(lambda w: np.asarray(w[0]), runs), found)
    _claims(context, rows, components, spectrum, runs, found)


def _asymmetry(weights: Any) -> np.ndarray:
    inner, outer = (np.asarray(w) for w in weights)
    apart = np.linalg.norm(inner - np.swapaxes(outer, -1, -2), axis=(-2, -1))
    return apart / np.linalg.norm(inner, axis=(-2, -1))


def half_heights(found: dict[str, np.ndarray]) -> np.ndarray:
    """The steps at which components pass half their final height, ``(starts, K)``."""
    return np.array(
        [[np.interp(0.5, mode, found["steps"]) for mode in run.T] for run in found["modes"]]
    )


def _claims(
    context: Context,
    rows: np.ndarray,
    components: np.ndarray,
    spectrum: np.ndarray,
    runs: aj.Trajectory,
    found: dict[str, np.ndarray],
) -> None:
    inner, outer = (np.asarray(w) for w in runs.weights)
    products = outer @ inner
    projector = components @ components.T
    context.claim_below(
        "recovers",
        SOURCE,
        f"{HIDDEN} hidden units from a small W_1 = W_2^T end at the projector on the leading "
        f"principal components: ||W - P_{HIDDEN}||_F, largest of {len(products)} starts",
        bound=10 * CONVERGED,
        measured=np.linalg.norm(products - projector, axis=(-2, -1)).max(),
    )
    lost = (np.linalg.norm(rows - rows @ products[0].T) / np.linalg.norm(rows)) ** 2
    context.claim_close(
        "error",
        SOURCE,
        "its reconstruction of the images is PCA's: share of the energy that is lost",
        predicted=spectrum[HIDDEN:].sum() / spectrum.sum(),
        measured=lost,
        tolerance=1e-7,
        relative=True,
    )
    _claim_path(context, found)
    for key, text, expected in (
        ("asymmetry", "a Gaussian start", "refuted"),
        ("aligned asymmetry", "a start in the directions of the components", "confirmed"),
    ):
        context.claim_below(
            key.replace(" ", "_"),
            SOURCE,
            f"training keeps W_1 = W_2^T, from {text}: largest ||W_1 - W_2^T|| / ||W_1||",
            bound=1e-9,
            measured=found[key].max(),
            expected=expected,
        )
    mean = rows.mean(0)
    context.claim_above(
        "mean",
        f"not in the paper: {SOURCE}",
        "without centring, the first component is the mean image: cosine",
        bound=0.95,
        measured=abs(components[:, 0] @ mean) / np.linalg.norm(mean),
    )


def _claim_path(context: Context, found: dict[str, np.ndarray]) -> None:
    """What is learned on the way: how near each projector, when, and in which order."""
    nearest, predicted = found["distances"].min(axis=1)[:, :-1], found["predicted"][:, :-1]
    resolved = predicted < RESOLVED
    context.claim_below(
        "visits",
        f"{PAPER}, Corollary 2 for an autoencoder",
        f"on its way it visits the projectors on the first k < {HIDDEN} components, where delta = "
        f"{DELTA:g} tells component k from k + 1 (closed form within {RESOLVED:g}: "
        f"{resolved.sum()} of {resolved.size}): median distance",
        bound=RESOLVED,
        measured=np.median(nearest[resolved]),
    )
    context.claim_below(
        "nearest",
        f"{PAPER}, eq. 16, from starts aligned to nothing",
        "how near it comes is what the closed form says, with the modes' starts read off W_1 V = "
        "QR: median difference of distances",
        bound=0.1,
        measured=np.median(np.abs(nearest - predicted)),
    )
    half = half_heights(found)
    context.claim_below(
        "times",
        f"{PAPER}, eq. 25, corrected: delta / ln(1 + eta sigma)",
        "components reach half their height at the predicted steps, with the same starts: median "
        "relative difference",
        bound=0.02,
        measured=np.median(np.abs(half / found["transitions"] - 1)),
    )
    apart = found["transitions"][:, 1:] / found["transitions"][:, :-1] > 1.1
    context.claim_below(
        "order",
        SOURCE,
        "they are learned in the order of their variance: largest ratio of a component's step to "
        "the next one's, where predictions differ by 10%",
        bound=1.0,
        measured=(half[:, :-1] / half[:, 1:])[apart].max(),
    )


def _draw(context: Context, found: dict[str, np.ndarray]) -> None:
    with context.figure(
        "pca",
        f"A linear autoencoder with {HIDDEN} hidden units on images, from a Gaussian start with "
        "W_1 = W_2^T. (a) What is learned of the leading principal components; ticks above: "
        "predicted transitions. (b) How near the path comes to the projector on the first k of "
        "them, and how near the closed form does (the last is where training ends; medians over "
        f"{len(found['modes'])} starts). (c) Departure of W_1 from W_2^T, also from a start in the "
        "directions of the components.",
        columns=3,
        width="double",
        height=2.5,
    ) as (_, (modes, near, symmetry)):
        shades = plt.get_cmap("viridis_r")(np.linspace(0.1, 1.0, HIDDEN))
        for k in range(HIDDEN):
            modes.plot(found["steps"], found["modes"][0, :, k], color=shades[k], lw=1.0)
            modes.plot(found["transitions"][0, k], 1.06, "v", ms=3, color=shades[k], clip_on=False)
        first, last = found["transitions"][0, [0, -1]]
        end = max(4 * last, 3 * half_heights(found)[0].max())
        modes.set(xscale="log", xlim=(0.5 * first, end), ylim=(0, 1.1))
        modes.set(xlabel="step", ylabel=r"$v_k^\top W\,v_k$", title="(a)")
        ranks = np.arange(1, HIDDEN + 1)
        nearest = np.median(found["distances"].min(axis=1), axis=0)
        closed = np.median(found["predicted"], axis=0)
        near.plot(ranks[:-1], closed[:-1], "-", color=COLORS[0], label="closed form")
        near.plot(ranks, nearest, "s", mfc="none", color=COLORS[1], label="training")
        near.set(yscale="log", xlabel="rank $k$", ylabel=r"$\min_t\|W(t)-P_k\|_F$", title="(b)")
        near.set(xticks=ranks, ylim=(1e-8, 3))
        near.legend()
        for run in found["asymmetry"]:
            symmetry.plot(found["steps"][1:], run[1:], color=COLORS[1], lw=1.0, label="Gaussian")
        symmetry.plot(
            found["aligned steps"][1:],
            np.maximum(found["aligned asymmetry"][0, 1:], 1e-18),
            color=COLORS[0],
            label="aligned",
        )
        symmetry.set(xscale="log", yscale="log", xlabel="step", title="(c)")
        symmetry.set(ylabel=r"$\|W_1-W_2^\top\|_F\,/\,\|W_1\|_F$")
        handles = symmetry.get_legend_handles_labels()[0]
        symmetry.legend(handles=[handles[0], handles[-1]], loc="center right")


def _draw_images(
    context: Context,
    rows: np.ndarray,
    components: np.ndarray,
    run: aj.Trajectory,
    found: dict[str, np.ndarray],
) -> None:
    """Components and reconstructions, of PCA and along the path, at the nearest to each P_k."""
    size = round(rows.shape[1] ** 0.5)
    visits = found["distances"][0].argmin(axis=0)
    visits[-1] = len(found["steps"]) - 1
    inner, outer = run.observations
    path = [outer[i] @ inner[i] for i in visits]
    image = rows[0]
    increments = [after - before for before, after in zip([0 * path[0], *path], path, strict=False)]
    gained = [np.linalg.eigh(w + w.T)[1][:, -1] for w in increments]
    gained = [g * np.sign(g @ components[:, k]) for k, g in enumerate(gained)]
    learned = np.cumsum(components.T[:, :, None] * (components.T @ image)[:, None, None], axis=0)
    lines = [
        ("component,\nPCA", list(components.T)),
        ("component,\nlearned", gained),
        ("image,\nPCA", [x[:, 0] for x in learned]),
        ("image,\nlearned", [w @ image for w in path]),
    ]
    with context.figure(
        "images",
        "Principal components and what training has added when it is nearest to the projector on "
        "the first k; below, the first image as PCA of rank k and as the network reconstruct it. "
        "Where neighbouring components have nearly the same variance, they are learned together.",
        rows=len(lines),
        columns=HIDDEN,
        width="double",
        height=3.4,
    ) as (_, axes):
        for k, panel in enumerate(axes[0]):
            panel.set_title(f"$k={k + 1}$", fontsize=7.5)
        for row, (label, images) in zip(axes, lines, strict=True):
            for panel, pixels in zip(row, images, strict=True):
                grid = pixels.reshape(size, size)
                if label.startswith("component"):
                    bound = np.abs(grid).max()
                    panel.imshow(grid, cmap="RdBu_r", vmin=-bound, vmax=bound)
                else:
                    panel.imshow(grid, cmap="gray_r", vmin=0, vmax=1)
                panel.set(xticks=[], yticks=[])
                panel.spines[:].set_visible(False)
            row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7.5)
