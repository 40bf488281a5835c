"""``alignjax info``: versions, devices and engines."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

import jax

import alignjax as aj
from alignjax.cli.console import show_json, show_pairs
from alignjax.cli.errors import CommandError, told

LIBRARIES = (
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "optax",
    "diffrax",
    "xarray",
    "zarr",
    "matplotlib",
    "typer",
)


def show_info(*, as_json: bool) -> None:
    """Show what this installation is."""
    found = collect()
    if as_json:
        show_json(found)
        return
    versions = found["versions"]
    absent = [name for name, version in versions.items() if version is None]
    devices = ", ".join(f"{d['platform']}:{d['id']} ({d['kind']})" for d in found["devices"])
    show_pairs(
        {
            "alignjax": found["alignjax"],
            "python": f"{found['python']} on {found['system']}",
            "libraries": ", ".join(f"{n} {v}" for n, v in versions.items() if v is not None),
            **({"not installed": ", ".join(absent)} if absent else {}),
            "devices": devices,
            "processes": str(found["processes"]),
            "engines": ", ".join(found["engines"]),
            **{f"engine {n}": f"absent: {why}" for n, why in found["absent_engines"].items()},
            "float64": "on by default (JAX_ENABLE_X64)"
            if found["x64"]
            else "off by default in Python; simulate, sweep and certify turn it on for themselves",
        }
    )


def collect() -> dict[str, Any]:
    """Versions, devices and engines, made of what JSON can hold.

    Raises:
        CommandError: the environment asks for an engine's instruction set that is not here.
    """
    try:
        absent = aj.engines.unavailable()
    except ValueError as error:
        raise CommandError(told(error)) from error
    return {
        "alignjax": aj.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "executable": sys.executable,
        "versions": {name: _version(name) for name in LIBRARIES},
        "devices": [
            {"platform": d.platform, "id": d.id, "kind": d.device_kind} for d in jax.local_devices()
        ],
        "processes": jax.process_count(),
        "engines": list(aj.engines.available()),
        "absent_engines": absent,
        "x64": bool(jax.config.read("jax_enable_x64")),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
