"""Compiled runs that live exactly as long as the user's functions that they run.

A function jitted at module level keeps its static arguments for the life of the process, and with a
function all that it closes over. Here a run is compiled once for each set of functions, and what
JAX keeps never refers to them: only arrays go through the jitted function, everything else is put
beside it for the time of the call, which is when JAX traces. The compiled run is found again by a
name that holds functions by weak references, and goes when one of them does.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import is_dataclass
from functools import partial, update_wrapper
from operator import attrgetter, itemgetter, methodcaller
from types import MethodType
from typing import Any, Generic, ParamSpec, TypeVar

import jax
import numpy as np

__all__ = ["compiled"]

P = ParamSpec("P")
R = TypeVar("R")

_VALUES = (type(None), bool, int, str, bytes, np.dtype)
_MADE_OF_PARTS = (attrgetter, itemgetter, methodcaller)
_ARRAYS = (jax.Array, np.ndarray, np.generic)


def compiled(*, static: Sequence[str], callables: Sequence[str]) -> Callable[..., Any]:
    """A jitted function that keeps no function alive.

    Args:
        static: keyword arguments that are hashed by value, as those of ``jax.jit``.
        callables: keyword arguments that are functions, objects with functions, or None. Those that
            are pytrees of JAX's (a module of Equinox, ``jax.tree_util.Partial``) have their arrays
            traced, so that other arrays need no other compilation; others are one with themselves.
    """
    return lambda body: _Compiled(body, tuple(static), tuple(callables))


class _Part:
    """A pytree cut into the arrays that JAX traces and the rest, which goes beside."""

    def __init__(self, value: Any) -> None:
        self.value = value
        leaves, self.tree = jax.tree.flatten(value)
        self.traced = tuple([isinstance(leaf, _ARRAYS) for leaf in leaves])
        self.arrays: list[Any] = []
        self.rest: list[Any] = []
        for leaf, is_traced in zip(leaves, self.traced, strict=True):
            (self.arrays if is_traced else self.rest).append(leaf)

    def holding(self, arrays: Sequence[Any]) -> Any:
        """The pytree with other arrays."""
        left, right = iter(arrays), iter(self.rest)
        return jax.tree.unflatten(self.tree, [next(left if t else right) for t in self.traced])


class _Beside(threading.local):
    """What the call at hand does not pass through JAX."""

    parts: Sequence[_Part] = ()


_beside = _Beside()


class _Compiled(Generic[P, R]):
    def __init__(
        self, body: Callable[P, R], static: tuple[str, ...], callables: tuple[str, ...]
    ) -> None:
        update_wrapper(self, body)
        self._body, self._static, self._callables = body, static, callables
        self._runs: dict[Hashable, tuple[list[weakref.ref[Any]], Callable[..., R]]] = {}
        self._trees: dict[Any, Hashable] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        parts = [_Part(args), *(_Part(kwargs.pop(name)) for name in self._callables)]
        run = self._find(parts)
        before, _beside.parts = _beside.parts, parts
        try:
            return run([part.arrays for part in parts], **kwargs)
        finally:
            _beside.parts = before

    def _find(self, parts: Sequence[_Part]) -> Callable[..., R]:
        owners: list[Any] = []
        try:
            name = tuple([self._name_of(part, owners) for part in parts])
        except _NamelessError:
            return self._jitted()
        # An id may be that of a later object, if nobody was told that the first one went.
        known = self._runs.get(name)
        if known is not None and all(
            ref() is owner for ref, owner in zip(known[0], owners, strict=True)
        ):
            return known[1]
        forget = partial(_forget, self._runs, name)
        run = self._jitted()
        self._runs[name] = [weakref.ref(owner, forget) for owner in owners], run
        return run

    def _name_of(self, part: _Part, owners: list[Any]) -> Hashable:
        inside: list[Any] = []
        try:
            name = self._name_of_tree(part.tree, inside), part.traced, _name(part.rest, inside)
        except _NamelessError:
            name = part.traced, *_by_id(part.value, inside := [])
        owners.extend(inside)
        return name

    def _name_of_tree(self, tree: Any, owners: list[Any]) -> Hashable:
        try:
            known = self._trees.get(tree)
        except Exception:  # a user's static field that has no hash, or no truth value when compared
            return _name(tree, owners)
        if known is None:
            inside: list[Any] = []
            known = _name(tree, inside)
            if inside:  # functions, which must not be kept
                owners.extend(inside)
            else:
                self._trees[tree] = known
        return known

    def _jitted(self) -> Callable[..., R]:
        body, names = self._body, self._callables

        def run(arrays: Sequence[Any], **static: Any) -> R:
            # JAX traces during the call.
            args, *functions = map(_Part.holding, _beside.parts, arrays)
            return body(*args, **dict(zip(names, functions, strict=True)), **static)

        run.__name__ = run.__qualname__ = body.__name__
        return jax.jit(run, static_argnames=self._static)

    def _cache_size(self) -> int:
        """How many programs there are, for tests."""
        return sum(run._cache_size() for _, run in self._runs.values())  # type: ignore[attr-defined]


def _forget(runs: dict[Hashable, Any], name: Hashable, ref: weakref.ref[Any]) -> None:
    known = runs.get(name)
    # Not what was compiled since for something else at the same address.
    if known is not None and any(own is ref for own in known[0]):
        runs.pop(name, None)


class _NamelessError(Exception):
    """There is an object that can be held neither weakly nor by its value."""


def _name(value: Any, owners: list[Any]) -> Hashable:
    """What tells ``value`` from others without holding it.

    Args:
        value: anything.
        owners: objects that are named by their id, functions first of all, are put here.

    Raises:
        _NamelessError: if that cannot be.
    """
    inner: list[Any] = []
    try:
        name: Hashable = type(value), _by_value(value, inner)
    except _NamelessError:
        name = _by_id(value, inner := [])
    owners.extend(inner)
    return name


def _by_id(value: Any, owners: list[Any]) -> tuple[Any, ...]:
    """The name of an object that is one with itself only."""
    # Never an array: the program itself may hold it, as a constant, and would hold itself. Nor a
    # method, which is made anew whenever it is looked up.
    if isinstance(value, (*_ARRAYS, MethodType)):
        raise _NamelessError
    try:
        weakref.ref(value)
    except TypeError as error:
        raise _NamelessError from error
    owners.append(value)
    return type(value), id(value)


def _by_value(value: Any, owners: list[Any]) -> Hashable:
    """The name of what is no more than its parts, down to functions."""

    def parts(*values: Any) -> Hashable:
        return tuple(_name(part, owners) for part in values)

    kind = type(value)
    if kind in _VALUES or isinstance(value, np.dtype):
        return value
    if kind in (float, complex):
        return repr(value)  # 0.0 == -0.0, and NaN is not NaN
    if kind in (tuple, list):
        return parts(*value)
    if kind is dict:
        return parts(*value, *value.values())
    if kind is jax.tree_util.PyTreeDef:
        node = value.node_data()
        if node is None:
            return ()
        return node[0], parts(node[1], *value.children())  # JAX itself keeps the class
    if kind is partial:
        return parts(value.func, value.args, value.keywords)
    if kind in _MADE_OF_PARTS:
        return parts(*value.__reduce__())
    if kind is MethodType:  # a new object each time it is looked up
        return parts(value.__self__, value.__func__)
    if is_dataclass(value) and not isinstance(value, type):
        settings: Any = type(value).__dataclass_params__  # type: ignore[attr-defined]
        if settings.frozen and settings.eq and hasattr(value, "__dict__"):
            return parts(kind, vars(value))
    raise _NamelessError
