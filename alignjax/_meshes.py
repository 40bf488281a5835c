"""Arrays on meshes of devices: explicit axes, and the manual ones inside ``shard_map``.

JAX keeps account of a mesh in the types of arrays. A loop that starts from numbers that know no
mesh and meets arrays that lie on one changes its type on the way, which JAX refuses, and rules of
``vmap`` put constants on no mesh at all. Two means: a whole run is traced with automatic axes, and
inside ``shard_map``, where nothing is automatic, loops start from what is :func:`tied`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce, wraps
from types import CellType, FunctionType
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

__all__ = ["arrays_in", "on_automatic_axes", "tied"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def on_automatic_axes(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, whose arrays may lie on a mesh with explicit axes.

    Inside, these axes are automatic: XLA decides where values lie. An axis that ``vmap`` maps over
    stays as it is sharded; along others results come back whole. Elsewhere nothing happens.

    Args:
        function: its positional arguments are pytrees of arrays; keyword arguments are what JAX
            does not see, functions that close over arrays among them.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array)]
        captured = arrays_in(kwargs)
        mesh = _explicit_mesh([*given, *captured])
        if mesh is None:
            return function(*args, **kwargs)
        moving = [array for array in captured if _mesh_of(array) == mesh]
        args = _placed(args, given)

        def inside(args: Any, moved: list[jax.Array]) -> R:
            new = dict(zip(map(id, moving), moved, strict=True))
            return function(*args, **_with_arrays(kwargs, lambda a: new.get(id(a), a)))

        return jax.sharding.auto_axes(
            inside, axes=_explicit_axes(mesh), out_sharding=NamedSharding(mesh, PartitionSpec())
        )(args, moving)

    return call


def _placed(args: T, given: list[jax.Array]) -> T:
    """Eager arguments, all on the mesh of one of them: without ``jit``, JAX moves none itself."""
    lying = [array for array in given if not isinstance(array, jax.core.Tracer)]
    shardings: list[Any] = [array.sharding for array in lying if not _mesh_of(array).empty]
    if not shardings:
        return args
    whole = NamedSharding(shardings[0].mesh, PartitionSpec())
    away = {id(array) for array in lying if _mesh_of(array).empty}
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, whole) if id(leaf) in away else leaf, args
    )


def _mesh_of(array: jax.Array) -> Any:
    return jax.typeof(array).sharding.mesh


def _explicit_axes(mesh: Any) -> tuple[str, ...]:
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Explicit)


def _explicit_mesh(arrays: list[jax.Array]) -> Any:
    """The mesh with explicit axes that these lie on, or that is set for all; None without."""
    meshes = [jax.sharding.get_abstract_mesh(), *map(_mesh_of, arrays)]
    return next((mesh for mesh in meshes if not mesh.empty and _explicit_axes(mesh)), None)


def arrays_in(value: Any) -> list[jax.Array]:
    """The arrays of JAX in a value, traced or not, those that functions close over included."""
    found: list[jax.Array] = []

    def note(array: jax.Array) -> jax.Array:
        found.append(array)
        return array

    _with_arrays(value, note)
    return found


def _with_arrays(value: Any, change: Callable[[jax.Array], jax.Array]) -> Any:
    """The same value with other arrays, in closures too; each part itself where nothing changes."""
    seen: dict[int, tuple[Any, Any]] = {}  # the part too, or a later one could have its address

    def again(part: Any) -> Any:
        if isinstance(part, jax.Array):
            return change(part)
        if id(part) not in seen:
            seen[id(part)] = part, part  # also what a function that calls itself finds of itself
            seen[id(part)] = part, _rebuilt(part, again)
        return seen[id(part)][1]

    return again(value)


def _rebuilt(value: Any, again: Callable[[Any], Any]) -> Any:
    """``value`` made of its parts as ``again`` returns them; itself if they are the same."""
    if isinstance(value, jax.stages.Wrapped):  # jitted: what runs here is jitted all the same
        inner = value.__wrapped__  # type: ignore[attr-defined]
        made = again(inner)
        return value if made is inner else made
    put: Callable[[list[Any]], Any]
    if isinstance(value, partial):
        parts = [value.func, value.args, value.keywords]
        put = lambda new: partial(new[0], *new[1], **new[2])  # noqa: E731
    elif isinstance(value, FunctionType):
        filled = [cell for cell in value.__closure__ or () if _is_filled(cell)]
        parts = [cell.cell_contents for cell in filled]
        parts += [value.__defaults__, value.__kwdefaults__]
        put = partial(_with_cells, value, filled)
    else:
        parts, tree = jax.tree.flatten(value, is_leaf=lambda node: node is not value)
        if len(parts) == 1 and parts[0] is value:
            return value
        put = partial(jax.tree.unflatten, tree)
    new = [again(part) for part in parts]
    same = all(after is before for after, before in zip(new, parts, strict=True))
    return value if same else put(new)


def _with_cells(function: FunctionType, filled: list[CellType], parts: list[Any]) -> FunctionType:
    """The same function, closing over other things."""
    *contents, defaults, keyword_defaults = parts
    cells = dict(zip(map(id, filled), map(CellType, contents), strict=True))
    closure = tuple(cells.get(id(cell), cell) for cell in function.__closure__ or ())
    made = FunctionType(
        function.__code__, function.__globals__, function.__name__, defaults, closure
    )
    made.__kwdefaults__ = keyword_defaults
    made.__dict__.update(function.__dict__)
    return made


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def tied(state: T, others: Any) -> T:
    """The same arrays, which in the eyes of a tracer depend on ``others``.

    Inside ``shard_map`` a loop's carry has to vary along a mesh axis from the start if it ever
    does, and so do the results of a branch if those of another one do. The compiler sees through
    it; elsewhere nothing happens.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return state
    leaves = [leaf for leaf in jax.tree.leaves(others) if isinstance(leaf, jax.Array)]
    if not leaves:
        return state
    anchor = reduce(jnp.logical_or, [(leaf != leaf).any() for leaf in leaves])
    return jax.tree.map(lambda leaf: jnp.where(anchor, leaf, leaf), state)
