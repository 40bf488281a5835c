"""Figure 2: risk, and how near to rank 1 the dense layers are, of AlexNet on CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import jax
import numpy as np
from scipy.sparse.linalg import svds
from scipy.stats import spearmanr

from alignjax import datasets
from experiments.context import Context
from experiments.max_margin import _alexnet_checkpoint as checkpoints
from experiments.max_margin._alexnet import DENSE_WIDTHS, EQUAL_NORM, dense_weights
from experiments.max_margin._alexnet_training import (
    STARTS,
    Data,
    Settings,
    Start,
    State,
    train,
)
from experiments.registry import experiment
from experiments.style import COLORS

PAPER = "Ji & Telgarsky 2019"
SOURCE = f"{PAPER}, Figure 2"
OWN = f"this project, on {SOURCE}"
SHAPES = tuple(pairwise(DENSE_WIDTHS))
# as printed beside the figure; a matrix of rank r has a ratio of at least r^(-1/2)
BOUNDS = np.array([min(shape) ** -0.5 for shape in SHAPES])
TRACKED = (
    "The ratios that power iterations give are those of converged singular values: largest "
    "relative error over layers and starts after the last epoch"
)
PANELS: dict[Start, str] = {
    "default": "(a) default initialization",
    "equal norms": "(b) equal Frobenius norms",
}
# "much larger than the lower bound", which the last layer can exceed 3.2 times, in numbers
MUCH = 1.5
# last risk over first, above which a network has not begun to learn
LEARNED = 0.9
CORRELATED = 0.5
GROWN = 1.05


@dataclass(frozen=True)
class Size:
    """How much is trained on, and how.

    Attributes:
        images: That are trained on.
        epochs: Passes over them.
        batch_size: Images a step.
        learning_rate: Of stochastic gradient descent.
        first_epochs: How many epochs begin with another learning rate.
        first_learning_rate: Theirs.
    """

    images: int
    epochs: int
    batch_size: int
    learning_rate: float
    first_epochs: int = 0
    first_learning_rate: float = 0.0

    def settings(self, start: Start, seed: int) -> Settings:
        """Those of a training of this size."""
        return Settings(
            start,
            seed,
            self.epochs,
            self.batch_size,
            self.learning_rate,
            first_epochs=self.first_epochs,
            first_learning_rate=self.first_learning_rate,
        )


FULL = Size(50_000, 100, 128, 0.01)
STANDARD = Size(256, 60, 64, 0.05)
# Layers of norm 4 pass on so little that the risk stays on a plateau for about 200 steps over
# (1 - momentum) / rate, and a rate that shortens it is too large for what comes after.
STANDARD_EQUAL_NORMS = Size(256, 60, 32, 0.03, first_epochs=9, first_learning_rate=0.2)
QUICK = Size(64, 2, 32, 0.05)


@experiment(
    "max_margin/figure_2",
    title="AlexNet on CIFAR-10: its dense layers come nearer to rank 1 as the risk falls",
    source=SOURCE,
)
def figure_2(context: Context) -> None:
    """Train AlexNet from both starts and follow risk and ratios.

    Checkpoints lie in the folder ``checkpoints`` beside the results, one file for each
    configuration. A run that was interrupted goes on from them when it is started again with the
    same arguments, and a run that ends removes its own.
    """
    size, why_not_full = choose_size(context.scale)
    try:
        # the test images are one file of six
        images = datasets.cifar10("test" if size is QUICK else "train")[: size.images]
    except datasets.DataUnavailableError:
        reason = "CIFAR-10 is not available on this machine"
        _claim_not_measured(context, SOURCE, FULL, reason)
        _claim_not_measured(context, OWN, STANDARD, reason)
        context.not_measured("tracker", OWN, TRACKED, reason=reason)
        return
    data = Data.of(images)
    # the runner's folder is gone when a run is interrupted, and the one above it stays
    folder = context.folder.parent / "checkpoints"
    states: dict[Start, State] = {}
    paths = []
    for start in STARTS:
        settings = size_for(start, size).settings(start, context.seed)
        track = partial(context.track, description=f"AlexNet, {start}")
        states[start], path = train(settings, data, folder=folder, track=track)
        paths.append(path)
    _note(context, images.name, size)
    _draw(context, states)
    _write(context, states)
    _claim_trackers(context, states)
    if not why_not_full:
        _claim(context, states, SOURCE, size)
    else:
        _claim_not_measured(context, SOURCE, FULL, why_not_full)
        if size is QUICK:
            _claim_not_measured(context, OWN, STANDARD, "a handful of steps")
        else:
            _claim(context, states, OWN, size)
    for path in paths:
        checkpoints.discard(path)


def choose_size(scale: str) -> tuple[Size, str]:
    """The size of a run here, and why it is not the paper's (nothing where it is)."""
    if scale == "full":
        if jax.default_backend() == "gpu":
            return FULL, ""
        return STANDARD, "no GPU here; a CPU would take about a day"
    return (QUICK if scale == "quick" else STANDARD), f"the {scale} scale trains on fewer images"


def size_for(start: Start, size: Size) -> Size:
    """The size with the schedule that a start needs there."""
    return STANDARD_EQUAL_NORMS if (start, size) == ("equal norms", STANDARD) else size


def _note(context: Context, name: str, size: Size) -> None:
    kind = "test" if size is QUICK else "training"
    extent = "" if size is FULL else f", not the paper's {FULL.images:,} and {FULL.epochs}"
    schedules = {start: _schedule(size_for(start, size)) for start in STARTS}
    if len(set(schedules.values())) == 1:
        how = schedules["default"]
    else:
        how = "; ".join(f"({'ab'[i]}) {schedules[start]}" for i, start in enumerate(STARTS))
    context.note(
        f"{size.images:,} {kind} images of {name}, {size.epochs} epochs{extent}. Not in the paper: "
        f"{how}; momentum {Settings.momentum:g}; pixels standardized by colour; neither dropout "
        "nor augmentation; convolutions of 3 × 3, the first with stride 2; biases and convolutions "
        "as by default in both panels."
    )


def _schedule(size: Size) -> str:
    rate = f"{size.learning_rate:g}"
    if size.first_epochs:
        rate = f"{size.first_learning_rate:g} for {size.first_epochs} epochs, then {rate}"
    return f"batches of {size.batch_size}, learning rate {rate}"


def _draw(context: Context, states: dict[Start, State]) -> None:
    caption = (
        "Risk (mean cross-entropy over the images trained on) and the ratio of spectral to "
        "Frobenius norm of the three dense layers of AlexNet, first to last, at the start and "
        "after each epoch; the axis is logarithmic, the paper's is linear. Dotted lines: the least "
        "ratio that a matrix of the layer's shape can have."
    )
    with context.figure(
        "figure_2", caption, columns=2, width="double", height=2.7, sharey=True
    ) as (figure, panels):
        for panel, (start, state) in zip(panels, states.items(), strict=True):
            epochs = np.arange(len(state.risks))
            panel.plot(epochs, state.risks, color=COLORS[-1], label="risk")
            for i, (rows, columns) in enumerate(SHAPES):
                label = rf"$\|W_{i + 1}\|_2/\|W_{i + 1}\|_F$, {rows} × {columns}"
                panel.plot(epochs, state.ratios[:, i], color=COLORS[i], label=label)
                panel.axhline(BOUNDS[i], color=COLORS[i], ls=":", lw=0.8)
            panel.set(title=PANELS[start], xlabel="epoch", xlim=(0, epochs[-1]), yscale="log")
        panels[0].set_ylabel("risk, and ratios of norms")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)


def _write(context: Context, states: dict[Start, State]) -> None:
    rows = [(start, epoch) for start, s in states.items() for epoch in range(len(s.risks))]
    columns: dict[str, list] = {
        "start": [start for start, _ in rows],
        "epoch": [epoch for _, epoch in rows],
        "risk": [states[start].risks[epoch] for start, epoch in rows],
    }
    for kind in ("ratios", "norms"):
        for i in range(len(SHAPES)):
            name = {"ratios": f"||W_{i + 1}||_2/||W_{i + 1}||_F", "norms": f"||W_{i + 1}||_F"}[kind]
            columns[name] = [getattr(states[start], kind)[epoch, i] for start, epoch in rows]
    context.table("figure_2", columns, "What the figure shows, and the layers' Frobenius norms")


def _claim_trackers(context: Context, states: dict[Start, State]) -> None:
    """The power iterations against Lanczos' method, on the last weights."""
    errors = []
    for state in states.values():
        for weight, tracked in zip(dense_weights(state.network), state.ratios[-1], strict=True):
            matrix = np.asarray(weight, np.float64)
            (largest,) = svds(matrix, k=1, return_singular_vectors=False, rng=0)
            errors.append(abs(tracked * np.linalg.norm(matrix) / largest - 1))
    context.claim_below(
        "tracker",
        OWN,
        TRACKED,
        bound=0,
        tolerance=1e-2,
        measured=max(errors),
    )


def _statements(start: Start, size: Size) -> dict[str, str]:
    how = "PyTorch's initialization" if start == "default" else f"‖W_i‖_F = {EQUAL_NORM:g} at first"
    where = f"{how}, {size.images:,} images, {size.epochs} epochs"
    return {
        "rise": (
            f"While the risk falls the ratios ‖W_i‖_2/‖W_i‖_F of all dense layers rise ({where}): "
            "least rank correlation of −risk and ratio over epochs"
        ),
        "growth": f"The ratios end above their start ({where}): least last over first",
        "bound": (
            "The ratios are much larger than their lower bounds 1024^(−1/2), 4096^(−1/2), "
            f"10^(−1/2) ({where}): least last ratio over its bound, with {MUCH:g} as much larger"
        ),
    }


def _id(start: Start, name: str, size: Size) -> str:
    scale = "full" if size is FULL else "here"
    return f"{start.replace(' ', '_')}_{name}_{scale}"


def _claim_not_measured(context: Context, source: str, size: Size, reason: str) -> None:
    for start in STARTS:
        for name, statement in _statements(start, size).items():
            context.not_measured(_id(start, name, size), source, statement, reason=reason)


def _claim(context: Context, states: dict[Start, State], source: str, size: Size) -> None:
    for start, state in states.items():
        say = _statements(start, size)
        first, last = state.ratios[0], state.ratios[-1]
        fallen = state.risks[-1] / state.risks[0]
        if fallen > LEARNED:
            # what is said about a falling risk is neither confirmed nor refuted
            reason = f"the risk has not fallen yet: it ends at {fallen:.3f} of its start"
            for name, statement in say.items():
                context.not_measured(_id(start, name, size), source, statement, reason=reason)
            continue
        correlations = [spearmanr(-state.risks, ratio).statistic for ratio in state.ratios.T]
        context.claim_above(
            _id(start, "rise", size),
            source,
            say["rise"],
            bound=CORRELATED,
            measured=min(correlations),
        )
        context.claim_above(
            _id(start, "growth", size),
            source,
            say["growth"],
            bound=GROWN,
            measured=(last / first).min(),
        )
        context.claim_above(
            _id(start, "bound", size),
            source,
            say["bound"],
            bound=MUCH,
            measured=(last / BOUNDS).min(),
        )
