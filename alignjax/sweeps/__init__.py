"""Sweeps: a function run at every point of a grid, on many devices, labelled and resumable.

This package knows nothing of linear networks: ``run`` is any function that JAX can trace.
"""

from alignjax.sweeps.estimate import Forecast, forecast
from alignjax.sweeps.execute import sweep
from alignjax.sweeps.store_creation import StoreWriteError
from alignjax.sweeps.store_manifest import StoreMismatchError

__all__ = ["Forecast", "StoreMismatchError", "StoreWriteError", "forecast", "sweep"]
