"""The engine's figure for the README."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from benchmarks import peers
from benchmarks.engine import OURS, OURS_XLA, width_of
from benchmarks.scaling import SERIES
from benchmarks.timing import Row
from experiments import style

__all__ = ["draw"]

BLUE, RED, GREEN, PINK, _, SKY, _ = style.COLORS
SHADES = 64
"""Colours of the PNG: enough for smooth lines, and half the bytes."""
LINES: dict[str, dict[str, Any]] = {
    peers.C_KERNEL: {"label": "plain C (the limit)", "color": "#999999", "ls": "--", "marker": ""},
    OURS: {"label": "alignjax", "color": BLUE, "marker": "o", "lw": 2.0, "zorder": 5},
    OURS_XLA: {"label": "alignjax on XLA", "color": SKY, "marker": "o", "mfc": "white"},
    peers.PLAIN: {"label": "plain JAX", "color": RED, "marker": "s"},
    peers.TORCH: {"label": "PyTorch bmm", "color": GREEN, "marker": "^"},
    peers.TORCH_COMPILED: {
        "label": "torch.compile",
        "color": GREEN,
        "marker": "v",
        "ls": ":",
    },
    peers.NUMPY: {"label": "NumPy", "color": PINK, "marker": "D"},
}
"""How each contender is drawn; that of an engine by name is where "auto" or XLA already are."""

LEGEND = {
    "networks": "more networks (per network)",
    "steps": "more steps (per step)",
    "depth": "more layers (per matrix product)",
    "samples": "more samples (per step)",
}


def draw(rows: Sequence[Row], path: Path, *, machine: str) -> None:
    """GFLOP/s against the width, and time per unit of cost against size.

    Args:
        rows: of the benchmarks ``engine`` (its float32 cases, marked), ``widths`` and ``scaling``.
        path: where the PNG goes.
        machine: what measured, for the small print.
    """
    with style.paper():
        fig, (left, right) = style.subplots(1, 2, width="double", height=2.7, width_ratios=(1.3, 1))
        _widths(left, rows)
        _scaling(right, rows)
        style.add_note(
            fig,
            "Three layers, float32, 1,024 networks (16,384 up to k = 4; 128 from k = 96, 32 from "
            f"192); operations are those of the 6 products that a step needs, for all. {machine}.",
        )
        drawn = io.BytesIO()
        fig.savefig(drawn)
        style.plt.close(fig)
    Image.open(drawn).convert("RGB").quantize(SHADES).save(path, optimize=True)


def _widths(axes: Any, rows: Sequence[Row]) -> None:
    every: set[int] = set()
    for contender, look in LINES.items():
        points = sorted(
            (width_of(row), row.gflops, row.benchmark)
            for row in rows
            if row.benchmark in ("engine", "widths")
            and row.contender == contender
            and row.gflops is not None
            and "float64" not in row.case
        )
        if points:
            widths, rates, names = zip(*points, strict=True)
            marked = [i for i, name in enumerate(names) if name == "engine"]
            axes.plot(widths, rates, markevery=marked, **look)
            every |= {widths[i] for i in marked}
    axes.set(xscale="log", yscale="log", xlabel="width $k$", ylabel="GFLOP/s")
    axes.xaxis.set_major_locator(FixedLocator(sorted(every)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.grid(axis="y")
    axes.legend(loc="lower right", ncols=1)


def _scaling(axes: Any, rows: Sequence[Row]) -> None:
    for series, marker in zip(SERIES, "o^sD", strict=True):
        found = [r for r in rows if (r.benchmark, r.case) == ("scaling", series)]
        sizes = [int(row.contender.split()[1].replace(",", "")) for row in found]
        if found:
            factors = [size / sizes[0] for size in sizes]
            ratios = [row.ratio for row in found]
            axes.plot(factors, ratios, marker=marker, label=LEGEND[series])
    axes.axhline(1, color="#999999", lw=0.6, zorder=0)
    axes.set(xscale="log", ylim=(0, 1.6), xlabel="size over the smallest")
    axes.set_ylabel("time per unit of cost, smallest size = 1")
    axes.legend(loc="lower left")
