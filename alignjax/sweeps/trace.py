"""A run traced once for each combination of static values, with errors that say what to do."""

from __future__ import annotations

import hashlib
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from alignjax.sweeps.axes import Grid, digest, label

# Where a run draws from generators whose numbers depend on the batch they are drawn in.
DRAWN_BY_BATCH = re.compile(r"key<u?rbg>|impl=u?rbg|\brng_bit_generator\b")


@dataclass(frozen=True)
class Traced:
    """One point's program: the run with its static values filled in.

    Attributes:
        program: what the run does, from the swept arguments (sorted by name) to its outputs.
        constants: the arrays that the run closes over.
        outputs: name -> shape and dtype of one point's output, sorted by name.
    """

    program: Any
    constants: tuple[Any, ...]
    outputs: dict[str, jax.ShapeDtypeStruct]

    def __call__(self, constants: Any, point: Mapping[str, Any]) -> dict[str, Any]:
        """Run one point."""
        closed = jax.extend.core.ClosedJaxpr(self.program, list(constants))
        results = jax.extend.core.jaxpr_as_fun(closed)(*jax.tree.leaves(point))
        return dict(zip(self.outputs, results, strict=True))

    @cached_property
    def text(self) -> str:
        """The program as JAX prints it, which takes long for a long one."""
        # Addresses of functions differ from process to process and mean nothing.
        return re.sub(r"0x[0-9a-f]+", "", str(self.program))

    def fingerprint(self) -> str:
        """A hash of the program and of the data that it closes over."""
        constants = digest(*self.constants, *_inner_constants(self.program))
        return hashlib.sha256((self.text + constants).encode()).hexdigest()[:16]


def _inner_constants(program: Any) -> Iterator[Any]:
    """Arrays that functions jitted inside a run close over: the program's text does not show them.

    Args:
        program: a jaxpr.
    """
    for equation in program.eqns:
        for leaf in jax.tree.leaves(list(equation.params.values())):
            if isinstance(leaf, jax.extend.core.ClosedJaxpr):
                yield from leaf.consts
                yield from _inner_constants(leaf.jaxpr)
            elif isinstance(leaf, jax.extend.core.Jaxpr):
                yield from _inner_constants(leaf)


class _BadOutputError(TypeError):
    """The run returned something else than named arrays."""


def trace(run: Callable[..., Any], grid: Grid, key: jax.Array | None) -> list[Traced]:
    """Trace ``run`` once for each combination of static values, in order.

    Raises:
        TypeError: if the run cannot be traced, returns no dict of arrays, or draws random numbers
            that depend on the block it is computed in.
        ValueError: if the outputs of two combinations differ in names, shapes or dtypes.
    """
    point = {axis.name: axis.entry for axis in grid.axes}
    if key is not None:
        point["key"] = jax.ShapeDtypeStruct(key.shape, key.dtype)
    traced = {}
    for combination in grid.combinations():
        chosen = grid.chosen(combination)
        try:
            traced[combination] = _trace_one(run, chosen, point)
        except _BadOutputError as error:
            raise TypeError(str(error)) from None
        except Exception as error:
            _explain(error, run, grid, chosen, point)
            raise
    _require_same_outputs(grid, {c: t.outputs for c, t in traced.items()})
    if any(DRAWN_BY_BATCH.search(one.text) for one in traced.values()):
        raise TypeError(
            f"{title(run)} draws random numbers from a key of the kind 'rbg', which under vmap "
            f"gives numbers that change with the chunk: use jax.random.key(seed, "
            f"impl='threefry2x32')"
        )
    return list(traced.values())


def _trace_one(
    run: Callable[..., Any], fixed: Mapping[str, Any], point: Mapping[str, Any]
) -> Traced:
    def one(point: Mapping[str, Any]) -> dict[str, Any]:
        # JAX's own trees sort dictionaries by key; so do the outputs here.
        return _named_arrays(run(**fixed, **point), run)

    closed, outputs = jax.make_jaxpr(one, return_shape=True)(dict(point))
    shapes = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype)
        for name, value in sorted(outputs.items())
    }
    return Traced(closed.jaxpr, tuple(closed.consts), shapes)


def _named_arrays(result: Any, run: Callable[..., Any]) -> dict[str, Any]:
    name_of_run = title(run)
    if not isinstance(result, Mapping):
        raise _BadOutputError(
            f"{name_of_run} must return a dict of arrays, such as {{'risk': ...}}, got "
            f"{'one array' if isinstance(result, jax.Array) else type(result).__name__}"
        )
    if not result:
        raise _BadOutputError(f"{name_of_run} returned an empty dict: there is nothing to keep")
    arrays = {}
    for name, value in result.items():
        if not isinstance(name, str) or not name:
            raise _BadOutputError(f"outputs of {name_of_run} must be named by text, got {name!r}")
        try:
            array = jnp.asarray(value)
        except (TypeError, ValueError) as error:
            raise _BadOutputError(
                f"output {name!r} of {name_of_run} must be one array, got "
                f"{type(value).__name__}: give each array a name of its own"
            ) from error
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            raise _BadOutputError(
                f"output {name!r} of {name_of_run} is a random key: return "
                f"jax.random.key_data of it"
            )
        if np.dtype(array.dtype).kind not in "biufc":
            raise _BadOutputError(
                f"output {name!r} of {name_of_run} is {array.dtype}, which NumPy does not "
                f"know: convert it to float32"
            )
        arrays[name] = array
    return arrays


def title(run: Callable[..., Any]) -> str:
    """What to call a run in messages."""
    function = getattr(run, "func", run)  # of a functools.partial
    return str(getattr(function, "__name__", type(run).__name__))


def _explain(
    error: Exception,
    run: Callable[..., Any],
    grid: Grid,
    chosen: Mapping[str, Any],
    point: Mapping[str, Any],
) -> None:
    """Say which axes must be static, or where the run cannot be traced.

    Raises:
        TypeError: from ``error``, unless it is the run's own and needs only a note.
    """
    where = _where(error, run)
    must = _axes_to_make_static(run, grid, chosen, point)
    if must:
        names = " and ".join(repr(name) for name in must)
        raise TypeError(
            f"{title(run)} uses the traced {names} where a Python value is needed{where}: move "
            f"{names} from axes to static, which compiles once for each value{_or_else(error)}"
        ) from error
    if isinstance(error, (jax.errors.JAXTypeError, jax.errors.UnexpectedTracerError)):
        raise TypeError(
            f"{title(run)} cannot be traced by JAX{where}: {_first_line(error)}"
        ) from error
    told = ", ".join(f"{name}={label(value)}" for name, value in chosen.items())
    error.add_note(f"raised while tracing {title(run)}({told}){where}, before any run of a sweep")


def _or_else(error: Exception) -> str:
    """The other remedy, where NumPy was asked to compute with a traced value."""
    is_numpy = isinstance(error, jax.errors.TracerArrayConversionError)
    return "; or compute with jax.numpy there instead of NumPy" if is_numpy else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _axes_to_make_static(
    run: Callable[..., Any], grid: Grid, chosen: Mapping[str, Any], point: Mapping[str, Any]
) -> list[str]:
    """The smallest set of axes whose values, made concrete, let the run be traced."""
    concrete = {a.name: a.example() for a in grid.axes if a.key_type is None}

    def is_traceable(names: list[str]) -> bool:
        fixed = {**chosen, **{name: concrete[name] for name in names}}
        try:
            _trace_one(run, fixed, {n: v for n, v in point.items() if n not in names})
        except Exception:
            return False  # any failure means the same here: these axes are not the reason
        return True

    must = list(concrete)
    if not must or not is_traceable(must):
        return []
    for name in list(concrete):
        rest = [other for other in must if other != name]
        if is_traceable(rest):
            must = rest
    return must


def _where(error: Exception, run: Callable[..., Any]) -> str:
    """The innermost line in the run's own file, else outside JAX."""
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).parent)
    inner = str(Path(jax.__file__).parent)
    outside = [f for f in frames if not f.filename.startswith((here, inner, "<"))]
    function = inspect.unwrap(getattr(run, "func", run))
    code = getattr(function, "__code__", None)
    own = [f for f in outside if code is not None and f.filename == code.co_filename]
    if not own and not outside:
        return ""
    frame = (own or outside)[-1]
    return f" ({Path(frame.filename).name}, line {frame.lineno}: {(frame.line or '').strip()})"


def _require_same_outputs(
    grid: Grid, outputs: Mapping[tuple[int, ...], Mapping[str, jax.ShapeDtypeStruct]]
) -> None:
    """Every combination of static values must give arrays of the same names, shapes and dtypes.

    Raises:
        ValueError: naming the static axis, two of its values and what they give.
    """
    for combination, given in outputs.items():
        for axis, index in enumerate(combination):
            if not index:
                continue
            # The same combination with the first value of one axis tells which axis it is.
            base = outputs[(*combination[:axis], 0, *combination[axis + 1 :])]
            if base == given:
                continue
            name = next(n for n in [*base, *given] if base.get(n) != given.get(n))
            dimension = grid.static[axis]
            raise ValueError(
                f"output {name!r} depends on the static axis {dimension.name!r}: it is "
                f"{_shape(base.get(name))} for {label(dimension.choices[0])} and "
                f"{_shape(given.get(name))} for {label(dimension.choices[index])}; all runs of a "
                f"sweep must give arrays of one shape and dtype (pad, reduce, or sweep one "
                f"value at a time)"
            )


def _shape(struct: jax.ShapeDtypeStruct | None) -> str:
    return "absent" if struct is None else f"{struct.dtype} of shape {struct.shape}"
