"""ImageNet at 64x64 pixels, as a stream from the ten `.npz` files in which it is published."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

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

# A ValueError is NumPy's word for an entry that is no array, or one of pickled objects.
_DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)


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
        DataCorruptedError: a file is no such archive, or it is damaged or cut short.
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
    try:
        with zipfile.ZipFile(path) as archive:
            labels = _read_labels(archive, path)
            with _entry(archive, "data", path) as file:
                _check_data(file, len(labels), path)
                for start in range(0, len(labels), size):
                    part = labels[start : start + size]
                    rows = _read_rows(file, start, len(part), len(labels), path)
                    if start + len(part) == len(labels) and file.read(1):
                        raise DataCorruptedError(
                            f"{path} should hold {len(labels):,} images, and holds more"
                        )
                    yield Images(rows.reshape(-1, *SHAPE), part, NAME, str(path))
    except _DAMAGES as error:
        raise DataCorruptedError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or cut short: "
            f"{type(error).__name__}: {error}"
        ) from error


def _entry(archive: zipfile.ZipFile, key: str, path: Path) -> IO[bytes]:
    if f"{key}.npy" not in archive.namelist():
        found = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
        raise DataCorruptedError(f"{path} should hold 'data' and 'labels', and holds {found}")
    return archive.open(f"{key}.npy")


def _read_labels(archive: zipfile.ZipFile, path: Path) -> UInt16[np.ndarray, " n"]:
    with _entry(archive, "labels", path) as file:
        labels: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise DataCorruptedError(
            f"{path}: 'labels' should be integers of shape (n,), and is {labels.dtype} of shape "
            f"{labels.shape}"
        )
    if labels.min() < 1 or labels.max() > CLASSES:
        raise DataCorruptedError(
            f"{path}: 'labels' should lie in 1..{CLASSES}, and lie in "
            f"{labels.min()}..{labels.max()}"
        )
    return (labels - 1).astype(np.uint16)


def _check_data(file: IO[bytes], count: int, path: Path) -> None:
    """Read the header of `data`, which leaves the file where the images begin."""
    version: Any = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise DataCorruptedError(f"{path}: 'data' is of an unknown npy version, {version}")
    shape, columns_first, dtype = read_header(file)
    if shape != (count, ROW_BYTES) or dtype != np.uint8 or columns_first:
        order = " in Fortran order" if columns_first else ""
        raise DataCorruptedError(
            f"{path}: 'data' should be uint8 of shape ({count}, {ROW_BYTES}), as many rows as "
            f"'labels', and is {dtype} of shape {shape}{order}"
        )


def _read_rows(file: IO[bytes], start: int, count: int, total: int, path: Path) -> np.ndarray:
    content = file.read(count * ROW_BYTES)
    if len(content) != count * ROW_BYTES:
        raise DataCorruptedError(
            f"{path}: 'data' should hold {total * ROW_BYTES:,} bytes, and ends after "
            f"{start * ROW_BYTES + len(content):,}"
        )
    return np.frombuffer(content, np.uint8)
