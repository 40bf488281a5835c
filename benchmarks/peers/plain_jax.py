"""Autodiff, a scan over steps, ``vmap`` over networks: what the JAX documentation teaches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.peers.job import Job
from benchmarks.timing import Contender, compiled

__all__ = ["PLAIN", "train_in_jax"]

PLAIN = "plain JAX: jit(vmap(scan(grad)))"


def train_in_jax(job: Job, steps: int) -> Contender:
    """The descent as a JAX program."""

    def risk(weights: Any, target: Any) -> Any:
        first, second, third = weights
        return 0.5 * jnp.sum((third @ (second @ first) - target) ** 2)

    def train(target: Any, weights: Any, rate: Any) -> Any:
        def step(weights: Any, _: None) -> Any:
            slopes = jax.grad(risk)(weights, target)
            return jax.tree.map(lambda w, g: w - rate * g, weights, slopes), None

        return lax.scan(step, weights, length=steps)[0]

    return compiled(
        PLAIN,
        jax.vmap(train, in_axes=(None, 0, 0)),
        *jax.device_put((job.target, job.starts, job.rates)),
        steps=steps,
    )
