"""Steps by Assumption 5 against steps that follow the risk, and both against gradient flow."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from alignjax.problems import Problem, smoothness
from experiments.context import Context
from experiments.max_margin._separable import (
    OURS,
    PAPER,
    SLIDES,
    angles,
    separable,
    start,
    starts,
    widths,
)
from experiments.registry import experiment
from experiments.runs import require_finished
from experiments.style import COLORS

DEPTHS = (1, 2, 3, 4)
HIDDEN = 4
SCALE = 0.3
# the margin rule raises gamma ||w|| by up to c L gamma^2 a step
CONSTANT = 0.05


class Path(NamedTuple):
    """One descent; the first axis is the save point.

    Attributes:
        step: ``(T,)``.
        time: Sum of the learning rates, ``(T,)``.
        log_risk: ``(T,)``.
        product: ``(T, k_0)``.
        distance: ``|w - w_flow| / |w_flow|`` at equal times, ``(T,)``; 0 at the start.
    """

    step: np.ndarray
    time: np.ndarray
    log_risk: np.ndarray
    product: np.ndarray
    distance: np.ndarray


def path(problem: Problem, weights: Any, rule: str, steps: int, count: int) -> Path:
    """Descent by a rule, beside the flow at the same times."""

    def observe(layers: Any) -> tuple[jax.Array, jax.Array]:
        return aj.metrics.log_risk(problem, layers), aj.end_to_end(layers)[0]

    run = aj.adaptive_descent(
        problem,
        weights,
        steps=steps,
        rule=rule,
        constant=CONSTANT if rule == "margin" else None,
        save_at=aj.log_steps(steps, count),
        observe=observe,
    )
    flow = aj.gradient_flow(
        problem, weights, times=run.time, observe=observe, log_time=True, solver="explicit"
    )
    for each in (run, flow):
        require_finished("ball_and_margin", each)
    assert run.time is not None  # a descent by a rule has times
    log_risk, product = map(np.asarray, run.observations)
    expected = np.asarray(flow.observations[1])
    distance = np.linalg.norm(product - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return Path(np.asarray(run.step), np.asarray(run.time), log_risk, product, distance)


class Printed(NamedTuple):
    """Descent by Assumption 5 as printed, over starts.

    Attributes:
        rise: The largest change of the risk in a step, over its size; negative if it always falls.
        share: The least ``(R(t) - R(t+1)) / (eta |grad R|^2)``; eq. 4 promises 1/2.
        left: Steps that end outside of the ball that their rate is made for.
    """

    rise: np.ndarray
    share: np.ndarray
    left: np.ndarray


def printed_rule(problem: Problem, weights: Any, steps: int) -> Printed:
    """Descent with ``eta = min(1 / beta(R_t), 1)``, where ``R_t >= 1`` is as small as allowed.

    The ball reaches only to the weights themselves, so the step may leave it. ``weights`` are
    stacked along a first axis.
    """
    depth = len(weights)
    unit = float(smoothness("logistic", depth, 1.0))

    def size(layers: Any) -> jax.Array:
        return jnp.stack([jnp.linalg.norm(w) for w in layers]).max()

    def step(state: Any, _: None) -> tuple[Any, tuple[jax.Array, ...]]:
        layers, radius = state
        radius = jnp.where(size(layers) > radius, size(layers), radius)
        rate = jnp.minimum(1 / (unit * radius ** (2 * depth - 2)), 1.0)
        slope = aj.gradient(problem, layers)
        moved = jax.tree.map(lambda w, g: w - rate * g, layers, slope)
        before, after = (aj.risk(problem, at) for at in (layers, moved))
        promised = rate * sum((g**2).sum() for g in slope)
        seen = (after / before - 1, (before - after) / promised, size(moved) > radius)
        return (moved, radius), seen

    def one(*layers: Any) -> Printed:
        first = jnp.maximum(size(layers), 1.0)
        _, (rise, share, left) = jax.lax.scan(step, (layers, first), None, length=steps)
        return Printed(rise.max(), share.min(), left.sum())

    return Printed(*map(np.asarray, jax.jit(jax.vmap(one))(*weights)))


@experiment(
    "max_margin/ball_and_margin",
    title="Steps of Assumption 5 never raise the risk; steps by the risk follow the flow far on",
    source=f"{PAPER}, Assumption 5",
)
def ball_and_margin(context: Context) -> None:
    """Run both rules from one start a depth, the printed rule from many, and the flow beside."""
    steps = context.pick(quick=3000, standard=30_000, full=300_000)
    n, k_0 = 40, 3
    data = separable(context.key, n, k_0)
    problem = data.problem("logistic")
    context.note(
        f"{n} Gaussian points in {k_0} dimensions off a hyperplane, the longest of norm 1, maximum "
        f"margin {data.late.margin:.4f}; logistic loss; hidden layers of width {HIDDEN}, Gaussian "
        f"starts of deviation {SCALE:g} that satisfy Assumption 2; margin rule with c = "
        f"{CONSTANT:g}."
    )
    seen: dict[tuple[int, str], Path] = {}
    depths = context.pick(quick=(1, 3), standard=DEPTHS, full=DEPTHS)
    for depth in context.track(depths, "depths"):
        key = jax.random.fold_in(context.key, depth)
        weights = start(key, problem, widths(k_0, depth, HIDDEN), SCALE)
        for rule in ("ball", "margin"):
            seen[depth, rule] = path(problem, weights, rule, steps, 60)
    count = context.pick(quick=50, standard=300, full=3000)
    printed = {}
    for depth in depths[1:]:
        key = jax.random.fold_in(context.key, 10 + depth)
        many = starts(key, problem, widths(k_0, depth, HIDDEN), 2 * SCALE, count)
        printed[depth] = printed_rule(
            problem, many, context.pick(quick=300, standard=1000, full=3000)
        )
    _table(context, seen)
    _claims(context, seen)
    _claims_on_printed(context, printed)
    _claim_refusal(context, data.problem("exponential"))
    _draw(context, seen, np.asarray(data.found.direction))


def _table(context: Context, seen: dict[tuple[int, str], Path]) -> None:
    columns = {
        "layers": [depth for depth, _ in seen],
        "rule": [rule for _, rule in seen],
        "steps": [run.step[-1] for run in seen.values()],
        "time reached": [run.time[-1] for run in seen.values()],
        "ln risk": [run.log_risk[-1] for run in seen.values()],
        "|w - w_flow| / |w_flow|": [run.distance[-1] for run in seen.values()],
    }
    context.table("reached", columns, "Where each descent ends, and the flow at the same time.")


def _claims(context: Context, seen: dict[tuple[int, str], Path]) -> None:
    source = f"{PAPER}, Assumption 5 (with the slides' R_t - 1)"
    context.claim_below(
        "monotone",
        f"{source}, Lemma 6",
        "the risk never increases: largest change of ln R between save points, all depths",
        bound=0.0,
        measured=max(
            np.diff(run.log_risk).max() for (_, rule), run in seen.items() if rule == "ball"
        ),
    )
    for depth in sorted({depth for depth, _ in seen} - {1}):
        ball, margin = seen[depth, "ball"], seen[depth, "margin"]
        context.claim_above(
            f"time_{depth}",
            OURS,
            f"L = {depth}: steps by the risk reach later times than those of Assumption 5: powers "
            f"of ten between them after {ball.step[-1]:,} steps",
            bound=1.0,
            measured=np.log10(margin.time[-1] / ball.time[-1]),
        )
    context.claim_below(
        "flow_margin",
        OURS,
        "steps by the risk follow the flow at equal sums of rates: largest relative distance at "
        "the end, all depths",
        bound=1e-2 if context.scale == "quick" else 1e-4,
        measured=max(run.distance[-1] for (_, rule), run in seen.items() if rule == "margin"),
    )
    context.claim_below(
        "flow_ball",
        OURS,
        "steps of Assumption 5 follow it too, L >= 2: largest relative distance over the second "
        "half of the save points",
        bound=0.05,
        measured=max(
            run.distance[len(run.distance) // 2 :].max()
            for (depth, rule), run in seen.items()
            if rule == "ball" and depth > 1
        ),
    )


def _claims_on_printed(context: Context, printed: dict[int, Printed]) -> None:
    source = f"{PAPER}, Assumption 5, as printed: W(t) in B(R_t)"
    runs = sum(found.rise.size for found in printed.values())
    context.claim_below(
        "printed_rise",
        source,
        f"the risk never increases: largest relative change in a step, {runs} starts of "
        f"{', '.join(map(str, printed))} layers, R_t as small as allowed",
        bound=0.0,
        measured=max(found.rise.max() for found in printed.values()),
    )
    context.claim_above(
        "printed_share",
        f"{source}, eq. 4",
        "a step lowers the risk by half of eta |grad R|^2 at least: least share",
        bound=0.5,
        measured=min(found.share.min() for found in printed.values()),
    )
    context.claim_close(
        "printed_leaves",
        f"{source}; {SLIDES}: R_t - 1",
        "no step leaves the ball whose smoothness its rate relies on, as eq. 4 asks: steps that do "
        "(a step is at most R / (2 L^2) long, so the smoothness grows by at most e^(1/4) and the "
        "risk falls all the same)",
        predicted=0,
        measured=sum(int(found.left.sum()) for found in printed.values()),
        expected="refuted",
    )


def _claim_refusal(context: Context, problem: Problem) -> None:
    weights = start(context.key, problem, widths(3, 2, HIDDEN), SCALE)
    try:
        aj.adaptive_descent(problem, weights, steps=1)
    except ValueError as error:
        refused = "smooth" in str(error)
    else:
        refused = False
    context.claim_close(
        "exponential",
        f"{PAPER}, Assumption 4",
        "the exponential loss is neither smooth nor Lipschitz, and has no steps by Assumption 5: "
        "whether it is refused",
        predicted=1,
        measured=int(refused),
    )


def _draw(context: Context, seen: dict[tuple[int, str], Path], direction: np.ndarray) -> None:
    with context.figure(
        "ball_and_margin",
        "Steps of Assumption 5 (dashed) and by the risk (solid). (a) Time reached, the sum of the "
        "rates. (b) Risk by step. (c) Distance from the flow at equal times, by step. (d) Angle to "
        "the maximum-margin direction by step.",
        rows=2,
        columns=2,
        width="double",
        height=4.6,
    ) as (_, axes):
        for (depth, rule), run in seen.items():
            color = COLORS[depth - 1]
            style = "--" if rule == "ball" else "-"
            label = f"$L={depth}$" if rule == "margin" else None
            moved = slice(1, None)
            step = run.step[moved]
            axes[0, 0].plot(step, run.time[moved], style, color=color, label=label)
            axes[0, 1].plot(step, -run.log_risk[moved], style, color=color)
            axes[1, 0].plot(step, run.distance[moved], style, color=color)
            axes[1, 1].plot(step, angles(run.product[moved], direction), style, color=color)
        for panel in axes.flat:
            panel.set(xscale="log", yscale="log", xlabel="step")
        axes[0, 0].set(title="(a)", ylabel=r"time $\sum\eta$")
        # one label in twenty decades, wherever the scale of the run ends
        end = np.log10(max(run.time[-1] for run in seen.values()))
        axes[0, 0].set_yticks(10.0 ** np.arange(0, end + 1, 10 if end < 40 else 20))
        axes[0, 0].minorticks_off()
        axes[0, 1].set(title="(b)", ylabel=r"$-\ln$ risk")
        axes[1, 0].set(title="(c)", ylabel=r"$\|w-w_\mathrm{flow}\|/\|w_\mathrm{flow}\|$")
        axes[1, 1].set(title="(d)", ylabel=r"angle to $\bar u$ (rad)")
        axes[0, 0].legend(loc="upper left")
