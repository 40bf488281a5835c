"""CIFAR-10, from the records of its binary version."""

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Literal

import numpy as np
from jaxtyping import UInt8

from alignjax.datasets.files import (
    DATA_DIR_VARIABLE,
    DataCorruptedError,
    DataUnavailableError,
    obtain,
)
from alignjax.datasets.images import Images

BASE_URLS = ("https://www.cs.toronto.edu/~kriz/",)

ARCHIVE = "cifar-10-binary.tar.gz"
# Of the archive whose md5 its page gives: c32a1d4ab5d03f1284b67883e8d87530.
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

# split -> batch -> sha256 of the archive's file, unpacked
BATCHES = {
    "train": {
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    },
    "test": {
        "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    },
}
CLASSES = 10
RECORDS = 10_000  # in each batch
SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32

NAME = "CIFAR-10"
UNOFFICIAL_NAME = "CIFAR-10 (not the official files)"


def parse_records(
    content: bytes | bytearray, name: str
) -> tuple[UInt8[np.ndarray, "n 3 32 32"], UInt8[np.ndarray, " n"]]:
    """Read a batch: records of a label, then 1,024 red, 1,024 green and 1,024 blue pixels.

    Args:
        content: the batch's bytes.
        name: what an error calls the file.

    Returns:
        The images `(10000, 3, 32, 32)` and their labels.

    Raises:
        DataCorruptedError: another length, or a label above 9.
    """
    if len(content) != RECORDS * RECORD_BYTES:
        raise _wrong_size(name, f"{len(content):,}")
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() >= CLASSES:
        record = int(np.argmax(labels >= CLASSES))
        raise DataCorruptedError(
            f"{name} should hold labels 0..{CLASSES - 1}, and record {record} has {labels[record]}"
        )
    return records[:, 1:].reshape(RECORDS, *SHAPE), labels


def _wrong_size(name: str, found: str) -> DataCorruptedError:
    return DataCorruptedError(
        f"{name} should hold {RECORDS * RECORD_BYTES:,} bytes ({RECORDS:,} records of "
        f"{RECORD_BYTES:,}), and holds {found}"
    )


def read_batch(path: Path) -> bytearray:
    """Read a batch file: plain, or packed as its suffix `.gz` or `.xz` says.

    What a file holds beyond a batch is counted and not kept, and counted to ten batches at most,
    whatever the file unpacks to.

    Args:
        path: the file.

    Returns:
        What it holds, unpacked.

    Raises:
        DataCorruptedError: it does not unpack, or holds more than a batch.
    """
    size = RECORDS * RECORD_BYTES
    limit = 10 * size
    opener, damages = _opener(path.suffix)
    content, found = bytearray(), 0
    try:
        with opener(path) as file:
            while found <= limit and (chunk := file.read(1 << 20)):
                found += len(chunk)
                content += chunk[: size - len(content)]
    except damages as error:
        raise DataCorruptedError(
            f"{path} does not decompress: expected {size:,} bytes in it, found {found:,} before: "
            f"{error}"
        ) from error
    if found > size:
        raise _wrong_size(str(path), f"more than {limit:,}" if found > limit else f"{found:,}")
    return content


def _opener(suffix: str) -> tuple[Callable[[Path], IO[bytes]], tuple[type[Exception], ...]]:
    """How a file of this suffix is opened, and what reading it raises where it is damaged."""
    if suffix == ".gz":
        return gzip.open, (EOFError, gzip.BadGzipFile, zlib.error)  # type: ignore[return-value]
    if suffix == ".xz":
        # Some builds of Python lack it, and only this needs it.
        import lzma

        # The older format that `lzma.open` also takes has no check of its header.
        return (
            lambda path: lzma.open(path, format=lzma.FORMAT_XZ),
            (EOFError, lzma.LZMAError),
        )
    return lambda path: open(path, "rb"), ()


def _local_files(names: Mapping[str, str]) -> tuple[dict[str, Path], str]:
    """The batches in the data folder, and where they were looked for."""
    root = os.environ.get(DATA_DIR_VARIABLE)
    if not root:
        return {}, f"{DATA_DIR_VARIABLE} is not set"
    folder = Path(root) / "cifar10"
    found = {}
    for name in names:
        paths = [path for s in ("", ".gz", ".xz") if (path := folder / f"{name}{s}").is_file()]
        if paths:
            found[name] = paths[0]
    if found and len(found) < len(names):
        missing = ", ".join(name for name in names if name not in found)
        raise DataUnavailableError(
            f"{folder} holds {', '.join(found)}, but lacks {missing} (plain, .gz or .xz)"
        )
    return found, f"{folder}: no {', '.join(names)}, plain, .gz or .xz"


def _members(content: bytes, names: Mapping[str, str]) -> dict[str, bytes]:
    """The batches in the official archive."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        found = {}
        for member in archive:
            name = Path(member.name).name
            file = archive.extractfile(member) if name in names else None
            if file is not None:
                found[name] = file.read()
    return found


def cifar10(split: Literal["train", "test"] = "train") -> Images:
    """CIFAR-10's colour images, 32x32: 50,000 to train on, 10,000 to test on.

    The batches of the binary version are those in `ALIGNJAX_DATA_DIR/cifar10` (`data_batch_1.bin`
    to `data_batch_5.bin`, `test_batch.bin`; plain, .gz or .xz) if they are there, else the official
    archive is fetched once into the user's cache (which needs the extra `data`) and checked by
    sha256. Batches in the folder may be another copy of the data: their structure is checked, and
    the result's `name` says so where a checksum is not the official one. Host-only; nothing is
    unpickled.

    Args:
        split: "train" or "test".

    Returns:
        The images `(n, 3, 32, 32)`, in the batches' order. `name` is "CIFAR-10", or
        "CIFAR-10 (not the official files)".

    Raises:
        DataUnavailableError: no files and no way to fetch them, or only some of the batches.
        DataCorruptedError: a file is damaged or cut short; says what size was expected and found.
        ValueError: `split` is something else.
    """
    if split not in BATCHES:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    checksums = BATCHES[split]
    files, looked = _local_files(checksums)
    images = np.empty((RECORDS * len(checksums), *SHAPE), np.uint8)
    labels = np.empty(len(images), np.uint8)
    if files:
        source, members = str(next(iter(files.values())).parent), {}
    else:
        try:
            archive, source = obtain(ARCHIVE, ARCHIVE_SHA256, folder="cifar10", base_urls=BASE_URLS)
        except DataUnavailableError as error:
            raise DataUnavailableError(f"{NAME} is not available. {looked}. {error}") from error
        members = _members(archive, checksums)
    official = True
    for i, (name, checksum) in enumerate(checksums.items()):
        content = read_batch(files[name]) if files else members[name]
        part = slice(i * RECORDS, (i + 1) * RECORDS)
        images[part], labels[part] = parse_records(content, str(files.get(name, name)))
        # The archive's own checksum vouches for what is in it.
        official &= not files or hashlib.sha256(content).hexdigest() == checksum
    return Images(images, labels, NAME if official else UNOFFICIAL_NAME, source)
