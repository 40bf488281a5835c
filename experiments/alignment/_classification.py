"""What Figures 1b and 1c share: a network that classifies images from an aligned start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from alignjax import datasets
from alignjax.linalg import matmul
from alignjax.problems import Problem
from experiments.context import Context
from experiments.images import training_digits

CLASSES = 10
LEARNING_RATE = 1e-2
LOSS_REACHED = 1e-4
# the residual from which certify says "no" in float64
VIOLATED = 1e-6
# a share below this has moved by far more than roundoff
MOVED = 0.999
LOSS_NAMES = {"squared": "mean squared error", "cross_entropy": "cross entropy"}

Loss = Literal["squared", "cross_entropy"]


@dataclass(frozen=True)
class Setting:
    """One training: the problem, its aligned start, and how the printed loss relates to the risk.

    Attributes:
        problem: What is learned.
        regression: The same images with one-hot targets, to which Theorem 1 applies.
        widths: ``(k_0, ..., k_d)``.
        start: Layers ``W_i = P_i Σ_i P_{i-1}^T``.
        bases: ``(P_0, ..., P_d)``.
        loss_per_risk: The figure's loss over this library's risk.
    """

    problem: Problem
    regression: Problem
    widths: tuple[int, ...]
    start: tuple[jax.Array, ...]
    bases: tuple[jax.Array, ...]
    loss_per_risk: float


def aligned_start(
    key: jax.Array, widths: Sequence[int]
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Layers of full rank, aligned to each other and to no data, and their common bases.

    ``initializers.aligned`` keeps ``min k_i`` modes in every layer; the figure's layers have
    ``min(k_i, k_{i-1})`` singular values, which are uniform on (0, 1).
    """
    value_key, basis_key = jax.random.split(key)
    draw = jax.nn.initializers.orthogonal()
    keys = jax.random.split(basis_key, len(widths))
    bases = tuple(draw(k, (n, n), jnp.float64) for k, n in zip(keys, widths, strict=True))
    layers = []
    value_keys = jax.random.split(value_key, len(widths) - 1)
    for k, before, after in zip(value_keys, bases, bases[1:], strict=False):
        rank = min(len(before), len(after))
        values = jax.random.uniform(k, (rank,), jnp.float64)
        layers.append(matmul(after[:, :rank] * values, before[:, :rank].T))
    return tuple(layers), bases


def prepare(context: Context, loss: Loss) -> Setting:
    """The first training images, the loss on them, and the start."""
    count = context.pick(quick=64, standard=256, full=256)
    hidden = context.pick(quick=(64, 32), standard=(1024, 64), full=(1024, 64))
    images = training_digits()[:count]
    X, labels = datasets.flatten(images), images.labels.astype(int)
    widths = (X.shape[1], *hidden, CLASSES)
    source = "" if images.name == "MNIST" else f"{images.name} stand in for MNIST. "
    context.note(f"{source}First {count} training images, widths {'-'.join(map(str, widths))}.")
    regression = aj.regression(X, datasets.one_hot(labels, CLASSES))
    start, bases = aligned_start(context.key, widths)
    if loss == "squared":
        # the figure's loss is the mean over all n * 10 entries of (y - f)^2, and the risk half the
        # mean over samples of its sum: loss = (2 / 10) risk
        return Setting(regression, regression, widths, start, bases, 2 / CLASSES)
    return Setting(aj.classification(X, labels, loss=loss), regression, widths, start, bases, 1.0)


def train(setting: Setting, steps: int) -> dict[str, np.ndarray]:
    """Train until the figure's loss is reached, or for ``steps``; what was seen, by save point."""

    def observe(weights: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
        return {
            "loss": setting.loss_per_risk * aj.risk(setting.problem, weights),
            "alignment": aj.metrics.alignment(weights),
            "invariance": aj.metrics.invariance(weights, bases=setting.bases),
            "strong invariance": aj.metrics.strong_invariance(weights, bases=setting.bases),
        }

    run = aj.gradient_descent(
        setting.problem,
        setting.start,
        # the gradient of c * risk is c times the risk's, so the rate takes the factor
        LEARNING_RATE * setting.loss_per_risk,
        steps=steps,
        save_at=aj.log_steps(steps, 45),
        observe=observe,
        until=LOSS_REACHED / setting.loss_per_risk,
    )
    if int(run.status) == aj.Status.DIVERGED:
        raise RuntimeError(f"training diverged at step {int(run.stopped_at)}")
    # a run that stopped repeats its last state on the save points after
    taken = np.asarray(run.step) <= int(run.stopped_at)
    seen = {name: np.asarray(values)[taken] for name, values in run.observations.items()}
    return {"step": np.asarray(run.step)[taken], **seen}


def reproduce(context: Context, loss: Loss, *, name: str, source: str) -> None:
    """Train, draw the figure, write its numbers and make its claims."""
    setting = prepare(context, loss)
    steps = context.pick(quick=300, standard=100_000, full=1_000_000)
    seen = train(setting, steps)
    chance_key = jax.random.fold_in(context.key, 1)
    chance = float(aj.metrics.chance_alignment(chance_key, setting.widths, samples=8).mean())
    _draw_figure(context, name, LOSS_NAMES[loss], seen, chance)
    columns = {"step": seen["step"], LOSS_NAMES[loss]: seen["loss"]}
    for quantity in ("alignment", "invariance", "strong invariance"):
        for i, values in enumerate(seen[quantity].T, start=1):
            columns[f"{quantity} {i}"] = values
    context.table(
        name, columns, "Loss, alignment of each pair, invariance of each layer by save point."
    )
    _claim(context, source, setting, seen)


def _draw_figure(
    context: Context, name: str, loss: str, seen: dict[str, np.ndarray], chance: float
) -> None:
    caption = (
        f"Classification by {loss} from a start whose layers are aligned to each other. "
        "Left: the loss. Right: alignment (mean over pairs) and invariance of the start's bases "
        "(mean over layers)."
    )
    with context.figure(name, caption, columns=2, width="double", height=2.4) as (_, axes):
        step = seen["step"]
        axes[0].plot(step, seen["loss"], color="black")
        axes[0].axhline(LOSS_REACHED, color="0.5", linestyle=":", label="loss at which to stop")
        axes[0].set(yscale="log", ylabel=f"loss ({loss})")
        axes[0].legend(loc="upper right")
        for quantity in ("alignment", "invariance", "strong invariance"):
            axes[1].plot(step, seen[quantity].mean(axis=1), label=quantity)
        axes[1].axhline(chance, color="0.5", linestyle=":", label="alignment by chance")
        lowest = axes[1].get_ylim()[0]
        # room for the legend below the curves
        axes[1].set(ylabel="share (1 = kept)", ylim=(lowest - 0.7 * (1 - lowest), None))
        axes[1].legend(loc="lower left")
        for panel in axes:
            # step 0 has its place on the axis
            panel.set_xscale("symlog", linthresh=1)
            panel.set(xlabel="step", xlim=(0, step[-1]))


def _claim(context: Context, source: str, setting: Setting, seen: dict[str, np.ndarray]) -> None:
    problem = setting.regression
    # in coordinates of the samples' span, where the condition is the same and the work less
    core = aj.from_moments(problem.input_moment, problem.cross_moment, problem.target_energy)
    context.claim_above(
        "data condition",
        source,
        "The images and their one-hot classes violate the data condition of Theorem 1: certify "
        'says "no" (residual)',
        bound=VIOLATED,
        measured=aj.theory.alignment.certify(core).residual,
    )
    context.claim_close(
        "start",
        source,
        "The layers are aligned at the start of training (least alignment of a pair)",
        predicted=1,
        measured=seen["alignment"][0].min(),
        tolerance=1e-10,
    )
    for quantity, statement in (
        ("invariance", "the start's bases are lost, inner ones alone"),
        ("strong invariance", "the start's bases are lost, outer ones included"),
        ("alignment", "the layers do not stay aligned to each other"),
    ):
        context.claim_below(
            quantity,
            source,
            f"Alignment is not an invariant of training for classification: {statement} "
            "(least share over layers and steps; roundoff is 1e-15)",
            bound=MOVED,
            measured=seen[quantity].min(),
        )
    statement = "The network reaches the loss 1e-4 at which the figure's training stops"
    if context.scale == "full" or seen["loss"][-1] <= LOSS_REACHED:
        context.claim_below(
            "loss", source, statement, bound=LOSS_REACHED, measured=seen["loss"][-1]
        )
    else:
        context.not_measured(
            "loss",
            source,
            statement,
            reason=f"after the {seen['step'][-1]} steps of this scale the loss is "
            f"{seen['loss'][-1]:.2g}; the full scale runs to the end",
        )
