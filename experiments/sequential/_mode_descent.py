"""Measurements of descent on modes: steps, bounds, times and separation."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import alignjax as aj
from alignjax.closed_forms import (
    layer_update,
    mode_descent,
    mode_descent_bounds,
    printed_mode_descent_bounds,
    printed_zero_target_bound,
    product_update,
    zero_target_bound,
)
from alignjax.theory.sequential import printed_separates, separation_margins
from experiments.runs import require_finished
from experiments.sequential._modes import (
    problem_in,
    random_bases,
    seen_from,
    start_in,
)

SLACK = 1e-12
TARGET = np.array([2.0, 1.0, 0.5])
INPUTS = np.array([1.0, 4.0, 0.25])
# the printed step counts, and what full matrices need
EXAMPLE = {"target": 1.0, "input": 0.01, "delta": 8.0, "rate": 0.1}
# the claim is about delta to infinity: starts of e^{-600} are near the least that floats hold
DELTA = 300.0
# a mode within a tenth of 0 or of its height counts as there
NEAR = 0.1
# and stays there for some steps, so that one that passes by in a cycle does not count
STAY = 8
# conditions that hold or fail by less are not told apart at this delta
CLEAR = 0.02
# targets and rates: ln(1 + eta sigma_1) < eta sigma_2, and eta sigma_1 > 1
BROKEN = {"overlap": (np.array([1.0, 0.9]), 0.95), "cycle": (np.array([1.0, 0.1]), 1.1)}
BROKEN_DELTA = 8.0


@partial(jax.jit, static_argnames="rule")
def iterate(rule: Any, state: Any, target: Any, inputs: Any, rate: Any, count: jax.Array) -> Any:
    """``state`` after ``count`` steps of ``rule``, a count for each entry, without the path."""

    def body(step: jax.Array, current: jax.Array) -> jax.Array:
        return jnp.where(step < count, rule(current, target, inputs, rate), current)

    return lax.fori_loop(0, count.max(), body, state)


def printed_product_update(w: Any, target: Any, inputs: Any, rate: Any) -> Any:
    """Eq. 22 with its symbol read as the product, as the paper introduces it."""
    return w + rate * w * (target - inputs * w * w)


def errors_of_steps(key: jax.Array, steps: int) -> dict[str, float]:
    """Relative errors of three recursions against descent on full matrices in random bases."""
    bases = random_bases(key, len(TARGET))
    problem = problem_in(bases, TARGET, INPUTS)
    rate, delta = 0.1, 1.0
    start = start_in(bases, delta)
    run = aj.gradient_descent(
        problem, start, rate, steps=steps, save_at=range(steps + 1), observe=aj.end_to_end
    )
    seen = np.asarray(seen_from(bases, require_finished("discrete", run).observations))
    found = np.diagonal(seen, axis1=-2, axis2=-1)
    w = jnp.full(len(TARGET), jnp.exp(-2 * delta))
    layer = jnp.sqrt(w)
    errors: dict[str, float] = {"layer": 0.0, "product": 0.0}
    products = np.asarray(mode_descent(w, TARGET, INPUTS, rate, steps=steps))
    errors["product"] = np.abs(products / found - 1).max()
    for expected in found[1:]:
        layer = layer_update(layer, TARGET, INPUTS, rate)
        errors["layer"] = max(errors["layer"], np.abs(np.asarray(layer**2) / expected - 1).max())
    one = np.asarray(printed_product_update(w, TARGET, INPUTS, rate)) - found[0]
    errors["printed"] = np.abs(one / (found[1] - found[0]) - 1).max()
    off = np.abs(seen * (1 - np.eye(len(TARGET)))).max()
    return {**errors, "off": off}


def grid(sizes: tuple[int, ...], last: int) -> tuple[np.ndarray, ...]:
    """Targets, inputs, rates and starts of all combinations, and save points."""
    targets, inputs, gains, shares, points = sizes
    sigma, lam, gain, share = np.meshgrid(
        np.geomspace(0.05, 20, targets),
        np.geomspace(0.02, 50, inputs),
        # up to the largest that the theorem allows, 2 eta sigma = 1
        np.concatenate([np.geomspace(1e-3, 0.5, gains - 1), [0.4]]),
        np.concatenate([np.geomspace(1e-8, 0.5, shares - 3), [0.9, 0.99, 1.0]]),
        indexing="ij",
    )
    flat = [a.ravel() for a in (sigma, lam, gain / sigma, share * sigma / lam)]
    steps = np.unique(np.round(np.geomspace(1, last, points)).astype(int))
    return (*flat, np.concatenate([[0], steps]))


def count_failures(sizes: tuple[int, ...], last: int) -> dict[str, Any]:
    """How often each side of each form of eq. 23 fails beyond roundoff, and on how many points."""
    sigma, lam, rate, start, points = grid(sizes, last)
    path = np.asarray(mode_descent(start, sigma, lam, rate, steps=last))[points]
    arguments = (start, sigma, lam, rate, points[:, None])
    forms = {
        "corrected": mode_descent_bounds(*arguments),
        "printed": printed_mode_descent_bounds(*arguments),
        "restored": printed_mode_descent_bounds(*arguments, restored=True),
    }
    failures: dict[str, Any] = {"points": path.size}
    for name, (lower, upper) in forms.items():
        failures[f"{name}, lower"] = int((np.asarray(lower) > path * (1 + SLACK)).sum())
        failures[f"{name}, upper"] = int((np.asarray(upper) < path * (1 - SLACK)).sum())
    return failures


def zero_target_ratios(count: int, last: int) -> dict[str, np.ndarray]:
    """Both bounds for modes without a target over the iterates, ``(steps, starts)``."""
    # eta lambda w_0 < 1, of which only the product matters
    gains = np.geomspace(1e-4, 0.999, count)
    path = np.asarray(mode_descent(gains, 0.0, 1.0, 1.0, steps=last))
    steps = np.arange(last + 1)[:, None]
    return {
        "corrected": np.asarray(zero_target_bound(gains, 1.0, 1.0, steps)) / path,
        "printed": np.asarray(printed_zero_target_bound(gains, 1.0, 1.0, steps)) / path,
    }


def half_step(target: Any, inputs: Any, delta: float, rate: Any, steps: int) -> np.ndarray:
    """The first step at which the product is at half of its height."""
    w = np.asarray(mode_descent(jnp.exp(-2 * delta), target, inputs, rate, steps=steps))
    return np.argmax(w >= np.asarray(target) / np.asarray(inputs) / 2, axis=0)


def example_of_full_matrices() -> int:
    """The step at which descent on full matrices is at half height, for the printed example."""
    bases = random_bases(jax.random.key(0), 1)
    problem = problem_in(bases, [EXAMPLE["target"]], [EXAMPLE["input"]])
    run = aj.gradient_descent(
        problem,
        start_in(bases, EXAMPLE["delta"]),
        EXAMPLE["rate"],
        steps=200,
        save_at=range(201),
        observe=aj.end_to_end,
    )
    height = EXAMPLE["target"] / EXAMPLE["input"]
    shares = np.asarray(seen_from(bases, run.observations))[:, 0, 0] / height
    return int(np.argmax(shares >= 0.5))


def separated(target: np.ndarray, rate: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Whether mode i is at 0 at times j < i and at its height at times j > i, for all i and j.

    Args:
        target: sigma ``(..., r)``, descending; inputs are equal to it, so that heights are 1.
        rate: ``(...)``.
        times: steps ``(..., r)``, one for each mode.
    """
    sigma, eta = target[..., None, :], rate[..., None, None]
    count = jnp.asarray(np.round(times)[..., :, None], dtype=int)
    shape = np.broadcast_shapes(sigma.shape, eta.shape, count.shape)
    state = jnp.full(shape, jnp.exp(-2 * DELTA))
    rest = (sigma, sigma, eta)
    x = iterate(product_update, state, *rest, jnp.broadcast_to(count, shape))
    modes = np.arange(target.shape[-1])
    early, late = modes[:, None] < modes, modes[:, None] > modes
    low, away = np.asarray(x) < NEAR, np.abs(np.asarray(x) - 1)
    for _ in range(STAY):
        x = product_update(x, *rest)
        away = np.maximum(away, np.abs(np.asarray(x) - 1))
    there = np.where(early, low, np.where(late, away < NEAR, True))
    return there.all(axis=(-2, -1))


def random_spectra(key: jax.Array, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Four descending targets, neighbours in random ratios, and rates with eta sigma_1 < 1.3."""
    first, second = jax.random.split(key)
    ratios = jax.random.uniform(first, (count, 3), minval=0.3, maxval=1.0)
    sigma = jnp.cumprod(jnp.concatenate([jnp.ones((count, 1)), ratios], axis=1), axis=1)
    rate = jax.random.uniform(second, (count,), minval=0.05, maxval=1.3)
    return np.asarray(sigma), np.asarray(rate)


def corollary_3(key: jax.Array, count: int) -> dict[str, int]:
    """Measured separation of random spectra beside both conditions."""
    sigma, rate = random_spectra(key, count)
    gain = rate[:, None] * sigma
    measured = separated(sigma, rate, DELTA / gain)
    own = separated(sigma, rate, DELTA / np.log1p(gain))
    margins = separation_margins(sigma, rate)
    smallest = np.minimum(np.asarray(margins.gaps).min(axis=-1), np.asarray(margins.stability))
    clear = np.abs(smallest) > CLEAR
    # Modes that are nearly tied need a larger delta to part on any clock.
    parted = (np.diff(np.log(np.log1p(gain)), axis=-1) < -CLEAR).all(axis=-1)
    stable = np.asarray(margins.stability) > CLEAR
    printed = np.asarray(printed_separates(sigma, rate))
    return {
        "cases": count,
        "clear": int(clear.sum()),
        "wrong": int((clear & (measured != (smallest > 0))).sum()),
        "separate": int(measured.sum()),
        "printed": int(printed.sum()),
        "printed wrong": int((clear & printed & ~measured).sum()),
        "refused": int((measured & ~printed).sum()),
        "own": int((stable & parted).sum()),
        "own wrong": int((stable & parted & ~own).sum()),
    }


def separation_map(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether two modes separate, by ``eta sigma_1`` and ``sigma_2 / sigma_1``."""
    gains, ratios = np.linspace(0.02, 1.4, size), np.linspace(0.1, 0.995, size)
    gain, ratio = np.meshgrid(gains, ratios)
    sigma = np.stack([np.ones_like(ratio), ratio], axis=-1)
    return gains, ratios, separated(sigma, gain, DELTA / (gain[..., None] * sigma))


def broken_courses(key: jax.Array) -> dict[str, np.ndarray]:
    """Products of full-matrix descent where a condition is broken, over heights, ``(steps, 2)``."""
    courses = {}
    for name, (target, rate) in BROKEN.items():
        bases = random_bases(key, 2)
        problem = problem_in(bases, target, target)
        run = aj.gradient_descent(
            problem,
            start_in(bases, BROKEN_DELTA),
            rate,
            steps=400,
            save_at=range(401),
            observe=aj.end_to_end,
        )
        seen = np.asarray(seen_from(bases, require_finished("discrete", run).observations))
        courses[name] = np.diagonal(seen, axis1=-2, axis2=-1)
    return courses
