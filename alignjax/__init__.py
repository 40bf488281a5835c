"""alignjax: gradient dynamics in deep linear networks, in JAX, as pure functions."""

from __future__ import annotations

from alignjax import (
    closed_forms,
    datasets,
    engines,
    initializers,
    linalg,
    losses,
    metrics,
    optimizers,
    structures,
    theory,
)
from alignjax.adaptive import adaptive_descent
from alignjax.bases import NotAlignedError
from alignjax.descent import gradient_descent, optimizer_descent
from alignjax.flow import gradient_flow
from alignjax.linalg import end_to_end
from alignjax.moments import Moments, accumulate
from alignjax.problems import (
    autoencoding,
    classification,
    factorization,
    from_moments,
    gradient,
    inversion,
    regression,
    risk,
    risk_and_gradient,
    sensing,
)
from alignjax.reduced import expand, reduce, reduced_descent
from alignjax.sweeps import sweep
from alignjax.trajectory import Status, Trajectory, every, log_steps

__version__ = "0.1.0"

__all__ = [
    "Moments",
    "NotAlignedError",
    "Status",
    "Trajectory",
    "__version__",
    "accumulate",
    "adaptive_descent",
    "autoencoding",
    "classification",
    "closed_forms",
    "datasets",
    "end_to_end",
    "engines",
    "every",
    "expand",
    "factorization",
    "from_moments",
    "gradient",
    "gradient_descent",
    "gradient_flow",
    "initializers",
    "inversion",
    "linalg",
    "log_steps",
    "losses",
    "metrics",
    "optimizer_descent",
    "optimizers",
    "reduce",
    "reduced_descent",
    "regression",
    "risk",
    "risk_and_gradient",
    "sensing",
    "structures",
    "sweep",
    "theory",
]
