"""The kernels for GPUs on the host: compiled once a state of their sources, registered for CPUs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import jaxlib
import pytest

from alignjax.engines.gpu import library

ROOT = Path(__file__).parent.parent
SHARED_BYTES = 227 * 1024  # of a block on a Hopper


@cache
def load() -> ctypes.CDLL:
    """Makes :func:`alignjax.engines.gpu.descend` run on the CPU; skips where it cannot."""
    pytest.importorskip("hatchling")
    fcntl = pytest.importorskip("fcntl")
    import hatch_build

    if not hatch_build.compilers():
        pytest.skip("needs a C++ compiler")
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    # What is compiled with a jaxlib's headers loads in that one and later ones.
    digest = hatch_build.gpu_fingerprint(ROOT / "csrc")[:16]
    file = folder / f"gpu_emulation_{jaxlib.__version__}_{digest}.so"
    with (folder / "gpu_emulation.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several workers one compiles
        if not file.exists():
            hatch_build.compile_emulation(ROOT / "csrc", file)
    loaded = library.register(file, "cpu")
    loaded.alignjax_emulate.argtypes = [ctypes.c_int, ctypes.c_int64]
    return loaded


@contextmanager
def emulation(*, backwards: bool = False, shared_bytes: int = SHARED_BYTES) -> Iterator[None]:
    """In which order threads are taken between barriers, and how much memory they share."""
    load().alignjax_emulate(backwards, shared_bytes)
    try:
        yield
    finally:
        load().alignjax_emulate(False, SHARED_BYTES)
