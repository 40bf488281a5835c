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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignjax.sweeps.folder import PARTIAL, Folder
from alignjax.sweeps.spec import Output, Spec
from alignjax.sweeps.store_creation import (
    RECORDS,
    StoreWriteError,
    check_names,
    create,
    fill_value,
    is_free,
    replace,
)
from alignjax.sweeps.store_manifest import (
    COMPLETE,
    check_same_sweep,
    dump,
    manifest,
    read_manifest,
)

if TYPE_CHECKING:
    import xarray

Block = tuple[int, ...]


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
    if is_free(root) and create(root, spec, given):
        return Store(root, spec)
    stored = read_manifest(root) if root.is_dir() else None
    if stored is None:
        raise FileExistsError(
            errno.EEXIST, "store: what is here is no sweep store; nothing was changed", str(root)
        )
    if overwrite:
        replace(root, spec, stored, given)
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
            whole = np.full(shape, fill_value(dtype), dtype)
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


def _hash() -> Any:
    """BLAKE2b, 128 bits."""
    return hashlib.blake2b(digest_size=16)


def _checksum(content: Any) -> str:
    digest = _hash()
    digest.update(content)
    return str(digest.hexdigest())
