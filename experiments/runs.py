"""Runs whose numbers an experiment may use."""

from __future__ import annotations

import jax.numpy as jnp

import alignjax as aj


def require_finished(name: str, run: aj.Trajectory) -> aj.Trajectory:
    """The run, if every one of its lanes came to its end.

    Raises:
        RuntimeError: A lane diverged or ran out of steps: its numbers would be those of a state
            that stands still.
    """
    statuses = sorted(set(jnp.ravel(run.status).tolist()) - {int(aj.Status.COMPLETED)})
    if statuses:
        raise RuntimeError(f"{name}: runs ended early, with status {statuses}")
    return run
