"""How a store comes to be: prepared beside its place, and renamed to it."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from alignjax.sweeps.folder import Folder
from alignjax.sweeps.spec import Spec
from alignjax.sweeps.store_manifest import COMPLETE, MANIFEST, Manifest, dump, read_manifest

RECORDS = f"{COMPLETE}/records"
NAMES = (
    f"be called {COMPLETE!r} or 'zarr.json', have a slash in its name or begin with a dot or two "
    "underscores"
)
# Files of one folder: a folder for each row of blocks would have to be made first.
CHUNK_NAMES: Any = {"name": "default", "separator": "."}
# Filters of warnings belong to the process: threads that change them at once undo each other.
_WARNING_FILTERS = threading.Lock()


class StoreWriteError(OSError):
    """A store could not be written: a full disk, no permission. Finished blocks are intact."""


def check_names(spec: Spec) -> None:
    """Refuse names and dtypes that a store cannot hold, before anything is written.

    Raises:
        ValueError: for a name.
        TypeError: for a dtype.
    """
    for name, output in spec.outputs.items():
        taken = name in spec.coords or name in spec.dims
        if taken or not _is_fit(name):
            raise ValueError(
                f"run returns an output named {name!r}; in a store an output cannot have the name "
                f"of an axis or coordinate, {NAMES}"
            )
        if np.dtype(output.dtype).kind not in "biufc":
            raise TypeError(
                f"output {name!r} has dtype {output.dtype}, which Zarr cannot store: "
                "cast it in run (bfloat16 to float32, say)"
            )
    for name in spec.coords:
        if not _is_fit(name):
            raise ValueError(
                f"an axis or coordinate is named {name!r}; in a store it cannot {NAMES}"
            )


def _is_fit(name: str) -> bool:
    """Whether an array of a store may have this name."""
    taken = name in (COMPLETE, "zarr.json")
    return bool(name) and not taken and "/" not in name and not name.startswith((".", "__"))


def is_free(root: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    try:
        return not any(root.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def create(root: Path, spec: Spec, given: Manifest) -> bool:
    """Make an empty store beside ``root`` and rename it; False if another process was faster."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        prepared = _prepare(root, spec, given)
        try:
            os.rename(prepared, root)
        except OSError:
            shutil.rmtree(prepared)
            if read_manifest(root) is None:
                raise
            return False
        Folder(root.parent).flush(".")
    except OSError as error:
        raise _creation_error(root, error) from error
    return True


def refuse_foreign(root: Path, stored: Manifest) -> None:
    """Refuse to replace a store whose folder holds what no sweep wrote.

    Raises:
        FileExistsError: naming it.
    """
    known = {"zarr.json", COMPLETE, *stored["outputs"], *stored["coords"]}
    foreign = sorted(entry.name for entry in root.iterdir() if entry.name not in known)
    if foreign:
        raise FileExistsError(
            errno.EEXIST,
            f"store: overwrite=True would also remove {', '.join(foreign)}, which the sweep did "
            "not write; nothing was changed",
            str(root),
        )


def replace(root: Path, spec: Spec, stored: Manifest, given: Manifest) -> None:
    """Put an empty store in the place of one that exists, which goes last."""
    refuse_foreign(root, stored)
    old = _beside(root, "replaced")
    try:
        prepared = _prepare(root, spec, given)
        os.rename(root, old)
        try:
            os.rename(prepared, root)
        except OSError:
            os.rename(old, root)
            shutil.rmtree(prepared, ignore_errors=True)
            raise
        Folder(root.parent).flush(".")
        # A process that still writes there may be faster than one pass.
        for _ in range(3):
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _creation_error(root, error) from error


def _prepare(root: Path, spec: Spec, given: Manifest) -> Path:
    """An empty store on disk beside ``root``; nothing is left if it cannot be made."""
    prepared = _beside(root, "creating")
    try:
        prepared.mkdir()
        _write_empty(prepared, spec)
        (prepared / RECORDS).mkdir()
        (prepared / MANIFEST).write_text(dump(given), encoding="utf-8")
        with ThreadPoolExecutor() as pool:
            list(pool.map(_flush, [prepared, *prepared.rglob("*")]))
    except BaseException:
        shutil.rmtree(prepared, ignore_errors=True)
        raise
    return prepared


def _beside(root: Path, why: str) -> Path:
    """A new hidden name on the same file system."""
    return root.with_name(f".{root.name}.{why}-{uuid.uuid4().hex[:12]}")


def _creation_error(root: Path, error: OSError) -> StoreWriteError:
    return StoreWriteError(
        error.errno,
        f"{error.strerror or error}: the sweep store could not be created; it is prepared in "
        f"{root.parent}, which must be writable, and renamed to",
        str(root),
    )


def _write_empty(root: Path, spec: Spec) -> None:
    """A Zarr group with the coordinates' values and the outputs' metadata."""
    import xarray
    import zarr

    coords: dict[str, Any] = {}
    for name, (dims, values, attrs) in spec.coords.items():
        values = np.asarray(values)
        # NumPy's text of fixed width has no place in the Zarr specification; objects do.
        stored = values.astype(object) if values.dtype.kind == "U" else values
        coords[name] = (dims, stored, attrs)
    dataset = xarray.Dataset(coords=coords, attrs=spec.attrs)
    dataset.to_zarr(str(root), mode="w", zarr_format=3, consolidated=False)
    group = zarr.open_group(str(root), mode="r+", zarr_format=3, use_consolidated=False)
    for name, output in spec.outputs.items():
        dtype = np.dtype(output.dtype)
        group.create_array(
            name,
            shape=(*spec.shape, *output.shape),
            chunks=(*spec.block, *(max(1, size) for size in output.shape)),
            dtype=dtype,
            compressors=None,
            chunk_key_encoding=CHUNK_NAMES,
            fill_value=fill_value(dtype),
            dimension_names=[*spec.dims, *output.dims],
            attributes={} if output.units is None else {"units": output.units},
        )
    group.create_array(
        COMPLETE,
        shape=spec.shape,
        chunks=spec.block,
        dtype=bool,
        compressors=None,
        chunk_key_encoding=CHUNK_NAMES,
        fill_value=False,
        dimension_names=list(spec.dims),
        attributes={"long_name": "the run is finished; elsewhere stand fill values"},
    )
    with _WARNING_FILTERS, warnings.catch_warnings():
        # Every reader that does not know of consolidated metadata does without.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(str(root), zarr_format=3)


def fill_value(dtype: np.dtype[Any]) -> Any:
    """What stands where no run is finished."""
    return np.nan if dtype.kind in "fc" else dtype.type(0)


def _flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if path.is_dir():
        Folder(path).flush(".")
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())
