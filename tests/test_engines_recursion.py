"""The compiled recursion in singular values against the reference: the oracle stays one."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import alignjax as aj
from alignjax.engines import library, recursion
from alignjax.reduced import Reduced, reduced_gradient
from tests.modes import cases, check
from tests.test_reduced import by_hand

pytestmark = pytest.mark.optimized

needs_kernels = pytest.mark.skipif(
    library.reason_for_absence() is not None, reason=str(library.reason_for_absence())
)
LARGEST = float(np.sqrt(np.finfo(np.float64).max))


def modes(depth, rank, *, seed=0, dtype=np.float64, floor=0.25):
    """A reduced problem without bases, which no recursion looks at."""
    rng = np.random.default_rng(seed)
    inputs, products = rng.uniform(0.5, 1.5, rank), rng.uniform(0.5, 1.5, rank)
    given = (rng.uniform(0.3, 1.0, (depth, rank)), inputs * products, inputs, inputs)
    values, target, *spectra = (jnp.asarray(x, dtype) for x in given)
    none, nothing = jnp.zeros((0, 0), dtype), jnp.zeros(0, dtype)
    return Reduced(
        U=none,
        V=none,
        inner_bases=(none,) * (depth - 1),
        singular_values=values,
        target_spectrum=target,
        input_spectrum=spectra[0],
        full_input_spectrum=spectra[1],
        full_target_spectrum=target,
        minimizer=jnp.asarray(products, dtype),
        minimum_risk=jnp.asarray(floor, dtype),
        frozen=(nothing,) * depth,
    )


def batch(reduced, count, seed=1):
    """Starts ``(count, d, r)`` and rates ``(count, d)``."""
    rng = np.random.default_rng(seed)
    shape = (count, *reduced.singular_values.shape)
    dtype = reduced.singular_values.dtype
    starts, rates = rng.uniform(0.3, 1.0, shape), rng.uniform(0.01, 0.1, shape[:2])
    return starts.astype(dtype), rates.astype(dtype)


def run(reduced, values, rate, engine, *, steps=75, save_at=None):
    return aj.reduced_descent(
        reduced, rate, steps=steps, singular_values=values, save_at=save_at, engine=engine
    )


def both(reduced, values, rates, **options):
    """The kernel's runs, and the reference's."""
    return [
        jax.vmap(partial(run, reduced, engine=name, **options))(values, rates)
        for name in ("cpu", "xla")
    ]


def assert_same_run(found, expected, rtol):
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_array_equal(found.stopped_at, expected.stopped_at)
    np.testing.assert_array_equal(found.time, expected.time)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=rtol, atol=rtol)
    for name in ("singular_values", "risk"):
        ours, others = found.observations[name], expected.observations[name]
        np.testing.assert_allclose(ours, others, rtol=rtol, atol=rtol)


@needs_kernels
@pytest.mark.parametrize(("depth", "rank", "count"), [(1, 3, 2), (2, 20, 4), (3, 2, 9), (4, 90, 2)])
def test_cpu_equals_xla_within_roundoff(depth, rank, count):
    reduced = modes(depth, rank)
    found, expected = both(reduced, *batch(reduced, count), save_at=(0, 1, 33))
    assert (found.stopped_at == 75).all()
    assert_same_run(found, expected, 1e-12)


@needs_kernels
@pytest.mark.parametrize("depth", [5, 6, 7, 8, 9, 12])
def test_any_depth_equals_a_loop_in_numpy(depth):
    reduced = modes(depth, 7)
    values, rates = batch(reduced, 6)
    found = jax.vmap(partial(run, reduced, engine="cpu"))(values, rates)
    for i in range(6):
        state, taken = by_hand(reduced, values[i], rates[i][:, None], 75)
        assert found.stopped_at[i] == taken == 75
        np.testing.assert_allclose(found.weights[i], state, rtol=1e-12)


@needs_kernels
def test_cpu_in_float32_is_no_worse_than_xla():
    reduced = modes(3, 10, dtype=np.float32)
    values, rates = batch(reduced, 30)
    twice = jax.tree.map(lambda x: x.astype(np.float64), reduced)
    exact = jax.vmap(partial(run, twice, engine="xla"))(
        values.astype(np.float64), rates.astype(np.float64)
    ).weights
    found, other = (x.weights for x in both(reduced, values, rates))
    assert found.dtype == np.float32
    assert np.abs(found - exact).max() <= 2 * np.abs(other - exact).max()


@needs_kernels
def test_any_nesting_of_batches_equals_xla():
    first = modes(3, 4)
    problems = jax.tree.map(lambda x: jnp.stack([x, 0.9 * x, 1.1 * x]), first)
    values, _ = batch(first, 5)
    rates = jnp.array([[0.05, 0.1, 0.02], [0.1, 0.05, 0.05]])

    def last(engine):
        over_rates = jax.vmap(partial(run, engine=engine), (None, None, 0))
        over_starts = jax.vmap(over_rates, (None, 0, None))
        return jax.vmap(over_starts, (0, None, None))(problems, values, rates)

    found, expected = last("cpu"), last("xla")
    assert found.weights.shape == (3, 5, 2, 3, 4)
    assert_same_run(found, expected, 1e-12)


@needs_kernels
def test_what_a_batch_shares_is_handed_over_once():
    reduced = modes(2, 5)
    values, rates = batch(reduced, 7)
    text = jax.jit(jax.vmap(partial(run, reduced, engine="cpu"))).lower(values, rates).as_text()
    (call,) = [line for line in text.splitlines() if f"custom_call @{library.RECURSION}" in line]
    operands = call.rpartition("->")[0]
    assert operands.count("tensor<1x5xf64>") == 3  # two spectra and the minimizer
    assert operands.count("tensor<7x5xf64>") == 2  # the layers


@needs_kernels
@pytest.mark.parametrize("rank", [3, 40])
def test_no_bit_depends_on_neighbours_or_place(rank):
    reduced = modes(3, rank)
    values, rates = batch(reduced, 37)
    together = jax.vmap(partial(run, reduced, engine="cpu"))
    found = together(values, rates).weights
    order = np.random.default_rng(1).permutation(37)
    np.testing.assert_array_equal(together(values[order], rates[order]).weights, found[order])
    alone = run(reduced, values[4], rates[4], "cpu").weights  # one vector of modes, or a few
    np.testing.assert_array_equal(alone, found[4])
    wild = np.where(np.arange(37)[:, None] % 3 == 1, 40.0, rates)
    beside_wild = together(values, wild)
    calm = np.arange(37) % 3 != 1
    np.testing.assert_array_equal(beside_wild.status == aj.Status.COMPLETED, calm)
    np.testing.assert_array_equal(beside_wild.weights[calm], found[calm])


@needs_kernels
@pytest.mark.parametrize(("depth", "rank"), [(1, 2), (3, 3)])
def test_divergence_freezes_where_xla_freezes(depth, rank):
    reduced = modes(depth, rank)
    values, _ = batch(reduced, 60)
    rates = np.append(np.geomspace(0.02, 1e4, 59), 1e30)
    found, expected = both(reduced, values, rates, steps=90, save_at=(0, 3, 33, 80))
    np.testing.assert_array_equal(found.stopped_at, expected.stopped_at)
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_array_equal(found.time, expected.time)
    assert len(set(found.stopped_at.tolist())) > 4
    early = np.asarray(found.stopped_at) < 12  # along longer diverging runs roundoff grows
    np.testing.assert_allclose(found.weights[early], expected.weights[early], rtol=1e-6)
    seen, others = (x.observations["singular_values"][early] for x in (found, expected))
    np.testing.assert_allclose(seen, others, rtol=1e-6)


@needs_kernels
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_divergence_is_found_at_any_place_of_a_block_of_steps(dtype):
    # A single layer grows by 5/4 a step, and state `first` is the first whose risk is too large.
    first = np.array([1, 2, 31, 32, 33, 63, 64, 65])
    largest = float(np.finfo(dtype).max) ** 0.5
    sizes = ((2 * largest) ** 0.5 * 1.25 ** (0.5 - first)).astype(dtype)
    zero, one = jnp.zeros(1, dtype), jnp.ones(1, dtype)
    reduced = Reduced(
        zero, zero, (), zero[None], zero, one, one, zero, zero, jnp.asarray(0.0, dtype), (zero,)
    )
    last = jax.vmap(lambda s: run(reduced, s[None, None], dtype(2.25), "cpu", steps=70))(sizes)
    np.testing.assert_array_equal(last.stopped_at, first - 1)
    ends = sizes * (-1.25) ** (first - 1)
    np.testing.assert_allclose(last.weights[:, 0, 0], ends, rtol=100 * np.finfo(dtype).eps)


@needs_kernels
def test_a_start_that_is_no_good_state_is_kept():
    reduced = modes(2, 3, floor=0.0)
    bad = jnp.stack([jnp.full((2, 3), x) for x in (np.nan, np.inf, 1e100, 0.5)])
    for last in both(reduced, bad, jnp.full(4, 0.1), steps=40):
        assert last.stopped_at.tolist() == [0, 0, 0, 40]
        np.testing.assert_array_equal(last.weights[:3], bad[:3])


@needs_kernels
def test_one_bad_mode_stops_its_run_and_no_other():
    reduced = modes(2, 30)
    values, rates = batch(reduced, 5)
    values[2, :, 29] = 60.0
    found, expected = both(reduced, values, np.full_like(rates, 0.1))
    assert_same_run(found, expected, 1e-9)
    assert (np.asarray(found.stopped_at) == 75).tolist() == [True, True, False, True, True]


@needs_kernels
@pytest.mark.parametrize(
    ("s", "rate"), [([[1e-230], [1e300]], 1e-3), ([[0.0], [1e250]], 1e-225)], ids=["start", "step"]
)
def test_a_gradient_that_overflows_stops_a_run_of_finite_risk(s, rate):
    reduced = aj.reduce(aj.factorization([[1e-200]]), (np.eye(1), np.eye(1)))
    s = jnp.asarray(s)
    bad = s if rate == 1e-3 else s - rate * reduced_gradient(reduced, s)
    assert not np.isfinite(reduced_gradient(reduced, bad)).all()
    for engine, steps in (("cpu", 1), ("cpu", 8), ("xla", 8)):  # the last one of a block, or not
        last = run(reduced, s, rate, engine, steps=steps)
        assert last.stopped_at == 0
        np.testing.assert_array_equal(last.weights, s)


@needs_kernels
@pytest.mark.parametrize("floor", [0.0, 0.6 * LARGEST, 1.1 * LARGEST, np.nan])
def test_healthy_runs_that_look_suspicious_go_on(floor):
    # Neither so large a floor nor a risk just below the limit is surely good, nor divergence.
    reduced = modes(1, 1, floor=floor)
    size = np.sqrt(1.2 * LARGEST / float(reduced.input_spectrum[0]))  # a risk of 0.6 of the largest
    values = jnp.array([1.0, size, 2 * size])[:, None, None]
    found, expected = both(reduced, values, jnp.full(3, 0.01), steps=40)
    assert_same_run(found, expected, 1e-12)
    assert found.stopped_at.tolist() == [40 * (floor < LARGEST), 40 * (floor == 0.0), 0]


@needs_kernels
def test_derivatives_are_those_of_xla():
    reduced = modes(3, 2)
    values, rates = batch(reduced, 4)

    def loss(engine, target, values, rate):
        problem = dataclasses.replace(reduced, target_spectrum=target)
        return (run(problem, values, rate, engine, steps=20).weights ** 3).sum()

    def program(engine):
        slopes = jax.vmap(jax.grad(partial(loss, engine), (0, 1, 2)), (None, 0, 0))
        return str(jax.make_jaxpr(slopes)(reduced.target_spectrum, values, rates))

    # The same program, which another test compares with differences.
    assert program("cpu") == program("xla")


@pytest.mark.parametrize("engine", ["xla", "auto"])
def test_it_runs_inside_shard_map(engine):
    reduced = modes(2, 3)
    values, _ = batch(reduced, 2)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("runs",))
    axis = jax.sharding.PartitionSpec("runs")
    last = jax.vmap(lambda s: run(reduced, s, 0.1, engine, steps=9, save_at=(0, 4)))
    for leaf, whole in zip(
        jax.tree.leaves(
            jax.jit(jax.shard_map(last, mesh=mesh, in_specs=axis, out_specs=axis))(values)
        ),
        jax.tree.leaves(last(values)),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, whole, rtol=1e-14)


@needs_kernels
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_all_instruction_sets_agree(dtype):
    reduced, before = modes(4, 21, dtype=dtype), library.selected()
    given = batch(reduced, 5)
    last = jax.jit(jax.vmap(partial(run, reduced, engine="cpu")))
    found = []
    try:
        for name in library.instruction_sets():
            library.select(name)
            found.append(jax.block_until_ready(last(*given).weights))
    finally:
        library.select(before)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-12 if dtype == np.float64 else 1e-4)


@needs_kernels
def test_the_kernel_is_on_cpus_alone():
    reduced = modes(2, 3)
    traced = jax.jit(lambda rate: run(reduced, None, rate, "auto").weights).trace(0.1)
    on = [
        name
        for name in ("cpu", "cuda", "tpu")
        if library.RECURSION in traced.lower(lowering_platforms=(name,)).as_text()
    ]
    assert on == ["cpu"]


@needs_kernels
def test_the_kernel_is_not_called_for_a_step_or_two():
    reduced = modes(2, 3)

    def calls(engine, interval):
        def last(rate):
            save_at = aj.every(12, interval)
            return run(reduced, None, rate, engine, steps=12, save_at=save_at).weights

        return library.RECURSION in jax.jit(last).lower(0.1).as_text()

    assert [calls("auto", 2), calls("auto", 4), calls("cpu", 2)] == [False, True, True]


def coupled():
    problem = aj.sensing(np.stack([np.eye(2), np.diag([1.0, 2.0])]), np.ones(2))
    return aj.reduce(problem, (np.eye(2), np.eye(2)))


@needs_kernels
@pytest.mark.parametrize(
    ("reduced", "values", "what"),
    [
        (coupled(), None, "coupled by a Gram matrix"),
        (modes(2, 2, dtype=np.float32), np.ones((2, 2)), "float32 and float64, not of one"),
        (modes(2, 2, dtype=jnp.bfloat16), None, "bfloat16, not float32"),
    ],
    ids=["sensing", "two precisions", "bfloat16"],
)
def test_what_the_kernel_does_not_run_is_refused_by_name(reduced, values, what):
    with pytest.raises(ValueError, match=f"^engine 'cpu' cannot run this: .*{what}"):
        run(reduced, values, 0.1, "cpu")
    others = (reduced.singular_values if values is None else values,)
    assert recursion.resolve("auto", reduced.input_spectrum, others) == "xla"
    assert run(reduced, values, 0.01, "auto", steps=3).stopped_at == 3


@pytest.mark.parametrize("engine", ["gpu", "CPU", None])
def test_an_unknown_engine_is_refused(engine):
    with pytest.raises(ValueError, match=r"^engine must be 'auto', 'cpu' or 'xla' .*got"):
        run(modes(2, 2), None, 0.1, engine)


def test_without_kernels_the_reference_runs_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(library, "FILE", tmp_path / "none.so")
    reduced = modes(2, 2)
    assert run(reduced, None, 0.1, "auto").stopped_at == 75
    with pytest.raises(ValueError, match=r"^engine 'cpu' cannot run this: .*compiled kernels"):
        run(reduced, None, 0.1, "cpu")


@needs_kernels
@settings(max_examples=30, deadline=None)
@given(case=cases(most=5000))
def test_any_modes_in_any_nest_of_batches_equal_a_loop_in_numpy(case):
    check(case)
