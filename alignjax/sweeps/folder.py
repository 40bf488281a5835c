"""A folder that stays the same one when another is put in its place."""

from __future__ import annotations

import contextlib
import os
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
# Windows opens no folders, and lets nobody rename one in which a file is open.
_CAN_HOLD = os.open in os.supports_dir_fd


class Folder:
    """Files of a folder by their names in it, ``"risk/c.0.0"``.

    It is held open: files written after the folder was renamed or removed never land in another
    folder that has its path now.
    """

    def __init__(self, path: Path) -> None:
        """Open a folder that exists.

        Raises:
            FileNotFoundError: if it does not.
        """
        self.path = path
        self._held = os.open(path, os.O_RDONLY) if _CAN_HOLD else None
        if self._held is not None:
            weakref.finalize(self, os.close, self._held)

    def is_in_place(self) -> bool:
        """Whether its path still leads to it."""
        if self._held is None:
            return self.path.is_dir()
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._held))
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Any]:
        """A file, open for reading bytes."""
        with open(self._at(name), "rb", opener=self._open) as file:
            yield file

    def size(self, name: str) -> int:
        """Bytes of a file; -1 if there is none."""
        try:
            return os.stat(self._at(name), dir_fd=self._held).st_size
        except FileNotFoundError:
            return -1

    def write(self, name: str, content: Any, *, flushed: bool) -> None:
        """Write a file that appears whole or not at all; flushed, the disk has it before that."""
        partial = self._at(f"{name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with open(partial, "wb", opener=self._open) as file:
                file.write(content)
                if flushed:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(partial, self._at(name), src_dir_fd=self._held, dst_dir_fd=self._held)
        except BaseException:
            self._remove(partial)
            raise

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        self._remove(self._at(name))

    def names(self, folder: str) -> list[str]:
        """What is in one of its folders."""
        if self._held is None:
            return os.listdir(self._at(folder))
        opened = self._open(folder, os.O_RDONLY)
        try:
            return os.listdir(opened)
        finally:
            os.close(opened)

    def flush(self, folder: str) -> None:
        """Make the names in one of its folders survive a power cut."""
        if self._held is None:
            return  # Windows keeps its names in a journal
        opened = self._open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

    def _at(self, name: str) -> str:
        return name if self._held is not None else str(self.path / name)

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags, 0o666, dir_fd=self._held)

    def _remove(self, at: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(at, dir_fd=self._held)
