"""Optimizers from elsewhere: what they need to be told of weights that lie as ``(out, in)``.

Any ``optax`` transformation runs in :func:`alignjax.optimizer_descent`. Here is what a few of them
need on the way: Muon its dimension numbers, SAM and Sophia their own arguments, lookahead its slow
weights.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from alignjax._validation import describe

__all__ = ["LookaheadState", "muon"]

Weights = tuple[Array, ...]


def muon(learning_rate: Any, **options: Any) -> optax.GradientTransformation:
    """``optax.contrib.muon`` for weights ``(out, in)``: momentum, made orthogonal, as a step.

    Optax reads a matrix as (in, out). It scales the orthogonal step by ``sqrt(max(1, out/in))``, so
    that without this a layer from 64 to 4 moves 4 times too far. Layers that are not matrices
    (coefficients of structures) are left to AdamW, as in optax.

    Args:
        learning_rate: eta, a number or a schedule; may be traced.
        options: the other arguments of ``optax.contrib.muon``, but for
            ``muon_weight_dimension_numbers``.

    Returns:
        An optax transformation.

    Raises:
        TypeError: for an option that this version of optax does not have.

    Source: Jordan 2024, "Muon: an optimizer for hidden layers in neural networks".

    Example:
        >>> import alignjax as aj, jax, jax.numpy as jnp
        >>> problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
        >>> start = aj.initializers.identity((2, 3, 2), 0.5)
        >>> run = aj.optimizer_descent(problem, start, aj.optimizers.muon(0.01), steps=100)
        >>> bool(run.observations["risk"][-1] < run.observations["risk"][0])
        True
    """
    import optax.contrib

    return optax.contrib.muon(learning_rate, muon_weight_dimension_numbers=_out_in, **options)


def _out_in(weights: Any) -> Any:
    """Muon's dimension numbers for matrices ``(out, in)``; None for anything else."""
    import optax.contrib

    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    return jax.tree.map(lambda w: numbers if w.ndim == 2 else None, weights)


class LookaheadState(NamedTuple):
    """The state of a run by ``optax.lookahead``.

    Attributes:
        state: optax's own.
        slow: the slow weights, which optax advises to use in the end. The weights of the run are
            the fast ones, where gradients are taken.
    """

    state: Any
    slow: Weights


class Prepared(NamedTuple):
    """An optimizer as a run calls it.

    Attributes:
        init: ``weights -> state``.
        update: ``(gradient, state, weights, risk) -> (changes, state)``, where ``risk`` is the
            function of the weights whose gradient it is.
    """

    init: Callable[[Weights], Any]
    update: Callable[[Weights, Any, Weights, Callable[[Weights], Array]], tuple[Weights, Any]]


def check_optimizer(optimizer: Any, weights: Weights) -> None:
    """Refuse what cannot run here, and warn of what reads matrices the other way round.

    Raises:
        TypeError: for what is no optax transformation.
        ValueError: for one that needs a gradient for each sample.
    """
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer must be an optax transformation, got {describe(optimizer)}")
    parts = list(_parts(optimizer))
    for private in ("differentially_private_aggregate", "per_example_global_norm_clip"):
        if any(part.maker == private for part in parts):
            raise ValueError(
                f"optimizer must take the gradient of a risk, but optax's {private} needs one "
                f"gradient for each sample, which a descent does not have"
            )
    if any(w.ndim == 2 and w.shape[0] != w.shape[1] for w in weights):
        for advice in dict.fromkeys(_misreads(part, weights) for part in parts):
            if advice is not None:
                warnings.warn(advice, stacklevel=3)


def check_memory(optimizer: Any, weights: Weights, memory: Any) -> None:
    """Refuse the state of another optimizer or of other weights.

    Raises:
        ValueError: if it is no state of this optimizer for these weights.
    """
    own = jax.eval_shape(prepare(optimizer).init, weights)
    given = jax.tree.structure(memory), [jnp.shape(leaf) for leaf in jax.tree.leaves(memory)]
    if given != (jax.tree.structure(own), [leaf.shape for leaf in jax.tree.leaves(own)]):
        raise ValueError(
            "weights is a Trajectory with an optimizer_state that this optimizer does not have for "
            "these weights: to start another optimizer give the trajectory's weights"
        )


def prepare(optimizer: optax.GradientTransformation) -> Prepared:
    """The optimizer as a run calls it: it gets those extra arguments that its signature takes.

    All are of one function, the risk of the batch at hand: its ``value`` and gradient (``grad``)
    where the optimizer stands, the function itself (``value_fn`` for line searches, ``obj_fn`` for
    Sophia) and its gradient function (``grad_fn`` for SAM). The state keeps its precision.
    """
    known = _extra_arguments(optimizer)
    paired = any(part.maker == "lookahead" for part in _parts(optimizer))

    def init(weights: Weights) -> Any:
        if paired:
            return LookaheadState(optimizer.init(_pair(weights, weights)), weights)
        return jax.tree.map(jnp.asarray, optimizer.init(weights))

    def update(
        slope: Weights, state: Any, weights: Weights, risk: Callable[[Weights], Array]
    ) -> tuple[Weights, Any]:
        # What is not taken is not computed: the compiler drops it.
        offers = {
            "value": risk(weights),
            "grad": slope,
            "value_fn": risk,
            "obj_fn": risk,
            "grad_fn": lambda weights, *_: jax.grad(risk)(weights),
        }
        taken = {name: offers[name] for name in known}
        if paired:
            pair = _pair(weights, state.slow)
            changes, inner = optimizer.update(slope, state.state, pair, **taken)
            slow = optax.apply_updates(state.slow, changes.slow)
            changes, moved = changes.fast, LookaheadState(inner, slow)
        else:
            changes, moved = optimizer.update(slope, state, weights, **taken)
        # A rate of float64 must not turn the state of float32 weights into float64.
        return changes, jax.tree.map(_in_precision_of, state, moved)

    return Prepared(init, update)


def _pair(fast: Weights, slow: Weights) -> Any:
    return optax.LookaheadParams(fast=fast, slow=slow)


def _in_precision_of(old: Array, new: Any) -> Array:
    new = jnp.asarray(new)
    return new if new.dtype == old.dtype else new.astype(old.dtype)


_USUAL = frozenset({"value", "grad", "value_fn"})
_ALL = _USUAL | {"obj_fn", "grad_fn"}


def _extra_arguments(optimizer: Any) -> list[str]:
    """The names of what an optimizer is to be told.

    An update that takes any argument hands all of them to its parts: one that is named by none of
    them may be refused by one (a line search), and so may the usual ones by a part that takes
    nothing but what it names (SAM).
    """
    own, takes_any = _keywords(optimizer.update)
    if not takes_any:
        return sorted(own)
    wanted, allowed = _USUAL | own, set(_ALL)
    for part in _parts(optimizer):
        if part.is_update:
            named, takes_any = _keywords(part.function)
            wanted |= named
            if named and not takes_any:
                allowed &= named
    return sorted(wanted & allowed)


def _keywords(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """Which of the extra arguments a function names, and whether it takes any other."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set(), False
    named = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is not p.empty}
    return named & _ALL, any(p.kind is p.VAR_KEYWORD for p in parameters)


class _Part(NamedTuple):
    """A function that an optimizer is made of.

    Attributes:
        function: itself.
        name: its qualified name, if it comes from optax, else "".
        captured: what it closes over, by name.
    """

    function: Callable[..., Any]
    name: str
    captured: dict[str, Any]

    @property
    def is_update(self) -> bool:
        """Whether it is called as optax calls updates."""
        try:
            return list(inspect.signature(self.function).parameters)[:2] == ["updates", "state"]
        except (TypeError, ValueError):
            return False

    @property
    def maker(self) -> str:
        """The public function that made it, or that it is."""
        return self.name.partition(".")[0]


def _parts(optimizer: Any) -> Iterator[_Part]:
    """All functions inside of an optimizer, through tuples, dictionaries and closures."""
    seen: set[int] = set()
    waiting = [optimizer]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (tuple, list)):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, partial):
            waiting.extend([item.func, item.args, item.keywords])
        elif callable(item):
            module = getattr(item, "__module__", None) or ""
            ours = module.partition(".")[0] == "optax"
            captured = _captured(item)
            yield _Part(item, getattr(item, "__qualname__", "") if ours else "", captured)
            waiting.extend([*captured.values(), getattr(item, "__wrapped__", None)])


def _captured(function: Any) -> dict[str, Any]:
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    found = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _misreads(part: _Part, weights: Weights) -> str | None:
    """What to say about a part that takes matrices for (in, out), or None."""
    if part.maker == "adaptive_grad_clip" and part.captured.get("axis") is None:
        return (
            "optimizer holds optax.adaptive_grad_clip, which reads matrices as (in, out), but "
            "weights are (out, in): give it axis=1, so that a unit is a row"
        )
    # Where hyperparameters are injected, Muon itself is held and not yet called.
    reads = part.maker == "scale_by_shape" or part.name == "muon"
    if reads and part.captured.get("consistent_rms") is None and not _are_out_in(part, weights):
        return (
            "optimizer holds optax.contrib.muon, which reads matrices as (in, out), but weights "
            "are (out, in): a layer that narrows moves sqrt(in/out) times too far; use "
            "alignjax.optimizers.muon, or give it muon_weight_dimension_numbers"
        )
    return None


def _are_out_in(part: _Part, weights: Weights) -> bool:
    """Whether Muon's dimension numbers are those of matrices ``(out, in)``."""
    import optax.contrib

    kind = optax.contrib.MuonDimensionNumbers
    numbers = part.captured.get("weight_dimension_numbers")
    if callable(numbers):
        numbers = numbers(weights)
    found = [
        leaf
        for leaf in jax.tree.leaves(numbers, is_leaf=lambda leaf: isinstance(leaf, kind))
        if isinstance(leaf, kind)
    ]
    return bool(found) and all(leaf.reduction_axis in (1, -1, (1,), (-1,)) for leaf in found)
