"""Optimizers from elsewhere: what they need to be told of weights that lie as ``(out, in)``.

Any ``optax`` transformation runs in :func:`alignjax.optimizer_descent`. Here is what a few of them
need on the way: Muon matrices turned as it reads them, SAM and Sophia their own arguments,
lookahead its slow weights.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from alignjax._validation import describe

__all__ = ["LookaheadState", "muon", "transposed"]

Weights = tuple[Array, ...]


def muon(learning_rate: Any, **options: Any) -> optax.GradientTransformationExtraArgs:
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
        TypeError: for an option that does not belong to it, or that this version of optax lacks.

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

    if "muon_weight_dimension_numbers" in options:
        raise TypeError(
            "muon_weight_dimension_numbers is what alignjax.optimizers.muon is there for: leave it "
            "out, or give it to optax.contrib.muon"
        )
    return transposed(optax.contrib.muon(learning_rate, **options))


def transposed(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """An optimizer that reads matrices as (in, out), for weights ``(out, in)``.

    It is shown every matrix transposed, and its steps are transposed back; its state is of the
    transposed shapes.

    Args:
        optimizer: an optax transformation, as ``optax.adaptive_grad_clip(0.1)`` or
            ``optax.inject_hyperparams(optax.contrib.muon)(learning_rate=0.1)``.

    Returns:
        An optax transformation.

    Raises:
        TypeError: for what is no optax transformation.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp, optax
        >>> clip = aj.optimizers.transposed(optax.adaptive_grad_clip(0.1))
        >>> weights = jnp.ones((2, 3))
        >>> clip.update(jnp.ones((2, 3)), clip.init(weights), weights)[0].shape
        (2, 3)
    """
    _check_kind(optimizer)

    def turn(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.T if leaf.ndim == 2 else leaf, tree)

    def turned(name: str, told: Any) -> Any:
        if name in ("value_fn", "obj_fn"):
            return lambda weights: told(turn(weights))
        if name == "grad_fn":
            return lambda weights, *rest: turn(told(turn(weights), *rest))
        return turn(told) if name == "grad" else told

    def init(weights: Any) -> Any:
        return optimizer.init(turn(weights))

    def update(slope: Any, state: Any, weights: Any = None, **told: Any) -> tuple[Any, Any]:
        known = {name: turned(name, told[name]) for name in told}
        shown = None if weights is None else turn(weights)
        inner = optax.with_extra_args_support(optimizer)
        changes, state = inner.update(turn(slope), state, shown, **known)
        return turn(changes), state

    return optax.GradientTransformationExtraArgs(init, update)


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
    _check_kind(optimizer)
    parts = list(_parts(optimizer))
    for private in ("differentially_private_aggregate", "per_example_global_norm_clip"):
        if any(part.maker == private for part in parts):
            raise ValueError(
                f"optimizer must take the gradient of a risk, but optax's {private} needs one "
                f"gradient for each sample, which a descent does not have"
            )
    if any(w.ndim == 2 and w.shape[0] != w.shape[1] for w in weights):
        read = [part for part in parts if not part.turned]
        for advice in dict.fromkeys(_misreads(part, weights) for part in read):
            if advice is not None:
                warnings.warn(advice, stacklevel=3)


def _is_transformation(item: Any) -> bool:
    return hasattr(item, "init") and hasattr(item, "update")


def _check_kind(optimizer: Any) -> None:
    if not _is_transformation(optimizer):
        raise TypeError(f"optimizer must be an optax transformation, got {describe(optimizer)}")


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
        named, takes_any = _keywords(part.function)
        wanted |= named
        if named and not takes_any and part.is_update:
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
        turned: whether :func:`transposed` is around it.
    """

    function: Callable[..., Any]
    name: str
    captured: dict[str, Any]
    turned: bool

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
    """All functions inside of an optimizer, through tuples, dictionaries, closures and objects."""
    seen: set[int] = set()
    waiting: list[tuple[Any, bool]] = [(optimizer, False)]
    while waiting:
        item, turned = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        inside: Iterable[Any] = ()
        if isinstance(item, (tuple, list)):
            inside = item
        elif isinstance(item, dict):
            inside = item.values()
        elif isinstance(item, partial):
            inside = (item.func, item.args, item.keywords)
        elif callable(item):
            module, name = getattr(item, "__module__", None) or "", _name(item)
            captured = _captured(item)
            yield _Part(item, name if module.startswith("optax.") else "", captured, turned)
            inside = (*captured.values(), getattr(item, "__wrapped__", None))
            turned |= module == __name__ and name.startswith("transposed.")
        elif _is_transformation(item):  # an object with methods, as optax.MultiSteps
            inside = (item.init, item.update, *getattr(item, "__dict__", {}).values())
        waiting.extend((part, turned) for part in inside)


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", "")


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
            "weights are (out, in): wrap it in alignjax.optimizers.transposed"
        )
    # It scales by shape in a part of its own since optax 0.2.6. Where hyperparameters are injected,
    # Muon itself is held and not yet called.
    before = part.maker == "scale_by_muon" and part.is_update
    before = before and "weight_dimension_numbers" not in part.captured
    reads = before or part.maker == "scale_by_shape" or part.name == "muon"
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

    kind = getattr(optax.contrib, "MuonDimensionNumbers", None)
    if kind is None:
        return False
    numbers = part.captured.get("weight_dimension_numbers")
    if callable(numbers):
        numbers = numbers(weights)
    found = [
        leaf
        for leaf in jax.tree.leaves(numbers, is_leaf=lambda leaf: isinstance(leaf, kind))
        if isinstance(leaf, kind)
    ]
    return bool(found) and all(leaf.reduction_axis in (1, -1, (1,), (-1,)) for leaf in found)
