"""A sweep on disk: a Zarr store in which every block is whole or absent.

The folder is a Zarr group (format 3) that ``xarray.open_zarr(path)`` opens by itself:

- each output and coordinate is an array; its Zarr chunks are the sweep's blocks, so that a block
  has files of its own and processes that write different blocks share none. A chunk is its numbers
  as they are, in C order, little-endian: floats from training hardly compress, and writing them
  costs a tenth of what it costs through Zarr;
- ``complete`` is True for the runs that are finished. Other runs read as NaN in floats and complex
  numbers and as 0 or False elsewhere, so ``data.where(data.complete)`` hides what is not there;
- ``complete/manifest.json`` says whose results these are;
- ``complete/records/`` has a file for each finished block with the checksums of its files.

A block's files are written and flushed to disk, then its part of ``complete``, then its record,
each by renaming, which is atomic, and nothing of a block is ever removed. Whatever moment a process
or a machine dies at, a block without a record that matches its files and the manifest is done
again. Processes that do not know of each other may run one sweep into one store: what either has
finished the other skips, and of a block that both compute, both write the same bytes. Where another
store is put in its place, a process that still writes the old one cannot reach the new one, and
says so. A store appears under its name by a rename, too: several processes may create it at once,
and one wins. A process killed before that leaves a folder
``.NAME.creating-...`` beside it, which can be deleted; one killed while it overwrites a store may
leave the old one as ``.NAME.replaced-...``.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import threading
import uuid
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignjax.sweeps.folder import PARTIAL, Folder
from alignjax.sweeps.spec import Output, Spec
from alignjax.sweeps.store_manifest import (
    COMPLETE,
    MANIFEST,
    Manifest,
    check_same_sweep,
    dump,
    manifest,
    read_manifest,
)

if TYPE_CHECKING:
    import xarray

RECORDS = f"{COMPLETE}/records"
NAMES = (
    f"be called {COMPLETE!r} or 'zarr.json', have a slash in its name or begin with a dot or two "
    "underscores"
)
# Files of one folder: a folder for each row of blocks would have to be made first.
CHUNK_NAMES: Any = {"name": "default", "separator": "."}
Block = tuple[int, ...]
# Filters of warnings belong to the process: threads that change them at once undo each other.
_WARNING_FILTERS = threading.Lock()


class StoreWriteError(OSError):
    """A store could not be written: a full disk, no permission. Finished blocks are intact."""


def open_store(
    path: str | os.PathLike[str], spec: Spec, *, resume: bool = True, overwrite: bool = False
) -> Store:
    """Open the store of a sweep, or create it.

    Several processes may call this at once with ``overwrite=False`` and ``resume=True``. Where a
    store is to be replaced or must not exist yet, one process calls it with these arguments, and
    the others after it without.

    Args:
        path: the store's folder. Its parent is where a new store is prepared.
        spec: the layout, the coordinates and the fingerprint of the sweep.
        resume: continue in a store of the same sweep; False refuses any that exists.
        overwrite: replace a sweep store that exists, whatever it holds. Nothing else is removed:
            a folder that is no sweep store, or has other files in it, is refused.

    Raises:
        FileExistsError: something is at ``path`` that may not be continued or replaced.
        StoreMismatchError: the store holds another sweep; the message says what differs.
        StoreWriteError: the store cannot be created.
        TypeError: an output has a dtype that Zarr cannot store, or the fingerprint or an attribute
            is nothing that JSON can hold.
        ValueError: an output has a name that a store cannot give it, or the store's manifest is
            damaged.
        ImportError: zarr or xarray is missing.
    """
    _need_libraries()
    given = manifest(spec)
    check_names(spec)
    root = Path(path).resolve()
    if is_free(root) and _create(root, spec, given):
        return Store(root, spec)
    stored = read_manifest(root) if root.is_dir() else None
    if stored is None:
        raise FileExistsError(
            errno.EEXIST, "store: what is here is no sweep store; nothing was changed", str(root)
        )
    if overwrite:
        _replace(root, spec, stored, given)
    elif not resume:
        raise FileExistsError(
            errno.EEXIST,
            "store: a sweep store exists and resume is False; nothing was changed: "
            "pass resume=True to continue it, overwrite=True to replace it",
            str(root),
        )
    else:
        check_same_sweep(root, stored, given)
    return Store(root, spec)


class Store:
    """The blocks of one sweep in a Zarr store. Safe for threads and for processes."""

    def __init__(self, root: Path, spec: Spec) -> None:
        """Open a store that exists."""
        self.path = root
        self._folder = Folder(root)
        self._spec = spec
        self._sweep = _checksum(dump(manifest(spec)).encode())
        # An output without elements has no files. `complete` comes last: who reads True there
        # finds the outputs in place.
        filled = {name: output for name, output in spec.outputs.items() if 0 not in output.shape}
        self._arrays = filled | {COMPLETE: Output((), (), "bool")}
        self._leftovers: dict[str, list[str]] = {}

    def missing(self) -> list[Block]:
        """Indices of the blocks that are absent, or whose files do not match their record.

        Every finished block is read. Processes that share a store share out the blocks by index,
        not by place in this list, which changes as others write.

        Raises:
            StoreWriteError: blocks are missing and the store cannot be written.
        """
        # Looked for once: a listing for each block would be a cost quadratic in their number.
        self._leftovers = {}
        for folder in self._folders():
            for name in self._folder.names(folder):
                if name.endswith(PARTIAL):
                    whole = f"{folder}/{name.rsplit('.', 2)[0]}"
                    self._leftovers.setdefault(whole, []).append(f"{folder}/{name}")
        blocks = list(self._spec.blocks())
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(self.has, blocks))
        missing = [block for block, is_whole in zip(blocks, found, strict=True) if not is_whole]
        if missing and not os.access(self.path, os.W_OK | os.X_OK):
            raise StoreWriteError(
                errno.EACCES,
                f"no permission to write, and {len(missing)} of {len(blocks)} blocks are missing",
                str(self.path),
            )
        return missing

    def write(self, block: Block, arrays: Mapping[str, np.ndarray]) -> None:
        """Store one block; it is complete when this returns and absent if it raises.

        Args:
            block: its index.
            arrays: every output; shape (the block's region, the output's own shape).

        Raises:
            ValueError: an array is missing or has another shape or dtype than the store's.
            StoreWriteError: the block cannot be written (a full disk, no permission).
        """
        self._check(block, arrays)
        try:
            try:
                self._write(block, arrays)
            except FileNotFoundError:
                # Another process took for leftovers what this one was about to rename; it will
                # not take what is written from now on.
                self._write(block, arrays)
        except OSError as error:
            raise self._told(block, error) from error

    def _write(self, block: Block, arrays: Mapping[str, np.ndarray]) -> None:
        if self.has(block):  # another process was faster
            return
        checksums = {}
        for name in self._arrays:
            file, content = self._chunk(name, block), self._content(name, block, arrays)
            self._clear(file)
            self._folder.write(file, content, flushed=True)
            checksums[file] = _checksum(content)
        # What a power cut takes of records costs only that their blocks are done again.
        record = self._record(block)
        self._clear(record)
        self._folder.write(record, self._record_text(block, checksums).encode(), flushed=False)

    def _clear(self, file: str) -> None:
        """Remove what killed writers left of a file."""
        for partial in self._leftovers.pop(file, ()):
            self._folder.remove(partial)

    def _told(self, block: Block, error: OSError) -> StoreWriteError:
        """The error of a block that could not be written."""
        if not self._folder.is_in_place():
            return self._replaced(f"block {block} of the sweep could not be written")
        return StoreWriteError(
            error.errno,
            f"{error.strerror or error}: block {block} of the sweep could not be written. The "
            "finished blocks are intact: remove the cause and run the same sweep again, it "
            "continues from there. The store is",
            str(self.path),
        )

    def _replaced(self, what: str) -> StoreWriteError:
        return StoreWriteError(
            errno.ESTALE,
            f"another process replaced or removed the store: {what}. It was",
            str(self.path),
        )

    def dataset(self) -> xarray.Dataset:
        """All results as xarray opens them, read when used; ``complete`` only if some are missing.

        A finished sweep is the same data set with a store and without.

        Raises:
            StoreWriteError: another store is in its place, or files of finished blocks are gone.
        """
        import xarray

        if not self._folder.is_in_place():
            raise self._replaced("its results are gone")
        self._check_files()
        for folder in self._folders():
            self._folder.flush(folder)
        data = xarray.open_zarr(str(self.path), chunks=None, consolidated=True)
        for name, (_, values, _) in self._spec.coords.items():
            if values.dtype.kind == "U":  # stored as text of any length
                data = data.assign_coords({name: data[name].astype(values.dtype)})
        finished = bool(data[COMPLETE].all())
        if not self._folder.is_in_place():  # what was opened may be another's
            raise self._replaced("its results are gone")
        return data.drop_vars(COMPLETE) if finished else data

    def _check_files(self) -> None:
        """Refuse a store whose finished blocks lack files, which would read as fill values."""
        sizes = {
            name: math.prod(self._spec.block + output.shape) * np.dtype(output.dtype).itemsize
            for name, output in self._arrays.items()
        }
        records = set(self._folder.names(RECORDS))
        for block in self._spec.blocks():
            if self._record(block).rpartition("/")[2] not in records:
                continue
            for name, size in sizes.items():
                if self._folder.size(self._chunk(name, block)) != size:
                    raise StoreWriteError(
                        errno.EIO,
                        f"the file {self._chunk(name, block)} of a finished block was removed or "
                        "cut: run the same sweep again, it does the block again. The store is",
                        str(self.path),
                    )

    def has(self, block: Block) -> bool:
        """Whether a block is finished: its record is exactly what its files say now."""
        checksums = {}
        try:
            with self._folder.reading(self._record(block)) as file:
                record = file.read()
            for name in self._arrays:
                chunk = self._chunk(name, block)
                with self._folder.reading(chunk) as file:
                    checksums[chunk] = hashlib.file_digest(file, _hash).hexdigest()
        except FileNotFoundError:
            return False
        return record == self._record_text(block, checksums).encode()

    def _record_text(self, block: Block, checksums: dict[str, str]) -> str:
        return dump({"block": list(block), "sweep": self._sweep, "checksums": checksums})

    def _folders(self) -> list[str]:
        """Where files of blocks lie."""
        return [*self._arrays, RECORDS]

    def _check(self, block: Block, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuse arrays that are not the block's outputs."""
        if set(arrays) != set(self._spec.outputs):
            raise ValueError(f"arrays has {sorted(arrays)}, expected {sorted(self._spec.outputs)}")
        cut = tuple(part.stop - part.start for part in self._spec.region(block))
        for name, output in self._spec.outputs.items():
            came, expected = arrays[name], (*cut, *output.shape)
            if came.shape != expected or came.dtype != np.dtype(output.dtype):
                raise ValueError(
                    f"arrays[{name!r}] of block {block} has shape {came.shape} and dtype "
                    f"{came.dtype}, expected {expected} and {output.dtype}"
                )

    def _content(self, name: str, block: Block, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """A block of one array as Zarr stores it: whole, what lies beyond the end filled up."""
        output = self._arrays[name]
        dtype = np.dtype(output.dtype).newbyteorder("<")
        shape = self._spec.block + output.shape
        if name != COMPLETE and arrays[name].shape == shape:
            whole = np.ascontiguousarray(arrays[name], dtype)
        else:
            cut = tuple(slice(part.stop - part.start) for part in self._spec.region(block))
            whole = np.full(shape, _fill_value(dtype), dtype)
            whole[cut] = True if name == COMPLETE else arrays[name]
        return whole.reshape(-1).view(np.uint8)

    def _chunk(self, name: str, block: Block) -> str:
        """The file that holds a block of one array, named as the array's metadata says."""
        index = (*block, *(0,) * len(self._arrays[name].shape))
        return f"{name}/" + ".".join(["c", *map(str, index)])

    def _record(self, block: Block) -> str:
        return f"{RECORDS}/" + "-".join(["block", *map(str, block)]) + ".json"


def _need_libraries() -> None:
    """Raise an ImportError that names the remedy."""
    try:
        import xarray  # noqa: F401
        import zarr  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"store: {error}; storing a sweep needs pip install 'alignjax[sweeps]'"
        ) from error


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


def _create(root: Path, spec: Spec, given: Manifest) -> bool:
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


def _replace(root: Path, spec: Spec, stored: Manifest, given: Manifest) -> None:
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
            fill_value=_fill_value(dtype),
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


def _fill_value(dtype: np.dtype[Any]) -> Any:
    """What stands where no run is finished."""
    return np.nan if dtype.kind in "fc" else dtype.type(0)


def _hash() -> Any:
    """BLAKE2b, 128 bits."""
    return hashlib.blake2b(digest_size=16)


def _checksum(content: Any) -> str:
    digest = _hash()
    digest.update(content)
    return str(digest.hexdigest())


def _flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if path.is_dir():
        Folder(path).flush(".")
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())
