"""Settings of every test run, doctests of the package included.

Three quarters of a run's time would go into compiling programs that run for a millisecond, so XLA
compiles them as cheaply as it can. A file that claims bits or speed says
`pytestmark = pytest.mark.optimized`: its programs pass all of XLA's optimizations, as a user's do.
"""

import gc
import os
from importlib.metadata import version

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for processes that tests start, too
# Loops as LLVM's own instructions and not by way of MLIR: a third less. XLA ends the process at a
# flag that it does not know, and this one is gone in 0.12.
FLAG = "--xla_cpu_use_fusion_emitters=false"
if (0, 7) <= tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG not in flags:  # a worker inherits it
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}".strip()

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)

# Tracing makes millions of short-lived objects; the collector's defaults look through them so often
# that it takes a tenth of the time. Cycles are collected after each file, in tests/conftest.py.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish() -> None:
    """What has been imported stays, and need not be looked through."""
    gc.collect()
    gc.freeze()
