"""Gradient flow up to a time of 1e300: how fast angle, margin, norms, risk and ratios converge."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

import alignjax as aj
from alignjax.theory.margin import (
    LateTimes,
    balancedness_constant,
    norm_gap,
    predicted_angle,
    predicted_log_risk,
    predicted_norm,
    predicted_ratio_exponent,
)
from experiments.context import Context
from experiments.max_margin._separable import (
    OURS,
    PAPER,
    SLIDES,
    Separable,
    across,
    angles,
    separable,
    starts,
    widths,
)
from experiments.registry import experiment
from experiments.runs import require_finished
from experiments.style import COLORS

DEPTHS = (1, 2, 3, 4)
HIDDEN = 6
SCALE = 0.25
LAST = 300
# powers of ten from which on exponents are fitted
LATE = 100


class Seen(NamedTuple):
    """One depth, from several starts; axes are start, time, and what is named.

    Attributes:
        products: ``(S, T, k_0)``.
        log_risk: ``(S, T)``.
        margin: Normalized margins, ``(S, T)``.
        lack: ``1 - ||W_k||_2 / ||W_k||_F``, ``(S, T, L)``.
        layers: ``||W_k||_F``, ``(S, T, L)``.
        excess: ``||W_k||_F^2 - ||W_k||_2^2``, ``(S, T, L)``.
        constants: D of each start, ``(S,)``.
        steps: Of the solver, ``(S,)``.
    """

    products: np.ndarray
    log_risk: np.ndarray
    margin: np.ndarray
    lack: np.ndarray
    layers: np.ndarray
    excess: np.ndarray
    constants: np.ndarray
    steps: np.ndarray

    @property
    def norms(self) -> np.ndarray:
        """``||w||``, ``(S, T)``."""
        return np.linalg.norm(self.products, axis=-1)


def flows(
    key: jax.Array, data: Separable, depth: int, times: np.ndarray, count: int, loss: str
) -> Seen:
    """Flow from ``count`` starts, seen at ``times``."""
    problem = data.problem(loss)
    shape = widths(data.inputs.shape[1], depth, HIDDEN)

    def observe(layers: Any) -> tuple[Any, ...]:
        energies = jax.numpy.stack([(w**2).sum() for w in layers])
        excess = norm_gap(layers)
        # 1 - sqrt(1 - q), without the cancellation
        q = excess / energies
        return (
            aj.end_to_end(layers)[0],
            aj.metrics.log_risk(problem, layers),
            aj.metrics.margin(problem, layers),
            q / (1 + jax.numpy.sqrt(1 - q)),
            jax.numpy.sqrt(energies),
            excess,
        )

    def one(*layers: Any) -> aj.Trajectory:
        return aj.gradient_flow(
            problem, layers, times=times, observe=observe, log_time=True, solver="explicit"
        )

    begin = starts(key, problem, shape, SCALE, count)
    run = require_finished("extreme_times", jax.vmap(one)(*begin))
    constants = jax.vmap(lambda *w: balancedness_constant(w))(*begin)
    return Seen(*map(np.asarray, run.observations), np.asarray(constants), np.ravel(run.stopped_at))


def exponent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes of ``ln y`` against ``ln x`` by least squares over the first axis of each column."""
    log_x = np.log(x) - np.log(x).mean(axis=0)
    return (log_x * np.log(y)).sum(axis=0) / (log_x**2).sum(axis=0)


@experiment(
    "max_margin/extreme_times",
    title="Gradient flow up to t = 1e300: angle, margin, norms, risk and rank at predicted rates",
    source=f"{PAPER}, Theorems 1 and 2",
)
def extreme_times(context: Context) -> None:
    """Integrate flows of one to four layers in the logarithm of time, and compare with rates."""
    k_0 = context.pick(quick=2, standard=3, full=6)
    n = context.pick(quick=20, standard=40, full=200)
    count = context.pick(quick=2, standard=5, full=50)
    depths = context.pick(quick=(1, 2, 4), standard=DEPTHS, full=DEPTHS)
    data = separable(context.key, n, k_0, least_turn=0.3)
    late = data.late
    context.note(
        f"{n} Gaussian points in {k_0} dimensions off a hyperplane, the longest of norm 1, maximum "
        f"margin {late.margin:.4f}, {len(data.found.support)} support vectors; hidden layers of "
        f"width {HIDDEN}, Gaussian starts of deviation {SCALE:g} that satisfy Assumption 2, "
        f"{count} a depth; exponential loss unless told otherwise."
    )
    # even on the figure's axis, the logarithm of ln t
    times = 10.0 ** np.geomspace(0.3, LAST, context.pick(quick=30, standard=60, full=120))
    keys = jax.random.split(jax.random.fold_in(context.key, 1), 5)
    seen = {
        depth: flows(keys[depth], data, depth, times, count, "exponential")
        for depth in context.track(depths, "depths")
    }
    logistic = flows(keys[0], data, 2, times, 1, "logistic")
    _tables(context, times, seen, late, data)
    _claims_on_limits(context, times, seen, data)
    _claims_on_rates(context, times, seen, late, logistic)
    _claims_on_direction(context, times, seen, late, data)
    _claims_on_layers(context, times, seen)
    _draw(context, times, seen, late, data)


def _from(times: np.ndarray) -> np.ndarray:
    return np.flatnonzero(times >= 10.0**LATE)


def _tables(
    context: Context, times: np.ndarray, seen: dict[int, Seen], late: LateTimes, data: Separable
) -> None:
    rows = _from(times)[:: max(1, len(_from(times)) // 10)]
    columns: dict[str, Any] = {"log10 t": np.log10(times[rows])}
    for depth, run in seen.items():
        columns[f"L = {depth}: gamma |w|"] = late.margin * run.norms[0, rows]
        predicted = late.margin * np.asarray(predicted_norm(times[rows], late, depth))
        columns[f"L = {depth}: gamma |w| predicted"] = predicted
        columns[f"L = {depth}: ln R"] = run.log_risk[0, rows]
        columns[f"L = {depth}: ln R predicted"] = predicted_log_risk(times[rows], late, depth)
        columns[f"L = {depth}: angle"] = angles(run.products[0, rows], data.found.direction)
        columns[f"L = {depth}: angle predicted"] = predicted_angle(times[rows], late, depth)
    context.table("rates", columns, "The first start of each depth beside the predictions.")


def _claims_on_limits(
    context: Context, times: np.ndarray, seen: dict[int, Seen], data: Separable
) -> None:
    end = max(run.log_risk[:, -1].max() for run in seen.values())
    context.claim_below(
        "risk_vanishes",
        f"{PAPER}, Theorem 1",
        "the risk tends to 0: largest ln R at t = 1e300 over depths and starts",
        bound=-600.0,
        measured=end,
    )
    context.claim_above(
        "risk_explodes",
        f"{SLIDES}, Risk convergence, as printed: R -> infinity",
        "the risk at t = 1e300 is above that of the start: largest ln R",
        bound=0.0,
        measured=end,
        expected="refuted",
    )
    context.claim_above(
        "norms",
        f"{PAPER}, Theorem 1",
        "all layers' norms tend to infinity: least growth of a norm from t = 1e100 to 1e300, "
        "slowest at L = 4, where 3^(1/4) = 1.316 is predicted",
        bound=1.25,
        measured=min(
            (run.layers[:, -1] / run.layers[:, _from(times)[0]]).min() for run in seen.values()
        ),
    )
    direction = data.found.direction
    context.claim_below(
        "direction",
        f"{PAPER}, Theorem 2",
        "w turns to the maximum-margin direction: largest angle at t = 1e300, radians",
        bound=0.01,
        measured=max(angles(run.products[:, -1], direction).max() for run in seen.values()),
    )


def _claims_on_rates(
    context: Context, times: np.ndarray, seen: dict[int, Seen], late: LateTimes, logistic: Seen
) -> None:
    rows = _from(times)
    log_t = np.log(times[rows])
    for depth, run in seen.items():
        x = late.margin * run.norms[:, rows]
        # ln R + ln t = -m ln x + c, x -> ln t
        rest = np.exp(run.log_risk[:, rows] + log_t)
        found = exponent(x.T, rest.T)
        power = 2 - 2 / depth
        context.claim_close(
            f"risk_exponent_{depth}",
            OURS,
            f"L = {depth}: R t falls like (gamma |w|)^-(2 - 2/L), and gamma |w| / ln t -> 1: "
            "fitted exponent furthest off, t = 1e100 to 1e300",
            predicted=-power,
            measured=found[np.argmax(np.abs(found + power))],
            tolerance=0.01,
        )
    last = times[-1]
    context.claim_close(
        "norm",
        OURS,
        "gamma |w| = ln t + (2 - 2/L) ln ln t + ln(L gamma^(2/L) C), with C from the support "
        "vectors alone, all depths and starts: largest difference at t = 1e300 from the equation "
        "that this expands",
        predicted=0.0,
        measured=max(
            late.margin * np.abs(run.norms[:, -1] - float(predicted_norm(last, late, depth))).max()
            for depth, run in seen.items()
        ),
        tolerance=0.01,
    )
    context.claim_close(
        "risk",
        OURS,
        "ln R = -ln t - (2 - 2/L) ln ln t - ln(L gamma^(2/L)), whatever the start: the same",
        predicted=0.0,
        measured=max(
            np.abs(run.log_risk[:, -1] - float(predicted_log_risk(last, late, depth))).max()
            for depth, run in seen.items()
        ),
        tolerance=0.01,
    )
    context.claim_close(
        "without_loglog",
        OURS,
        "the term (2 - 2/L) ln ln t is not needed: ln R + ln t changes by nothing between t = "
        "1e100 and 1e300, L = 4",
        predicted=0.0,
        measured=np.abs(np.diff((seen[4].log_risk[:, rows] + log_t)[:, [0, -1]])).max(),
        tolerance=0.1,
        expected="refuted",
    )
    context.claim_close(
        "logistic",
        OURS,
        "the logistic loss has the same constants, L = 2: difference of ln R from the prediction "
        "at t = 1e300",
        predicted=0.0,
        measured=np.abs(logistic.log_risk[:, -1] - float(predicted_log_risk(last, late, 2))).max(),
        tolerance=0.01,
    )


def _claims_on_direction(
    context: Context, times: np.ndarray, seen: dict[int, Seen], late: LateTimes, data: Separable
) -> None:
    direction, rows = data.found.direction, _from(times)
    offset = np.asarray(late.offset)
    size = np.linalg.norm(offset)
    context.claim_close(
        "offset",
        f"{OURS}; Soudry et al. 2018, Theorem 3, for L = 1",
        "w_perp tends to the minimizer of the sum of e^-<v, z_i> over support vectors, for every "
        "depth and start: largest relative distance at t = 1e300 beyond (L - 1) lag / x",
        predicted=0.0,
        measured=max(
            np.linalg.norm(
                across(run.products[:, -1], direction)
                - offset
                - (depth - 1) * np.asarray(late.lag) / (late.margin * run.norms[:, -1, None]),
                axis=-1,
            ).max()
            / size
            for depth, run in seen.items()
        ),
        tolerance=0.02,
    )
    ends = np.array([angles(run.products[:, -1], direction).mean() for run in seen.values()])
    context.claim_close(
        "depth_independent",
        OURS,
        "the angle does not depend on the depth to the leading order: largest over least mean "
        "angle of the depths at t = 1e300",
        predicted=1.0,
        measured=ends.max() / ends.min(),
        tolerance=0.05,
    )
    for depth, run in seen.items():
        x = late.margin * run.norms[:, rows].T
        found = exponent(x, angles(run.products[:, rows], direction).T)
        gap = exponent(x, 1 - run.margin[:, rows].T / late.margin)
        for name, values in (("angle", found), ("margin_gap", gap)):
            what = "the angle" if name == "angle" else "1 - margin / gamma"
            context.claim_close(
                f"{name}_{depth}",
                OURS,
                f"L = {depth}: {what} falls like 1 / (gamma |w|), so like 1 / ln t: fitted "
                "exponent furthest off, t = 1e100 to 1e300",
                predicted=-1.0,
                measured=values[np.argmax(np.abs(values + 1))],
                tolerance=0.05,
            )


def _claims_on_layers(context: Context, times: np.ndarray, seen: dict[int, Seen]) -> None:
    rows = _from(times)
    for depth, run in seen.items():
        if depth == 1:
            continue
        lack = np.moveaxis(run.lack[:, rows, :-1], 1, 0)
        # the norms' own growth, which tends to that of ln t
        found = exponent(run.norms[:, rows].T[:, :, None], lack)
        predicted = predicted_ratio_exponent(depth)
        context.claim_close(
            f"ratio_{depth}",
            f"{OURS}, Lemma 2",
            f"L = {depth}: 1 - |W_k|_2 / |W_k|_F falls like |w|^(-2/L), so like (ln t)^(-2/L), k < "
            "L: fitted exponent furthest off, t = 1e100 to 1e300",
            predicted=predicted,
            measured=found.ravel()[np.argmax(np.abs(found - predicted))],
            tolerance=0.03,
        )
    context.claim_below(
        "excess",
        f"{PAPER}, Lemma 2",
        "|W_k|_F^2 - |W_k|_2^2 <= D at all times: largest over D",
        bound=1.0,
        measured=max(
            (run.excess.max(axis=(1, 2)) / run.constants).max()
            for depth, run in seen.items()
            if depth > 1
        ),
    )
    context.claim_close(
        "excess_settles",
        f"{OURS}, Lemma 2",
        "it tends to a constant: largest relative change between t = 1e100 and 1e300",
        predicted=0.0,
        measured=max(
            np.abs(run.excess[:, rows[0], :-1] / run.excess[:, -1, :-1] - 1).max()
            for depth, run in seen.items()
            if depth > 1
        ),
        tolerance=0.05,
    )


def _draw(
    context: Context, times: np.ndarray, seen: dict[int, Seen], late: LateTimes, data: Separable
) -> None:
    with context.figure(
        "extreme_times",
        "Gradient flow up to t = 1e300 from one start a depth (lines) with predictions that know "
        "the support vectors and the depth, but no start (dashed). Times are spaced as ln ln t. "
        "(a) Angle to the maximum-margin direction; the prediction's leading order, the same for "
        "every depth, dotted. (b) Margin gap. (c) Norm of the product beyond ln t. (d) Risk beyond "
        "1/t. (e) Norms of all layers. "
        "(f) How far layers are from rank one, all but the last, with slopes (ln t)^(-2/L).",
        rows=2,
        columns=3,
        width="double",
        height=4.4,
    ) as (_, axes):
        for (depth, run), color in zip(seen.items(), COLORS, strict=False):
            _draw_depth(axes, times, depth, run, late, data, color)
        leading = late.margin * np.linalg.norm(late.offset) / np.log(times)
        axes[0, 0].plot(np.log(times), leading, ":", color="0.5", lw=1.0, zorder=5)
        axes[0, 0].set(title="(a)", ylabel=r"angle to $\bar u$ (rad)", yscale="log")
        axes[0, 1].set(title="(b)", ylabel=r"$1-\mathrm{margin}/\gamma$", yscale="log")
        axes[0, 2].set(title="(c)", ylabel=r"$\gamma\|w\|-\ln t$")
        axes[1, 0].set(title="(d)", ylabel=r"$-\ln(R\,t)$")
        axes[1, 1].set(title="(e)", ylabel=r"$\|W_k\|_F$", yscale="log")
        axes[1, 2].set(title="(f)", ylabel=r"$1-\|W_k\|_2/\|W_k\|_F$", yscale="log")
        for panel in axes.flat:
            # power laws of ln t are straight
            panel.set(xlabel="$t$", xscale="log")
            powers = np.array([1, 3, 10, 30, 100, 300])
            panel.set_xticks(powers * np.log(10), [f"$10^{{{p}}}$" for p in powers])
            panel.minorticks_off()
        axes[0, 0].legend(loc="upper right")


def _draw_depth(
    axes: Any,
    times: np.ndarray,
    depth: int,
    run: Seen,
    late: LateTimes,
    data: Separable,
    color: str,
) -> None:
    x = np.log(times)
    products = run.products[0]
    predicted = np.asarray(predicted_norm(times, late, depth))
    dashed: dict[str, Any] = {"ls": (0, (3, 2)), "color": "black", "lw": 0.8, "zorder": 4}
    label = f"$L={depth}$"
    axes[0, 0].plot(x, angles(products, data.found.direction), color=color, label=label)
    axes[0, 0].plot(x, predicted_angle(times, late, depth), **dashed)
    gap = 1 - run.margin[0] / late.margin
    axes[0, 1].plot(x, np.where(gap > 0, gap, np.nan), color=color)
    axes[0, 2].plot(x, late.margin * run.norms[0] - np.log(times), color=color)
    axes[0, 2].plot(x, late.margin * predicted - np.log(times), **dashed)
    axes[1, 0].plot(x, -run.log_risk[0] - np.log(times), color=color)
    axes[1, 0].plot(x, -predicted_log_risk(times, late, depth) - np.log(times), **dashed)
    axes[1, 1].plot(x, run.layers[0], color=color, lw=0.9)
    axes[1, 1].plot(x, predicted ** (1 / depth), **dashed)
    if depth > 1:
        lack = run.lack[0, :, :-1]
        axes[1, 2].plot(x, lack, color=color, lw=0.9)
        lead = lack[-1].max() * (predicted / predicted[-1]) ** predicted_ratio_exponent(depth)
        axes[1, 2].plot(x, lead, **dashed)
