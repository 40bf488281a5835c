"""The grid of a sweep: its axes read and checked, its points numbered."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# XLA packs these, NumPy does not.
_BELOW_A_BYTE = {"int1", "uint1", "int2", "uint2", "int4", "uint4", "float4_e2m1fn"}
_warned_about_float64 = False


@dataclass(frozen=True)
class Axis:
    """One swept argument of a run: its values on the host, stacked along axis 0.

    Attributes:
        name: the argument's name.
        values: shape (n, ...); of random keys, their raw data.
        coordinate: what is shown as coordinate, shape (n,): the values, or 0, 1, ... where each
            entry is an array or a key.
        key_type: the dtype of the keys where the entries are random keys, else None.
        key_impl: and their implementation.
    """

    name: str
    values: np.ndarray
    coordinate: np.ndarray
    key_type: Any = None
    key_impl: Any = None

    @property
    def entry(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of what one run receives."""
        if self.key_type is not None:
            return jax.ShapeDtypeStruct((), self.key_type)
        return jax.ShapeDtypeStruct(self.values.shape[1:], self.values.dtype)

    @property
    def has_scalars(self) -> bool:
        """Whether an entry is one number, shown as it is in the coordinate."""
        return self.key_type is None and self.values.ndim == 1

    def example(self) -> Any:
        """The first entry as a Python number or a host array."""
        return self.values[0].item() if self.has_scalars else self.values[0]


@dataclass(frozen=True)
class Dimension:
    """One dimension of the results: one axis, several zipped ones, or a static one."""

    name: str
    size: int
    axes: tuple[Axis, ...] = ()
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Grid:
    """All points of a sweep, numbered with the last dimension fastest; static dimensions first."""

    static: tuple[Dimension, ...]
    swept: tuple[Dimension, ...]

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Static dimensions, then swept ones, in the order given."""
        return self.static + self.swept

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all dimensions."""
        return tuple(dimension.size for dimension in self.dimensions)

    @property
    def size(self) -> int:
        """The number of runs."""
        return math.prod(self.shape)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Every swept argument."""
        return tuple(axis for dimension in self.swept for axis in dimension.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments a run receives, without the key."""
        return tuple(d.name for d in self.static) + tuple(axis.name for axis in self.axes)

    def combinations(self) -> Iterator[tuple[int, ...]]:
        """The index of every combination of static values."""
        return itertools.product(*(range(dimension.size) for dimension in self.static))

    def chosen(self, combination: tuple[int, ...]) -> dict[str, Any]:
        """The static values of a combination, by argument."""
        return {
            dimension.name: dimension.choices[index]
            for dimension, index in zip(self.static, combination, strict=True)
        }

    def strides(self) -> tuple[int, ...]:
        """How far one step along each dimension moves the global index of a run."""
        return tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))

    def describe(self) -> str:
        """The dimensions and sizes, for messages."""
        sizes = ", ".join(f"{d.name}: {d.size:,}" for d in self.dimensions)
        return f"{self.size:,} runs ({sizes})"


def read_grid(
    axes: Mapping[str | tuple[str, ...], Any],
    static: Mapping[str, Sequence[Any]] | None,
    zip_names: Mapping[tuple[str, ...], str],
) -> Grid:
    """The grid that ``axes`` and ``static`` span.

    Args:
        axes: name -> values, or a tuple of names -> as many arrays, which share one dimension.
        static: name -> Python values.
        zip_names: names of the dimensions of zipped axes; by default that of the first axis.

    Raises:
        TypeError: for axes that are no mapping, or values that are no array.
        ValueError: for empty axes, unequal zipped axes, or a name used twice.
    """
    for name, given in (("axes", axes), ("static", static)):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(
                f"{name} must map argument names to values, got {type(given).__name__}: {given!r}"
            )
    static = {} if static is None else static
    if not axes and not static:
        raise ValueError("axes is empty: a sweep needs at least one axis, such as {'seed': [0, 1]}")
    fixed = tuple(_static_dimension(name, values) for name, values in static.items())
    swept = tuple(_dimension(name, values, zip_names) for name, values in axes.items())
    grid = Grid(fixed, swept)
    for kind, names in (
        ("argument", grid.names),
        ("dimension", tuple(d.name for d in grid.dimensions)),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"axes and static give the {kind} {twice[0]!r} twice")
    for group in zip_names:
        if group not in axes:
            raise ValueError(
                f"dims names a dimension for the zipped axes {group}, which axes does not have"
            )
    for dimension in swept:
        inner = [axis.name for axis in grid.axes if axis not in dimension.axes]
        if dimension.name in inner or dimension.name in static:
            raise ValueError(
                f"the dimension {dimension.name!r} of a zipped group is the name of another axis"
            )
    return grid


def _name(name: Any, of: str) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"{of} must be named by the arguments of run, as text, got {name!r}")
    return name


def _static_dimension(name: Any, values: Any) -> Dimension:
    _name(name, "static axes")
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray, range)):
        raise TypeError(
            f"static axis {name!r} must be a sequence of Python values, got "
            f"{type(values).__name__}: {values!r}"
        )
    refuse_masked(values, f"static axis {name!r}")
    choices = tuple(values.tolist() if isinstance(values, np.ndarray) else values)
    if not choices:
        raise ValueError(f"static axis {name!r} is empty: give it at least one value")
    if any(isinstance(choice, jax.core.Tracer) for choice in choices):
        raise TypeError(f"static axis {name!r} holds a traced value; sweep runs on the host only")
    return Dimension(name, len(choices), choices=choices)


def _dimension(name: Any, values: Any, zip_names: Mapping[tuple[str, ...], str]) -> Dimension:
    if not isinstance(name, tuple):
        axis = _axis(_name(name, "axes"), values)
        return Dimension(axis.name, len(axis.values), (axis,))
    if not name:
        raise ValueError("axes has an empty tuple of zipped names")
    try:
        members = tuple(values)
    except TypeError as error:
        raise TypeError(
            f"zipped axes {name} must be given as many arrays, got {values!r}"
        ) from error
    if len(members) != len(name):
        raise ValueError(f"zipped axes {name} name {len(name)} axes, but {len(members)} are given")
    zipped = tuple(_axis(_name(n, "zipped axes"), v) for n, v in zip(name, members, strict=True))
    lengths = {axis.name: len(axis.values) for axis in zipped}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{n!r} has {count}" for n, count in lengths.items())
        raise ValueError(f"zipped axes {name} must have equal lengths, but {told}")
    return Dimension(zip_names.get(name, zipped[0].name), lengths[zipped[0].name], zipped)


def _axis(name: str, values: Any) -> Axis:
    """Read the values of one axis.

    Raises:
        TypeError: if they are no array of numbers or keys.
        ValueError: if there are none, if some are masked, or if they do not fit the dtype they get
            on the device.
    """
    if isinstance(values, jax.core.Tracer):
        raise TypeError(f"axis {name!r} is traced, but sweep runs on the host: call it outside jit")
    if isinstance(values, jax.Array) and jnp.issubdtype(values.dtype, jax.dtypes.prng_key):
        if values.ndim != 1 or not values.size:
            raise ValueError(
                f"axis {name!r} must be a one-dimensional array of keys, got shape {values.shape}"
            )
        data, impl = np.asarray(jax.random.key_data(values)), jax.random.key_impl(values)
        return Axis(name, data, np.arange(len(data)), values.dtype, impl)
    refuse_masked(values, f"axis {name!r}")
    try:
        given = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise TypeError(f"axis {name!r} must be an array: {error}") from error
    # Of NumPy's kinds, timedeltas ("m") call themselves integers.
    is_number = given.dtype.kind in "biufc" or jnp.issubdtype(given.dtype, jnp.number)
    if not is_number or given.dtype.kind == "m":
        raise TypeError(
            f"axis {name!r} must hold numbers, got dtype {given.dtype}: Python values that are no "
            f"numbers (a loss, a structure) go into static"
        )
    if given.ndim == 0:
        raise ValueError(f"axis {name!r} must be a sequence of values, got the scalar {values!r}")
    if given.dtype.name in _BELOW_A_BYTE:
        raise TypeError(f"axis {name!r} holds {given.dtype}, less than a byte: give it as int8")
    if given.dtype.itemsize > {"f": 8, "c": 16}.get(given.dtype.kind, 8):
        raise TypeError(f"axis {name!r} holds {given.dtype}: give it as float64 or complex128")
    if not len(given):
        raise ValueError(f"axis {name!r} is empty: give it at least one value")
    # Files keep numbers of the other byte order, which JAX does not know.
    given = given.astype(given.dtype.newbyteorder("="), copy=False)
    device_values = _as_on_device(given, name, was_array=hasattr(values, "dtype"))
    if given.ndim > 1:
        return Axis(name, device_values, np.arange(len(given)))
    # Neither files nor pandas know narrow floats, all of which float32 holds exactly.
    is_narrow = jnp.issubdtype(given.dtype, jnp.floating) and given.dtype.itemsize < 4
    return Axis(name, device_values, given.astype(np.float32) if is_narrow else given)


def refuse_masked(values: Any, name: str) -> None:
    """Refuse masked entries, which NumPy would turn into numbers without a word.

    Raises:
        ValueError: naming the values.
    """
    is_sequence = isinstance(values, (list, tuple))
    if any(map(np.ma.is_masked, values)) if is_sequence else np.ma.is_masked(values):
        raise ValueError(
            f"{name} has masked entries: leave them out, as by numpy.ma.compressed, or fill them in"
        )


def _as_on_device(given: np.ndarray, name: str, *, was_array: bool) -> np.ndarray:
    """The values in the dtype that JAX computes in, refused where it cannot hold them."""
    global _warned_about_float64
    values = given.astype(jax.dtypes.canonicalize_dtype(given.dtype))
    if given.dtype.kind in "iu" and not np.array_equal(values, given):
        raise ValueError(
            f"axis {name!r} holds {given.dtype} values that {values.dtype} cannot hold: enable "
            f"64-bit numbers by jax.config.update('jax_enable_x64', True), or use smaller ones"
        )
    if given.dtype.kind == "f" and not np.array_equal(np.isinf(values), np.isinf(given)):
        raise ValueError(f"axis {name!r} holds values that {values.dtype} cannot hold")
    if given.dtype == np.float64 != values.dtype and was_array and not _warned_about_float64:
        _warned_about_float64 = True
        warnings.warn(
            f"axis {name!r} is float64, but jax_enable_x64 is off, so runs get it as float32 "
            f"(said once)",
            stacklevel=_level_outside(),
        )
    return values


def _level_outside() -> int:
    """The ``stacklevel`` at which a warning of the caller's points outside this package."""
    folder = str(Path(__file__).parent)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(folder):
        frame, level = frame.f_back, level + 1
    return level


def label(choice: Any) -> int | float | str:
    """How a static value is shown in coordinates: numbers and text as they are."""
    if isinstance(choice, np.generic):
        choice = choice.item()
    is_long = isinstance(choice, int) and choice.bit_length() > 63  # for an array of integers
    if isinstance(choice, bool) or is_long:
        return str(choice)
    if isinstance(choice, (int, float, str)):
        return choice
    named = getattr(choice, "__name__", None)
    return named if isinstance(named, str) else re.sub(r" at 0x[0-9a-f]+", "", repr(choice))


def digest(*arrays: Any) -> str:
    """A hash of arrays: dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(_raw(array))
        total.update(f"{values.dtype}{values.shape}".encode())
        total.update(values.tobytes())
    return total.hexdigest()[:16]


def _raw(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(array))
    return np.asarray(array)


def accepts(run: Callable[..., Any], names: Sequence[str], *, key: bool) -> None:
    """Check that ``run`` can be called with these arguments.

    Raises:
        TypeError: naming the arguments that are missing or unknown.
    """
    if not callable(run):
        raise TypeError(f"run must be a function of one point of the grid, got {run!r}")
    try:
        parameters = inspect.signature(run).parameters
    except (ValueError, TypeError):
        return  # builtins have no signature; tracing will tell
    given = [*names, *(["key"] if key else [])]
    if key and "key" in names:
        raise ValueError("'key' is an axis and key= is given too: rename the axis, or drop key=")
    kinds = inspect.Parameter
    named_kinds = (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    takes_any = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    by_name = {n for n, p in parameters.items() if p.kind in named_kinds}
    needed = {
        n
        for n, p in parameters.items()
        if p.default is kinds.empty and p.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
    }
    title = getattr(run, "__name__", "run")
    unknown = [n for n in given if n not in by_name and not takes_any]
    if unknown == ["key"]:
        raise TypeError(f"key= is given, but {title} takes no argument 'key'")
    if unknown:
        raise TypeError(
            f"{title} takes no argument {unknown[0]!r}; it takes "
            f"{', '.join(sorted(by_name)) or 'none by name'}"
        )
    missing = [n for n in parameters if n in needed and n not in given]
    if missing:
        hint = "; give key=" if missing == ["key"] else ""
        raise TypeError(f"{title} needs {missing[0]!r}, which is neither in axes nor static{hint}")
