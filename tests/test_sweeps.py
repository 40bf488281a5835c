"""A sweep is the runs one by one, labelled; and what is wrong is said before any run."""

import functools
import inspect
import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

import alignjax as aj
from alignjax.sweeps import plan
from alignjax.sweeps.dataset import MemoryTarget
from alignjax.sweeps.execute import _in_precision
from alignjax.sweeps.plan import block_shape
from alignjax.sweeps.spec import Output, Spec
from benchmarks import sweeps as benchmark

sweep = functools.partial(aj.sweep, progress=False)


def power(base, exponent):
    return {"power": base**exponent, "path": base * jnp.arange(3.0)}


# What comes back


def test_every_point_is_the_run_at_that_point():
    bases, exponents = np.linspace(0.5, 2, 7), np.array([1, 2, 3])
    data = sweep(power, {"base": bases, "exponent": exponents}, chunk=4)
    assert data["power"].dims == ("base", "exponent")
    np.testing.assert_allclose(data["power"], bases[:, None] ** exponents, rtol=1e-15)
    expected = bases[:, None, None] * np.arange(3.0) * np.ones((1, 3, 1))
    np.testing.assert_array_equal(data["path"], expected)
    np.testing.assert_array_equal(data.base, bases)
    np.testing.assert_array_equal(data.exponent, exponents)


def test_outputs_keep_their_dtypes():
    def run(x):
        return {
            "flag": x > 1,
            "count": x,
            "half": jnp.float16(x),
            "phase": jnp.exp(1j * x),
        }

    data = sweep(run, {"x": np.arange(3, dtype=np.int32)})
    found = {name: str(data[name].dtype) for name in data.data_vars}
    assert found == {"flag": "bool", "count": "int32", "half": "float16", "phase": "complex128"}


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, jnp.float8_e4m3fn])
def test_narrow_floats_are_axes_with_a_coordinate_that_files_and_pandas_know(tmp_path, dtype):
    def run(x):
        assert x.dtype == dtype
        return {"y": x.astype(np.float32)}

    data = sweep(run, {"x": np.array([0.5, 3], dtype)}, store=tmp_path / "results.zarr")
    assert data.x.dtype == np.float32
    assert data.x.attrs["computed_in"] == np.dtype(dtype).name
    np.testing.assert_array_equal(data.x, [0.5, 3])
    np.testing.assert_array_equal(data.y, [0.5, 3])


def test_dimensions_coordinates_and_units_are_named():
    data = sweep(
        power,
        {"base": [1.0, 2.0], "exponent": [3]},
        dims={"path": {"step": [0, 10, 20]}},
        units={"base": "m", "path": "m"},
    )
    assert data["path"].dims == ("base", "exponent", "step")
    np.testing.assert_array_equal(data.step, [0, 10, 20])
    assert data.base.attrs["units"] == data["path"].attrs["units"] == "m"
    assert "units" not in data["power"].attrs


def test_unnamed_dimensions_are_named_after_their_output():
    assert sweep(power, {"base": [1.0], "exponent": [3]})["path"].dims[-1] == "path_0"


def test_provenance_says_what_computed_this_and_survives_as_text():
    data = sweep(power, {"base": [1.0], "exponent": [3]})
    assert data.attrs["function"].endswith("power")
    assert f"jax {jax.__version__}" in data.attrs["versions"]
    assert f"alignjax {aj.__version__}" in data.attrs["versions"]
    assert data.attrs["runs"] == 1
    assert len(data.attrs["config_hash"]) == 64
    assert json.loads(json.dumps(data.attrs)) == data.attrs


def test_the_config_hash_sees_axes_data_closed_over_and_the_program_but_not_comments():
    def hash_of(shift, code, values):
        def run(x):
            return {"y": code(x) + shift.sum()}

        return sweep(run, {"x": values}).attrs["config_hash"]

    shift, values = np.ones(3), np.arange(4.0)
    first = hash_of(shift, jnp.sin, values)
    assert hash_of(shift.copy(), lambda x: jnp.sin(x), values) == first
    assert hash_of(shift + 1e-9, jnp.sin, values) != first
    assert hash_of(shift, jnp.cos, values) != first

    def inner(data):
        # What a function jitted inside closes over is in no text of the program.
        return hash_of(shift, jax.jit(lambda x: x * data.sum()), values)

    assert inner(np.arange(3.0)) == inner(np.arange(3.0)) != inner(np.arange(3.0) + 1e-9)
    assert hash_of(shift, jnp.sin, values + 1e-9) != first


# Axes


def test_zipped_axes_run_together_along_one_dimension():
    def run(a, b, c):
        return {"y": a + 10 * b + 100 * c}

    axes = {("a", "b"): ([1.0, 2.0, 3.0], [4, 5, 6]), "c": [7.0, 8.0]}
    data = sweep(run, axes)
    assert data.y.dims == ("a", "c")
    np.testing.assert_array_equal(data.y, [[741, 841], [752, 852], [763, 863]])
    np.testing.assert_array_equal(data.b, [4, 5, 6])
    assert data.b.dims == ("a",)
    named = sweep(run, axes, dims={("a", "b"): "pair"})
    assert named.y.dims == ("pair", "c")
    assert named.a.dims == named.b.dims == ("pair",)


def test_entries_may_be_arrays_and_are_counted_in_the_coordinate():
    starts = np.arange(12.0).reshape(3, 2, 2)
    data = sweep(lambda start: {"trace": jnp.trace(start)}, {"start": starts}, chunk=2)
    np.testing.assert_array_equal(data["trace"], [3, 11, 19])
    np.testing.assert_array_equal(data.start, [0, 1, 2])
    assert "(2, 2)" in data.start.attrs["entries"]


def test_seeds_and_arrays_of_keys_are_axes():
    keys = jax.random.split(jax.random.key(3), 5)
    by_key = sweep(lambda k: {"x": jax.random.normal(k)}, {"k": keys}, chunk=2)
    np.testing.assert_array_equal(by_key.x, jax.vmap(jax.random.normal)(keys))
    by_seed = sweep(lambda seed: {"x": jax.random.normal(jax.random.key(seed))}, {"seed": range(5)})
    expected = [jax.random.normal(jax.random.key(seed)) for seed in range(5)]
    np.testing.assert_array_equal(by_seed.x, expected)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_numbers_that_would_change_with_the_chunk_are_refused(impl):
    def run(seed):
        return {"x": jax.jit(jax.random.normal)(jax.random.key(seed, impl=impl))}

    bad(TypeError, "use .*threefry2x32", run, {"seed": [1, 2]})


def test_a_raw_key_array_is_an_axis_of_arrays():
    keys = jax.random.split(jax.random.PRNGKey(3), 5)
    data = sweep(lambda k: {"x": jax.random.normal(k)}, {"k": keys})
    np.testing.assert_array_equal(data.x, jax.vmap(jax.random.normal)(keys))


def test_static_values_are_python_values_and_come_first():
    def run(x, depth, act):
        assert isinstance(depth, int)
        for _ in range(depth):
            x = act(x)
        return {"y": x}

    data = sweep(run, {"x": [0.5, 1.0]}, static={"depth": [0, 2], "act": [jnp.sin, jnp.cos]})
    assert data.y.dims == ("depth", "act", "x")
    np.testing.assert_allclose(data.y[1, 0], np.sin(np.sin([0.5, 1.0])), rtol=1e-14)
    np.testing.assert_array_equal(data.y[0, 1], [0.5, 1.0])
    assert list(data.act.values) == ["sin", "cos"]
    np.testing.assert_array_equal(data.depth, [0, 2])


def test_numbers_of_numpy_are_static_values_and_axes_in_any_byte_order():
    def run(x, depth):
        return {"y": x**depth}

    data = sweep(run, {"x": np.array([1.0, 2.0], ">f8")}, static={"depth": list(np.arange(1, 3))})
    np.testing.assert_array_equal(data.y, [[1, 2], [1, 4]])
    np.testing.assert_array_equal(data.depth, [1, 2])


def test_a_grid_of_static_axes_alone():
    data = sweep(lambda n: {"sum": jnp.arange(n).sum()}, {}, static={"n": [3, 4]})
    np.testing.assert_array_equal(data["sum"], [3, 6])


def test_each_combination_of_static_values_is_traced_once():
    traced = []

    def run(x, depth):
        traced.append(depth)
        return {"y": x * depth}

    sweep(run, {"x": np.arange(5000.0)}, static={"depth": [1, 2]})
    sweep(run, {"x": np.arange(5000.0)}, static={"depth": [3]}, chunk=7)
    assert traced == [1, 2, 3]


# Keys, blocks


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_a_run_gets_the_key_of_its_number_in_the_whole_grid(make_key):
    base = make_key(7)
    axes, static = {"a": range(3), "b": range(5)}, {"s": [0, 1]}

    def run(a, b, s, key):
        return {"draw": jax.random.normal(key)}

    numbers = jnp.arange(30)
    expected = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(base, i)))(numbers)
    for chunk in (1, 2, 4, 7, 15, None):
        data = sweep(run, axes, static=static, key=base, chunk=chunk)
        np.testing.assert_array_equal(data.draw, np.reshape(expected, (2, 3, 5)))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 40), max_size=4), st.integers(1, 200))
def test_blocks_have_at_most_chunk_runs_and_no_axis_of_blocks_is_all_filling(sizes, chunk):
    block = block_shape(sizes, chunk)
    assert np.prod(block, initial=1) <= chunk
    for size, length in zip(sizes, block, strict=True):
        assert 1 <= length <= size
        blocks = -(-size // length)
        assert blocks * length - size < blocks  # less than one run of filling a block


@pytest.mark.parametrize("chunk", [1, 3, 4, 10, 11, 100])
def test_what_fills_up_the_last_block_never_reaches_the_results(chunk):
    values = np.arange(11.0)
    data = sweep(lambda x, s: {"y": x + s}, {"x": values}, static={"s": [0, 1]}, chunk=chunk)
    np.testing.assert_array_equal(data.y, [values, values + 1])


def test_the_chunk_changes_rounding_at_most():
    problem = aj.factorization(jax.random.normal(jax.random.key(0), (3, 3)))

    def run(rate, key):
        start = aj.initializers.gaussian(key, (3, 3, 3), 0.3)
        return {"risk": aj.gradient_descent(problem, start, rate, steps=100).observations["risk"]}

    rates = np.linspace(0.01, 0.3, 23)
    whole, *parts = (
        sweep(run, {"rate": rates}, key=jax.random.key(1), chunk=chunk) for chunk in (23, 5, 1)
    )
    for part in parts:
        np.testing.assert_allclose(part.risk, whole.risk, rtol=1e-12)


def test_a_chunk_is_found_from_measured_memory(monkeypatch):
    def run(x):
        big = jnp.sin(x * jnp.arange(500.0**2)).reshape(500, 500)
        return {"y": jnp.trace(big @ big)}

    monkeypatch.setattr(plan, "CPU_MEMORY", 40 * 2**20)
    data = sweep(run, {"x": np.arange(1.0, 201.0)})
    # A run needs at least two matrices of 2 MB and at most a few.
    assert 2 <= data.attrs["chunk"] <= 10
    one_by_one = sweep(run, {"x": np.arange(1.0, 201.0)}, chunk=1)
    np.testing.assert_allclose(data.y, one_by_one.y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cores", [1, 3])
def test_the_cores_of_a_cpu_change_no_bit_and_each_computes_a_block(monkeypatch, cores):
    monkeypatch.setattr(plan, "usable_cores", lambda: cores)
    running, most, lock = 0, 0, threading.Lock()

    def wait(x):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return np.asarray(x)

    def run(x, key):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        slow = jax.pure_callback(wait, shape, x, vmap_method="expand_dims")
        return {"y": jnp.sin(slow) + jax.random.normal(key)}

    axes, key = {"x": np.arange(40.0)}, jax.random.key(3)
    data = sweep(run, axes, key=key, chunk=4)
    assert most == cores
    numbers = jnp.arange(40, dtype=np.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    expected = jnp.sin(axes["x"]) + jax.vmap(jax.random.normal)(keys)
    np.testing.assert_allclose(data.y, expected, rtol=1e-14)


def test_blocks_side_by_side_share_a_fixed_amount_of_memory(monkeypatch):
    monkeypatch.setattr(plan, "usable_cores", lambda: 64)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("device",))
    for size, expected in ((1, 64), (plan.CPU_MEMORY, 4), (2**40, 1)):
        assert plan.rounds_at_once(plan.Program(None, (), size), mesh) == expected


def test_divergence_in_one_run_never_touches_another():
    problem = aj.factorization(jnp.eye(2))
    start = (0.5 * jnp.eye(2),) * 2

    def run(rate):
        trained = aj.gradient_descent(problem, start, rate, steps=300)
        return {"risk": trained.observations["risk"][-1], "status": trained.status}

    mild = np.linspace(0.1, 0.5, 4)
    alone = sweep(run, {"rate": mild}, chunk=4)
    rates = np.array([mild[0], 1e3, mild[1], 1e200, mild[2], np.inf, np.nan, mild[3]])
    mixed = sweep(run, {"rate": rates}, chunk=4)
    healthy = np.isin(rates, mild)
    assert (alone.status == aj.Status.COMPLETED).all()
    np.testing.assert_array_equal(mixed.status.values[~healthy], aj.Status.DIVERGED)
    np.testing.assert_array_equal(mixed.risk.values[healthy], alone.risk)


def test_closed_over_arrays_are_arguments_and_no_constants():
    data = np.arange(6.0).reshape(2, 3)
    keys = jax.random.key(5)

    def run(x):
        return {"y": x * data.sum() + jax.random.normal(keys)}

    found = sweep(run, {"x": [1.0, 2.0]})
    noise = float(jax.random.normal(keys))
    np.testing.assert_allclose(found.y, [15 + noise, 30 + noise], rtol=1e-15)


def test_partials_jitted_functions_and_methods_are_runs():
    class Model:
        def run(self, x):
            return {"y": 2 * x}

    def scaled(x, scale):
        return {"y": scale * x}

    for run in (functools.partial(scaled, scale=2), jax.jit(Model().run), Model().run):
        np.testing.assert_array_equal(sweep(run, {"x": [1.0, 2.0]}).y, [2, 4])


# What bad input gets


def bad(error, message, run, axes, **options):
    with pytest.raises(error, match=message):
        sweep(run, axes, **options)


def square(x):
    return {"y": x**2}


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ({}, ValueError, "axes is empty"),
        ([("x", [1])], TypeError, "axes must map"),
        ({"x": []}, ValueError, "'x' is empty"),
        ({"x": 3.0}, ValueError, "'x' must be a sequence .* scalar"),
        ({"x": [[1, 2], [3]]}, TypeError, "'x' must be an array"),
        ({"x": ["a"]}, TypeError, "'x' must hold numbers.*static"),
        ({"x": [None]}, TypeError, "'x' must hold numbers.*static"),
        ({3: [1.0]}, TypeError, "named by the arguments of run"),
        ({("x", "z"): ([1, 2], [1, 2, 3])}, ValueError, "equal lengths, but 'x' has 2, 'z' has 3"),
        ({("x", "z"): ([1, 2],)}, ValueError, "name 2 axes, but 1"),
        ({("x", "z"): 4}, TypeError, "must be given as many arrays"),
        ({("x",): ([1],), "x": [2]}, ValueError, "argument 'x' twice"),
        ({"y": [1.0]}, TypeError, "square takes no argument 'y'; it takes x"),
        ({"x": [1.0], "z": [1.0]}, TypeError, "takes no argument 'z'"),
        ({"x": np.array([1, 2], jnp.int4)}, TypeError, "'x' holds int4, .* int8"),
        ({"x": np.array([1, 2], "m8[s]")}, TypeError, "'x' must hold numbers, .* timedelta"),
        ({"x": np.longdouble([1, 2])}, TypeError, "'x' holds float128: give it as float64"),
        ({"x": np.ma.array([1, 2], mask=[0, 1])}, ValueError, "axis 'x' has masked entries"),
        ({"x": [1.0, np.ma.masked]}, ValueError, "axis 'x' has masked entries"),
    ],
)
def test_bad_axes_are_named(axes, error, message):
    bad(error, message, square, axes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"static": {"x": [1]}}, ValueError, "argument 'x' twice"),
        ({"static": {"n": []}}, ValueError, "static axis 'n' is empty"),
        ({"static": {"n": 3}}, TypeError, "'n' must be a sequence"),
        ({"static": {"n": "relu"}}, TypeError, "'n' must be a sequence"),
        ({"static": {"n": np.ma.array([1], mask=True)}}, ValueError, "'n' has masked entries"),
        ({"key": 0}, TypeError, "key must be a key"),
        ({"key": "cold"}, TypeError, "key must be a key"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
        ({"chunk": 2.5}, TypeError, "chunk must be an integer"),
        ({"devices": 0}, ValueError, "devices must be"),
        ({"devices": []}, ValueError, "devices must be"),
        ({"devices": ["cpu"]}, ValueError, "devices must be"),
        ({"dims": {"z": ("a",)}}, ValueError, "dims names 'z', but there are only y"),
        ({"dims": {"y": ("a",)}}, ValueError, "names 1 dimension.* has 0"),
        ({"dims": "y"}, TypeError, "dims must map"),
        ({"dims": {"y": 3}}, TypeError, r"dims\['y'\] must be names"),
        ({"units": ["y"]}, TypeError, "units must map"),
        ({"dims": {("x", "z"): "pair"}}, ValueError, r"zipped axes \('x', 'z'\)"),
        ({"units": {"z": "m"}}, ValueError, "units names 'z', but there are only x, y"),
        ({"units": {"y": 3}}, TypeError, r"units\['y'\] must be text"),
        ({"overwrite": True}, ValueError, "overwrite=True needs store"),
        ({"store": 3}, TypeError, "store must be a path"),
    ],
)
def test_bad_options_are_named(options, error, message):
    bad(error, message, square, {"x": [1.0]}, **options)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([{}, 1], TypeError, "must hold numbers, text or dates .*, got dtype object"),
        ([2**70, 1], TypeError, "got dtype object"),
        (np.array([(1, 2.0), (3, 4.0)], "i4, f8"), TypeError, "must hold numbers, text or dates"),
        ([b"a", b"b"], TypeError, "must hold numbers, text or dates"),
        (np.array([1, 2], jnp.bfloat16), TypeError, "got dtype bfloat16"),
        (np.longdouble([1, 2]), TypeError, "got dtype float128"),
        (np.array([1, 2], "m8"), TypeError, "got dtype timedelta64"),
        (np.array([1, 2], "M8[as]"), ValueError, r"dates that datetime64\[ns\] cannot hold"),
        (np.ma.array([1, 2], mask=[0, 1]), ValueError, "has masked entries"),
    ],
)
def test_coordinates_that_no_file_holds_are_named_before_anything_is_written(
    tmp_path, values, error, message
):
    run = lambda x: {"y": x * jnp.ones(2)}  # noqa: E731
    options = {"dims": {"y": {"t": values}}, "store": tmp_path / "runs.zarr"}
    bad(error, rf"dims\['y'\]\['t'\] .*{message}", run, {"x": [1.0]}, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values",
    [
        np.array(["2020-01-01", "NaT"], "M8[D]"),
        np.array([1, 2], "m8[s]"),
        np.array(["a", "bc"], object),
        np.array([1, 2], ">i4"),
        np.float16([1, 2]),
    ],
)
def test_dates_and_text_are_the_same_coordinates_with_a_store_and_without(tmp_path, values):
    pytest.importorskip("zarr")
    run = lambda x: {"y": x * jnp.ones(2)}  # noqa: E731
    kept, stored = (
        sweep(run, {"x": [1.0]}, dims={"y": {"t": values}}, store=store).load()
        for store in (None, tmp_path / "runs.zarr")
    )
    assert kept.t.dtype == stored.t.dtype
    np.testing.assert_array_equal(kept.t, stored.t)


def test_a_key_needs_someone_to_take_it_and_one_to_give_it():
    bad(TypeError, "takes no argument 'key'", square, {"x": [1.0]}, key=jax.random.key(0))
    bad(TypeError, "needs 'key'.*give key=", lambda x, key: {"y": x}, {"x": [1.0]})
    keys = jax.random.split(jax.random.key(0), 2)
    run = lambda key: {"y": jax.random.normal(key)}  # noqa: E731
    bad(ValueError, "'key' is an axis and key= is given", run, {"key": keys}, key=keys[0])
    assert sweep(run, {"key": keys}).y.shape == (2,)


def test_a_missing_argument_is_named():
    bad(TypeError, "needs 'exponent'", power, {"base": [1.0]})


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: x, "must return a dict of arrays.*got one array"),
        (lambda x: (x, x), "got tuple"),
        (lambda x: None, "got NoneType"),
        (lambda x: {}, "empty dict"),
        (lambda x: {1: x}, "named by text"),
        (lambda x: {"y": {"a": x}}, "'y' .*must be one array, got dict"),
        (lambda x: {"y": "text"}, "'y' .*must be one array, got str"),
        (lambda x: {"y": None}, "'y' .*must be one array, got NoneType"),
        (lambda x: {"y": jax.random.key(0)}, "'y' .*random key"),
        (lambda x: {"y": x.astype(jnp.bfloat16)}, "'y' .*bfloat16"),
    ],
)
def test_a_run_must_return_named_arrays(result, message):
    bad(TypeError, message, result, {"x": [1.0]})


@pytest.mark.parametrize("name", ["x", "depth", "b", "step"])
def test_an_output_may_not_be_named_like_a_dimension_or_an_axis(name):
    def run(x, a, b, depth):
        return {name: x, "path": jnp.arange(3.0)}

    axes = {"x": [1.0], ("a", "b"): ([1.0], [2.0])}
    options = {"static": {"depth": [1]}, "dims": {"path": ("step",)}}
    bad(ValueError, f"'{name}' has the name of a dimension", run, axes, **options)


def test_names_of_dimensions_must_fit_together():
    def run(x):
        return {"a": jnp.arange(2), "b": jnp.arange(3), "c": jnp.eye(2)}

    axes = {"x": [1.0]}
    bad(ValueError, "'x'.* name of an axis", run, axes, dims={"a": ("x",)})
    bad(ValueError, "'t' has size 3 .*'b', but 2", run, axes, dims={"a": "t", "b": "t"})
    bad(ValueError, "twice", run, axes, dims={"c": ("t", "t")})
    bad(ValueError, "3 coordinates", run, axes, dims={"b": {"t": [0, 1]}})


def loop(x, depth, width):
    total = x
    for _ in range(depth):
        total = total + jnp.zeros(width).sum()
    return {"y": total}


@pytest.mark.parametrize(
    ("run", "axes", "names"),
    [
        (loop, {"x": [1.0], "depth": [1, 2], "width": [3]}, "'depth' and 'width'"),
        (lambda x, n: {"y": x if n > 1 else -x}, {"x": [1.0], "n": [1, 2]}, "'n'"),
        (lambda x, n: {"y": jnp.zeros(n).sum() * x}, {"x": [1.0], "n": [1, 2]}, "'n'"),
        (lambda x, n: {"y": (1, 2)[n] * x}, {"x": [1.0], "n": [0, 1]}, "'n'"),
        (lambda x, n: {"y": np.sin(n) * x}, {"x": [1.0], "n": [0.5]}, "'n'"),
        (
            lambda rate, steps: {
                "y": aj.gradient_descent(
                    aj.factorization(jnp.eye(2)), (jnp.eye(2),), rate, steps=steps
                ).observations["risk"][-1]
            },
            {"rate": [0.1], "steps": [10, 20]},
            "'steps'",
        ),
    ],
)
def test_a_traced_value_used_as_a_static_one_names_the_axis(run, axes, names):
    bad(TypeError, f"uses the traced {names} .*line .*move {names} from axes to static", run, axes)


def test_numpy_on_a_traced_value_is_told_the_other_remedy():
    bad(TypeError, "jax.numpy there instead of NumPy", lambda x: {"y": np.sin(x)}, {"x": [1.0]})


def test_an_argument_without_a_name_is_no_axis():
    bad(TypeError, "no argument 'x'; it takes none by name", lambda x, /: {"y": x}, {"x": [1.0]})


def test_the_axis_that_was_named_works_when_static():
    data = sweep(loop, {"x": [1.0]}, static={"depth": [1, 2], "width": [3]})
    np.testing.assert_array_equal(data.y, np.ones((2, 1, 1)))


def test_a_function_that_cannot_be_traced_says_where():
    def run(x):
        return {"y": float(jnp.sin(x)) + 1}

    line = inspect.getsourcelines(run)[1] + 1
    bad(TypeError, rf"test_sweeps.py, line {line}: .*float\(jnp", run, {"x": [[1.0], [2.0]]})


def test_an_error_of_the_run_itself_is_its_own_and_told_where():
    def run(x):
        return {"y": jnp.ones(2) + jnp.ones(3) * x}

    with pytest.raises(TypeError, match="incompatible shapes") as caught:
        sweep(run, {"x": [1.0]})
    line = inspect.getsourcelines(run)[1] + 1
    assert (
        f"raised while tracing run() (test_sweeps.py, line {line}: " in caught.value.__notes__[-1]
    )


def test_an_output_whose_shape_depends_on_an_axis_names_it():
    def run(x, depth, width):
        return {"y": x * jnp.ones(width)}

    message = r"'y' depends on the static axis 'width'.*\(2,\) for 2 .*\(3,\) for 3"
    bad(ValueError, message, run, {"x": [1.0]}, static={"depth": [1, 2], "width": [2, 3]})


def test_a_dtype_or_an_output_that_depends_on_an_axis_names_it():
    def run(x, dtype, extra):
        return {"y": x.astype(dtype)} | ({"more": x} if extra else {})

    message = "'y' depends on the static axis 'dtype'"
    bad(ValueError, message, run, {"x": [1.0]}, static={"dtype": ["f4", "f8"], "extra": [0]})
    message = "'more' depends on the static axis 'extra'"
    bad(ValueError, message, run, {"x": [1.0]}, static={"dtype": ["f4"], "extra": [0, 1]})


def test_bad_input_is_told_before_anything_is_compiled(monkeypatch):
    def never(*_, **__):
        raise AssertionError("compiled")

    monkeypatch.setattr("alignjax.sweeps.execute.fitted_block", never)
    monkeypatch.setattr("alignjax.sweeps.execute.compile_block", never)
    bad(ValueError, "dims names 'z'", square, {"x": [1.0]}, dims={"z": "t"})
    run = lambda x, n: {"y": x * jnp.ones(n)}  # noqa: E731
    bad(ValueError, "'y' depends", run, {"x": [1.0]}, static={"n": [1, 2]})
    with pytest.raises(AssertionError, match="compiled"):
        sweep(square, {"x": [1.0]})


def test_a_sweep_is_no_part_of_a_traced_function():
    with pytest.raises(TypeError, match=r"'x' is traced.*outside jit"):
        jax.jit(lambda x: sweep(square, {"x": x}).y.values)(jnp.arange(3.0))


@pytest.fixture
def x64_off():
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


def test_integers_that_the_device_cannot_hold_are_refused(x64_off):
    bad(ValueError, "'x' holds int64 values that int32 cannot hold", square, {"x": [2**40]})
    assert sweep(square, {"x": [3]}).y.dtype == np.int32


def test_float64_axes_that_become_float32_are_told_once_and_keep_their_coordinate(
    x64_off, monkeypatch
):
    monkeypatch.setattr("alignjax.sweeps.axes._warned_about_float64", False)
    with pytest.warns(UserWarning, match="'x' is float64.*jax_enable_x64") as caught:
        data = aj.sweep(square, {"x": np.array([0.1, 0.2])}, progress=False)
    assert caught[0].filename == __file__
    assert data.y.dtype == np.float32
    np.testing.assert_array_equal(data.x, [0.1, 0.2])
    assert data.x.attrs["computed_in"] == "float32"
    sweep(square, {"x": np.array([0.1, 0.2])})


def test_quiet_where_standard_error_is_no_terminal(capsys):
    aj.sweep(square, {"x": np.arange(10.0)}, chunk=2, progress=True)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_runs_and_rate(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    aj.sweep(square, {"x": np.arange(10.0)}, chunk=2, progress=True)
    shown = capsys.readouterr().err
    assert "10/10" in shown
    aj.sweep(square, {"x": np.arange(10.0)}, chunk=2, progress=False)
    assert capsys.readouterr().err == ""


def test_results_that_do_not_fit_in_memory_name_the_remedy():
    spec = Spec({"x": 2**50}, (2**40,), {"y": Output((), (), "float64")})
    with pytest.raises(MemoryError, match="give store="):
        MemoryTarget(spec)


def test_a_failing_write_stops_the_sweep_with_its_own_error(monkeypatch):
    written = []

    def write(self, block, arrays):
        written.append(block)
        if len(written) == 2:
            raise OSError("no space left")

    monkeypatch.setattr("alignjax.sweeps.dataset.MemoryTarget.write", write)
    with pytest.raises(OSError, match="no space left"):
        sweep(square, {"x": np.arange(100.0)}, chunk=1)
    assert len(written) < 10


def test_after_an_error_nothing_more_is_begun(monkeypatch):
    monkeypatch.setattr(plan, "usable_cores", lambda: 1)
    begun = []

    def fail(x):
        begun.append(float(x))
        raise RuntimeError("this run fails")

    def run(x):
        return {"y": jax.pure_callback(fail, x, x, vmap_method="sequential")}

    with pytest.raises(jax.errors.JaxRuntimeError, match="this run fails") as caught:
        sweep(run, {"x": np.arange(20.0)}, chunk=1)
    assert caught.value.__notes__ == ["in the sweep's runs x[0:1]"]
    assert begun == [0.0]


@pytest.mark.parametrize("x64", [False, True])
def test_the_precision_is_that_of_the_thread_that_asks(x64):
    with _in_precision(x64):
        data = sweep(square, {"x": [1.0, 2.0]}, chunk=1)
    assert data.y.dtype == (np.float64 if x64 else np.float32)
    assert data.attrs["x64"] == str(x64)


# With a store


def test_a_store_gives_the_same_data_set_and_resumes_with_its_own_chunk(tmp_path):
    axes, path = {"base": np.linspace(1, 2, 9), "exponent": [1, 2]}, tmp_path / "results.zarr"
    expected = sweep(power, axes, chunk=4)
    stored = sweep(power, axes, chunk=4, store=path)
    xarray.testing.assert_identical(stored.load(), expected)
    again = sweep(power, axes, store=path)
    xarray.testing.assert_identical(again.load(), expected)
    with pytest.raises(aj.sweeps.StoreMismatchError, match="block"):
        sweep(power, axes, store=path, chunk=2)


def test_another_function_or_axis_may_not_continue_in_a_store(tmp_path):
    path = tmp_path / "results.zarr"
    sweep(square, {"x": [1.0, 2.0]}, store=path)
    with pytest.raises(aj.sweeps.StoreMismatchError, match="programs"):
        sweep(lambda x: {"y": x**3}, {"x": [1.0, 2.0]}, store=path)
    with pytest.raises(aj.sweeps.StoreMismatchError, match="x"):
        sweep(square, {"x": [1.0, 2.5]}, store=path)
    with pytest.raises(FileExistsError):
        sweep(square, {"x": [1.0, 2.0]}, store=path, resume=False)
    data = sweep(square, {"x": [1.0, 2.5]}, store=path, overwrite=True)
    np.testing.assert_array_equal(data.y, [1, 6.25])


def test_the_benchmark_compares_equal_answers():
    rows = benchmark.run(repeats=1, side=(3, 4), cases=((2, 3, 5),))
    assert [row.contender for row in rows] == [benchmark.BARE, benchmark.MEMORY, benchmark.STORE]
    assert all(row.difference < 1e-6 for row in rows[1:])
