"""Configs: TOML tables whose errors name the key and the line."""

from __future__ import annotations

import contextlib
import difflib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignjax.cli.errors import BAD_INPUT, MISSING_FILE, CommandError, told

REQUIRED: Any = object()
KINDS = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


class Document:
    """A config file: its content, and where each key stands in it."""

    def __init__(self, path: Path) -> None:
        """Read and parse.

        Raises:
            CommandError: there is no such file, or it is no TOML; TOML's error names the line.
        """
        self.path = path
        try:
            self.text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}", MISSING_FILE) from error
        except UnicodeDecodeError as error:
            raise CommandError(f"{path}: no text in UTF-8 ({error.reason})") from error
        try:
            self.content = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise CommandError(f"{path}: no TOML: {error}") from error
        self.root = Section(self, (), self.content)

    def line(self, key: tuple[str, ...]) -> int:
        """The line where a key, or what holds it, is given.

        TOML gives each statement a line of its own, and a document cut behind a whole statement is
        a document: the first such piece that has the key ends with its statement.
        """
        lines = self.text.splitlines(keepends=True)
        start = 1
        for end in range(1, len(lines) + 1):
            try:
                piece = tomllib.loads("".join(lines[:end]))
            except tomllib.TOMLDecodeError:
                continue  # cut within a statement of several lines
            if _has(piece, key):
                return start
            start = end + 1
        return self.line(key[:-1]) if key else 1

    def error(self, key: tuple[str, ...], message: str) -> CommandError:
        """An error at a key."""
        name = ".".join(key)
        return CommandError(f"{self.path}, line {self.line(key)}: {name}: {message}", BAD_INPUT)


def _has(table: Any, key: tuple[str, ...]) -> bool:
    for part in key:
        if not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True


class Section:
    """One table of a config. What nobody asked for by the end is an unknown key."""

    def __init__(self, document: Document, key: tuple[str, ...], content: dict[str, Any]) -> None:
        """See a table; :meth:`section` and :attr:`Document.root` make these."""
        self.document, self.key, self.content = document, key, content
        self._asked: dict[str, None] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the key is given."""
        return name in self.content

    def take(self, name: str, *kinds: type, default: Any = REQUIRED) -> Any:
        """The value of a key.

        Args:
            name: the key.
            *kinds: what its value may be; a number may be written as an integer.
            default: if the key is absent; without it the key is required.

        Raises:
            CommandError: the key is missing, or its value is something else.
        """
        self._asked[name] = None
        if name not in self.content:
            if default is REQUIRED:
                raise self.missing(name)
            return default
        value = self.content[name]
        for kind in kinds:
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                return float(value)
            if isinstance(value, kind) and not (kind is not bool and isinstance(value, bool)):
                return value
        wanted = " or ".join(KINDS[kind] for kind in kinds)
        raise self.error(name, f"expected {wanted}, got {value!r}")

    def choice(self, name: str, choices: tuple[str, ...], default: Any = REQUIRED) -> Any:
        """The value of a key that is one of some words.

        Raises:
            CommandError: it is none of them.
        """
        value = self.take(name, str, default=default)
        if name in self and value not in choices:
            raise self.unknown(name, value, choices)
        return value

    def section(self, name: str) -> Section:
        """A table in this one; an empty one if it is absent.

        Raises:
            CommandError: the key is no table.
        """
        return Section(self.document, (*self.key, name), self.take(name, dict, default={}))

    def names(self) -> tuple[str, ...]:
        """All keys, which then count as asked for."""
        self._asked.update(dict.fromkeys(self.content))
        return tuple(self.content)

    def refuse(self, name: str, why: str) -> None:
        """Refuse a key that is known, but has no place here.

        Raises:
            CommandError: it is given.
        """
        self._asked[name] = None
        if name in self:
            raise self.error(name, why)

    def finish(self) -> None:
        """Refuse keys that nobody asked for.

        Raises:
            CommandError: naming the first of them, and the nearest name there is.
        """
        for name in self.content:
            if name not in self._asked:
                known = tuple(self._asked)
                raise self.error(
                    name, f"unknown key{_nearest(name, known)}; known are {', '.join(known)}"
                )

    def error(self, name: str | None, message: str) -> CommandError:
        """An error at a key, or at the table itself."""
        key = self.key if name is None else (*self.key, name)
        return (
            self.document.error(key, message)
            if key
            else CommandError(f"{self.document.path}: {message}", BAD_INPUT)
        )

    def missing(self, name: str, otherwise: str = "") -> CommandError:
        """An error for a key that is needed, or at the key that was meant to be it."""
        strangers = [key for key in self.content if key not in self._asked]
        near = difflib.get_close_matches(name, strangers, n=1, cutoff=0.75)
        if near:
            return self.error(near[0], f"unknown key; did you mean {name!r}?")
        return self.error(None, f"needs the key {name!r}{otherwise}")

    def unknown(self, name: str, value: str, known: tuple[str, ...]) -> CommandError:
        """An error at a key whose value, or a part of it, is none of the known words."""
        near = _nearest(value, known)
        return self.error(name, f"expected {_either(known)}, got {value!r}{near}")

    @contextlib.contextmanager
    def blame(self, name: str | None = None, part: str = "") -> Iterator[None]:
        """Name this key in what the library, or a file's reader, refuses while inside.

        Args:
            name: the key; None for the table.
            part: what in its value is to blame.

        Raises:
            CommandError: instead of a ValueError, a TypeError or another CommandError.
        """
        try:
            yield
        except CommandError as error:
            located = self.error(name, f"{part}: {error}" if part else str(error))
            raise CommandError(str(located), error.code) from error
        except (ValueError, TypeError, OverflowError) as error:
            raise self.error(name, f"{part}: {told(error)}" if part else told(error)) from error


def _nearest(value: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _either(choices: tuple[str, ...]) -> str:
    return ", ".join(choices[:-1]) + f" or {choices[-1]}" if len(choices) > 1 else choices[0]
