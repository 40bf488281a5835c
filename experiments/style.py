"""How figures look: sizes, type and colours fit for a paper's column."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

WIDTHS = {"single": 3.4, "double": 7.0}
"""Widths of one and two columns, in inches."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which stay apart for every kind of colour vision."""

DPI = 220
NOTE_SIZE = 6.0
NOTE_COLOR = "#555555"

PAPER: dict[Any, Any] = {
    "font.family": ["STIXGeneral", "DejaVu Serif"],
    "mathtext.fontset": "stix",
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.titlesize": 9.0,
    "figure.titlesize": 10.0,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "xtick.minor.size": 1.8,
    "ytick.minor.size": 1.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "axes.prop_cycle": cycler(color=COLORS),
    "image.cmap": "cividis",
    "figure.constrained_layout.use": True,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    # text in a PDF stays text that a journal accepts
    "pdf.fonttype": 42,
}


@contextmanager
def paper() -> Iterator[None]:
    """Draw without a display and in the style of a paper while inside.

    Example:
        >>> from experiments import style
        >>> with style.paper():
        ...     fig, axes = style.subplots()
        >>> float(fig.get_figwidth())
        3.4
        >>> style.plt.close(fig)
    """
    plt.switch_backend("Agg")
    with matplotlib.rc_context(PAPER):
        yield


def subplots(
    rows: int = 1,
    columns: int = 1,
    *,
    width: Literal["single", "double"] | float = "single",
    height: float | None = None,
    **arguments: Any,
) -> tuple[Figure, Any]:
    """A figure of one or two columns' width.

    Args:
        rows: Rows of panels.
        columns: Columns of panels.
        width: ``"single"`` (3.4 in), ``"double"`` (7 in) or inches.
        height: Inches; by default panels are 0.72 times as high as they are wide.
        **arguments: Passed to ``matplotlib.pyplot.subplots`` (``sharex``, ``sharey``, ...).

    Returns:
        The figure and its axes: one ``Axes``, or an array of them.

    Raises:
        ValueError: The width is neither a known name nor a positive number.
    """
    if isinstance(width, str) and width not in WIDTHS:
        raise ValueError(f"width: expected {', '.join(WIDTHS)} or inches, got {width!r}")
    inches = WIDTHS[width] if isinstance(width, str) else float(width)
    if not inches > 0:
        raise ValueError(f"width: expected a positive number of inches, got {width!r}")
    if height is None:
        height = 0.72 * inches / columns * rows
    return plt.subplots(rows, columns, figsize=(inches, height), **arguments)


def add_note(figure: Figure, text: str) -> None:
    """Write a line of small print below a figure, which grows to make room for it.

    Args:
        figure: A figure with constrained layout or none.
        text: What a reader must know who sees the figure alone; wrapped to the figure's width.
    """
    width, height = figure.get_size_inches()
    # a character of this type is about 0.45 of its size wide
    characters = max(20, int((width - 0.1) * 72 / (0.45 * NOTE_SIZE)))
    lines = textwrap.wrap(text, characters)
    room = (1.3 * len(lines) * NOTE_SIZE + 3) / 72
    figure.set_size_inches(width, height + room)
    engine = figure.get_layout_engine()
    if not isinstance(engine, ConstrainedLayoutEngine):
        engine = ConstrainedLayoutEngine()
        figure.set_layout_engine(engine)
    share = room / (height + room)
    engine.set(rect=(0, share, 1, 1 - share))
    figure.text(
        0.05 / width,
        0.03 / (height + room),
        "\n".join(lines),
        fontsize=NOTE_SIZE,
        color=NOTE_COLOR,
        ha="left",
        va="bottom",
        linespacing=1.2,
    )


def band(panel: Any, x: np.ndarray, values: np.ndarray, label: str, **style: Any) -> None:
    """The median over the first axis as a line, the 10th to the 90th percentile as a band."""
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=0)
    (line,) = panel.plot(x, middle, label=label, **style)
    panel.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
