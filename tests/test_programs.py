"""Compiled runs are kept as long as the functions that they run, and no longer."""

import copy
import dataclasses
import functools
import gc
import operator
import pickle
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import alignjax as aj
from alignjax.descent import _gradient_descent, _optimizer_descent

PROBLEM = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
WEIGHTS = aj.initializers.identity((2, 2, 2), 0.5)
SIGNS = aj.classification(jnp.eye(2), jnp.array([1, -1]))
CLASSIFIER = aj.initializers.identity((2, 2, 1), 0.1)


def descend(observe, rate=0.1):
    return aj.gradient_descent(PROBLEM, WEIGHTS, rate, steps=3, observe=observe)


DOORS = {
    "gradient_descent": descend,
    "optimizer_descent": lambda observe: aj.optimizer_descent(
        PROBLEM, WEIGHTS, optax.sgd(0.1), steps=3, observe=observe
    ),
    "adaptive_descent": lambda observe: aj.adaptive_descent(
        SIGNS, CLASSIFIER, steps=3, observe=observe
    ),
    "gradient_flow": lambda observe: aj.gradient_flow(
        PROBLEM, WEIGHTS, times=[0.0, 1.0], observe=observe, solver="explicit"
    ),
    "gradient_flow, implicit": lambda observe: aj.gradient_flow(
        PROBLEM, WEIGHTS, times=[0.0, 1.0], observe=observe, solver="implicit"
    ),
}
INSIDE = {
    "eager": lambda door, observe: door(observe),
    "jit": lambda door, observe: jax.jit(lambda _: door(observe))(0.0),
    "vmap": lambda door, observe: jax.vmap(lambda x: (door(observe), x))(jnp.ones(2)),
}


def closure():
    """A function over an array, and weak references to both."""
    array = jnp.full((3, 3), 2.0)

    def observe(weights):
        return array.sum() * weights[0].sum()

    return observe, (weakref.ref(observe), weakref.ref(array))


def alive(references):
    gc.collect()
    return [reference() is not None for reference in references]


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("door", DOORS)
def test_what_observe_closes_over_goes_with_it(door, inside):
    def run():
        observe, references = closure()
        INSIDE[inside](DOORS[door], observe)
        assert alive(references) == [True, True]
        return references

    # In a frame of its own: who looks at a frame's variables (an import may) keeps them with it.
    assert alive(run()) == [False, False]


def test_what_observe_closes_over_goes_after_a_sweep():
    def run():
        observe, references = closure()
        data = aj.sweep(
            lambda rate: {"seen": descend(observe, rate).observations},
            {"rate": [0.1, 0.2]},
            progress=False,
        )
        assert data.seen.shape == (2, 2)
        return references

    assert alive(run()) == [False, False]


def test_what_an_optimizer_closes_over_goes_with_it():
    rates = jnp.array([0.1, 0.2, 0.3])
    optimizer = optax.sgd(lambda count: rates[count])
    references = weakref.ref(optimizer.update), weakref.ref(rates)
    run = aj.optimizer_descent(PROBLEM, WEIGHTS, optimizer, steps=3)
    assert alive(references) == [True, True]
    del optimizer, run
    rates = None
    assert alive(references) == [False, False]


def test_a_function_goes_though_the_other_one_of_its_run_stays():
    optimizer = optax.sgd(0.1)
    observe, references = closure()
    aj.optimizer_descent(PROBLEM, WEIGHTS, optimizer, steps=3, observe=observe)
    del observe
    assert alive(references) == [False, False]


# Functions of many kinds, all of the sum of a 3 x 3 array.


def total(array, weights):
    return jnp.asarray(array).sum() * weights[0].sum()


class Module(eqx.Module):
    array: jax.Array
    times: object = jnp.multiply
    kept: object = eqx.field(static=True, default=None)

    def __call__(self, weights):
        return self.times(self.array.sum(), weights[0].sum())

    def look(self, weights):
        return self(weights)


@dataclasses.dataclass
class Data:
    array: object

    def __call__(self, weights):
        return total(self.array, weights)


@dataclasses.dataclass(frozen=True)
class Frozen:
    array: object
    __call__ = Data.__call__


class Slots:
    __slots__ = ("array",)

    def __init__(self, array):
        self.array = array

    def __call__(self, weights):
        return total(self.array, weights)


class Plain:
    def __init__(self, array):
        self.array = array

    def look(self, weights):
        return total(self.array, weights)


KINDS = {
    "function": lambda array: lambda weights: total(array, weights),
    "module": Module,
    "its method": lambda array: Module(array).look,
    "module with a function": lambda array: Module(array, kept=lambda: array),
    "Partial": lambda array: jax.tree_util.Partial(total, array),
    "Partial of a function": lambda array: jax.tree_util.Partial(
        lambda a, weights: total(a + 0 * array, weights), array
    ),
    "partial": lambda array: functools.partial(total, array),
    "dataclass": Data,
    "frozen dataclass": Frozen,
    "slots": Slots,
    "jit": lambda array: jax.jit(lambda weights: total(array, weights)),
    "filter_jit": lambda array: eqx.filter_jit(Module(array)),
}
SEEN = 9.0 * descend(lambda weights: weights[0].sum()).observations


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_function_is_taken_and_let_go(kind):
    array = jnp.ones((3, 3))
    observe, reference = KINDS[kind](array), weakref.ref(array)
    np.testing.assert_allclose(descend(observe).observations, SEEN, rtol=1e-12)
    rates = jnp.array([0.1, 0.2])
    swept = jax.vmap(lambda rate: descend(observe, rate).observations)(rates)
    np.testing.assert_allclose(swept[0], SEEN, rtol=1e-12)
    if kind != "slots":  # which nothing can refer to weakly
        before = _gradient_descent._cache_size()
        descend(observe)
        assert _gradient_descent._cache_size() == before
    observe = array = None
    assert alive([reference]) == [False]


def test_a_method_is_the_same_at_every_look_and_goes_with_its_object():
    plain = Plain(jnp.ones((3, 3)))
    reference = weakref.ref(plain.array)
    descend(plain.look)
    before = _gradient_descent._cache_size()
    np.testing.assert_allclose(descend(plain.look).observations, SEEN, rtol=1e-12)
    assert _gradient_descent._cache_size() == before
    del plain
    assert alive([reference]) == [False]
    assert _gradient_descent._cache_size() == before - 1


@pytest.mark.parametrize("kind", ["module", "its method", "Partial"])
def test_other_arrays_of_a_pytree_need_no_other_compilation(kind):
    make = KINDS[kind]
    descend(make(jnp.ones((3, 3))))
    before = _gradient_descent._cache_size()
    seen = descend(make(2.0 * jnp.ones((3, 3)))).observations
    np.testing.assert_allclose(seen, 2 * SEEN, rtol=1e-12)
    assert _gradient_descent._cache_size() == before
    scales = jnp.array([1.0, 3.0])
    run = jax.jit(jax.vmap(lambda s: descend(make(s * jnp.ones((3, 3)))).observations))
    np.testing.assert_allclose(run(scales), scales[:, None] * SEEN, rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: functools.partial(total, 9.0),
        lambda: Frozen(9.0),
        lambda: operator.itemgetter(0),
        lambda: jax.tree_util.Partial(total, 9.0),
    ],
    ids=["partial", "frozen dataclass", "itemgetter", "Partial"],
)
def test_what_is_made_anew_of_the_same_parts_is_compiled_once(make):
    first = descend(make()).observations
    before = _gradient_descent._cache_size()
    np.testing.assert_array_equal(descend(make()).observations, first)
    assert _gradient_descent._cache_size() == before


def test_numbers_that_differ_in_kind_or_sign_are_told_apart():
    def side(value, weights):
        return weights[0].sum() * 0 + jnp.copysign(1.0, value) + isinstance(value, bool)

    seen = [
        descend(functools.partial(side, value)).observations[0].item()
        for value in (0.0, -0.0, 1, True, 0.0)
    ]
    assert seen == [1, -1, 1, 2, 1]


def test_one_function_inside_another_each_see_their_own():
    def inner(weights):
        return weights[0].sum()

    def observe(weights):
        return aj.gradient_descent(PROBLEM, weights, 0.1, steps=2, observe=inner).observations

    seen = descend(observe).observations
    states = descend(lambda weights: weights).observations
    for i in range(2):
        start = tuple(layer[i] for layer in states)
        run = aj.gradient_descent(PROBLEM, start, 0.1, steps=2, observe=inner)
        np.testing.assert_allclose(seen[i], run.observations, rtol=1e-12)


# Optimizers


class Steps(eqx.Module):
    rate: jax.Array

    def init(self, weights):
        return ()

    def update(self, gradients, state, weights=None, **_):
        return jax.tree.map(lambda g: -self.rate * g, gradients), state


@dataclasses.dataclass
class DataSteps:
    rate: object
    init, update = Steps.init, Steps.update


def optimize(optimizer, steps=3):
    run = aj.optimizer_descent(PROBLEM, WEIGHTS, optimizer, steps=steps)
    return run.observations["risk"][-1]


OPTIMIZERS = {
    "module": Steps,
    "dataclass": DataSteps,
    "closures": optax.sgd,
    "chain": lambda rate: optax.chain(optax.clip(1e9), optax.trace(0.0), optax.sgd(rate)),
}
RATES = jnp.array([0.1, 0.2])
RISKS, SLOPES = jax.vmap(
    jax.value_and_grad(lambda rate: descend(None, rate).observations["risk"][-1])
)(RATES)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_hyperparameters_are_arrays_or_traced_and_a_sweep_is_one_trace(kind):
    make = OPTIMIZERS[kind]
    traces = []

    def one(rate):
        traces.append(None)
        return optimize(make(rate))

    np.testing.assert_allclose(optimize(make(RATES[0])), RISKS[0], rtol=1e-12)
    with jax.checking_leaks():
        np.testing.assert_allclose(jax.vmap(one)(RATES), RISKS, rtol=1e-12)
    swept = jax.jit(jax.vmap(jax.value_and_grad(one)))
    traces.clear()
    risks, slopes = swept(RATES)
    swept(2 * RATES)
    assert len(traces) == 1
    np.testing.assert_allclose(risks, RISKS, rtol=1e-12)
    np.testing.assert_allclose(slopes, SLOPES, rtol=1e-10)


def test_another_rate_of_a_module_needs_no_other_compilation():
    optimize(Steps(RATES[0]))
    before = _optimizer_descent._cache_size()
    np.testing.assert_allclose(optimize(Steps(RATES[1])), RISKS[1], rtol=1e-12)
    assert _optimizer_descent._cache_size() == before


def test_observe_may_close_over_what_is_traced():
    def seen(scale):
        return descend(lambda weights: scale * weights[0].sum()).observations

    with jax.checking_leaks():
        np.testing.assert_allclose(jax.vmap(seen)(jnp.array([9.0, 18.0]))[0], SEEN, rtol=1e-12)


# Copies


def own_loss(outputs, label):
    return ((outputs - label) ** 2).sum()


ROWS = np.arange(12.0).reshape(6, 2) % 5 - 2
COPIED = {
    "regression": aj.regression(ROWS, ROWS[:, :1]),
    "wide regression": aj.regression(ROWS[:1], ROWS[:1]),
    "from_moments": aj.from_moments(np.eye(2), np.eye(2), 9.0),
    "sensing": aj.sensing(ROWS.reshape(3, 2, 2), ROWS[:3, 0]),
    "logistic": SIGNS,
    "exponential": aj.classification(np.eye(2), [1, -1], "exponential"),
    "cross_entropy": aj.classification(np.eye(2), [0, 1], "cross_entropy"),
    "own loss": aj.classification(np.eye(2), [0.0, 1.0], own_loss),
    "trajectory": aj.optimizer_descent(PROBLEM, WEIGHTS, optax.adam(0.1), steps=2),
    "reduced": aj.reduce(PROBLEM, WEIGHTS),
    "moments": aj.Moments.zero(2, 2),
    "tracker": aj.metrics.SpectralTracker.init({"W": jnp.eye(2)}),
    "sparse": aj.structures.Sparse(np.eye(3)),
    "basis": aj.structures.Basis([np.eye(2), np.ones((2, 2))]),
    "convolution": aj.structures.Conv2d(4, 3),
    "loss": aj.losses.squared,
}
COPIES = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", COPIED)
def test_problems_results_and_structures_can_be_copied_and_pickled(name, how):
    value = COPIED[name]
    leaves, tree = jax.tree.flatten(value)
    others, other_tree = jax.tree.flatten(COPIES[how](value))
    assert other_tree == tree  # with the losses in it
    for leaf, other in zip(leaves, others, strict=True):
        if not isinstance(leaf, jax.Array):
            assert leaf == other
            continue
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(leaf, other)


def test_a_certificate_can_be_copied_and_pickled():
    found = aj.theory.alignment.certify(PROBLEM)
    for make in COPIES.values():
        for left, right in zip(
            dataclasses.astuple(found), dataclasses.astuple(make(found)), strict=True
        ):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("loss", ["squared", "logistic", "exponential", "cross_entropy"])
def test_an_unpickled_loss_is_the_loss(loss):
    original = aj.losses.as_loss(loss)
    unpickled = pickle.loads(pickle.dumps(original))
    assert unpickled == original
    assert hash(unpickled) == hash(original)


def test_an_unpickled_squared_loss_still_needs_moments_only():
    unpickled = pickle.loads(pickle.dumps(aj.losses.squared))
    kind = type(aj.classification(np.eye(2), [0, 1], "squared"))
    assert type(aj.classification(np.eye(2), [0, 1], unpickled)) is kind


def test_an_unpickled_problem_shares_the_compiled_run():
    aj.gradient_descent(SIGNS, CLASSIFIER, 0.1, steps=2)
    before = _gradient_descent._cache_size()
    aj.gradient_descent(pickle.loads(pickle.dumps(SIGNS)), CLASSIFIER, 0.1, steps=2)
    assert _gradient_descent._cache_size() == before
