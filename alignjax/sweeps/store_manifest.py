"""What a store says about itself: whose results it holds, and how another sweep differs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from alignjax.sweeps.spec import Spec

# The variable that says which runs are finished. Its folder also holds the manifest and the
# records: a reader of Zarr never looks among an array's own files for other arrays.
COMPLETE = "complete"
MANIFEST = f"{COMPLETE}/manifest.json"
FORMAT = "sweep store"
VERSION = 2
_PARTS = {"version": int, "dims": list, "block": list, "outputs": dict, "coords": dict}

Manifest = dict[str, Any]


class StoreMismatchError(ValueError):
    """A store holds the results of another sweep: another config, dtype, layout or function."""


def manifest(spec: Spec) -> Manifest:
    """All that must agree before a sweep continues in a store, made of what JSON can hold.

    Provenance (``spec.attrs``) is left out: a sweep may be resumed on another day.

    Raises:
        TypeError: the fingerprint or an attribute is nothing that JSON can hold.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        # Pairs and not a mapping: the order of the dimensions is part of the layout.
        "dims": [[name, int(size)] for name, size in spec.dims.items()],
        "block": [int(size) for size in spec.block],
        "outputs": {
            name: {
                "dims": list(output.dims),
                "shape": [int(size) for size in output.shape],
                "dtype": str(np.dtype(output.dtype)),
                "units": output.units,
            }
            for name, output in spec.outputs.items()
        },
        "coords": {
            name: {
                "dims": list(dims),
                "dtype": str(np.asarray(values).dtype),
                "values": values_digest(np.asarray(values)),
                "attrs": _json(attrs, f"the attributes of coordinate {name!r}"),
            }
            for name, (dims, values, attrs) in spec.coords.items()
        },
        "fingerprint": _json(spec.fingerprint, "fingerprint"),
    }


def values_digest(values: np.ndarray) -> str:
    """A digest of an array's shape and exact values."""
    # Text has no fixed bytes: NumPy's width, and objects' addresses, are accidents.
    is_text = values.dtype.kind in "OSUT"
    data = json.dumps(values.tolist(), default=str).encode() if is_text else values.tobytes()
    return hashlib.blake2b(repr(values.shape).encode() + data, digest_size=16).hexdigest()


def dump(content: Any) -> str:
    """JSON that a person can read, and that is the same for the same content."""
    return json.dumps(content, indent=2) + "\n"


def read_manifest(root: Path) -> Manifest | None:
    """The manifest of the store at ``root``; None if no sweep store is there.

    Raises:
        ValueError: there is a manifest and it cannot be read.
    """
    path = root / MANIFEST
    try:
        stored = json.loads(path.read_bytes())
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            return None
        lacking = [name for name, kind in _PARTS.items() if not isinstance(stored.get(name), kind)]
        if lacking:
            raise ValueError(f"without {', '.join(lacking)}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(
            f"store: {root} has a damaged manifest, {path} ({error}); "
            "nothing was changed: move the folder away, or name another one"
        ) from error
    return stored


def stored_block(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """The block shape that the store at ``path`` was made with; None if no store is there.

    A sweep that continues there cuts its grid in the same way.

    Raises:
        ValueError: the store's manifest is damaged.
    """
    stored = read_manifest(Path(path))
    return None if stored is None else tuple(stored["block"])


def check_same_sweep(root: Path, stored: Manifest, given: Manifest) -> None:
    """Refuse to continue in a store that holds another sweep, and say what differs.

    Raises:
        StoreMismatchError: naming each entry that differs, the stored and the given value.
    """
    lines = differences(stored, given)
    if lines:
        raise StoreMismatchError(
            f"store: {root} holds the results of another sweep; nothing was changed.\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nName another store, or pass overwrite=True to lose the stored results"
        )


def differences(stored: Manifest, given: Manifest) -> list[str]:
    """A line for each entry that differs; entries of nested mappings have dotted names.

    >>> differences({"block": [4], "key": {"seed": 1}}, {"block": [4], "key": {"seed": 2}})
    ['key.seed: the store has 1, this sweep has 2']
    """
    old, new = _flat(stored), _flat(given)
    lines = []
    for name in dict.fromkeys([*old, *new]):
        if name not in new:
            lines.append(f"{name}: the store has {old[name]}, this sweep has no such entry")
        elif name not in old:
            lines.append(f"{name}: the store has no such entry, this sweep has {new[name]}")
        elif old[name] != new[name]:
            lines.append(f"{name}: the store has {old[name]}, this sweep has {new[name]}")
    return lines


def _flat(entry: Any, name: str = "") -> dict[str, str]:
    """Dotted names -> values as JSON text, in which NaN equals NaN and 1 differs from 1.0."""
    if isinstance(entry, dict) and entry:
        return {
            dotted: text
            for key, value in entry.items()
            for dotted, text in _flat(value, f"{name}.{key}" if name else str(key)).items()
        }
    return {name: json.dumps(entry)}


def _json(content: Any, what: str) -> Any:
    """``content`` as it comes back from JSON: tuples have become lists, keys text.

    Raises:
        TypeError: JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(content))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be made of what JSON can hold: {error}") from error
