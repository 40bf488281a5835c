"""What a command shows: tables and lines on standard output, errors on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A file or a pipe has no width of its own.
PLAIN_WIDTH = 120


def console() -> Console:
    """Standard output."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def show_error(message: str) -> None:
    """One error, whole, on standard error."""
    print(f"error: {message}", file=sys.stderr)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table of text; columns after the first are numbers."""
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)


def show_pairs(pairs: Mapping[str, str]) -> None:
    """Names and values, one pair a line."""
    table = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(Text(name, style="bold"), Text(value))
    console().print(table)


def show(text: str) -> None:
    """A paragraph."""
    console().print(Text(text))


def show_json(content: Any) -> None:
    """JSON in which what is not finite is null."""
    json.dump(as_json(content), sys.stdout, indent=2, allow_nan=False)
    print()


def as_json(content: Any) -> Any:
    """Arrays as lists, and null for what JSON has no number for."""
    if isinstance(content, Mapping):
        return {str(key): as_json(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [as_json(value) for value in content]
    if isinstance(content, (str, bool, int)) or content is None:
        return content
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return as_json(np.asarray(content).tolist())


def number(value: Any) -> str:
    """A number as people read it."""
    value = np.asarray(value).item()
    if isinstance(value, (bool, int)):
        return f"{value:,}"
    return f"{value:.6g}"


def size(count: float) -> str:
    """Bytes in units of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """Seconds, or minutes and hours where there are many.

    >>> duration(0.012), duration(75), duration(7500)
    ('12 ms', '1 min 15 s', '2 h 05 min')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
