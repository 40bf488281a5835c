"""What a run reports on its save points, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import alignjax as aj
from alignjax import metrics
from alignjax.problems import MomentProblem, Problem

Weights = tuple[Array, ...]


@dataclass(frozen=True)
class Observation:
    """One quantity: ``value(problem, weights, start)``, and the dimension it has, if any."""

    name: str
    value: Callable[[Problem, Weights, Weights], Array]
    dim: str | None = None


def _excess_risk(problem: Problem, weights: Weights, start: Weights) -> Array:
    if not isinstance(problem, MomentProblem):
        raise TypeError("excess_risk needs a problem whose least risk is known: the squared loss")
    # The risk of what is left to learn: a difference of two risks is roundoff near the minimum, of
    # either sign.
    rest = dataclasses.replace(problem, minimum_risk=jnp.zeros_like(problem.minimum_risk))
    return aj.risk(rest, weights)


def _of_weights(metric: Callable[[Weights], Array]) -> Callable[..., Array]:
    return lambda problem, weights, start: metric(weights)


def _of_problem(metric: Callable[[Problem, Weights], Array]) -> Callable[..., Array]:
    return lambda problem, weights, start: metric(problem, weights)


def _since_start(metric: Callable[[Weights, Weights], Array]) -> Callable[..., Array]:
    return lambda problem, weights, start: metric(weights, start)


def _singular_values(weights: Weights) -> Array:
    return jnp.linalg.svd(aj.end_to_end(weights), compute_uv=False)


def _norms(weights: Weights) -> Array:
    return jnp.stack([jnp.linalg.norm(w) for w in weights])


SCALARS = {
    "risk": _of_problem(aj.risk),
    "excess_risk": _excess_risk,
    "log_risk": _of_problem(metrics.log_risk),
    "margin": _of_problem(metrics.margin),
    "sharpness": _of_problem(metrics.sharpness),
}
VECTORS = {
    "alignment": ("vertex", _of_weights(metrics.alignment)),
    "chain_alignment": ("vertex", _of_weights(metrics.chain_alignment)),
    "singular_vector_alignment": ("vertex", _of_weights(metrics.singular_vector_alignment)),
    "balancedness": ("vertex", _of_weights(metrics.balancedness)),
    "invariance": ("layer", _since_start(metrics.invariance)),
    "strong_invariance": ("layer", _since_start(metrics.strong_invariance)),
    "spectral_ratio": ("layer", _of_weights(metrics.spectral_ratio)),
    "norms": ("layer", _of_weights(_norms)),
    "singular_values": ("mode", _of_weights(_singular_values)),
}
SUMMARIES: dict[str, Callable[[Array], Array]] = {"min": jnp.min, "max": jnp.max, "mean": jnp.mean}


def names() -> tuple[str, ...]:
    """All names: a quantity with several values also comes as ``_min``, ``_max`` and ``_mean``."""
    summaries = (f"{name}_{summary}" for name in VECTORS for summary in SUMMARIES)
    return (*SCALARS, *VECTORS, *summaries)


def observation(name: str) -> Observation:
    """The observation of one of :func:`names`."""
    if name in SCALARS:
        return Observation(name, SCALARS[name])
    if name in VECTORS:
        dim, value = VECTORS[name]
        return Observation(name, value, dim)
    base, _, summary = name.rpartition("_")
    vector, reduce = VECTORS[base][1], SUMMARIES[summary]
    return Observation(name, lambda *given: reduce(vector(*given)))


def observer(
    observations: Sequence[Observation], problem: Problem, start: Weights
) -> Callable[[Weights], dict[str, Any]]:
    """What a descent calls on its save points."""
    frozen = jax.tree.map(jax.lax.stop_gradient, start)
    return lambda weights: {o.name: o.value(problem, weights, frozen) for o in observations}
