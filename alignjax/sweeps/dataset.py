"""The results of a sweep as a labelled data set: layout, provenance, and results in memory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from alignjax.sweeps.axes import Axis, Grid, digest, label, refuse_masked
from alignjax.sweeps.spec import Output, Spec
from alignjax.sweeps.trace import Traced, title

if TYPE_CHECKING:
    import xarray

Coordinate = tuple[tuple[str, ...], np.ndarray, dict[str, Any]]


def zip_names(dims: Mapping[Any, Any] | None) -> dict[tuple[str, ...], str]:
    """The names that ``dims`` gives to the dimensions of zipped axes.

    Raises:
        TypeError: if ``dims`` is no mapping, or such a name is no text.
    """
    if dims is not None and not isinstance(dims, Mapping):
        raise TypeError(f"dims must map outputs to names of their dimensions, got {dims!r}")
    named = {name: value for name, value in (dims or {}).items() if isinstance(name, tuple)}
    for name, value in named.items():
        if not isinstance(value, str):
            raise TypeError(f"dims[{name!r}] must name one dimension, got {value!r}")
    return named


def layout(
    run: Callable[..., Any],
    grid: Grid,
    traced: Sequence[Traced],
    dims: Mapping[Any, Any] | None,
    units: Mapping[str, str] | None,
    key: jax.Array | None,
    device: jax.Device,
) -> Spec:
    """All that is known about the results before the first run; its blocks are set later.

    Raises:
        TypeError: for names and units that are no text.
        ValueError: for names of outputs, dimensions and units that do not fit together.
    """
    named = {name: value for name, value in (dims or {}).items() if not isinstance(name, tuple)}
    shapes = traced[0].outputs
    if units is not None and not isinstance(units, Mapping):
        raise TypeError(f"units must map axes and outputs to units, got {units!r}")
    for argument, given in (("dims", named), ("units", units or {})):
        known = [*shapes, *(grid.names if argument == "units" else ())]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(
                f"{argument} names {unknown[0]!r}, but there are only {', '.join(sorted(known))}"
            )
    units = _checked_units(units)
    coords = _sweep_coords(grid, units)
    sweep_dims = {dimension.name: dimension.size for dimension in grid.dimensions}
    outputs = {
        name: Output(
            _output_dims(name, len(shape.shape), named.get(name)),
            tuple(shape.shape),
            np.dtype(shape.dtype).name,
            units.get(name),
        )
        for name, shape in shapes.items()
    }
    sizes = dict(sweep_dims)
    for name, output in outputs.items():
        for dim, size in zip(output.dims, output.shape, strict=True):
            if dim in sweep_dims or dim in coords:
                raise ValueError(
                    f"output {name!r} has a dimension {dim!r}, which is the name of an axis: "
                    f"choose another name in dims"
                )
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"dimension {dim!r} has size {size} in output {name!r}, but {sizes[dim]} in "
                    f"another: choose another name in dims"
                )
    for name in outputs:
        if name in sizes or name in coords:
            raise ValueError(
                f"output {name!r} has the name of a dimension or an axis: return it under another"
            )
    for name, value in named.items():
        if isinstance(value, Mapping):
            coords.update(_output_coords(name, value, sizes))
    fingerprint = _fingerprint(run, grid, traced, key, device.platform)
    return Spec(
        dims=sweep_dims,
        block=tuple(sweep_dims.values()),
        outputs=outputs,
        coords=coords,
        attrs=_provenance(run, grid, fingerprint, device.device_kind),
        fingerprint=fingerprint,
    )


def _checked_units(units: Mapping[str, str] | None) -> dict[str, str]:
    for name, unit in (units or {}).items():
        if not isinstance(unit, str):
            raise TypeError(f"units[{name!r}] must be text, got {unit!r}")
    return dict(units or {})


def _output_dims(name: str, ndim: int, given: Any) -> tuple[str, ...]:
    if given is None:
        return tuple(f"{name}_{i}" for i in range(ndim))
    if not isinstance(given, (str, Sequence, Mapping)):
        raise TypeError(f"dims[{name!r}] must be names, as text, got {given!r}")
    names = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(n, str) and n for n in names):
        raise TypeError(f"dims[{name!r}] must be names, as text, got {given!r}")
    if len(names) != ndim:
        raise ValueError(
            f"dims[{name!r}] names {len(names)} dimension(s) {names}, but one run's {name!r} has "
            f"{ndim}"
        )
    if len(set(names)) != ndim:
        raise ValueError(f"dims[{name!r}] names a dimension twice: {names}")
    return names


def _output_coords(name: str, given: Mapping[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    coords: dict[str, Coordinate] = {}
    for dim, values in given.items():
        if values is None:
            continue
        array = _coordinate(values, f"dims[{name!r}][{dim!r}]")
        if array.shape != (sizes[dim],):
            raise ValueError(
                f"dims[{name!r}][{dim!r}] must be the {sizes[dim]} coordinates of this dimension, "
                f"got shape {array.shape}"
            )
        coords[dim] = ((dim,), array, {})
    return coords


def _coordinate(values: Any, name: str) -> np.ndarray:
    """Numbers, text or dates in a dtype that files give back as it is.

    Raises:
        TypeError: for anything else.
        ValueError: if some are masked, or dates are out of the range of nanoseconds.
    """
    refuse_masked(values, name)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise TypeError(f"{name} must be an array: {error}") from error
    is_text = array.dtype.kind in "OT" and all(isinstance(v, str) for v in array.flat)
    if is_text:
        return array.astype(object).astype(str)
    if array.dtype.kind == "M":
        exact = array.astype("datetime64[ns]")
        if not np.array_equal(exact.astype(array.dtype), array, equal_nan=True):
            raise ValueError(f"{name} holds dates that datetime64[ns] cannot hold: {array.dtype}")
        return exact
    if array.dtype == np.float16:  # which pandas does not index
        return array.astype(np.float32)
    has_unit = array.dtype.kind != "m" or np.datetime_data(array.dtype)[0] != "generic"
    is_long = array.dtype.itemsize > {"f": 8, "c": 16}.get(array.dtype.kind, math.inf)
    if array.dtype.kind not in "biufcUm" or is_long or not has_unit:
        raise TypeError(
            f"{name} must hold numbers, text or dates (numpy.datetime64), got dtype {array.dtype}"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _sweep_coords(grid: Grid, units: Mapping[str, str]) -> dict[str, Coordinate]:
    coords: dict[str, Coordinate] = {}
    for dimension in grid.static:
        attrs = {"units": units[dimension.name]} if dimension.name in units else {}
        coords[dimension.name] = ((dimension.name,), _labels(dimension.choices), attrs)
    for dimension in grid.swept:
        for axis in dimension.axes:
            attrs = {"units": units[axis.name]} if axis.name in units else {}
            coords[axis.name] = ((dimension.name,), axis.coordinate, attrs | _axis_attrs(axis))
    return coords


def _labels(choices: Sequence[Any]) -> np.ndarray:
    labels = [label(choice) for choice in choices]
    if any(isinstance(value, str) for value in labels):
        labels = [str(value) for value in labels]
    if len(set(labels)) < len(labels):
        labels = [f"{value} [{i}]" for i, value in enumerate(labels)]
    return np.asarray(labels)


def _axis_attrs(axis: Axis) -> dict[str, Any]:
    if axis.key_type is not None:
        return {"entries": f"random keys, counted ({axis.key_type})"}
    if not axis.has_scalars:
        return {"entries": f"arrays of shape {axis.values.shape[1:]}, counted"}
    if axis.values.dtype != axis.coordinate.dtype:
        return {"computed_in": axis.values.dtype.name}
    return {}


def _fingerprint(
    run: Callable[..., Any],
    grid: Grid,
    traced: Sequence[Traced],
    key: jax.Array | None,
    platform: str,
) -> dict[str, Any]:
    return {
        "function": _full_name(run),
        "programs": [one.fingerprint() for one in traced],
        "dimensions": {dimension.name: dimension.size for dimension in grid.dimensions},
        "axes": {
            axis.name: {
                "dtype": str(axis.entry.dtype),
                "shape": list(axis.values.shape),
                "values": digest(axis.values),
            }
            for axis in grid.axes
        },
        "static": {d.name: [label(choice) for choice in d.choices] for d in grid.static},
        "outputs": {
            name: {"dtype": np.dtype(o.dtype).name, "shape": list(o.shape)}
            for name, o in traced[0].outputs.items()
        },
        "key": None if key is None else f"{key.dtype} {digest(key)}",
        "platform": platform,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
    }


def _provenance(
    run: Callable[..., Any], grid: Grid, fingerprint: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """Where results come from, as attributes that every file format holds: text and numbers."""
    names = ["jax", "jaxlib", "numpy", *dict.fromkeys([__name__, getattr(run, "__module__", "")])]
    versions = {"python": python_version()}
    for name in names:
        package = (name or "").partition(".")[0]
        version = _version(package)
        if version is not None:
            versions[package] = version
    text = json.dumps(fingerprint, sort_keys=True)
    found = {
        "function": fingerprint["function"],
        "runs": grid.size,
        "config_hash": hashlib.sha256(text.encode()).hexdigest(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "platform": fingerprint["platform"],
        "device": device,
        "x64": str(jax.config.read("jax_enable_x64")),
    }
    commit = _commit(run)
    return found if commit is None else found | {"commit": commit}


def _full_name(run: Callable[..., Any]) -> str:
    function = getattr(run, "func", run)
    name = getattr(function, "__qualname__", title(run))
    return f"{getattr(function, '__module__', None) or '?'}.{name}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        found = getattr(sys.modules.get(package), "__version__", None)
        return found if isinstance(found, str) else None


def _commit(run: Callable[..., Any]) -> str | None:
    """The commit of the repository that the run's file lies in, marked where it was changed."""
    try:
        folder = Path(inspect.getfile(inspect.unwrap(getattr(run, "func", run)))).parent
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (TypeError, OSError, subprocess.TimeoutExpired):
        return None  # typed at a prompt, or no git: there is no commit to tell
    return told.stdout.strip() or None if told.returncode == 0 else None


class MemoryTarget:
    """Results kept in memory: what a sweep without a store writes to."""

    def __init__(self, spec: Spec) -> None:
        """Make room for all results of ``spec``.

        Raises:
            MemoryError: if they do not fit.
        """
        self._spec = spec
        try:
            self._arrays = {
                name: np.empty(spec.shape + output.shape, output.dtype)
                for name, output in spec.outputs.items()
            }
        except MemoryError as error:
            raise MemoryError(
                f"the results of {math.prod(spec.shape):,} runs do not fit in memory ({error}): "
                f"give store=, the path of a store on disk, or return less from each run"
            ) from error
        self._missing = dict.fromkeys(spec.blocks())

    def missing(self) -> list[tuple[int, ...]]:
        """Indices of the blocks that are not complete yet."""
        return list(self._missing)

    def has(self, block: tuple[int, ...]) -> bool:
        """Whether a block is complete by now."""
        return block not in self._missing

    def write(self, block: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> None:
        """Keep one block."""
        region = self._spec.region(block)
        for name, values in arrays.items():
            self._arrays[name][region] = values
        del self._missing[block]

    def dataset(self) -> xarray.Dataset:
        """All results, with coordinates and attributes."""
        import xarray

        dims = tuple(self._spec.dims)
        variables = {
            name: (
                dims + output.dims,
                self._arrays[name],
                {} if output.units is None else {"units": output.units},
            )
            for name, output in self._spec.outputs.items()
        }
        return xarray.Dataset(variables, dict(self._spec.coords), self._spec.attrs)
