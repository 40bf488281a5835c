"""Where a result comes from: versions, commit and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

PACKAGES = (
    "alignjax",
    "jax",
    "jaxlib",
    "numpy",
    "optax",
    "chex",
    "diffrax",
    "equinox",
    "scipy",
    "scikit-learn",
    "matplotlib",
)

ROOT = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on; None where one is missing."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package != "alignjax":
            return None
    # run from a checkout that is not installed
    import alignjax

    return getattr(alignjax, "__version__", None)


def commit(root: Path = ROOT) -> dict[str, Any]:
    """The checkout's commit and whether it has changes that are not in it; None outside git."""
    unknown = {"commit": None, "dirty": None}
    if not (root / ".git").exists():
        return unknown
    try:
        return {
            "commit": _git(root, "rev-parse", "HEAD").strip(),
            "dirty": bool(_git(root, "status", "--porcelain").strip()),
        }
    except (OSError, subprocess.CalledProcessError):
        # no git program, or a repository without a commit
        return unknown


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=root,
        # a status that takes no lock cannot disturb the user's own git
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def hardware() -> dict[str, Any]:
    """Platform, processor and JAX's devices."""
    devices = jax.devices()
    return {
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
    }


def cpu_model() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def provenance() -> dict[str, Any]:
    """Everything that is the same for all experiments of one run."""
    return {
        "versions": versions(),
        **commit(),
        "hardware": hardware(),
        "x64": jnp.result_type(float) == jnp.float64,
    }
