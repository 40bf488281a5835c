"""Checkpoints of a training: either whole or absent, and never those of another configuration."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import equinox as eqx

from experiments import files

T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be resumed."""


def path_of(folder: Path, name: str, config: dict[str, Any]) -> Path:
    """Where the checkpoint of a training lies: each configuration has its own file."""
    digest = hashlib.sha256(_header(config)).hexdigest()
    return folder / f"{name}-{digest[:12]}.eqx"


def save(path: Path, config: dict[str, Any], state: Any) -> None:
    """Write the arrays of a pytree below a line that holds the configuration, atomically."""

    def write(file: BinaryIO) -> None:
        file.write(_header(config))
        eqx.tree_serialise_leaves(file, state)

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, write)


def load(path: Path, config: dict[str, Any], like: T) -> T | None:
    """The pytree that :func:`save` wrote, or None where there is no file.

    Args:
        path: the file.
        config: the configuration of the training that wants to go on.
        like: a pytree of arrays of the shapes and dtypes that are expected.

    Raises:
        CheckpointError: the file is of another configuration, which the message compares with this
            one, or is damaged.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        header = file.readline()
        if header != _header(config):
            raise CheckpointError(f"{path} {_difference(header, config)}; delete it to start anew")
        try:
            return eqx.tree_deserialise_leaves(file, like)
        # a file cut short or overwritten raises what NumPy's reader happens to stumble over
        except Exception as error:
            raise CheckpointError(
                f"{path} is damaged ({error}); delete it to start anew"
            ) from error


def discard(path: Path) -> None:
    """Remove a checkpoint that is no longer needed, and its folder where nothing else is in it."""
    path.unlink(missing_ok=True)
    if path.parent.exists() and not any(path.parent.iterdir()):
        path.parent.rmdir()


def _header(config: dict[str, Any]) -> bytes:
    return json.dumps(config, sort_keys=True).encode() + b"\n"


def _difference(header: bytes, config: dict[str, Any]) -> str:
    try:
        found = json.loads(header)
    except ValueError:
        return "is no checkpoint"
    differing = [
        f"{name} = {found.get(name)!r}, not {config.get(name)!r}"
        for name in sorted(found.keys() | config.keys())
        if found.get(name) != config.get(name)
    ]
    return f"is of another training: {', '.join(differing)}"
