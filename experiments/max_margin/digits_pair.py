"""Which pairs of digits a hyperplane through 0 separates, and networks that find its margin."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import jax
import numpy as np

import alignjax as aj
from alignjax import datasets
from alignjax.datasets import Images
from alignjax.theory.margin import MaximumMargin, NotSeparableError, UndecidedError, max_margin
from experiments.context import Context
from experiments.images import training_digits
from experiments.max_margin._separable import OURS, PAPER, angles, start, widths
from experiments.registry import experiment
from experiments.runs import require_finished
from experiments.style import COLORS

DEPTHS = (1, 2, 3)
HIDDEN = 8
SCALE = 0.3
# The longest image is 25 margins long, so the flow is stiff: this many steps bring it to the end.
MAX_STEPS = 1_000_000


class Pair(NamedTuple):
    """One pair of digits.

    Attributes:
        first: The digit labelled +1.
        second: The digit labelled -1.
        margin: The maximum margin, 0 where no hyperplane through 0 separates, NaN if undecided.
        support: Support vectors, or samples in the combination that proves that there is none.
        certificate: The gap of the duality, or the norm of that combination.
    """

    first: int
    second: int
    margin: float
    support: int
    certificate: float


def labelled(images: Images, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels / 255 of two digits, and labels +1 and -1."""
    chosen = images[np.flatnonzero(np.isin(images.labels, (first, second)))]
    X = np.asarray(datasets.flatten(chosen, mean=0, std=1), np.float64)
    return X, np.where(chosen.labels == first, 1, -1)


def decide(images: Images, first: int, second: int) -> Pair:
    """Whether two digits are separable, with the certificate."""
    try:
        found = max_margin(*labelled(images, first, second))
    except NotSeparableError as error:
        count = int((error.combination > 0).sum())
        return Pair(first, second, 0.0, count, error.residual)
    except UndecidedError:
        return Pair(first, second, np.nan, 0, np.nan)
    return Pair(first, second, float(found.margin), len(found.support), found.gap)


def _images(context: Context) -> Images:
    images = datasets.digits("train") if context.scale == "quick" else training_digits()
    return images[: context.pick(quick=600, standard=len(images), full=len(images))]


class Flow(NamedTuple):
    """A network on one pair; the first axis is time.

    Attributes:
        product: ``(T, k_0)``.
        margin: Normalized, ``(T,)``.
        log_risk: ``(T,)``.
    """

    product: np.ndarray
    margin: np.ndarray
    log_risk: np.ndarray


def flow(key: jax.Array, X: np.ndarray, labels: np.ndarray, depth: int, times: np.ndarray) -> Flow:
    """Gradient flow of the exponential loss; a start in the span of the images stays there."""
    problem = aj.classification(X, labels, loss="exponential")
    weights = start(key, problem, widths(X.shape[1], depth, HIDDEN), SCALE / np.sqrt(X.shape[1]))

    def observe(layers: Any) -> tuple[jax.Array, ...]:
        return (
            aj.end_to_end(layers)[0],
            aj.metrics.margin(problem, layers),
            aj.metrics.log_risk(problem, layers),
        )

    run = aj.gradient_flow(
        problem,
        weights,
        times=times,
        observe=observe,
        log_time=True,
        solver="explicit",
        max_steps=MAX_STEPS,
    )
    require_finished("digits_pair", run)
    return Flow(*map(np.asarray, run.observations))


def thinned(X: np.ndarray, labels: np.ndarray, found: MaximumMargin, count: int) -> np.ndarray:
    """The samples of least margin, ``count`` of them, support vectors among them."""
    margins = labels * (X @ np.asarray(found.direction))
    return np.argsort(margins, kind="stable")[: max(count, len(found.support))]


@experiment(
    "max_margin/digits_pair",
    title="Most pairs of digits are separable, and deep linear networks find their maximum margin",
    source=f"{PAPER}, Theorem 2",
)
def digits_pair(context: Context) -> None:
    """Decide every pair exactly, then follow flows on the pair of largest margin."""
    images = _images(context)
    chosen = list(combinations(range(10), 2))
    if context.scale == "quick":
        chosen = chosen[:9]
    pairs = [decide(images, *pair) for pair in context.track(chosen, "pairs of digits")]
    best = max(pairs, key=lambda pair: np.nan_to_num(pair.margin))
    X, labels = labelled(images, best.first, best.second)
    # those far off the margin cost time and change no maximum margin
    count = context.pick(quick=100, standard=150, full=1500)
    everything = max_margin(X, labels)
    kept = thinned(X, labels, everything, count)
    X, labels = X[kept], labels[kept]
    found = max_margin(X, labels)
    context.note(
        f"{images.name}, {len(images):,} training images, pixels / 255, no offset. The networks "
        f"see the {len(X):,} images of the pair {best.first}, {best.second} of least margin, all "
        f"support vectors among them; exponential loss, hidden layers of width {HIDDEN}."
    )
    last = context.pick(quick=300, standard=100, full=300)
    times = 10.0 ** np.geomspace(0.5, last, context.pick(quick=15, standard=40, full=80))
    depths = context.pick(quick=(1, 2), standard=DEPTHS, full=(1, 2, 3, 4))
    key = jax.random.fold_in(context.key, 1)
    flows = {
        depth: flow(jax.random.fold_in(key, depth), X, labels, depth, times)
        for depth in context.track(depths, "depths")
    }
    context.table(
        "pairs",
        {
            "first": [pair.first for pair in pairs],
            "second": [pair.second for pair in pairs],
            "maximum margin (0: not separable)": [pair.margin for pair in pairs],
            "support vectors, or samples of the proof": [pair.support for pair in pairs],
            "gap, or norm of the proof": [pair.certificate for pair in pairs],
        },
        "Every pair of digits, decided.",
    )
    _claims_on_pairs(context, pairs, images.name)
    _claims_on_networks(context, everything, found, flows, X[found.support], f"1e{last}")
    _draw(context, pairs, found, flows, times, images)


def _claims_on_pairs(context: Context, pairs: list[Pair], name: str) -> None:
    margins = np.array([pair.margin for pair in pairs])
    context.claim_close(
        "decided",
        OURS,
        f"each of the {len(pairs)} pairs is decided, with a certificate: pairs that are not",
        predicted=0,
        measured=int(np.isnan(margins).sum()),
    )
    context.claim_below(
        "certificates",
        OURS,
        "duality gaps of the separable pairs and norms of the combinations that prove the others "
        "not to be: largest",
        bound=1e-10,
        measured=np.nanmax([abs(pair.certificate) for pair in pairs]),
    )
    statement = (
        "every pair of digits of MNIST's training set is separable through 0, as the setting asks: "
        "how many of 45"
    )
    source = f"{OURS}, section 1.2"
    if name == "MNIST":
        context.claim_close(
            "separable",
            source,
            statement,
            predicted=45,
            measured=int((margins > 0).sum()),
            expected="refuted",
        )
    else:
        context.not_measured(
            "separable",
            source,
            statement,
            reason=f"the images are {name}",
        )


def _claims_on_networks(
    context: Context,
    everything: MaximumMargin,
    found: MaximumMargin,
    flows: dict[int, Flow],
    supports: np.ndarray,
    end: str,
) -> None:
    context.claim_close(
        "same_margin",
        OURS,
        "the images left out do not change the maximum margin: relative difference",
        predicted=0.0,
        measured=float(found.margin / everything.margin) - 1,
        tolerance=1e-10,
    )
    gamma, direction = float(found.margin), found.direction
    _, values, basis = np.linalg.svd(supports)
    spanned = np.append(values, np.zeros(len(basis)))[: len(basis)] > 1e-10 * values[0]
    for depth, run in flows.items():
        angle = angles(run.product, direction)
        context.claim_above(
            f"margin_{depth}",
            f"{PAPER}, Theorem 2",
            f"L = {depth}: the network's margin tends to the largest one: share of it at t = {end}",
            bound=0.9,
            measured=run.margin[-1] / gamma,
        )
        context.claim_below(
            f"angle_{depth}",
            f"{PAPER}, Theorem 2",
            f"L = {depth}: its direction tends to the maximum-margin direction: angle at t = {end} "
            "over that at the first time",
            bound=0.3,
            measured=angle[-1] / angle[0],
        )
        if depth == 1:
            # one layer's angle falls like 1 / ln t, but samples beyond the support push for long
            continue
        statement = (
            f"L = {depth}: where the support vectors span less than the images (against Assumption "
            "3), what W_1 has outside of their span comes to rest, and the angle to that span "
            "falls like |w|^(-1/L), so it does depend on the depth: exponent over the second half "
            "of the times"
        )
        if spanned.all():
            context.not_measured(
                f"exponent_{depth}", OURS, statement, reason="here they span all that the images do"
            )
        else:
            late = run.product[len(angle) // 2 :]
            growth = np.log(np.linalg.norm(late, axis=1))
            outside = np.log(np.linalg.norm(late @ basis[~spanned].T, axis=1)) - growth
            context.claim_close(
                f"exponent_{depth}",
                OURS,
                statement,
                predicted=-1 / depth,
                measured=np.polyfit(growth, outside, 1)[0],
                tolerance=0.05,
            )


def _draw(
    context: Context,
    pairs: list[Pair],
    found: MaximumMargin,
    flows: dict[int, Flow],
    times: np.ndarray,
    images: Images,
) -> None:
    best = max(pairs, key=lambda pair: np.nan_to_num(pair.margin))
    with context.figure(
        "digits_pair",
        "(a) Maximum margin of every pair of digits; crosses are pairs that no hyperplane through "
        f"0 separates. (b) Networks on the pair {best.first}, {best.second}: what their margin "
        "lacks, and (c) their angle to the exact direction, along gradient flow. Times are spaced "
        "as ln ln t. (d) The exact direction and the deepest network's at the end, as images.",
        rows=2,
        columns=2,
        width="double",
        height=5.2,
    ) as (figure, axes):
        _draw_map(figure, axes[0, 0], pairs)
        log_t = np.log(times)
        for (depth, run), color in zip(flows.items(), COLORS, strict=False):
            lack = 1 - run.margin / float(found.margin)
            axes[0, 1].plot(log_t, lack, color=color, label=f"$L={depth}$")
            axes[1, 0].plot(log_t, angles(run.product, found.direction), color=color)
        axes[0, 1].set(title="(b)", ylabel=r"$1-\mathrm{margin}/\gamma$")
        axes[1, 0].set(title="(c)", ylabel=r"angle to $\bar u$ (rad)")
        powers = np.array([1, 3, 10, 30, 100, 300])
        powers = powers[powers <= np.log10(times[-1]) * 1.001]
        for panel in (axes[0, 1], axes[1, 0]):
            panel.set(xlabel="$t$", xscale="log", yscale="log")
            panel.set_xticks(powers * np.log(10), [f"$10^{{{p}}}$" for p in powers])
            panel.minorticks_off()
        axes[0, 1].legend(loc="lower left")
        deepest = flows[max(flows)].product[-1]
        faces = [np.asarray(found.direction), deepest / np.linalg.norm(deepest)]
        side = images.images.shape[1]
        picture = np.concatenate([face.reshape(side, side) for face in faces], axis=1)
        limit = np.abs(picture).max()
        axes[1, 1].imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes[1, 1].axvline(side - 0.5, color="black", lw=0.6)
        axes[1, 1].set(title=rf"(d) exact $\bar u$, and $L={max(flows)}$", xticks=[], yticks=[])
        axes[1, 1].spines[:].set_visible(False)


def _draw_map(figure: Any, panel: Any, pairs: list[Pair]) -> None:
    grid = np.full((10, 10), np.nan)
    for pair in pairs:
        # white where there is none
        grid[pair.second, pair.first] = pair.margin if pair.margin > 0 else np.nan
        if pair.margin == 0:
            panel.plot(pair.first, pair.second, "x", color="0.4", ms=4)
    image = panel.imshow(grid, cmap="viridis", vmin=0)
    figure.colorbar(image, ax=panel, label="maximum margin", shrink=0.9)
    panel.set(title="(a)", xlabel="digit", ylabel="digit", xticks=range(10), yticks=range(10))
