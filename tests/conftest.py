"""Fixtures that several test files share. The settings of a run are in the root `conftest.py`."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

CHEAP = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"  # set in the root conftest.py


@pytest.fixture(scope="module", autouse=True)
def _compiled_for_one_file_only(request: pytest.FixtureRequest) -> Iterator[None]:
    """A file's programs, optimized where it asks for that; then forgotten."""
    optimized = request.node.get_closest_marker("optimized") is not None
    with pytest.MonkeyPatch.context() as patch:
        if optimized:
            jax.clear_caches()  # what was compiled while tests were collected
            patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
            jax.config.update("jax_disable_most_optimizations", False)
        yield
    if optimized:
        jax.config.update("jax_disable_most_optimizations", CHEAP)
    jax.clear_caches()
    gc.collect()
    gc.freeze()  # or a search for leaked tracers looks through what other files left, each time
    if sys.platform == "linux":
        # The C library keeps what compilers gave back: 5 GB a worker at the end, else.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; without it a test is skipped, visibly."""
    folder = os.environ.get("ALIGNJAX_DATA_DIR")
    if not folder:
        pytest.skip("needs real data: set ALIGNJAX_DATA_DIR")
    return Path(folder)


@pytest.fixture
def mnist_dir(data_dir: Path) -> Path:
    """The folder with MNIST's four files."""
    folder = data_dir / "mnist"
    if not folder.is_dir():
        pytest.skip("needs MNIST: ALIGNJAX_DATA_DIR has no folder mnist")
    return folder


@pytest.fixture
def cifar10_dir(data_dir: Path) -> Path:
    """The folder with CIFAR-10's batches."""
    folder = data_dir / "cifar10"
    if not folder.is_dir():
        pytest.skip("needs CIFAR-10: ALIGNJAX_DATA_DIR has no folder cifar10")
    return folder
