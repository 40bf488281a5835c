"""The compiled engine against the reference: values, batches, derivatives, divergence, refusals."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings

import alignjax as aj
from alignjax.engines import fused, gpu, library
from tests.chains import TOLERANCE, Case, Level, by_numpy, by_xla, cases, difference
from tests.chains import by_kernels as by_cpu

pytestmark = pytest.mark.optimized

needs_kernels = pytest.mark.skipif(
    library.reason_for_absence() is not None, reason=str(library.reason_for_absence())
)
LARGEST = float(np.finfo(np.float64).max)


def case(widths, *, samples=12, batch=5, seed=0, dtype=np.float64, scale=0.5):
    """Data, a stack of starts and a stack of per-layer rates."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(samples, widths[0])).astype(dtype)
    Y = rng.normal(size=(samples, widths[-1])).astype(dtype)
    starts = tuple(
        (scale * rng.normal(size=(batch, rows, cols)) / cols**0.5).astype(dtype)
        for cols, rows in pairwise(widths)
    )
    return X, Y, starts, rng.uniform(0.01, 0.05, (batch, len(starts))).astype(dtype)


def advance(problem, weights, rates, steps=50, *, engine="cpu"):
    return aj.engines.advance(problem, weights, rates, steps, max_steps=50, engine=engine)


def over_batch(problem, engine):
    return jax.jit(jax.vmap(lambda w, r: advance(problem, w, r, engine=engine)))


def shape(widths, dtype="float64", *, networks=3):
    """A case with starts and rates of their own for every network."""
    levels = (Level(networks, None, 0, 0),)
    return Case(widths, dtype, levels, (50,), True, "best", 12, wild=0, instruction_set=0, seed=0)


def assert_close(found, expected, rtol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


SHAPES = {
    "square": (4, 4, 4, 4),
    "narrow outputs, 6 layers": (3, 4, 5, 3, 4, 6, 2),
    "bottleneck outside the span": (17, 5, 13),
    "wide": (30, 37, 26, 33),
}


@needs_kernels
@pytest.mark.parametrize("widths", SHAPES.values(), ids=SHAPES)
def test_cpu_equals_xla_within_roundoff(widths):
    X, Y, starts, rates = case(widths)
    problem = aj.regression(X, Y)
    found, expected = (over_batch(problem, name)(starts, rates) for name in ("cpu", "xla"))
    assert_close(found[0], expected[0], 1e-12)
    np.testing.assert_array_equal(found[1], 50)


@needs_kernels
@pytest.mark.parametrize("widths", [(4, 4, 4), (34, 34, 34)], ids=["lanes", "columns"])
def test_cpu_in_float32_is_no_worse_than_xla(widths):
    case = shape(widths, "float32", networks=16)
    exact, _, _ = by_numpy(case)

    def error(weights):
        pairs = zip(weights, exact, strict=True)
        return max(float(np.abs(w - e).max()) for w, e in pairs)

    found, _ = by_cpu(case)
    assert found[0].dtype == np.float32
    assert error(found) <= 2 * error(by_xla(case)[0])


@needs_kernels
def test_any_nesting_of_batches_equals_xla():
    X, Y, starts, _ = case((3, 4, 2), batch=2)
    Xs, Ys = np.stack([X, 2 * X, X - 1]), np.stack([Y, Y, Y + 1])
    rates = np.array([0.01, 0.02, 0.04, 0.05])

    def run(engine, x, y, weights, rate):
        return advance(aj.regression(x, y), weights, rate, engine=engine)

    found, expected = [], []
    for engine, out in (("cpu", found), ("xla", expected)):
        over_rates = jax.vmap(partial(run, engine), (None, None, None, 0))
        over_starts = jax.vmap(over_rates, (None, None, 0, None))
        out.append(jax.jit(jax.vmap(over_starts, (0, 0, None, None)))(Xs, Ys, starts, rates))
    assert found[0][1].shape == (3, 2, 4)
    assert_close(found, expected, 1e-12)


@needs_kernels
def test_what_a_batch_shares_is_handed_over_once():
    X, Y, starts, rates = case((4, 4, 4), batch=7)
    problem = aj.regression(X, Y)
    text = jax.jit(jax.vmap(lambda w, r: advance(problem, w, r))).lower(starts, rates).as_text()
    (call,) = [line for line in text.splitlines() if "custom_call @alignjax_advance" in line]
    operands = call.rpartition("->")[0]
    assert operands.count("tensor<1x4x4xf64>") == 4  # two moments, the minimizer, its slope
    assert operands.count("tensor<7x4x4xf64>") == 2  # the layers


@needs_kernels
@pytest.mark.parametrize("widths", [(4, 4, 4), (5, 3, 5), (28, 5, 28)])
def test_no_bit_depends_on_neighbours_or_place(widths):
    X, Y, starts, rates = case(widths, batch=37)
    problem = aj.regression(X, Y)
    together = over_batch(problem, "cpu")(starts, rates)[0]
    order = np.random.default_rng(1).permutation(37)[:19]
    shuffled = over_batch(problem, "cpu")(tuple(w[order] for w in starts), rates[order])[0]
    alone = jax.jit(lambda w, r: advance(problem, w, r))(tuple(w[4] for w in starts), rates[4])[0]
    wild = np.where(np.arange(37)[:, None] % 3 == 1, 40.0, rates)  # those diverge
    with_wild = over_batch(problem, "cpu")(starts, wild)[0]
    calm = np.arange(37) % 3 != 1
    for i in range(len(starts)):
        np.testing.assert_array_equal(shuffled[i], together[i][order])
        np.testing.assert_array_equal(alone[i], together[i][4])
        np.testing.assert_array_equal(with_wild[i][calm], together[i][calm])


@needs_kernels
@pytest.mark.parametrize("widths", [(3, 3, 3), (2, 4, 3), (4, 2, 4), (30, 26, 28)])
def test_divergence_freezes_where_xla_freezes(widths):
    X, Y, starts, _ = case(widths, batch=24)
    rates = np.geomspace(0.01, 1e4, 24)
    problem = aj.regression(X, Y)
    found, taken = over_batch(problem, "cpu")(starts, rates)
    expected, taken_by_xla = over_batch(problem, "xla")(starts, rates)
    np.testing.assert_array_equal(taken, taken_by_xla)
    assert 0 < taken.min() < taken.max() == 50
    calm, lost = rates < 0.1, np.asarray(taken) < 50
    assert_close([w[calm] for w in found], [w[calm] for w in expected], 1e-12)
    # Roundoff grows along a diverging path, so that only the size of its end is meaningful.
    for a, b in zip(found, expected, strict=True):
        sizes = [np.log(np.linalg.norm(w[lost], axis=(1, 2))) for w in (a, b)]
        np.testing.assert_allclose(*sizes, rtol=1e-6, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("widths", [(3, 4, 2), (33, 3)])
def test_divergence_in_float32_freezes_where_xla_freezes(widths):
    X, Y, starts, _ = case(widths, batch=19, dtype=np.float32)
    # In between, near the largest stable rate, roundoff decides when a run is lost.
    rates = np.concatenate([[0, 0.01, 0.03], np.geomspace(20, 1e30, 16)]).astype(np.float32)
    problem = aj.regression(X, Y)
    found, taken = over_batch(problem, "cpu")(starts, rates)
    expected, taken_by_xla = over_batch(problem, "xla")(starts, rates)
    np.testing.assert_array_equal(taken, taken_by_xla)
    assert taken[:3].tolist() == [50] * 3
    assert 0 <= taken.min() < taken[3] < 50
    assert_close([w[:3] for w in found], [w[:3] for w in expected], 1e-5)
    for a, b in zip(found, expected, strict=True):
        size = np.linalg.norm(b[3:], axis=(1, 2))
        assert (np.linalg.norm(a[3:] - b[3:], axis=(1, 2)) < 1e-3 * size).all()


@needs_kernels
def test_the_largest_risk_is_the_square_root_of_the_largest_float():
    # W grows a hundredfold a step from 1, so that the risk after n steps is 10^4n / 2.
    problem, start = aj.from_moments(np.eye(1), np.zeros((1, 1)), 0.0), (np.ones((1, 1)),)
    (weights,), taken = jax.jit(partial(advance, problem))(start, 101.0)
    assert 0.5 * 1e4 ** int(taken) <= LARGEST**0.5 < 0.5 * 1e4 ** (int(taken) + 1)
    np.testing.assert_allclose(weights[0, 0], 100.0 ** int(taken), rtol=1e-12)


@needs_kernels
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("width", [1, 33], ids=["lanes", "columns"])
def test_divergence_is_found_at_any_place_of_a_block_of_steps(width, dtype):
    # W grows by 5/4 a step, and state `first` is the first one whose risk is too large.
    first = np.array([1, 2, 31, 32, 33, 63, 64, 65])
    largest = float(np.finfo(dtype).max) ** 0.5
    sizes = ((2 * largest) ** 0.5 * 1.25 ** (0.5 - first)).astype(dtype)
    starts = np.zeros((len(first), width, width), dtype)
    starts[:, 0, 0] = sizes
    problem = aj.from_moments(np.eye(width, dtype=dtype), np.zeros((width, width), dtype), dtype(0))
    run = partial(aj.engines.advance, problem, max_steps=70, engine="cpu")
    (found,), taken = jax.jit(jax.vmap(lambda w: run((w,), dtype(2.25), 70)))(starts)
    np.testing.assert_array_equal(taken, first - 1)
    ends = sizes * (-1.25) ** (first - 1)
    np.testing.assert_allclose(found[:, 0, 0], ends, rtol=100 * np.finfo(dtype).eps)


@needs_kernels
def test_a_start_that_is_no_good_state_is_kept():
    problem = aj.regression(np.eye(3), np.eye(3))
    for bad in (np.nan, np.inf, 1e200):
        start = (jnp.full((3, 3), bad), jnp.eye(3))
        moved, taken = jax.jit(partial(advance, problem))(start, jnp.asarray(0.1))
        assert taken == 0
        for w, s in zip(moved, start, strict=True):
            np.testing.assert_array_equal(w, s)


@needs_kernels
def test_no_steps_change_nothing():
    problem = aj.regression(np.eye(3), np.eye(3))
    start = (jnp.full((3, 3), 0.1), jnp.eye(3))
    moved, taken = jax.jit(partial(advance, problem))(start, jnp.asarray(0.1), 0)
    assert taken == 0
    assert_close(moved, start, 0)


@needs_kernels
def test_gradient_descent_and_its_derivative_say_the_same_by_both_engines():
    X, Y, starts, _ = case((3, 2))
    problem, start = aj.regression(X, Y), (starts[0][0],)

    def run(engine, rate):
        found = aj.gradient_descent(
            problem, start, rate, steps=60, save_at=(0, 3, 40), engine=engine
        )
        risks = found.observations["risk"]
        return risks.sum(), (risks, found.status, found.stopped_at)

    found, expected = (
        jax.vmap(jax.grad(partial(run, name), has_aux=True))(jnp.array([0.01, 0.1, 50.0]))
        for name in ("cpu", "xla")
    )
    (slopes, (risks, status, stopped_at)), (true_slopes, (true_risks, *true)) = found, expected
    np.testing.assert_array_equal(status, true[0])
    assert status[2] == aj.Status.DIVERGED
    np.testing.assert_array_equal(stopped_at, true[1])
    assert_close((risks[:2], slopes[:2]), (true_risks[:2], true_slopes[:2]), 1e-12)


def loss(engine, rate, weights, x):
    """Of the weights after 20 steps."""
    problem = aj.regression(x, np.eye(3)[:, : len(weights[-1])])
    moved, _ = advance(problem, weights, rate, 20, engine=engine)
    return sum((w**3).sum() for w in moved)


WEIGHTS = (np.array([[0.3, -0.2], [0.1, 0.4], [0.2, 0.1]]), np.array([[0.5, 0.1, -0.3]] * 2))
INPUTS = np.array([[1.0, 0.5], [-0.4, 0.8], [0.2, -1.1]])


@needs_kernels
def test_derivatives_are_those_of_xla():
    rates = jnp.array([0.02, 0.2, 600.0])  # the last one diverges, and must not be seen

    def total(engine, *given):
        return jax.vmap(partial(loss, engine), (0, None, None))(*given)[:2].sum()

    found, expected = (
        jax.jit(jax.grad(partial(total, name), (0, 1, 2)))(rates, WEIGHTS, INPUTS)
        for name in ("cpu", "xla")
    )
    assert_close(found, expected, 1e-12)


@needs_kernels
def test_forward_derivatives_of_values_and_gradients_are_those_of_xla():
    def forward_over_reverse(engine):
        f = jax.checkpoint(partial(loss, engine, weights=WEIGHTS[:1], x=INPUTS))
        return jax.jit(jax.jacfwd(jax.value_and_grad(f)))(0.2)

    found, expected = map(forward_over_reverse, ("cpu", "xla"))
    assert_close(found, expected, 1e-12)


@needs_kernels
def test_it_runs_inside_shard_map():
    X, Y, starts, _ = case((3, 4, 2))
    problem, start = aj.regression(X, Y), tuple(w[0] for w in starts)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("runs",))
    axis = jax.sharding.PartitionSpec("runs")
    rates = jnp.linspace(0.01, 0.1, 6)
    for engine in ("cpu", "auto"):
        run = jax.vmap(partial(advance, problem, start, engine=engine))
        sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=axis, out_specs=axis))
        assert_close(sharded(rates), jax.jit(run)(rates), 1e-14)


@pytest.mark.parametrize("engine", ["xla", "auto"])
def test_a_whole_descent_runs_inside_shard_map(engine):
    X, Y, starts, rates = case((3, 4, 2), batch=2)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("runs",))
    axis, whole = jax.sharding.PartitionSpec("runs"), jax.sharding.PartitionSpec()
    one = {"rates": rates[0], "starts": tuple(w[0] for w in starts), "targets": Y}
    many = {"rates": rates, "starts": starts, "targets": np.stack([Y, 2 * Y])}

    def run(rate, start, targets):
        found = aj.gradient_descent(
            aj.regression(X, targets), start, rate, steps=7, save_at=(0, 3), engine=engine
        )
        return found.observations["risk"], found.weights, found.status

    for sharded in one:
        where = tuple(axis if name == sharded else whole for name in one)
        batched = jax.vmap(run, tuple(0 if name == sharded else None for name in one))
        spread = jax.jit(jax.shard_map(batched, mesh=mesh, in_specs=where, out_specs=axis))
        given = (one | {sharded: many[sharded]}).values()
        spread.trace(*given)  # what does not vary where it should is refused here
    assert_close(spread(*given), jax.jit(batched)(*given), 1e-14)


def test_other_descents_run_inside_shard_map():
    X, Y, starts, _ = case((3, 3, 3), batch=2)
    data = aj.datasets.separable_pair(jax.random.key(0), 8, 3)
    pair = aj.classification(data.inputs, data.labels, loss="exponential")
    factored = aj.factorization(jnp.diag(jnp.arange(1.0, 4.0)))
    reduced = aj.reduce(factored, aj.initializers.identity((3, 3, 3), 0.5))
    small = aj.initializers.identity((3, 3, 1), 0.1)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("runs",))
    axis = jax.sharding.PartitionSpec("runs")

    def run(rate):
        first = aj.adaptive_descent(pair, small, steps=3, rule="margin", constant=rate)
        second = aj.reduced_descent(reduced, rate, steps=3)
        third = aj.optimizer_descent(
            aj.regression(X, rate * Y), tuple(w[0] for w in starts), optax.sgd(0.1), steps=3
        )
        return first.weights, second.weights, third.weights

    spread = jax.shard_map(jax.vmap(run), mesh=mesh, in_specs=axis, out_specs=axis)
    # What does not vary where it should is refused while tracing.
    rates = jnp.linspace(0.01, 0.02, 2)
    traced = jax.jit(spread).trace(rates)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(traced.out_info)} == {2}

    def size(rates):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(jax.vmap(run)(rates)))

    for slope in (jax.grad(size), lambda r: jax.jvp(jax.vmap(run), (r,), (r,))[1]):
        jax.jit(jax.shard_map(slope, mesh=mesh, in_specs=axis, out_specs=axis)).trace(rates)


@pytest.mark.parametrize("engine", ["xla", "auto"])
def test_derivatives_are_taken_inside_shard_map_and_of_it(engine):
    problem = aj.factorization(jnp.array([[1.0, 0.3], [0.2, 0.5]]))
    start = aj.initializers.gaussian(jax.random.key(0), (2, 2, 2), 0.5)
    values = jnp.full((2, 2), 0.3)
    aligned = aj.initializers.aligned(jax.random.key(0), problem, (2, 2, 2), values)
    reduced = aj.reduce(problem, aligned)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("runs",))
    axis = jax.sharding.PartitionSpec("runs")
    rates = jnp.linspace(0.01, 0.02, 2)

    @jax.vmap
    def risks(rate):
        full = aj.gradient_descent(problem, start, rate, steps=5, engine=engine)
        short = aj.reduced_descent(reduced, rate, steps=5, engine=engine)
        return full.observations["risk"] + short.observations["risk"]

    def spread(function):
        return jax.shard_map(function, mesh=mesh, in_specs=axis, out_specs=axis)

    def slope(function):
        return jax.grad(lambda rates: function(rates).sum())

    expected = jax.jit(slope(risks))(rates)
    assert np.abs(expected).min() > 0.1
    for found in (spread(slope(risks)), slope(spread(risks))):
        assert_close(jax.jit(found)(rates), expected, 1e-13)


@needs_kernels
@pytest.mark.parametrize(
    ("engine", "kernel", "platforms"),
    [
        ("auto", library.TARGET, ["cpu"]),
        ("auto", gpu.library.TARGET, ["cuda"]),
        ("gpu", gpu.library.TARGET, ["cuda"]),
    ],
)
def test_each_kernel_is_on_its_platform_alone(engine, kernel, platforms, monkeypatch):
    monkeypatch.setattr(fused, "_without_gpu", lambda: None)  # lowering needs no GPU
    monkeypatch.setattr(gpu, "takes_part", lambda: True)
    monkeypatch.setattr(gpu, "proves_itself", lambda widths, dtype: True)
    X, Y, starts, rates = case((4, 4, 4), dtype=np.float32)
    run = jax.jit(jax.vmap(partial(advance, aj.regression(X, Y), engine=engine)))
    traced = run.trace(starts, rates)
    where = ("cpu", "cuda", "tpu") if engine == "auto" else ("cuda",)
    texts = {n: traced.lower(lowering_platforms=(n,)).as_text().lower() for n in where}
    assert [name for name, text in texts.items() if kernel in text] == platforms


@pytest.mark.parametrize("proven", [True, False])
def test_auto_takes_a_kernel_for_gpus_that_has_proved_itself(proven, monkeypatch):
    asked = []

    def proves_itself(widths, dtype):
        asked.append((widths, dtype))
        return proven

    monkeypatch.setattr(fused, "_without_gpu", lambda: None)
    monkeypatch.setattr(gpu, "takes_part", lambda: True)
    monkeypatch.setattr(gpu, "proves_itself", proves_itself)
    for widths, known in [((4, 5, 3), True), ((70, 2, 70), False)]:  # the second fits on no chip
        asked.clear()
        X, Y, starts, _ = case(widths, samples=80)
        start = tuple(jnp.asarray(w[0]) for w in starts)
        kernels = fused.that_pay(aj.regression(X, Y), start, None)
        assert ("gpu" in kernels) == (proven and known)
        assert asked == ([(widths, np.float64)] if known else [])


@needs_kernels
@pytest.mark.parametrize(
    ("widths", "taken"),
    [
        ((64, 1, 64), False),
        ((128, 2, 2, 128), False),
        ((256, 4, 256), False),
        ((64, 2, 64), True),
        ((64, 64, 1, 64), True),  # a layer of 64 x 64 to multiply with
        ((256, 64, 1), True),
        ((257, 2), False),  # too wide
    ],
)
def test_auto_leaves_to_xla_what_xla_does_faster(widths, taken):
    X, Y, starts, _ = case(widths, samples=300)
    start = tuple(jnp.asarray(w[0]) for w in starts)
    chosen = aj.engines.resolve("auto", aj.regression(X, Y), start)
    assert chosen == ("auto" if taken else "xla")


@pytest.fixture
def restored():
    before = library.selected()
    yield
    if before is not None:
        library.select(before)


@needs_kernels
@pytest.mark.parametrize("widths", [(4, 4, 4), (5, 2, 7), (26, 31, 29)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_all_instruction_sets_agree(widths, dtype, restored):
    X, Y, starts, rates = case(widths, dtype=dtype, batch=19)
    run = over_batch(aj.regression(X, Y), "cpu")
    found = []
    for name in library.instruction_sets():
        library.select(name)
        assert library.selected() == name
        found.append(jax.block_until_ready(run(starts, rates)[0]))
    for other in found[1:]:
        assert_close(other, found[0], 1e-12 if dtype == np.float64 else 1e-4)


@needs_kernels
@settings(max_examples=12, deadline=None)
@given(case=cases(widest=40))
@example(case=shape((2, 2, 2, 2), "float32", networks=17))
@example(case=shape((9, 9, 9), "float32", networks=17))
@example(case=shape((40, 3, 3, 40), networks=9))
@example(case=shape((130, 2), "float32", networks=3))
@example(case=shape((2, 130), "float32", networks=3))
def test_networks_in_lanes_and_by_columns_are_the_same_to_the_last_bit(case):
    # So the kernel may choose by how many networks there are, and no chunk size shows.
    found = [by_cpu(replace(case, layout=layout)) for layout in ("lanes", "columns")]
    for lanes, columns in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_array_equal(lanes, columns)


@needs_kernels
@pytest.mark.parametrize("inner", [(), (3,)], ids=["one layer", "a bottleneck"])
@pytest.mark.parametrize("width", [8, 20])
def test_a_risk_within_roundoff_of_the_largest_freezes_alike_in_lanes_and_by_columns(width, inner):
    count, rate = 4000, np.float32(1e-30)  # nothing moves: who starts below the limit stays there
    random = np.random.default_rng(0)
    widths = (width, *inner, width)
    layers = [random.normal(size=(count, b, a)) for a, b in pairwise(widths)]
    product = layers[0] if not inner else layers[1] @ layers[0]
    largest = float(np.finfo(np.float32).max) ** 0.5
    scale = np.sqrt(2 * largest / (product**2).sum((1, 2)))
    scale *= 1 + random.uniform(-3e-7, 3e-7, count)
    layers[-1] *= scale[:, None, None]
    starts = tuple(w.astype(np.float32) for w in layers)
    zeros = np.zeros((width, width), np.float32)
    problem = aj.from_moments(np.eye(width, dtype=np.float32), zeros, np.float32(0))

    @partial(jax.jit, static_argnums=1)
    def run(starts, layout):
        rates = jnp.full(len(starts), rate)
        return jax.vmap(lambda w: fused.on_cpu(problem, w, rates, jnp.int32(3), layout=layout))(
            starts
        )

    lanes, columns = run(starts, "lanes")[1], run(starts, "columns")[1]
    assert set(np.asarray(lanes).tolist()) == {0, 3}  # both sides of the limit
    np.testing.assert_array_equal(lanes, columns)


@needs_kernels
@settings(max_examples=30, deadline=None)
@given(case=cases(widest=34))
@example(case=shape((4, 3)))
@example(case=shape((2, 5, 4, 3)))
@example(case=shape((6, 4, 2, 7, 5)))
def test_any_shape_in_any_nest_of_batches_equals_a_loop_in_numpy(case):
    assert difference(case) < TOLERANCE[case.dtype]


@needs_kernels
@pytest.mark.parametrize(
    ("problem", "options", "what"),
    [
        (aj.classification(np.eye(3), [0, 1, 2], loss="cross_entropy"), {}, "SampleProblem"),
        (aj.sensing(np.ones((2, 3, 3)), np.ones(2)), {}, "SensingProblem"),
        (aj.regression(np.eye(3), np.eye(3)), {"structure": aj.structures.Diagonal(3)}, "structur"),
    ],
    ids=["classification", "sensing", "structure"],
)
def test_what_the_kernels_do_not_run_is_refused_by_name(problem, options, what):
    size = (3,) if options else (3, 3)
    start = (np.ones(size), np.ones(size))
    with pytest.raises(ValueError, match=rf"^engine 'cpu' runs least squares .*not .*{what}"):
        aj.gradient_descent(problem, start, 0.1, steps=3, engine="cpu", **options)
    run = aj.gradient_descent(problem, start, 0.1, steps=3, **options)
    assert run.stopped_at == 3


def test_without_kernels_everything_runs_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(library, "FILE", tmp_path / "none.so")
    assert "cpu" not in aj.engines.available()
    assert "without its compiled kernels" in aj.engines.unavailable()["cpu"]
    problem, start = aj.regression(np.eye(2), np.eye(2)), (np.eye(2),)
    assert aj.engines.resolve("auto", problem, aj.problems.check_weights(problem, start)) == "xla"
    with pytest.raises(ValueError, match=r"^engine .*'cpu', which cannot run here: .*kernels"):
        aj.gradient_descent(problem, start, 0.1, steps=3, engine="cpu")


def test_a_library_that_cannot_be_loaded_is_told(monkeypatch, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(library, "FILE", broken)
    assert "cannot be loaded" in aj.engines.unavailable()["cpu"]


@needs_kernels
def test_a_library_of_another_version_is_told(monkeypatch):
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(library, "_INTERFACE", -1)
    assert "those of another version: install it again" in aj.engines.unavailable()["cpu"]


@needs_kernels
def test_kernels_for_a_newer_jaxlib_are_told_before_they_break_its_back_end(monkeypatch):
    assert 1 <= library.xla_interface() < 1000
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(library, "xla_interface", lambda: 0)
    assert "for a newer jaxlib" in aj.engines.unavailable()["cpu"]


@needs_kernels
def test_the_kernels_are_compiled_from_the_sources_beside_them():
    pytest.importorskip("hatchling")
    from hatch_build import is_fresh

    sources = Path(__file__).parent.parent / "csrc"
    assert is_fresh(sources, library.FILE), "csrc/ has changed: `pip install -e .` again"


@pytest.mark.parametrize(
    ("machine", "archflags", "version", "tag", "flags"),
    [
        ("arm64", None, "10.13", "macosx_11_0_arm64", ["arm64 11.0"]),
        ("arm64", None, "14", "macosx_14_0_arm64", ["arm64 14.0"]),
        ("x86_64", None, "10.9", "macosx_10_15_x86_64", ["x86_64 10.15"]),
        ("x86_64", "-arch arm64", "12.3", "macosx_12_0_arm64", ["arm64 12.0"]),
        (
            "arm64",
            "-arch x86_64 -arch arm64",
            "10.13",
            "macosx_10_15_universal2",
            ["arm64 10.15", "x86_64 10.15"],
        ),
    ],
)
def test_a_wheel_for_macos_names_what_it_is_compiled_for(
    machine, archflags, version, tag, flags, monkeypatch
):
    pytest.importorskip("hatchling")
    import hatch_build

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setenv("MACOSX_DEPLOYMENT_TARGET", version)
    if archflags is None:
        monkeypatch.delenv("ARCHFLAGS", raising=False)
    else:
        monkeypatch.setenv("ARCHFLAGS", archflags)
    assert hatch_build.platform_tag([]) == tag
    expected = [f"-arch {arch} -mmacosx-version-min={old}" for arch, old in map(str.split, flags)]
    assert [" ".join(given) for given in hatch_build.targets().values()] == expected


@needs_kernels
@pytest.mark.parametrize(("wanted", "right"), [("sse9", False), ("fastest", True)])
def test_the_environment_chooses_an_instruction_set(wanted, right):
    name = library.instruction_sets()[-1] if right else wanted
    program = """
from alignjax.engines import fused, gpu, library
print(library.reason_for_absence(), library.selected())
from jax._src import xla_bridge
assert not xla_bridge._backends, "loading the kernels started a backend"
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "ALIGNJAX_CPU_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )
    if right:
        assert run.stdout.strip() == f"None {name}", run.stderr
    else:
        here = ", ".join(library.instruction_sets())
        told = f"ALIGNJAX_CPU_ISA must be an instruction set that is here ({here}), got 'sse9'"
        assert told in run.stderr
