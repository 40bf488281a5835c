"""MNIST, from its four original gzipped IDX files."""

import gzip
import math
import struct
import warnings
import zlib
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from alignjax.datasets.digits import digits
from alignjax.datasets.files import DataCorruptedError, DataUnavailableError, obtain
from alignjax.datasets.images import Images, SubstituteDataWarning

BASE_URLS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

# split -> ((file, sha256) of the images, (file, sha256) of the labels)
FILES = {
    "train": (
        (
            "train-images-idx3-ubyte.gz",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
    ),
    "test": (
        (
            "t10k-images-idx3-ubyte.gz",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
}

_UNSIGNED_BYTE = 0x08


def parse_idx(content: bytes, name: str) -> UInt8[np.ndarray, "..."]:
    """Read a gzipped IDX file of unsigned bytes.

    The format: two zero bytes, one for the type (8: unsigned byte), one for the number of axes,
    each axis's length as a big-endian 32-bit integer, then the entries.

    Args:
        content: the compressed bytes.
        name: what an error calls the file.

    Returns:
        The array, read-only.

    Raises:
        DataCorruptedError: not gzip, cut short, no IDX file of unsigned bytes, or of another length
            than its header says.
    """
    try:
        raw = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataCorruptedError(f"{name} does not decompress: {error}") from error
    if len(raw) < 4 or raw[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DataCorruptedError(
            f"{name} is no IDX file of unsigned bytes: it starts with {raw[:4].hex(' ')!r}"
        )
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise DataCorruptedError(f"{name} ends within its header, after {len(raw)} bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise DataCorruptedError(
            f"{name} should hold {math.prod(shape)} entries, of shape {shape}, "
            f"and holds {len(raw) - header}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def mnist(split: Literal["train", "test"] = "train") -> Images:
    """MNIST's handwritten digits, 28x28: 60,000 to train on, 10,000 to test on.

    The files are those in `ALIGNJAX_DATA_DIR/mnist` if they are there, else they are fetched once
    into the user's cache (which needs the extra `data`). Either way they are checked by sha256.
    Host-only; nothing is unpickled.

    Args:
        split: "train" or "test".

    Returns:
        The images, in the files' order.

    Raises:
        DataUnavailableError: no file and no way to fetch it; says what was tried.
        DataCorruptedError: a file in ALIGNJAX_DATA_DIR is not the original one.
        ValueError: `split` is something else.
    """
    if split not in FILES:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    (images, source), (labels, _) = (
        obtain(name, sha256, folder="mnist", base_urls=BASE_URLS) for name, sha256 in FILES[split]
    )
    return Images(
        images=parse_idx(images, FILES[split][0][0]),
        labels=parse_idx(labels, FILES[split][1][0]),
        name="MNIST",
        source=source,
    )


def mnist_or_digits(split: Literal["train", "test"] = "train") -> Images:
    """MNIST, or where it cannot be had the digits that scikit-learn carries, with a warning.

    The result's `name` says which; a figure made from it prints that name.

    Args:
        split: "train" or "test".

    Returns:
        `mnist(split)`, else `digits(split)`, which are fewer and smaller: 8x8.

    Raises:
        DataUnavailableError: neither can be had.
        DataCorruptedError: MNIST is there but damaged; nothing stands in for that.
        ValueError: `split` is something else.

    Warns:
        SubstituteDataWarning: the digits stand in for MNIST.
    """
    try:
        return mnist(split)
    except DataUnavailableError as unavailable:
        try:
            substitute = digits(split)
        except DataUnavailableError as error:
            raise DataUnavailableError(f"{unavailable} And: {error}") from error
        warnings.warn(
            f"{substitute.name} stand in for MNIST: {unavailable}",
            SubstituteDataWarning,
            stacklevel=2,
        )
        return substitute
