"""``alignjax plot``: which part of a store is drawn, and how."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignjax.cli.console import show
from alignjax.cli.errors import BAD_INPUT, CANNOT_WRITE, MISSING_FILE, USAGE, CommandError, told
from alignjax.cli.files import check_output
from alignjax.sweeps.store_manifest import COMPLETE, read_manifest

if TYPE_CHECKING:
    import xarray

SUFFIXES = (".png", ".pdf", ".svg")
ENDING = ("status", "stopped_at", COMPLETE)
DIVERGED = 1
"""``alignjax.Status.DIVERGED``; a store of another function may give ``status`` another meaning."""

SHARE = "share of runs that diverged"
LONG = 6
"""A dimension with this many numbers is an axis of a map; a shorter one makes panels or lines."""
MOST_PANELS = 6
TIMES = ("step", "time")


@dataclass(frozen=True)
class Wanted:
    """What was asked: see ``alignjax plot --help``."""

    variable: str | None = None
    x: str | None = None
    y: str | None = None
    select: tuple[str, ...] = ()
    average: str = "median"


@dataclass(frozen=True)
class Picture:
    """What is drawn: values over at most four dimensions, of which the last two are axes.

    Attributes:
        name: the variable.
        values: dimensions (panel, line, x) for lines and (panel, y, x) for a map, those that are
            there; runs that diverged are NaN.
        low, high: for lines the band over seeds, else None.
        diverged: the share of runs that diverged.
        panel, second, x: the dimensions' names, None for those that are not there.
        is_map: whether ``second`` is the axis upwards.
        average: what was taken over seeds, for the label; empty if there was one run.
        at: what was selected of other dimensions, for the label.
        notes: what was left out, for the person at the terminal.
    """

    name: str
    values: xarray.DataArray
    low: xarray.DataArray | None
    high: xarray.DataArray | None
    diverged: xarray.DataArray
    panel: str | None
    second: str | None
    x: str
    is_map: bool
    average: str
    at: str
    notes: tuple[str, ...]


def plot_store(store: Path, wanted: Wanted, out: Path | None) -> None:
    """Draw a store into a file."""
    if wanted.average not in ("median", "mean"):
        raise CommandError(f"--average: expected median or mean, got {wanted.average!r}", USAGE)
    data = _open(store)
    # Of a store such as `run.0.1`, the end of the name is no suffix.
    target = store.resolve().parent / f"{store.resolve().name.removesuffix('.zarr')}.png"
    target = target if out is None else out
    check_output(target, SUFFIXES)
    picture = choose(data, wanted)
    from alignjax.cli.draw import draw

    figure = draw(picture)
    try:
        figure.savefig(target)
    except OSError as error:
        raise CommandError(f"--out {target}: {error.strerror}", CANNOT_WRITE) from error
    for note in picture.notes:
        show(note)
    show(f"{picture.name} over {_listed(picture)} in {target}")


def _listed(picture: Picture) -> str:
    names = (picture.x, picture.second, picture.panel)
    return ", ".join(name for name in names if name is not None)


def _open(store: Path) -> xarray.Dataset:
    import xarray

    if not store.exists():
        raise CommandError(f"{store}: there is no such store", MISSING_FILE)
    try:
        if not store.is_dir() or read_manifest(store) is None:
            raise CommandError(f"{store}: is no store of a sweep", BAD_INPUT)
        return xarray.open_zarr(str(store), chunks=None, consolidated=True).load()
    except (ValueError, OSError, RuntimeError) as error:
        raise CommandError(
            f"{store}: cannot be read: {told(error)}\nThe same sweep, run again, finds and repairs "
            f"damaged blocks"
        ) from error


def choose(data: xarray.Dataset, wanted: Wanted) -> Picture:
    """Decide what is drawn.

    Args:
        data: a store, with ``complete``.
        wanted: what was asked for.

    Raises:
        CommandError: for names and values that are not there.
    """
    data, notes = _along_partners(data, wanted), []
    complete = data[COMPLETE]
    missing = int((~complete).sum())
    if missing == complete.size:
        raise CommandError("the store holds no finished run yet")
    if missing:
        notes.append(f"{missing:,} of {complete.size:,} runs are not finished and left blank.")
    name = wanted.variable or _first_variable(data)
    if name not in data.data_vars or name == COMPLETE:
        known = ", ".join(str(v) for v in data.data_vars if v != COMPLETE)
        raise CommandError(f"--variable {name}: the store has {known}", USAGE)
    data, at = _select(data, wanted.select)
    values, diverged = _values(data, name)
    is_share = values.attrs.get("long_name") == SHARE
    seeds = [str(d) for d in values.dims if "seed" in str(d) and d not in (wanted.x, wanted.y)]
    average = "mean" if is_share else wanted.average
    values, low, high, diverged = _averaged(values, diverged, seeds, average)
    x, second, panel, is_map = _roles(values, data, wanted)
    kept = [d for d in (panel, second, x) if d is not None]
    for dim in [str(d) for d in values.dims if d not in kept]:
        size = values.sizes[dim]
        place = size - 1 if dim not in complete.dims else size // 2
        values = values.isel({dim: place})
        low, high = (None if band is None else band.isel({dim: place}) for band in (low, high))
        diverged = diverged.isel({dim: place}) if dim in diverged.dims else diverged
        if size > 1:
            value = _shown(values.coords[dim].item()) if dim in values.coords else f"{place}"
            at.append(f"{dim.replace('_', ' ')} {value}")
            notes.append(f"{dim} is {value}, of {size}; --select {dim}=VALUE shows another.")
    shared = [d for d in kept if d in diverged.dims]
    return Picture(
        name=name,
        values=values.transpose(*kept),
        low=None if low is None or is_map else low.transpose(*kept),
        high=None if high is None or is_map else high.transpose(*kept),
        diverged=diverged.transpose(*shared),
        panel=panel,
        second=second,
        x=x,
        is_map=is_map,
        average=f"{wanted.average} over {', '.join(seeds)}" if seeds and not is_share else "",
        at=f" at {', '.join(at)}" if at else "",
        notes=tuple(notes),
    )


def _along_partners(data: xarray.Dataset, wanted: Wanted) -> xarray.Dataset:
    """The data with a zipped axis that was asked for as the dimension it shares with others.

    Raises:
        CommandError: ``--x`` and ``--y`` share one.
    """
    shared = [data[n].dims for n in (wanted.x, wanted.y) if n is not None and n in data.coords]
    if len(shared) == 2 and shared[0] == shared[1] and wanted.x != wanted.y:
        raise CommandError(f"--y {wanted.y}: runs together with --x {wanted.x}", USAGE)
    names = [wanted.x, wanted.y, *(text.partition("=")[0] for text in wanted.select)]
    for name in (name for name in names if name in _partners(data)):
        # Lines join neighbours, and the values of a partner come in any order.
        data = data.swap_dims({data[name].dims[0]: name}).sortby(name)
    return data


def _partners(data: xarray.Dataset) -> list[str]:
    """Coordinates along a dimension that has another name: zipped axes."""
    return [str(name) for name, at in data.coords.items() if at.ndim == 1 and name not in at.dims]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _first_variable(data: xarray.Dataset) -> str:
    names = [str(name) for name in data.data_vars if name not in ENDING]
    preferred = [name for name in ("risk", "excess_risk", "log_risk", "loss") if name in names]
    return (preferred or names or ["status"])[0]


def _select(data: xarray.Dataset, select: Sequence[str]) -> tuple[xarray.Dataset, list[str]]:
    """The part that was asked for, and what it is, for labels."""
    chosen = []
    for text in select:
        dim, equals, value = text.partition("=")
        if not equals or dim not in data.sizes:
            known = ", ".join([*map(str, data.sizes), *_partners(data)])
            raise CommandError(f"--select {text}: expected DIM=VALUE with DIM of {known}", USAGE)
        values = data[dim].values
        if values.dtype.kind in "biuf":
            try:
                number = float(value)
            except ValueError as error:
                raise CommandError(f"--select {text}: expected a number", USAGE) from error
            if np.isnan(number):
                raise CommandError(f"--select {text}: expected a number", USAGE)
            place = int(np.abs(values.astype(float) - number).argmin())
        else:
            found = np.flatnonzero(values.astype(str) == value)
            if not found.size:
                known = ", ".join(values.astype(str))
                raise CommandError(f"--select {text}: {dim} has {known}", USAGE)
            place = int(found[0])
        data = data.isel({dim: place})
        chosen.append(f"{dim.replace('_', ' ')} {_shown(values[place].item())}")
    return data, chosen


def _values(data: xarray.Dataset, name: str) -> tuple[Any, Any]:
    """The variable with NaN where a run is missing or diverged, and which runs diverged."""
    complete = data[COMPLETE]
    has_status = "status" in data.data_vars and set(data["status"].dims) == set(complete.dims)
    diverged = (data["status"] == DIVERGED) if has_status else ~complete & False
    diverged = diverged.where(complete).astype(float)
    values = data[name]
    if values.dtype.kind not in "biuf" or not values.size:
        what = "no entries" if not values.size else f"dtype {values.dtype}, and not real numbers"
        raise CommandError(f"--variable {name}: has {what}", USAGE)
    if name == "status":
        shown = diverged.copy()
        shown.attrs = {"long_name": SHARE}
        return shown, diverged * 0
    attrs = values.attrs
    values = values.astype(float).where(complete)
    if name in ENDING:
        diverged = diverged * 0
    values = values.where(np.isfinite(values) & ~(diverged == 1))
    values.attrs = attrs
    return values, diverged


def _averaged(values: Any, diverged: Any, seeds: list[str], average: str) -> tuple[Any, ...]:
    """Over seeds: the middle, a band from the 10th to the 90th percentile, the diverged share."""
    if not seeds:
        return values, None, None, diverged
    attrs = values.attrs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(All-NaN|Mean of empty)", RuntimeWarning)
        middle = getattr(values, average)(seeds)
        low, high = (values.quantile(q, seeds).drop_vars("quantile") for q in (0.1, 0.9))
        diverged = diverged.mean([d for d in seeds if d in diverged.dims])
    middle.attrs = attrs
    # Where half of the runs diverged, what the others did is no summary.
    settled = diverged < 0.5
    return middle.where(settled), low.where(settled), high.where(settled), diverged


def _roles(
    values: Any, data: xarray.Dataset, wanted: Wanted
) -> tuple[str, str | None, str | None, bool]:
    """The axis to the right, the axis upwards or the lines, the panels, and whether it is a map."""
    swept = [str(d) for d in data[COMPLETE].dims if d in values.dims]
    own = [str(d) for d in values.dims if d not in swept]
    for option, dim in (("--x", wanted.x), ("--y", wanted.y)):
        if (
            dim is not None
            and dim not in (*swept, *own)
            and not (option == "--y" and dim == "none")
        ):
            zipped = [name for name in _partners(data) if data[name].dims[0] in swept]
            known = ", ".join([*swept, *zipped, *own]) or "none left"
            raise CommandError(f"{option} {dim}: expected one of {known}", USAGE)
    if wanted.x is not None and wanted.x == wanted.y:
        raise CommandError(f"--y {wanted.y}: is --x already", USAGE)
    numbers = [d for d in swept if _is_numeric(values, d) and values.sizes[d] > 1]
    # The longest axes first, and of equal ones the first.
    numbers.sort(key=lambda d: -values.sizes[d])
    along = [d for d in own if values.sizes[d] > 1]
    candidates = [d for d in [*numbers, *along] if values.sizes[d] >= LONG]
    candidates += [*numbers, *along, *swept, *own]
    x = wanted.x or next((d for d in candidates if d != wanted.y), None)
    if x is None:
        averaged = [str(d) for d in data[COMPLETE].dims if d not in values.dims]
        hint = f"; --x {averaged[0]} shows each run" if averaged else ""
        raise CommandError(f"there is one number only, and nothing to draw it over{hint}", USAGE)
    rest = [d for d in [*numbers, *swept] if d != x and values.sizes[d] > 1]
    # A quantity's few own entries (layers, modes) make lines or panels, its save points do not.
    rest += [d for d in along if d != x and values.sizes[d] <= MOST_PANELS and d not in TIMES]
    rest = list(dict.fromkeys(rest))
    if wanted.y == "none":
        second, is_map = None, False
    elif wanted.y is not None:
        second, is_map = wanted.y, True
    else:
        second = next((d for d in rest if d in numbers and values.sizes[d] >= LONG), None)
        is_map = second is not None
    rest = [d for d in rest if d != second]
    if not is_map and rest:
        second = rest.pop(0)
    panel = next((d for d in rest if values.sizes[d] <= MOST_PANELS), None)
    return x, second, panel, is_map


def _is_numeric(values: Any, dim: str) -> bool:
    return dim in values.coords and values.coords[dim].dtype.kind in "iuf"
