"""alignjax: gradient dynamics in deep linear networks, in JAX, as pure functions."""

from __future__ import annotations

from alignjax import linalg, losses
from alignjax.linalg import end_to_end

__version__ = "0.1.0"

__all__ = ["__version__", "end_to_end", "linalg", "losses"]
