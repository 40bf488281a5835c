"""Figure 1: one and four layers find the same maximum-margin predictor, and layers align."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from alignjax.problems import Problem
from alignjax.theory.margin import balancedness_constant, predicted_angle
from experiments.context import Context
from experiments.max_margin._separable import (
    OURS,
    PAPER,
    Separable,
    angles,
    separable,
    start,
    starts,
    widths,
)
from experiments.registry import experiment
from experiments.runs import require_finished
from experiments.style import COLORS

SOURCE = f"{PAPER}, Figure 1"
DEPTHS = (1, 4)
HIDDEN = 5
SCALE = 0.3
# the figure's axis ends there; its learning rate is not told
STEPS = 250
LEARNING_RATE = 0.02
SIZE = 7.5
# the margin rule's constant c is this over gamma^2 and the steps, each of which raises ln t by up
# to c L gamma^2
LATE = 150.0


class Descent(NamedTuple):
    """One network along descent; the first axis is the save point.

    Attributes:
        step: ``(T,)``.
        time: Sum of the learning rates, ``(T,)``.
        product: ``(T, 2)``.
        log_risk: ``(T,)``.
        margin: Normalized, ``(T,)``.
        ratio: ``||W_k||_2 / ||W_k||_F``, ``(T, L)``.
        least_ratio: What Lemma 2 says that it is at least, NaN where that is nothing, ``(T, L)``.
        alignment: ``|<v_{k+1}, u_k>|``, ``(T, L - 1)``.
    """

    step: np.ndarray
    time: np.ndarray
    product: np.ndarray
    log_risk: np.ndarray
    margin: np.ndarray
    ratio: np.ndarray
    least_ratio: np.ndarray
    alignment: np.ndarray


def descents(
    problem: Problem, weights: Any, steps: int, constant: float
) -> tuple[Descent, Descent]:
    """The figure's descent at a fixed rate, and one that goes on from it by the margin rule."""
    constant_of_lemma = balancedness_constant(weights)

    def observe(layers: Any) -> tuple[jax.Array, ...]:
        energies = jnp.stack([(w**2).sum() for w in layers])
        return (
            aj.end_to_end(layers)[0],
            aj.metrics.log_risk(problem, layers),
            aj.metrics.margin(problem, layers),
            aj.metrics.spectral_ratio(layers),
            jnp.sqrt(1 - constant_of_lemma / energies),
            jnp.sqrt(aj.theory.margin.neighbour_alignment(layers)),
        )

    fixed = aj.gradient_descent(
        problem, weights, LEARNING_RATE, steps=STEPS, save_at=range(STEPS + 1), observe=observe
    )
    late = aj.adaptive_descent(
        problem,
        fixed.weights,
        steps=steps,
        rule="margin",
        constant=constant,
        save_at=aj.log_steps(steps, 120),
        observe=observe,
    )
    for run in (fixed, late):
        require_finished("figure_1", run)
    early = Descent(*map(np.asarray, (fixed.step, fixed.time, *fixed.observations)))
    after = (late.step[1:] + STEPS, late.time[1:] + fixed.time[-1])
    rest = Descent(*map(np.asarray, (*after, *(seen[1:] for seen in late.observations))))
    return early, Descent(*map(np.concatenate, zip(early, rest, strict=True)))


def least_ratio_gains(problem: Problem, many: Any) -> np.ndarray:
    """What the least ratio of each start gains over the figure's steps."""

    def one(*weights: Any) -> aj.Trajectory:
        return aj.gradient_descent(
            problem,
            weights,
            LEARNING_RATE,
            steps=STEPS,
            observe=lambda layers: aj.metrics.spectral_ratio(layers).min(),
        )

    run = require_finished("figure_1", jax.vmap(one)(*many))
    least = np.asarray(run.observations)
    return least[:, -1] - least[:, 0]


@experiment(
    "max_margin/figure_1",
    title="One and four layers turn to the same maximum-margin predictor while layers align",
    source=SOURCE,
)
def figure_1(context: Context) -> None:
    """Train both networks on the same points, for the figure's steps and on to late times."""
    n = context.pick(quick=30, standard=50, full=50)
    steps = context.pick(quick=3000, standard=30_000, full=300_000)
    count = context.pick(quick=30, standard=300, full=3000)
    data = separable(context.key, n, 2, gap=0.5, least_turn=0.1)
    # the figure's axes reach to 7.5
    data = _scaled(data, SIZE)
    problem = data.problem("logistic")
    context.note(
        "The paper tells neither data nor widths, rate or start of this figure. Here: "
        f"{n} Gaussian points off a line through 0, the longest of norm {SIZE:g}; logistic loss; "
        f"hidden layers of width {HIDDEN}; Gaussian starts of deviation {SCALE:g}; {STEPS} steps "
        f"of rate {LEARNING_RATE:g}, then {steps:,} steps of rate c / (R max(1, |W_k|_F)^(2L-2))."
    )
    seen = {}
    for depth in DEPTHS:
        key = jax.random.fold_in(context.key, depth)
        weights = start(key, problem, widths(2, depth, HIDDEN), SCALE)
        constant = LATE / (steps * data.late.margin**2)
        seen[depth] = descents(problem, weights, steps, constant)
    many = starts(context.key, problem, widths(2, 4, HIDDEN), SCALE, count)
    _table(context, seen, data)
    _claim_predictors(context, seen, data)
    _claim_layers(context, *seen[4], least_ratio_gains(problem, many))
    _draw(context, seen, data)


def _scaled(data: Separable, size: float) -> Separable:
    found, late = data.found, data.late
    return Separable(
        data.inputs * size,
        data.labels,
        type(found)(found.direction, found.margin * size, found.support, found.dual, found.gap),
        data.spread * size,
        type(late)(late.margin * size, late.offset / size, late.lag / size, late.level),
    )


def _table(context: Context, seen: dict[int, tuple[Descent, Descent]], data: Separable) -> None:
    rows = []
    for depth, runs in seen.items():
        for which, run in zip(("fixed rate", "margin rule"), runs, strict=True):
            for i in np.linspace(0, len(run.step) - 1, 12).astype(int):
                angle = angles(run.product[i], data.found.direction)
                least = run.ratio[i].min()
                rows.append((depth, which, run.step[i], run.time[i], run.log_risk[i], angle, least))
    headers = ("layers", "steps of", "step", "time", "ln risk", "angle (rad)", "least ratio")
    columns = dict(zip(headers, map(np.array, zip(*rows, strict=True)), strict=True))
    context.table("descents", columns, "Both networks along both descents.")


def _claim_predictors(
    context: Context, seen: dict[int, tuple[Descent, Descent]], data: Separable
) -> None:
    """What figure 1a says of both networks' predictors."""
    direction, gamma = data.found.direction, float(data.found.margin)
    ends = {depth: runs[1] for depth, runs in seen.items()}
    for depth, run in ends.items():
        plural = "layer" if depth == 1 else "layers"
        angle = angles(run.product, direction)
        context.claim_above(
            f"margin_{depth}",
            f"{SOURCE}a",
            f"{depth} {plural}: the margin converges to the largest one: share of it at t = "
            f"{run.time[-1]:.1g}",
            bound=0.98,
            measured=run.margin[-1] / gamma,
        )
        context.claim_close(
            f"angle_{depth}",
            f"{OURS}, Theorem 4",
            f"{depth} {plural}: the angle to the maximum-margin direction is as predicted for late "
            "times: ratio of both at the end",
            predicted=1.0,
            measured=angle[-1] / float(predicted_angle(run.time[-1], data.late, depth)),
            tolerance=0.15,
        )
    apart = angles(ends[4].product[-1], ends[1].product[-1] / np.linalg.norm(ends[1].product[-1]))
    context.claim_below(
        "same_predictor",
        f"{SOURCE}a",
        "1 layer and 4 layers converge to the same predictor: angle between both at the end, "
        "radians",
        bound=0.02,
        measured=apart,
    )
    shallow, deep = seen[1][0].product[-1], seen[4][0].product[-1]
    context.claim_below(
        "figure_apart",
        f"{SOURCE}a",
        f"the same after the figure's {STEPS} steps",
        bound=0.1,
        measured=angles(deep, shallow / np.linalg.norm(shallow)),
    )


def _claim_layers(context: Context, fixed: Descent, late: Descent, gains: np.ndarray) -> None:
    """What figure 1b says of the 4 layers, at the figure's rate and at late times."""
    context.claim_below(
        "ratios",
        f"{SOURCE}b",
        f"the ratios of all layers converge to 1 as the risk does to 0: what they lack of it at "
        f"ln R = {late.log_risk[-1]:.0f} over what they lacked after the figure's steps, largest "
        "of the first 3 layers",
        bound=0.5,
        measured=((1 - late.ratio[-1, :-1]) / (1 - fixed.ratio[-1, :-1])).max(),
    )
    context.claim_above(
        "ratios_bound",
        f"{PAPER}, Lemma 2",
        "which is of gradient flow: |W_k|_2 / |W_k|_F >= (1 - D / |W_k|_F^2)^(1/2): least excess "
        "over layers and save points where this says something",
        bound=0.0,
        measured=np.nanmin(late.ratio - late.least_ratio),
    )
    context.claim_above(
        "alignment",
        f"{PAPER}, Theorem 3",
        "neighbours align: least |<v_(k+1), u_k>| there",
        bound=0.99,
        measured=late.alignment[-1].min(),
    )
    context.claim_above(
        "ratios_figure",
        f"{SOURCE}b",
        f"over the figure's {STEPS} steps the least ratio rises, though from some starts it falls "
        f"at first: median gain over {len(gains)} starts",
        bound=0.0,
        measured=np.median(gains),
    )
    context.claim_close(
        "last_ratio",
        f"{SOURCE}b",
        "the last layer is a row, whose ratio is 1 from the start: largest difference",
        predicted=0.0,
        measured=np.abs(late.ratio[:, -1] - 1).max(),
        tolerance=1e-12,
    )
    context.claim_below(
        "risk",
        f"{SOURCE}b",
        f"the risk converges to 0: after {STEPS} steps",
        bound=0.05,
        measured=np.exp(fixed.log_risk[-1]),
    )


def _draw(context: Context, seen: dict[int, tuple[Descent, Descent]], data: Separable) -> None:
    end = seen[4][1].time[-1]
    with context.figure(
        "figure_1",
        f"(a) Points, and decision boundaries of 1 and 4 layers after {STEPS} steps (thin) and at "
        f"t = {end:.1g} (thick), on the band of the maximum margin (grey); support vectors are "
        "circled. (b) Risk and ratios of the 4 layers over the figure's steps. (c) The ratios "
        "against the risk, on to late times. (d) Angles to the maximum-margin direction against "
        "the risk, with the predictions for late times (dashed).",
        rows=2,
        columns=2,
        width="double",
        height=5.0,
    ) as (_, axes):
        _draw_points(axes[0, 0], seen, data)
        fixed, late = seen[4]
        panel = axes[0, 1]
        panel.plot(fixed.step, np.exp(fixed.log_risk), color="black", label="risk")
        for k in range(4):
            label = rf"$\|W_{k + 1}\|_2/\|W_{k + 1}\|_F$"
            panel.plot(fixed.step, fixed.ratio[:, k], color=COLORS[k], label=label)
            axes[1, 0].plot(-late.log_risk, late.ratio[:, k], color=COLORS[k])
        panel.set(title="(b)", xlabel="step", ylim=(0, 1.03), xlim=(0, STEPS))
        panel.legend(loc="center right")
        axes[1, 0].set(title="(c)")
        axes[1, 0].set(ylabel=r"$\|W_k\|_2/\|W_k\|_F$")
        for (depth, runs), color in zip(seen.items(), (COLORS[1], COLORS[0]), strict=True):
            run = runs[1]
            angle = angles(run.product, data.found.direction)
            name = "1 layer" if depth == 1 else f"{depth} layers"
            axes[1, 1].plot(-run.log_risk, angle, color=color, label=name)
            # at a time of 0 there is no prediction
            times = np.maximum(run.time, 1e-300)
            expected = np.asarray(predicted_angle(times, data.late, depth))
            axes[1, 1].plot(-run.log_risk, expected, ls=(0, (3, 2)), color="black", lw=0.8)
        axes[1, 1].set(title="(d)", ylabel=r"angle to $\bar u$ (rad)", yscale="log")
        axes[1, 1].legend(loc="upper right")
        for panel in axes[1]:
            panel.set(xlabel=r"$-\ln$ risk", xscale="log")


def _draw_points(panel: Any, seen: dict[int, tuple[Descent, Descent]], data: Separable) -> None:
    u, gamma = np.asarray(data.found.direction), float(data.found.margin)
    far = np.array([-2 * SIZE, 2 * SIZE])

    def line(normal: np.ndarray, offset: float = 0.0) -> np.ndarray:
        n = normal / np.linalg.norm(normal)
        return offset * n[:, None] + np.outer([-n[1], n[0]], far)

    low, high = line(u, -gamma), line(u, gamma)
    corners = np.concatenate([low.T, high.T[::-1]])
    panel.fill(*corners.T, color="0.9", zorder=0, lw=0)
    for sign, color in ((1, "#3060c0"), (-1, "#c03030")):
        chosen = data.labels == sign
        panel.plot(*data.inputs[chosen].T, "o", ms=2.5, color=color, alpha=0.8, mew=0)
    panel.plot(*data.inputs[data.found.support].T, "o", ms=6, mfc="none", mec="black", mew=0.6)
    styles = {1: (COLORS[1], "-"), 4: (COLORS[0], "--")}
    for depth, runs in seen.items():
        color, style = styles[depth]
        for run, width in zip(runs, (0.7, 1.6), strict=True):
            path = line(run.product[-1])
            label = ("1 layer" if depth == 1 else f"{depth} layers") if width > 1 else None
            panel.plot(*path, style, color=color, lw=width, label=label)
    limit = 1.05 * np.abs(data.inputs).max()
    panel.set(title="(a)", xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    panel.legend(loc="lower right")
