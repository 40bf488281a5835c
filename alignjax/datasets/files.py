"""Where a data file is found, and the check that it is the file it should be."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

DATA_DIR_VARIABLE = "ALIGNJAX_DATA_DIR"

# Seconds to connect and between two packets: an offline machine must find out quickly.
TIMEOUT = (3.0, 15.0)


class DataUnavailableError(OSError):
    """The data are neither on this machine nor could they be fetched; says what was tried."""


class DataCorruptedError(OSError):
    """A data file is there but is not what it should be; names the file."""


def read_checked(path: Path, sha256: str) -> bytes:
    """Read a file and make sure that its content is the expected one.

    Args:
        path: the file.
        sha256: the expected checksum, in hexadecimal.

    Returns:
        The file's bytes.

    Raises:
        DataCorruptedError: the checksum differs.
    """
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataCorruptedError(
            f"{path} is not the expected file: expected sha256 {sha256}, found {found} "
            f"({len(content)} bytes)"
        )
    return content


def obtain(name: str, sha256: str, *, folder: str, base_urls: Sequence[str]) -> tuple[bytes, str]:
    """Read a file from the data folder, else from the user's cache, else from the network.

    Args:
        name: the file's name.
        sha256: the checksum of its content, wherever it comes from.
        folder: the subfolder that holds it, in ALIGNJAX_DATA_DIR and in the user's cache.
        base_urls: addresses, ending in a slash, that are tried in order.

    Returns:
        The file's bytes, and where they came from: a path or an address.

    Raises:
        DataCorruptedError: the file in ALIGNJAX_DATA_DIR has another checksum.
        DataUnavailableError: there is no such file and it could not be fetched.
    """
    tried = []
    root = os.environ.get(DATA_DIR_VARIABLE)
    if root:
        path = Path(root) / folder / name
        if path.is_file():
            return read_checked(path, sha256), str(path)
        tried.append(f"{path}: no such file")
    else:
        tried.append(f"{DATA_DIR_VARIABLE} is not set")

    try:
        import pooch
    except ImportError:
        tried.append("fetching needs pooch: pip install 'alignjax[data]'")
    else:
        for base in base_urls:
            try:
                fetched = pooch.retrieve(
                    base + name,
                    known_hash=f"sha256:{sha256}",
                    fname=name,
                    path=pooch.os_cache("alignjax") / folder,
                    downloader=pooch.HTTPDownloader(timeout=TIMEOUT),
                )
                return read_checked(Path(fetched), sha256), base + name
            except (OSError, ValueError) as error:  # ValueError: the download's checksum differs
                tried.append(f"{base}{name}: {type(error).__name__}: {error}")
    raise DataUnavailableError(f"{name} is not available. Tried: " + "; ".join(tried))
