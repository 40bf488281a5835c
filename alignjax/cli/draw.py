"""Figures of sweeps, in the sizes, type and colours of a paper."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from alignjax.cli.plot import Picture

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which stay apart for every kind of colour vision."""
MAP, DIVERGED = "viridis", "#c9c9c9"
LONGEST = 38
MOST_LINES, MOST_BANDS = 9, 4
DECADES = 20
WIDE = 100.0
"""Values whose largest is this many times their smallest are shown on a logarithmic scale."""

STYLE: dict[Any, Any] = {
    "font.family": ["STIXGeneral", "DejaVu Serif"],
    "mathtext.fontset": "stix",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "xtick.minor.size": 1.6,
    "ytick.minor.size": 1.6,
    "lines.linewidth": 1.3,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 220,
    # text in a PDF stays text that a journal accepts
    "pdf.fonttype": 42,
}
LABELS = {
    "learning_rate": "learning rate η",
    "scale": "initial scale",
    "stopped_at": "steps taken",
    "norms": "norm of the layer",
    "seed": "seed",
}


def draw(picture: Picture) -> Figure:
    """The figure of a picture: a map or lines, one panel a value of ``picture.panel``."""
    with matplotlib.rc_context(STYLE):
        panels = _panels(picture)
        columns = min(len(panels), 3)
        rows = -(-len(panels) // columns)
        widths = {1: 3.9, 2: 6.0, 3: 7.6}
        figure = Figure(figsize=(widths[columns], 0.4 + 2.45 * rows))
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        drawer = _draw_maps if picture.is_map else _draw_lines
        drawer(picture, figure, list(axes.flat)[: len(panels)], panels)
        for panel, (title, *_) in zip(axes.flat, panels, strict=False):
            panel.set_title(title)
        for panel in list(axes.flat)[len(panels) :]:
            panel.set_visible(False)
        figure.supxlabel(label(picture.values.coords.get(picture.x), picture.x), fontsize=9)
        return figure


def label(variable: Any, name: str) -> str:
    """A name in words, with its unit."""
    attrs = {} if variable is None else variable.attrs
    text = attrs.get("long_name", LABELS.get(name, name.replace("_", " ")))
    return plain(f"{text} [{attrs['units']}]" if attrs.get("units") else text)


def plain(text: str) -> str:
    """Text that is drawn as it stands, where dollars would make it a formula."""
    return text.replace("$", r"\$")


def is_geometric(values: np.ndarray) -> bool:
    """Whether numbers are spaced evenly in the logarithm rather than evenly.

    >>> is_geometric(np.geomspace(1, 100, 5)), is_geometric(np.linspace(1, 100, 5))
    (True, False)
    """
    values = np.asarray(values, float)
    # Save points spaced in the logarithm begin at 0 all the same.
    positive = values[1:] if len(values) > 3 and values[0] == 0 else values
    if len(positive) < 2 or positive.min() <= 0 or positive.max() < 8 * positive.min():
        return False
    if len(positive) == 2:
        return True
    gaps, ratios = np.diff(positive), np.diff(np.log(positive))
    return bool(ratios.std() * abs(gaps.mean()) < gaps.std() * abs(ratios.mean()))


def edges(centers: np.ndarray, *, geometric: bool) -> np.ndarray:
    """The boundaries of cells around centers: halfway, in the logarithm where that is the scale.

    >>> edges(np.array([1.0, 2.0, 3.0]), geometric=False).tolist()
    [0.5, 1.5, 2.5, 3.5]
    """
    at = np.log(centers) if geometric else np.asarray(centers, float)
    if len(at) == 1:
        found = np.array([at[0] - 0.5, at[0] + 0.5])
    else:
        middle = (at[1:] + at[:-1]) / 2
        found = np.concatenate([[2 * at[0] - middle[0]], middle, [2 * at[-1] - middle[-1]]])
    return np.exp(found) if geometric else found


def _panels(picture: Picture) -> list[tuple[str, dict[str, int]]]:
    """Titles, and what selects each panel."""
    if picture.panel is None:
        return [("", {})]
    name = picture.panel
    values = _coordinates(picture, name)
    words = label(picture.values.coords.get(name), name)
    return [(f"{words} = {_number(v)}", {name: i}) for i, v in enumerate(values)]


def _coordinates(picture: Picture, dim: str) -> np.ndarray:
    if dim in picture.values.coords:
        return np.asarray(picture.values.coords[dim].values)
    return np.arange(picture.values.sizes[dim])


def _number(value: Any) -> str:
    is_float = isinstance(value, (float, np.floating))
    return f"{value:.3g}" if is_float else plain(str(value))


def _at(array: Any, index: dict[str, int]) -> Any:
    """An array at those of the indices whose dimension it has."""
    return array.isel({dim: i for dim, i in index.items() if dim in array.dims})


def _places(picture: Picture, dim: str) -> tuple[np.ndarray, bool, list[str] | None]:
    """Where a dimension's values lie, whether on a logarithmic axis, and labels if no numbers."""
    values = _coordinates(picture, dim)
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        return np.arange(len(values)), False, [_number(v) for v in values]
    return values.astype(float), is_geometric(values), None


def _set_axis(axis: Any, geometric: bool, names: list[str] | None, places: np.ndarray) -> None:
    if geometric:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    if names is not None:
        axis.set_ticks(places, labels=names)


def _is_wide(values: np.ndarray) -> bool:
    """Whether a logarithmic scale suits the values; zeros are shown as the smallest other."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    return bool(
        positive.size
        and finite.min() >= 0
        and 2 * positive.size > finite.size
        and positive.max() > WIDE * positive.min()
    )


def _draw_maps(
    picture: Picture, figure: Figure, axes: Sequence[Any], panels: Sequence[Any]
) -> None:
    assert picture.second is not None  # of a map
    x, x_log, x_names = _places(picture, picture.x)
    y, y_log, y_names = _places(picture, picture.second)
    # A logarithmic axis has no place for a first value of 0.
    x_from, y_from = int(x_log and x[0] == 0), int(y_log and y[0] == 0)
    x, y = x[x_from:], y[y_from:]
    order_x, order_y = np.argsort(x), np.argsort(y)
    norm = _scale(picture.values.values)
    lowest = 0.0 if norm.vmin is None else norm.vmin
    colors = matplotlib.colormaps[MAP].copy()
    mesh, has_diverged = None, False
    for axis, (_, index) in zip(axes, panels, strict=True):
        cells = _at(picture.values, index).values[y_from:, x_from:]
        if isinstance(norm, LogNorm):
            cells = np.maximum(cells, lowest)
        share = _at(picture.diverged, index)
        share = share.broadcast_like(_at(picture.values, index)).transpose(
            picture.second, picture.x
        )
        grey = share.values[y_from:, x_from:] >= 0.5
        has_diverged |= bool(grey.any())
        place = (edges(x[order_x], geometric=x_log), edges(y[order_y], geometric=y_log))
        cut = np.ix_(order_y, order_x)
        background = np.where(grey, 1.0, np.nan)[cut]
        axis.pcolormesh(*place, background, cmap=_one_color(DIVERGED), rasterized=True)
        mesh = axis.pcolormesh(*place, cells[cut], cmap=colors, norm=norm, rasterized=True)
        _set_axis(axis.xaxis, x_log, x_names, x)
        _set_axis(axis.yaxis, y_log, y_names, y)
    figure.supylabel(label(picture.values.coords.get(picture.second), picture.second), fontsize=9)
    if mesh is not None and np.isfinite(picture.values.values).any():
        low = isinstance(norm, LogNorm) and np.nanmin(picture.values.values) < lowest
        bar = figure.colorbar(mesh, ax=list(axes), pad=0.02, extend="min" if low else "neither")
        bar.set_label(_value_label(picture))
        bar.outline.set_linewidth(0.6)
    if has_diverged:
        patch = Patch(facecolor=DIVERGED, label=_diverged_words(picture))
        figure.legend(handles=[patch], loc="outside upper right")


def _scale(values: np.ndarray) -> Normalize:
    """Colours over the finite values, over at most :data:`DECADES` of a logarithmic scale."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Normalize()
    if not _is_wide(values):
        return Normalize(finite.min(), finite.max())
    lowest = max(finite[finite > 0].min(), finite.max() * 10.0**-DECADES)
    return LogNorm(lowest, finite.max())


def _value_label(picture: Picture) -> str:
    """What the values are; long ones on several lines, for the height of a panel."""
    words = label(picture.values, picture.name) + plain(picture.at)
    return textwrap.fill(
        f"{words}, {plain(picture.average)}" if picture.average else words, LONGEST
    )


def _one_color(color: str) -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([color])


def _diverged_words(picture: Picture) -> str:
    return "at least half of the runs diverged" if picture.average else "diverged"


def _draw_lines(
    picture: Picture, figure: Figure, axes: Sequence[Any], panels: Sequence[Any]
) -> None:
    x, x_log, x_names = _places(picture, picture.x)
    if x_log and x[0] == 0:  # a logarithmic axis has no place for it
        x, picture = x[1:], _without_first(picture)
    lines = _lines(picture)
    y_log = _is_wide(picture.values.values)
    has_diverged = False
    for axis, (_, index) in zip(axes, panels, strict=True):
        for color, style, name, line in lines:
            one = {**index, **line}
            y = _at(picture.values, one).values
            many = len(x) > 25
            axis.plot(
                x, y, style, color=color, label=name, marker=None if many else "o", markersize=2.5
            )
            # More bands than a few hide each other.
            if picture.low is not None and picture.high is not None and len(lines) <= MOST_BANDS:
                low, high = _at(picture.low, one).values, _at(picture.high, one).values
                axis.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
            share = _at(picture.diverged, one)
            stopped = np.broadcast_to(share.values >= 0.5, x.shape)
            has_diverged |= bool(stopped.any())
            if stopped.any():
                # At the top edge, whatever the scale: a run that diverged has no value.
                top = np.full(int(stopped.sum()), 1.0)
                axis.plot(
                    x[stopped],
                    top,
                    "x",
                    color=color,
                    markersize=3.5,
                    markeredgewidth=0.8,
                    transform=axis.get_xaxis_transform(),
                    clip_on=False,
                )
        _set_axis(axis.xaxis, x_log, x_names, x)
        if y_log:
            axis.set_yscale("log")
        axis.spines[["top", "right"]].set_visible(False)
    figure.supylabel(_value_label(picture), fontsize=9, multialignment="center")
    _add_legend(picture, figure, axes, lines, has_diverged=has_diverged)


def _without_first(picture: Picture) -> Picture:
    """A picture without the first value of the axis to the right."""
    arrays = {name: getattr(picture, name) for name in ("values", "low", "high", "diverged")}
    return dataclasses.replace(
        picture,
        **{
            name: array.isel({picture.x: slice(1, None)}, missing_dims="ignore")
            for name, array in arrays.items()
            if array is not None
        },
    )


def _lines(picture: Picture) -> list[tuple[Any, str, str, dict[str, int]]]:
    """Colour, style, name and selection of each line; of many, some that are spread evenly."""
    if picture.second is None:
        return [(COLORS[0], "-", "", {})]
    values = _coordinates(picture, picture.second)
    count = len(values)
    shown = np.unique(np.linspace(0, count - 1, min(count, MOST_LINES)).round().astype(int))
    is_scale = values.dtype.kind in "iuf" and len(shown) > len(COLORS) - 2
    ramp = matplotlib.colormaps[MAP](np.linspace(0.0, 0.9, len(shown)))
    return [
        (
            ramp[i] if is_scale else COLORS[i % len(COLORS)],
            "-",
            _number(values[place]),
            {picture.second: int(place)},
        )
        for i, place in enumerate(shown)
    ]


def _add_legend(
    picture: Picture,
    figure: Figure,
    axes: Sequence[Any],
    lines: Sequence[Any],
    *,
    has_diverged: bool,
) -> None:
    handles: list[Any] = []
    title = None
    if picture.second is not None:
        handles = [Line2D([], [], color=color, label=name) for color, _, name, _ in lines]
        title = label(picture.values.coords.get(picture.second), picture.second)
    if has_diverged:
        words = "at least half\ndiverged" if picture.average else "diverged"
        cross: dict[str, Any] = {"linestyle": "none", "marker": "x", "markersize": 4}
        handles.append(Line2D([], [], color="#555555", label=words, **cross))
    if handles:
        figure.legend(handles=handles, title=title, title_fontsize=7.5, loc="outside right upper")
