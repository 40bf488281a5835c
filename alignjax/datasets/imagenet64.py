"""ImageNet at 64x64 pixels, as a stream from the ten `.npz` files in which it is published."""

import contextlib
import errno
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt16

from alignjax.datasets.files import DATA_DIR_VARIABLE, DataCorruptedError, DataUnavailableError
from alignjax.datasets.images import Images

PAGE = "https://image-net.org/download-images"
NAME = "ImageNet 64x64"
FILES = {
    "train": tuple(f"train_data_batch_{i}.npz" for i in range(1, 11)),
    "val": ("val_data.npz",),
}
CLASSES = 1000
SHAPE = (3, 64, 64)
ROW_BYTES = 3 * 64 * 64

_CHUNK = 1 << 20
_ZIP64 = 0xFFFFFFFF  # in a 32-bit size: the true one is in the extra field


def imagenet64(split: Literal["train", "val"] = "train", size: int = 1000) -> Iterator[Images]:
    """ImageNet downsampled to 64x64 colour pixels, as a stream of small `Images`.

    The files `train_data_batch_1.npz` to `train_data_batch_10.npz` and `val_data.npz` are looked
    for in `ALIGNJAX_DATA_DIR/imagenet64`. Each holds `data` `(n, 12288)`, uint8 (all red pixels of
    an image, then all green, then all blue), and `labels` `(n,)`, integers 1..1000; `mean` and any
    further entry are not read. They are never fetched: ImageNet has to be asked for. A file is
    unpacked as it is read, `size` images at a time. Host-only; nothing is unpickled.

    Args:
        split: "train" (1,281,167 images) or "val" (50,000).
        size: the most images at a time.

    Returns:
        An iterator of `Images` of shape `(m, 3, 64, 64)`, m at most `size`, with labels 0..999 as
        uint16, in the files' order. A damaged file is noticed when it is reached, at the latest
        before its last images are given.

    Raises:
        DataUnavailableError: a file is missing; says where to put it.
        DataCorruptedError: a file is no such archive, or it is damaged or cut short; says what was
            expected and found.
        TypeError: `size` is no integer.
        ValueError: `split` is something else, or `size` is below 1.

    Source:
        Chrabaszcz, Loshchilov & Hutter 2017.
    """
    if split not in FILES:
        raise ValueError(f"split: expected 'train' or 'val', got {split!r}")
    if not isinstance(size, int | np.integer) or isinstance(size, bool):
        raise TypeError(f"size: expected an integer, got {size!r}")
    if size < 1:
        raise ValueError(f"size: expected at least 1, got {size}")
    root = os.environ.get(DATA_DIR_VARIABLE)
    if not root:
        raise DataUnavailableError(
            f"{NAME} is not available: {DATA_DIR_VARIABLE} is not set. {_advice(split)}"
        )
    paths = [Path(root) / "imagenet64" / name for name in FILES[split]]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataUnavailableError(
            f"{NAME} is not available: {paths[0].parent} has no {', '.join(missing)}. "
            f"{_advice(split)}"
        )
    return (block for path in paths for block in read_npz(path, size))


def _advice(split: str) -> str:
    names = FILES[split]
    wanted = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    return (
        f"Ask for the 64x64 npz files at {PAGE} and put {wanted} into the folder imagenet64 of "
        f"the folder that {DATA_DIR_VARIABLE} names"
    )


def read_npz(path: Path, size: int) -> Iterator[Images]:
    """Read one file of the layout, `size` images at a time.

    Args:
        path: the file.
        size: the most images at a time.

    Yields:
        The images, in the file's order.

    Raises:
        DataCorruptedError: the file is no zip archive, lacks an entry, an entry has another shape
            or dtype, a label lies outside 1..1000, or the file is damaged or cut short.
    """
    with open(path, "rb") as stream, _open_archive(stream, path) as archive:
        labels = _read_labels(archive, path)
        total = len(labels)
        with _open_entry(archive, "data", path) as file:
            _check_data(_read_header(file, "data", path), total, path)
            for start in range(0, total, size):
                part = labels[start : start + size]
                rows = _read_part(
                    file, "data", path, start * ROW_BYTES, len(part) * ROW_BYTES, total * ROW_BYTES
                )
                # What the consumer throws here is its own, and no damage of the file.
                yield Images(
                    np.frombuffer(rows, np.uint8).reshape(-1, *SHAPE), part, NAME, str(path)
                )


class _Header(NamedTuple):
    """What an npy header says of the array behind it."""

    shape: tuple[int, ...]
    columns_first: bool
    dtype: np.dtype


@contextlib.contextmanager
def _damage_named(path: Path, sizes: Callable[[], str]) -> Iterator[None]:
    """Make a `DataCorruptedError` of what zipfile and NumPy raise when they read a damaged file.

    Their parsers raise nearly anything there: BadZipFile, struct.error, RuntimeError, TokenError...
    """
    try:
        yield
    except (DataCorruptedError, MemoryError):
        raise
    except Exception as error:
        # A spoiled directory makes them seek out of the file; other numbers are the machine's.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DataCorruptedError(
            f"{path} is damaged or cut short: {sizes()}: {type(error).__name__}: {error}"
        ) from error


def _open_archive(stream: IO[bytes], path: Path) -> zipfile.ZipFile:
    def sizes() -> str:
        return (
            f"expected a zip archive of at least {_promised_size(stream):,} bytes, found "
            f"{path.stat().st_size:,} bytes"
        )

    with _damage_named(path, sizes):
        return zipfile.ZipFile(stream)


def _promised_size(stream: IO[bytes]) -> int:
    """The bytes that an archive needs, as far as the headers before its entries are there."""
    entries, directory = 0, 22
    while True:
        stream.seek(entries)
        header = stream.read(30)
        if len(header) < 30 or not header.startswith(b"PK\3\4"):
            return entries + directory
        packed, name, extra = struct.unpack("<18xI4x2H", header)
        fields = stream.read(name + extra)[name:]
        # NumPy's archives have the true size here: two bytes of kind, two of length, both sizes.
        if packed == _ZIP64 and len(fields) >= 20 and fields.startswith(b"\1\0"):
            (packed,) = struct.unpack("<12xQ", fields[:20])
        following = entries + 30 + name + extra + packed
        directory += 46 + name
        if following > stream.seek(0, os.SEEK_END):
            return following + directory
        entries = following


def _open_entry(archive: zipfile.ZipFile, key: str, path: Path) -> IO[bytes]:
    names = archive.namelist()
    if f"{key}.npy" not in names:
        found = ", ".join(name.removesuffix(".npy") for name in names) or "nothing"
        raise DataCorruptedError(f"{path} should hold 'data' and 'labels', and holds {found}")
    expected = archive.getinfo(f"{key}.npy").file_size
    with _damage_named(path, lambda: f"'{key}' should hold {expected:,} bytes, and does not open"):
        return archive.open(f"{key}.npy")


def _read_header(file: IO[bytes], key: str, path: Path) -> _Header:
    """Read an entry's header, which leaves the file where the array begins."""
    with _damage_named(path, lambda: f"'{key}' should begin with an npy header"):
        version: Any = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise DataCorruptedError(f"{path}: '{key}' is of an unknown npy version, {version}")
        try:
            return _Header(*read_header(file))
        except MemoryError as error:
            # Of 10,000 characters at most, Python's parser runs out of nesting, not of memory.
            raise ValueError("the header is nested too deeply") from error


def _read_part(
    file: IO[bytes], key: str, path: Path, start: int, count: int, total: int
) -> bytearray:
    """Read `count` of an array's `total` bytes, from `start`; behind the last there is none."""
    content = bytearray()

    def sizes() -> str:
        return (
            f"'{key}' should hold {total:,} bytes, found {start + len(content):,} before the damage"
        )

    with _damage_named(path, sizes):
        # In chunks, because a spoiled size must not be allocated before it turns out wrong.
        while len(content) < count and (chunk := file.read(min(_CHUNK, count - len(content)))):
            content += chunk
        # zipfile compares checksums only where an entry ends.
        more = file.read(_CHUNK) if start + len(content) == total else b""
    if len(content) < count:
        raise DataCorruptedError(
            f"{path}: '{key}' should hold {total:,} bytes, and ends after {start + len(content):,}"
        )
    if more:
        raise DataCorruptedError(
            f"{path}: '{key}' should hold {total:,} bytes, and holds at least {total + len(more):,}"
        )
    return content


def _read_labels(archive: zipfile.ZipFile, path: Path) -> UInt16[np.ndarray, " n"]:
    with _open_entry(archive, "labels", path) as file:
        shape, _, dtype = _read_header(file, "labels", path)
        if len(shape) != 1 or dtype.kind not in "iu" or shape[0] < 1:
            raise DataCorruptedError(
                f"{path}: 'labels' should be integers of shape (n,), and is {dtype} of shape "
                f"{shape}"
            )
        count = shape[0] * dtype.itemsize
        labels = np.frombuffer(_read_part(file, "labels", path, 0, count, count), dtype)
    if labels.min() < 1 or labels.max() > CLASSES:
        raise DataCorruptedError(
            f"{path}: 'labels' should lie in 1..{CLASSES}, and lie in "
            f"{labels.min()}..{labels.max()}"
        )
    return (labels - 1).astype(np.uint16)


def _check_data(header: _Header, count: int, path: Path) -> None:
    shape, columns_first, dtype = header
    if shape != (count, ROW_BYTES) or dtype != np.uint8 or columns_first:
        order = " in Fortran order" if columns_first else ""
        raise DataCorruptedError(
            f"{path}: 'data' should be uint8 of shape ({count}, {ROW_BYTES}), as many rows as "
            f"'labels', and is {dtype} of shape {shape}{order}"
        )
