"""Theorem 2 and Corollary 1: what the modes tend to as the start vanishes, and how fast."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import alignjax as aj
from alignjax.closed_forms import mode_flow
from alignjax.theory.sequential import limit_of_mode, limiting_norm, transition_times
from experiments.context import Context
from experiments.registry import experiment
from experiments.runs import require_finished
from experiments.sequential._autoencoder import PAPER
from experiments.sequential._modes import (
    problem_in,
    random_bases,
    seen_from,
    start_in,
)
from experiments.style import COLORS, plt

SOURCE = f"{PAPER}, Theorem 2"
# Targets above 1, so that the printed eq. 17 gives positive times; all heights differ.
TARGET = np.array([3.0, 2.0, 1.5])
INPUTS = np.array([2.0, 1.0, 0.5])
HEIGHT = TARGET / INPUTS
TRANSITION = 1 / TARGET
# rescaled times t / T off the transition
OFFSETS = np.array([0.7, 0.8, 1.2, 1.3])
# far enough for one exponential to remain, near enough for it to be above roundoff
DECAY = (20.0, 40.0)
DECAY_AT_TRANSITION = (4.0, 8.0)
DECAY_OF_NORM = (15.0, 30.0)
# on the two plateaus between transitions and on the one beyond
PLATEAUS = np.array([*np.sqrt(TRANSITION[:-1] * TRANSITION[1:]), 0.85])
FAR = 200.0


def closed(t: Any, delta: Any, *, power: float = 2.0) -> np.ndarray:
    """``w_i(delta t)`` from ``e^{-power delta}``; ``t`` broadcasts against the modes."""
    delta = np.asarray(delta)
    return np.asarray(mode_flow(delta * t, jnp.exp(-power * delta), TARGET, INPUTS))


def trained(key: jax.Array, t: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """``U^T W(delta t) V`` of full matrices in random bases, ``(deltas, times, 3, 3)``."""
    bases = random_bases(key, len(TARGET))
    problem = problem_in(bases, TARGET, INPUTS)

    def run(delta: jax.Array) -> aj.Trajectory:
        start = start_in(bases, delta)
        return aj.gradient_flow(
            problem, start, times=delta * t, observe=aj.end_to_end, solver="explicit"
        )

    runs = require_finished("theorem_2", jax.vmap(run)(jnp.asarray(deltas)))
    return np.asarray(seen_from(bases, runs.observations))


def half_heights(t: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """Rescaled times at which ``modes`` ``(times, 3)`` pass half of their heights.

    The logit of a mode is smooth in time, so that it is interpolated and not the mode.
    """
    share = np.clip(modes / HEIGHT, 1e-12, 1 - 1e-12)
    logit = np.log(share) - np.log1p(-share)
    return np.array([np.interp(0.0, logit[:, i], t) for i in range(len(HEIGHT))])


def decay_rate(errors: Any, deltas: tuple[float, float]) -> np.ndarray:
    """The rate at which errors at two values of delta fall, ``-d ln(error) / d delta``."""
    first, second = (np.abs(np.asarray(e)) for e in errors)
    return np.log(first / second) / (deltas[1] - deltas[0])


def norm_rate(t: np.ndarray) -> np.ndarray:
    """How fast the squared norm tends to its limit: what the slowest mode lacks, or has.

    A learned mode lacks ``e^{-2 delta (sigma t - 1)}``; one that is not learned yet has
    ``e^{-2 delta (1 - sigma t)}``, and that squared.
    """
    ahead = np.outer(t, TARGET) - 1
    return np.where(ahead > 0, 2 * ahead, -4 * ahead).min(axis=1)


@experiment(
    "sequential/theorem_2",
    title="As the start vanishes every mode becomes a step, exponentially fast",
    source=f"{SOURCE} and Corollary 1",
)
def theorem_2(context: Context) -> None:
    """Measure the limit, its rates, the printed start and the printed time."""
    deltas = np.array(
        context.pick(
            quick=(3.0, 6.0), standard=(2.0, 4.0, 6.0, 8.0), full=(2.0, 4.0, 6.0, 8.0, 10.0)
        )
    )
    t = np.linspace(0, 1, context.pick(quick=101, standard=401, full=1001))[1:]
    found = trained(context.key, t, deltas)
    modes = np.diagonal(found, axis1=-2, axis2=-1)
    expected = closed(t[:, None], deltas[:, None, None])
    gaps = np.abs(found - expected[..., None] * np.eye(len(TARGET))).max(axis=(1, 2, 3))
    halves = np.array([half_heights(t, w) for w in modes])
    exact = np.asarray(transition_times(TARGET, INPUTS, deltas[:, None])) / deltas[:, None]
    context.table(
        "training",
        {
            "delta": deltas,
            "largest difference from the closed form": gaps,
            **{f"T_{i + 1} / delta, measured": halves[:, i] for i in range(3)},
            **{f"T_{i + 1} / delta, corrected eq. 17": exact[:, i] for i in range(3)},
            **{
                f"T_{i + 1} / delta, eq. 17 as printed": np.full(len(deltas), value)
                for i, value in enumerate(np.log(TARGET) / TARGET)
            },
        },
        "Full matrices in random bases against the closed form, and times of half height in "
        "rescaled time.",
    )
    _claims_on_training(context, deltas, gaps, halves, exact)
    _claims_on_limit(context)
    _claims_on_norm(context, t, found, deltas)
    _draw(context, t, modes, deltas, halves)


def _claims_on_training(
    context: Context, deltas: np.ndarray, gaps: np.ndarray, halves: np.ndarray, exact: np.ndarray
) -> None:
    context.claim_below(
        "training",
        f"{PAPER}, eqs. 15 and 16",
        "the closed form is the flow of full matrices in random bases: largest difference of an "
        f"entry of U^T W V, delta = {deltas[0]:g} to {deltas[-1]:g}",
        bound=1e-8,
        measured=gaps.max(),
    )
    context.claim_close(
        "half_height",
        f"{PAPER}, eq. 17, corrected: [delta + ln(sigma / lambda - e^(-2 delta)) / 2] / sigma",
        "full matrices reach half height at this time: largest relative error, "
        f"delta = {deltas[0]:g} to {deltas[-1]:g}",
        predicted=0.0,
        measured=np.abs(halves / exact - 1).max(),
        tolerance=1e-10,
    )
    printed = np.log(TARGET) / TARGET
    context.claim_close(
        "half_height_printed",
        f"{PAPER}, eq. 17, as printed: (delta / sigma) ln(sigma)",
        f"the same: largest relative error at delta = {deltas[-1]:g}",
        predicted=0.0,
        measured=np.abs(printed / halves[-1] - 1).max(),
        tolerance=0.1,
        expected="refuted",
    )
    order = np.argsort(halves[-1])
    context.claim_close(
        "order",
        f"{PAPER}, eq. 17, as printed",
        f"sigma = {', '.join(f'{s:g}' for s in TARGET)}: modes that are learned in the place in "
        "the order that the formula gives them",
        predicted=len(TARGET),
        measured=int((order == np.argsort(printed)).sum()),
        expected="refuted",
    )


def _claims_on_limit(context: Context) -> None:
    limit = np.asarray(limit_of_mode(TARGET, INPUTS, OFFSETS[:, None] * TRANSITION))
    at = TARGET / (INPUTS + TARGET)
    away = [closed(OFFSETS[:, None] * TRANSITION, delta) - limit for delta in (*DECAY, FAR)]
    context.claim_below(
        "limit",
        SOURCE,
        f"from w(0) = e^(-2 delta), off T_i = 1 / sigma_i by 20% or more, w(delta t) is 0 or "
        f"sigma / lambda: largest difference at delta = {FAR:g}",
        bound=1e-12,
        measured=np.abs(away[-1]).max(),
    )
    rates = decay_rate(away[:2], DECAY)
    context.claim_below(
        "rate",
        f"not in the paper: {SOURCE}",
        "there the difference falls as e^(-2 |sigma_i t - 1| delta): largest relative error of "
        f"the rate, delta = {DECAY[0]:g} to {DECAY[1]:g}",
        bound=1e-3,
        measured=np.abs(rates / (2 * np.abs(OFFSETS[:, None] - 1)) - 1).max(),
    )
    for power, which, expected in (
        (2.0, "corrected: w(0) = e^(-2 delta)", "confirmed"),
        (1.0, "as printed: w(0) = e^(-delta)", "refuted"),
    ):
        context.claim_below(
            f"at_transition_{power:g}",
            f"{SOURCE}, {which}",
            "w(delta T_i) tends to sigma_i / (lambda_i + sigma_i) at T_i = 1 / sigma_i: largest "
            f"relative difference at delta = {FAR:g}",
            bound=1e-12,
            measured=np.abs(closed(TRANSITION, FAR, power=power) / at - 1).max(),
            expected=expected,
        )
    context.claim_below(
        "at_half_transition",
        f"{SOURCE}, for the printed start w(0) = e^(-delta)",
        "the step is at 1 / (2 sigma_i) then, with sigma_i / (lambda_i + sigma_i) on it: the same",
        bound=1e-12,
        measured=np.abs(closed(TRANSITION / 2, FAR, power=1.0) / at - 1).max(),
    )
    on = [closed(TRANSITION, delta) - at for delta in DECAY_AT_TRANSITION]
    context.claim_below(
        "rate_at_transition",
        f"not in the paper: {SOURCE}",
        "on T_i the difference falls as e^(-2 delta): largest relative error of the rate, delta = "
        f"{DECAY_AT_TRANSITION[0]:g} to {DECAY_AT_TRANSITION[1]:g}",
        bound=1e-3,
        measured=np.abs(decay_rate(on, DECAY_AT_TRANSITION) / 2 - 1).max(),
    )
    context.claim_close(
        "width",
        f"not in the paper: {SOURCE}",
        "the climb from 10% to 90% takes the rescaled time ln(9) / (sigma_i delta), at any delta: "
        "largest relative error of the shares at its ends, delta = 5 to 80",
        predicted=0.0,
        measured=max(_error_of_width(delta) for delta in (5.0, 20.0, 80.0)),
        tolerance=1e-12,
    )


def _error_of_width(delta: float) -> float:
    middle = np.asarray(transition_times(TARGET, INPUTS, delta)) / delta
    half = np.log(9) / (2 * TARGET * delta)
    ends = [closed(middle + side * half, delta) / HEIGHT for side in (-1, 1)]
    return float(max(np.abs(ends[0] / 0.1 - 1).max(), np.abs(ends[1] / 0.9 - 1).max()))


def _claims_on_norm(context: Context, t: np.ndarray, found: np.ndarray, deltas: np.ndarray) -> None:
    source = f"{PAPER}, Corollary 1"
    times = np.concatenate([PLATEAUS, TRANSITION])
    limit = np.asarray(limiting_norm(TARGET, INPUTS, times))
    far = (closed(times[:, None], FAR) ** 2).sum(axis=-1)
    context.claim_below(
        "norm",
        f"{source}, the squared Frobenius norm, from w(0) = e^(-2 delta)",
        "on the plateaus and on T_i it tends to the printed sum: largest relative difference at "
        f"delta = {FAR:g}",
        bound=1e-12,
        measured=np.abs(far / limit - 1).max(),
    )
    errors = [
        (closed(PLATEAUS[:, None], delta) ** 2).sum(axis=-1) - limit[: len(PLATEAUS)]
        for delta in DECAY_OF_NORM
    ]
    context.claim_below(
        "norm_rate",
        f"not in the paper: {source}",
        "on a plateau it converges as the slower of e^(-2 delta (sigma_k t - 1)) and "
        "e^(-4 delta (1 - sigma_(k+1) t)): largest relative error of the rate, delta = "
        f"{DECAY_OF_NORM[0]:g} to {DECAY_OF_NORM[1]:g}",
        bound=0.02,
        measured=np.abs(decay_rate(errors, DECAY_OF_NORM) / norm_rate(PLATEAUS) - 1).max(),
    )
    squared = (found**2).sum(axis=(-2, -1))
    plain = (closed(t[:, None], deltas[:, None, None]) ** 2).sum(axis=-1)
    context.claim_below(
        "norm_training",
        source,
        "its course is that of full matrices: largest difference along training, delta = "
        f"{deltas[0]:g} to {deltas[-1]:g}",
        bound=1e-8,
        measured=np.abs(squared - plain).max(),
    )


def _draw(
    context: Context, t: np.ndarray, modes: np.ndarray, deltas: np.ndarray, halves: np.ndarray
) -> None:
    with context.figure(
        "theorem_2",
        "(a) Modes over their heights at rescaled times; circles are full matrices in random bases "
        f"for delta = {deltas[-1]:g}; the limit is black, its value on the step a dot. (b) What "
        "the first mode is off its limit, at three times, with the predicted slopes (dashed). (c) "
        "Rescaled times of half height: full matrices (circles), the corrected eq. 17 (lines), "
        "eq. 17 as printed (dashed). (d) The squared norm for the starts of "
        "(a) and, dashed, for the printed start.",
        rows=2,
        columns=2,
        width="double",
        height=4.6,
    ) as (_, axes):
        fine = np.linspace(0.15, 1, 2001)
        shades = plt.get_cmap("viridis_r")(np.linspace(0.2, 0.85, 3))
        _draw_modes(axes[0, 0], fine, t, modes[-1], deltas[-1], shades)
        _draw_errors(axes[0, 1])
        _draw_times(axes[1, 0], deltas, halves)
        _draw_norm(axes[1, 1], fine, deltas[-1], shades)


def _draw_modes(
    panel: Any, fine: np.ndarray, t: np.ndarray, modes: np.ndarray, delta: float, shades: Any
) -> None:
    for value, color in zip((delta, 20.0, 100.0), shades, strict=True):
        lines = panel.plot(fine, closed(fine[:, None], value) / HEIGHT, color=color)
        lines[0].set_label(rf"$\delta={value:g}$")
    sparse = slice(None, None, len(t) // 25)
    for i in range(3):
        panel.plot(
            t[sparse], modes[sparse, i] / HEIGHT[i], "o", mfc="none", mew=0.6, ms=3, color=shades[0]
        )
        limit = np.asarray(limit_of_mode(TARGET[i], INPUTS[i], fine)) / HEIGHT[i]
        panel.plot(fine, limit, color=COLORS[6], lw=0.7)
        panel.plot(TRANSITION[i], INPUTS[i] / (INPUTS[i] + TARGET[i]), "o", color=COLORS[6], ms=3)
    panel.set(xlim=(fine[0], 0.9), title="(a)", xlabel="rescaled time $t$")
    panel.set(ylabel=r"$w_i(\delta t)\,\lambda_i/\sigma_i$")
    panel.legend(loc="upper left")


def _draw_errors(panel: Any) -> None:
    deltas = np.linspace(1, 30, 200)
    values = [
        (0.8, 0.0, r"$t=0.8\,T_1$"),
        (1.0, TARGET[0] / (INPUTS[0] + TARGET[0]), "$t=T_1$"),
        (1.2, HEIGHT[0], r"$t=1.2\,T_1$"),
    ]
    for (offset, limit, label), color in zip(values, COLORS, strict=False):
        error = np.abs(
            np.asarray(
                mode_flow(deltas * offset / TARGET[0], np.exp(-2 * deltas), TARGET[0], INPUTS[0])
            )
            - limit
        )
        kept = error > 1e-14
        panel.plot(deltas[kept], error[kept], color=color, label=label)
        rate = 2 * abs(offset - 1) if offset != 1 else 2.0
        at = np.argmin(np.abs(deltas - 6))
        span = deltas[(deltas > 3) & (deltas < 6 + 24 / (1 + 2 * rate))]
        slope = 5 * error[at] * np.exp(-rate * (span - deltas[at]))
        panel.plot(span, slope, "--", color="0.4", lw=0.8)
    panel.set(yscale="log", title="(b)", xlabel=r"$\delta$", ylim=(1e-14, 3))
    panel.set(ylabel=r"$|w_1(\delta t)-\mathrm{limit}|$")
    panel.legend(loc="lower right")


def _draw_times(panel: Any, deltas: np.ndarray, halves: np.ndarray) -> None:
    fine = np.linspace(1, deltas[-1] + 1, 200)
    exact = np.asarray(transition_times(TARGET, INPUTS, fine[:, None])) / fine[:, None]
    for i, color in zip(range(3), COLORS, strict=False):
        panel.plot(fine, exact[:, i], color=color, label=rf"$\sigma_{i + 1}={TARGET[i]:g}$")
        panel.plot(deltas, halves[:, i], "o", mfc="none", mew=0.8, color=color)
        panel.axhline(np.log(TARGET[i]) / TARGET[i], color=color, ls="--", lw=0.8)
    panel.set(title="(c)", xlabel=r"$\delta$", ylabel="time of half height / $\\delta$")
    panel.text(deltas[-1] + 1, 0.235, "as printed", fontsize=7.5, ha="right")
    panel.set(ylim=(0.2, 0.95))
    panel.legend(loc="upper right")


def _draw_norm(panel: Any, fine: np.ndarray, delta: float, shades: Any) -> None:
    for value, color in zip((delta, 20.0, 100.0), shades, strict=True):
        panel.plot(fine, (closed(fine[:, None], value) ** 2).sum(axis=-1), color=color)
    printed = (closed(fine[:, None], 100.0, power=1.0) ** 2).sum(axis=-1)
    panel.plot(fine, printed, "--", color=shades[-1], lw=0.8)
    panel.plot(fine, np.asarray(limiting_norm(TARGET, INPUTS, fine)), color=COLORS[6], lw=0.7)
    panel.set(title="(d)", xlabel="rescaled time $t$", ylabel=r"$\|W(\delta t)\|_F^2$")
    panel.text(0.36, 14, r"start $e^{-\delta}$", fontsize=7.5)
    panel.set(xlim=(fine[0], 0.9))
