"""The compiled kernels for CPUs: found, loaded and registered when alignjax is imported.

So early, because a program that was exported with a kernel in it asks for nothing else of alignjax.
It takes a millisecond and starts no backend.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import jax

__all__ = [
    "FILE",
    "OLD_XLA",
    "RECURSION",
    "TARGET",
    "TARGETS",
    "instruction_sets",
    "reason_for_absence",
    "register",
    "select",
    "selected",
    "xla_interface",
]

FILE = Path(__file__).with_name("_cpu_kernels.so")
"""Where the package's build puts them."""

TARGET, RECURSION = "alignjax_advance", "alignjax_recursion"
"""The names under which XLA knows the kernels for networks, and the one for singular values."""

TARGETS = (TARGET, RECURSION)
"""All names under which XLA calls what is compiled here."""

_VARIABLE = "ALIGNJAX_CPU_ISA"
_INTERFACE = 2  # of csrc/ffi.cc: an editable installation may have an older library


OLD_XLA = "its compiled kernels are for a newer jaxlib than the one at hand: install it again"
"""What is told where :func:`xla_interface` is too old for a library."""


@dataclass
class _Loaded:
    library: ctypes.CDLL | None
    reason: str | None
    as_asked: bool = False  # whether the environment variable has been heeded


_loaded: _Loaded | None = None
_lock = threading.Lock()


def register() -> None:
    """Load the kernels and make them known to XLA, if they are here; never an error."""
    # An environment variable that names no instruction set is told to whom asks for a kernel.
    with contextlib.suppress(ValueError):
        _load()


def reason_for_absence() -> str | None:
    """Why there are no compiled kernels here, or None if there are.

    Raises:
        ValueError: if the environment variable ``ALIGNJAX_CPU_ISA`` names no instruction set that
            runs here.
    """
    return _load().reason


def xla_interface() -> int:
    """The version of foreign calls that the jaxlib at hand takes; those compiled for older ones go.

    To be asked before anything is registered: a newer one is refused when a back end starts, and
    the back end with it.
    """
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        text = header.read_text(encoding="utf-8")
        major, minor = (
            int(re.findall(rf"#define XLA_FFI_API_{name} (\d+)", text)[0])
            for name in ("MAJOR", "MINOR")
        )
    except (OSError, IndexError):
        return sys.maxsize  # a jaxlib without headers does not say
    return 1000 * major + minor


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that the kernels have code for and that run here, the fastest first."""
    return _instruction_sets(_load().library)


def _instruction_sets(library: ctypes.CDLL | None) -> tuple[str, ...]:
    names: list[str] = []
    while library is not None and (name := library.alignjax_instruction_set(len(names))):
        names.append(name.decode())
    return tuple(names)


def selected() -> str | None:
    """The one of :func:`instruction_sets` in use; None without kernels."""
    library = _load().library
    return None if library is None else library.alignjax_selected().decode()


def select(name: str) -> None:
    """Use one of :func:`instruction_sets` from now on; by default the fastest is used.

    Raises:
        ValueError: if it is none of them.
    """
    _select(_load().library, name, "name")


def _load() -> _Loaded:
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _open()
        loaded = _loaded
        if loaded.library is not None and not loaded.as_asked:
            wanted = os.environ.get(_VARIABLE)
            if wanted:
                _select(loaded.library, wanted, _VARIABLE)
            loaded.as_asked = True
        return loaded


def _open() -> _Loaded:
    if not FILE.exists():
        return _Loaded(
            None,
            "the package was installed without its compiled kernels: they need a C++ compiler, "
            "GCC or Clang, when it is installed",
        )
    try:
        library = ctypes.CDLL(str(FILE))
        if getattr(library, "alignjax_interface", lambda: 1)() != _INTERFACE:
            return _Loaded(
                None, "its compiled kernels are those of another version: install it again"
            )
        if getattr(library, "alignjax_xla", lambda: 0)() > xla_interface():
            return _Loaded(None, OLD_XLA)
        for target in TARGETS:
            capsule = jax.ffi.pycapsule(getattr(library, target))
            jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    except Exception as error:  # whatever this platform or this jaxlib objects to
        return _Loaded(None, f"its compiled kernels cannot be loaded: {error}")
    library.alignjax_instruction_set.restype = ctypes.c_char_p
    library.alignjax_selected.restype = ctypes.c_char_p
    return _Loaded(library, None)


def _select(library: ctypes.CDLL | None, name: str, argument: str) -> None:
    if library is None or not library.alignjax_select(name.encode()):
        here = ", ".join(_instruction_sets(library)) or "none"
        raise ValueError(
            f"{argument} must be an instruction set that is here ({here}), got {name!r}"
        )
