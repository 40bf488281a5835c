"""Arrays from files: CSV, ``.npy`` and ``.npz``, without pickle; and results into files."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from alignjax.cli.errors import BAD_INPUT, CANNOT_WRITE, MISSING_FILE, USAGE, CommandError

SUFFIXES = (".csv", ".tsv", ".txt", ".npy", ".npz")
MAGIC = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")
SEPARATORS = ",;\t"


def read_array(name: str, folder: Path | None = None) -> np.ndarray:
    """One array of real numbers from a file.

    Args:
        name: a path; of an ``.npz`` with several arrays ``path:array``.
        folder: what a relative path is relative to; the current folder by default.

    Raises:
        CommandError: the file is missing, or is not what its suffix says, or what it holds is no
            array of finite real numbers; the message names the file, and the cell or index.
    """
    path, member = _split(name, folder)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise CommandError(f"{path}: expected a file {', '.join(SUFFIXES)}, got {path.suffix!r}")
    if member is not None and suffix != ".npz":
        raise CommandError(f"{path}: only .npz files hold arrays by name, got ':{member}'")
    _require_file(path)
    array = _table(path) if suffix in SUFFIXES[:3] else _numpy_array(path, member)
    if array.dtype.kind not in "biuf":
        raise CommandError(f"{name}: expected real numbers, got an array of dtype {array.dtype}")
    # JAX knows numbers of this machine's byte order alone, and none beyond double precision.
    is_long = array.dtype.kind == "f" and array.dtype.itemsize > 8
    array = array.astype(np.float64 if is_long else array.dtype.newbyteorder("="), copy=False)
    if not np.isfinite(array).all():
        where = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
        raise CommandError(
            f"{name}: expected finite numbers, got {array[tuple(where)]} first at index {where}"
        )
    return array


def read_matrix(name: str, folder: Path | None = None) -> np.ndarray:
    """An array of two dimensions; one of one dimension is a single column.

    Raises:
        CommandError: as for :func:`read_array`, and for other dimensions or no entries.
    """
    array = read_array(name, folder)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not array.size:
        raise CommandError(
            f"{name}: expected a matrix, rows are samples, got an array of shape {array.shape}"
        )
    return array


def read_weights(name: str, folder: Path | None = None) -> tuple[np.ndarray, ...]:
    """The layers ``(W_1, ..., W_d)`` from an ``.npz`` with the arrays ``W_1``, ..., ``W_d``.

    Raises:
        CommandError: as for :func:`read_array`, or if the names are others.
    """
    path, member = _split(name, folder)
    if path.suffix.lower() != ".npz" or member is not None:
        raise CommandError(f"{name}: expected an .npz file with the arrays W_1, ..., W_d")
    _require_file(path)
    with _opened(path) as archive:
        layers = sum(entry.startswith("W_") for entry in archive.files)
        wanted = [f"W_{i + 1}" for i in range(layers)]
        absent = [entry for entry in wanted if entry not in archive.files]
        if not layers or absent:
            raise CommandError(
                f"{path}: expected the arrays W_1, ..., W_d, got {', '.join(archive.files)}"
            )
    return tuple(read_array(f"{path}:{entry}") for entry in wanted)


def check_output(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a place that cannot be written, before anything is computed.

    Raises:
        CommandError: another suffix, or no such folder.
    """
    if path.suffix.lower() not in suffixes:
        raise CommandError(f"--out {path}: expected a file {' or '.join(suffixes)}", USAGE)
    if not path.absolute().parent.is_dir():
        raise CommandError(f"--out {path}: there is no folder {path.parent}", MISSING_FILE)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an ``.npz``.

    Raises:
        CommandError: it cannot be written.
    """
    given: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    try:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **given)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", CANNOT_WRITE) from error


def _split(name: str, folder: Path | None) -> tuple[Path, str | None]:
    """The path and the array's name in ``path:array``; a path may hold colons of its own."""
    base, colon, member = name.rpartition(":")
    is_member = bool(colon) and base.lower().endswith(".npz")
    path = Path(base if is_member else name).expanduser()
    return (path if folder is None else folder / path), member if is_member else None


def _require_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise CommandError(f"{path}: {what}", MISSING_FILE)


def _opened(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            # NumPy takes whatever else it is for pickled data.
            if not file.read(6).startswith(MAGIC):
                raise CommandError(f"{path}: no {path.suffix} file, or a damaged one")
        return np.load(path, allow_pickle=False)
    except PermissionError as error:
        raise CommandError(f"{path}: {error.strerror}", MISSING_FILE) from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CommandError(_why(path, error)) from error


def _why(path: Path, error: Exception) -> str:
    if "allow_pickle" in str(error):
        return (
            f"{path}: holds Python objects, not numbers, and is not unpickled: save it again by "
            f"np.save(..., np.asarray(data, dtype=float))"
        )
    return f"{path}: no {path.suffix} file, or a damaged one ({error})"


def _numpy_array(path: Path, member: str | None) -> np.ndarray:
    loaded = _opened(path)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded as archive:
        names = archive.files
        if member is None and len(names) != 1:
            raise CommandError(
                f"{path}: holds {len(names)} arrays ({', '.join(names)}): say which, as in "
                f"{path.name}:{names[0] if names else 'name'}"
            )
        if member is not None and member not in names:
            raise CommandError(f"{path}: holds no array {member!r}, only {', '.join(names)}")
        try:
            return archive[names[0] if member is None else member]
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise CommandError(_why(path, error)) from error


def _table(path: Path) -> np.ndarray:
    """A table of numbers in text: a header, if there is one, is the first row without a number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: no text in UTF-8 ({error.reason})") from error
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", MISSING_FILE) from error
    content = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    head = next(content, "")
    separator = max(SEPARATORS, key=head.count)
    if not head.count(separator) and len(head.split()) > 1:
        separator = " "
    reader = csv.reader(text.splitlines(), delimiter=separator, skipinitialspace=separator == " ")
    # Rows are counted as a person does who opens the file.
    try:
        rows = [(reader.line_num, [c.strip() for c in row]) for row in reader]
    except csv.Error as error:
        raise CommandError(
            f"{path}: {error} (is a quotation mark open in row {reader.line_num} or before it?)"
        ) from error
    rows = [(line, row) for line, row in rows if any(row) and not row[0].startswith("#")]
    if separator == " ":
        rows = [(line, [cell for cell in row if cell]) for line, row in rows]
    if rows and not any(_is_number(cell) for cell in rows[0][1]):
        del rows[0]
    if not rows:
        raise CommandError(f"{path}: holds no row of numbers")
    columns = len(rows[0][1])
    for line, row in rows:
        if len(row) != columns:
            raise CommandError(
                f"{path}, row {line}: has {len(row)} cells, but row {rows[0][0]} has {columns}"
            )
        for column, cell in enumerate(row, start=1):
            if not _is_number(cell):
                got = repr(cell) if cell else "an empty cell"
                raise CommandError(
                    f"{path}, row {line}, column {column}: expected a number, got {got}", BAD_INPUT
                )
    return np.array([[float(cell) for cell in row] for _, row in rows])


def _is_number(cell: str) -> bool:
    with suppress(ValueError):
        float(cell)
        return "_" not in cell  # which Python allows among digits, and no table does
    return False
