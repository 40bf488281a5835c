"""The compiled kernels for GPUs: found, loaded and registered when alignjax is imported.

So early for the reason that those for CPUs are; whether there is a card is asked later.
"""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache
from pathlib import Path

import jax

from alignjax.engines.library import OLD_XLA, xla_interface

__all__ = ["FILE", "TARGET", "reason_for_absence", "register", "register_here"]

FILE = Path(__file__).with_name("_gpu_kernels.so")
"""Where the package's build puts them."""

TARGET = "alignjax_gpu_advance"
"""The name under which XLA knows them."""

_INTERFACE = 1  # of csrc/gpu/ffi.cc: an editable installation may have an older library


def register_here() -> None:
    """Load the kernels and make them known to XLA, if they are here; never an error.

    It starts no backend: JAX keeps what is registered for a platform until one starts, if ever.
    """
    if FILE.exists():
        # What they object to is told by `reason_for_absence`.
        with contextlib.suppress(Exception):
            register(FILE, "CUDA")


@cache
def reason_for_absence() -> str | None:
    """Why there are no compiled kernels here, or None; asks for a card on the first call."""
    if not FILE.exists():
        return (
            "the package was installed without its kernels for GPUs: they need CUDA's compiler, "
            "nvcc, and a card, there or named by ALIGNJAX_CUDA_ARCHITECTURES, when it is installed"
        )
    try:
        library = register(FILE, "CUDA")
    except Exception as error:  # whatever this platform or this jaxlib objects to
        return f"its kernels for GPUs cannot be loaded: {error}"
    library.alignjax_gpu_objection.restype = ctypes.c_char_p
    objection = library.alignjax_gpu_objection()
    return None if objection is None else f"CUDA finds no card for them: {objection.decode()}"


@cache
def register(file: Path, platform: str) -> ctypes.CDLL:
    """Load a library of these kernels and tell XLA that they are the ones of a platform; once.

    Raises:
        OSError: if it cannot be loaded.
        ValueError: if it is one of another version, or for a newer jaxlib.
    """
    library = ctypes.CDLL(str(file))
    if getattr(library, "alignjax_gpu_interface", lambda: 0)() != _INTERFACE:
        raise ValueError("they are those of another version: install it again")
    if library.alignjax_gpu_xla() > xla_interface():
        raise ValueError(OLD_XLA)
    capsule = jax.ffi.pycapsule(getattr(library, TARGET))
    jax.ffi.register_ffi_target(TARGET, capsule, platform=platform)
    return library
