"""The kernels for GPUs, emulated: as the reference does, under any nest of vmap; and they lower."""

import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax.engines import gpu, xla
from alignjax.engines.gpu.plan import make_plan
from benchmarks import gpu as benchmark
from tests.jaxprs import inner_jaxprs

# Versions of JAX without this lowering have no such engine.
pytest.importorskip("jax.experimental.pallas.triton", exc_type=ImportError)
launch = pytest.importorskip("alignjax.engines.gpu.launch")
kernels = pytest.importorskip("alignjax.engines.gpu.kernels")
trial = pytest.importorskip("alignjax.engines.gpu.trial")

SMALL = (2, 2)
# One or both halves of the chain around its narrowest width, as lanes and as padded tiles.
LANES = [(2, 3, 2), (2, 3, 1, 2)]
TILES = [(6, 9, 5), (5, 2, 3, 6)]


def core_of(widths, dtype=np.float64, seed=0):
    random = np.random.default_rng(seed)
    X = random.normal(size=(4 * widths[0], widths[0]))
    Y = random.normal(size=(4 * widths[0], widths[-1]))
    return aj.regression(X.astype(dtype), Y.astype(dtype))._core()


def networks(count, widths, dtype=np.float64):
    keys = jax.random.split(jax.random.key(1), count)
    start = jax.vmap(lambda key: aj.initializers.gaussian(key, widths, 0.4))(keys)
    return tuple(w.astype(dtype) for w in start)


def rates_for(count, widths, dtype=np.float64, largest=0.05):
    return jnp.asarray(
        np.outer(np.linspace(0, largest, count), 1 + np.arange(len(widths) - 1)), dtype
    )


emulated = partial(gpu.descend, interpret=True)


def reference(core, start, rates, steps):
    return xla.advance(core, start, rates, steps, max_steps=40)


def far(got, wanted):
    """The largest relative difference between layers, of any network."""
    return max(
        float((jnp.abs(a - b).max((-2, -1)) / jnp.abs(b).max((-2, -1))).max())
        for a, b in zip(got, wanted, strict=True)
    )


IN_AXES = (None, 0, 0, None)
EMULATED = jax.jit(jax.vmap(emulated, in_axes=IN_AXES))
REFERENCE = jax.jit(jax.vmap(reference, in_axes=IN_AXES))
NETWORKS = 4


def cases(widths, dtype=np.float64):
    return (
        core_of(widths, dtype),
        networks(NETWORKS, widths, dtype),
        rates_for(NETWORKS, widths, dtype),
    )


@pytest.mark.parametrize("widths", [*LANES, TILES[1]])
def test_float64_is_the_reference_and_a_network_that_diverges_harms_no_neighbour(widths):
    core, start, rates = cases(widths)
    start = (start[0].at[3, 0, 0].set(np.inf), *start[1:])  # never good
    rates = rates.at[1].set(30.0)
    got, taken = EMULATED(core, start, rates, 40)
    wanted, wanted_taken = REFERENCE(core, start, rates, 40)
    assert taken.tolist() == wanted_taken.tolist()
    assert taken.tolist()[::2] == [40, 40]
    assert 0 < taken[1] < 40
    assert far([g[2] for g in got], [w[2] for w in wanted]) < 1e-12
    assert far([g[1] for g in got], [w[1] for w in wanted]) < 1e-9  # roundoff grows as it does
    for i in (0, 3):  # a rate of 0, a start that is not finite
        assert all((g[i] == w[i]).all() for g, w in zip(got, start, strict=True))


@pytest.mark.parametrize("widths", [LANES[0], TILES[1]])
def test_a_network_does_not_depend_on_its_neighbours(widths):
    core, start, rates = cases(widths)
    got, _ = EMULATED(core, start, rates.at[1].set(30.0), 40)
    alone, _ = jax.jit(emulated)(core, tuple(w[2] for w in start), rates[2], 40)
    assert all((a == g[2]).all() for a, g in zip(alone, got, strict=True))


def test_float32_is_as_near_to_float64_as_the_reference():
    narrow = cases(TILES[0], np.float32)
    got, _ = EMULATED(*narrow, 20)
    plain, _ = REFERENCE(*narrow, 20)
    wanted, _ = REFERENCE(*jax.tree.map(lambda a: a.astype(np.float64), narrow), 20)
    assert got[0].dtype == np.float32
    # Sums in another order: either may be the luckier one by a rounding.
    assert far(got, wanted) < 2 * far(plain, wanted) + np.finfo(np.float32).eps


def nest(engine, levels):
    """``levels`` of vmap, from the outermost: which of (core, start, rates) each one batches."""
    for batched in reversed(levels):
        engine = jax.vmap(
            engine, in_axes=(*(0 if name in batched else None for name in "csr"), None)
        )
    return jax.jit(engine)


@pytest.mark.parametrize(
    ("levels", "periods"),
    [
        (("cs", "r"), (3, 2)),  # problems outside, rates inside
        (("r", "c"), (1, 3)),  # rates outside, problems inside
        (("c", "r", "c"), (1, 12)),  # problems around rates around problems: no period, copied
    ],
)
def test_nested_vmaps_are_one_batch_and_copy_no_moments(levels, periods):
    sizes = (2, 3) if len(levels) == 2 else (2, 2, 3)
    core, start, rates = core_of(SMALL), networks(1, SMALL), rates_for(1, SMALL)
    start, rates = tuple(w[0] for w in start), rates[0] + 0.01

    def grow(tree, name, scale):
        for level, size in reversed(list(zip(levels, sizes, strict=True))):
            if name in level:
                tree = jax.tree.map(
                    lambda a, size=size: jnp.stack([(1 + scale * i) * a for i in range(size)]), tree
                )
        return tree

    operands = grow(core, "c", 0.1), grow(start, "s", 0.2), grow(rates, "r", 0.3), 5
    got, taken = nest(emulated, levels)(*operands)
    wanted, wanted_taken = nest(reference, levels)(*operands)
    assert taken.shape == wanted_taken.shape == sizes
    assert (taken == wanted_taken).all()
    assert far(got, wanted) < 1e-12
    (call,) = calls(jax.make_jaxpr(nest(emulated, levels))(*operands).jaxpr)
    # Operands: steps, rates, then the moment of inputs, entries by networks.
    assert call.invars[2].aval.shape == (4, periods[1])
    assert call.invars[1].aval.shape == (1, 32)


def calls(jaxpr):
    """The kernel calls of a program."""
    found = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "pallas_call"]
    for eqn in jaxpr.eqns:
        if eqn.primitive.name != "pallas_call":
            found += [call for inner in inner_jaxprs(eqn) for call in calls(inner)]
    return found


def test_no_steps_and_steps_that_are_traced():
    core, start, rates = core_of(SMALL), networks(1, SMALL), rates_for(1, SMALL) + 0.1
    run = jax.jit(lambda steps: emulated(core, tuple(w[0] for w in start), rates[0], steps))
    moved, taken = run(0)
    assert int(taken) == 0
    assert all((m == w[0]).all() for m, w in zip(moved, start, strict=True))
    assert int(run(3)[1]) == 3
    with pytest.raises(ValueError, match="steps must be the same"):
        jax.vmap(run)(jnp.arange(3))


def test_padding_stays_exactly_zero():
    widths = TILES[0]
    plan = make_plan(widths, np.float64)
    assert plan.widths == (16, 16, 16)
    core, start = core_of(widths), networks(1, widths)
    moments = [getattr(core, name)[None] for name in plan.moment_names]
    pairs = zip((*moments, *start), plan.moments + plan.layers, strict=True)
    operands = [launch._pad(array, shape) for array, shape in pairs]
    steps = jnp.array([9], jnp.int32)
    rates = rates_for(2, widths)[1:]
    moved = launch._call_by_tiles(plan, ((1, 1),) * 5, True, steps, rates, operands)
    for tile, layer in zip(moved[:-1], start, strict=True):
        inside = jnp.zeros(tile.shape, bool).at[:, : layer.shape[1], : layer.shape[2]].set(True)
        assert (tile[~inside] == 0).all()
        assert (tile[inside] != launch._pad(layer, tile.shape[1:])[inside]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("widths", [LANES[1], TILES[0], (16, 32, 16)])
def test_it_lowers_for_cuda_without_a_gpu_in_full_precision(widths, dtype):
    core, start, rates = cases(widths, dtype)
    cores = jax.tree.map(lambda a: jnp.stack([a] * NETWORKS), core)

    def segments(core, start, rates):
        def advance(state, steps):
            return gpu.descend(core, state, rates, steps)

        return jax.lax.scan(advance, start, jnp.array([2, 3], jnp.int32))

    for axes, operands in (
        ((0, 0, 0), (cores, start, rates)),
        ((None, None, 0), (core, tuple(w[0] for w in start), rates)),
    ):
        traced = jax.jit(jax.vmap(segments, in_axes=axes)).trace(*operands)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert len(re.findall(r"custom_call @\S*triton", text)) == 1
    (call,) = calls(traced.jaxpr.jaxpr)
    kernel = equations(call.params["jaxpr"])
    precisions = {eqn.params["precision"] for eqn in kernel if eqn.primitive.name == "dot_general"}
    highest = jax.lax.Precision.HIGHEST
    assert precisions == (set() if make_plan(widths, dtype).lanes else {(highest, highest)})
    # The lowering takes a literal of `where` for a boolean if some trace before cached it weakly.
    assert "select_n" not in {eqn.primitive.name for eqn in kernel}


def test_it_lowers_inside_shard_map():
    core, start, rates = cases(SMALL)
    over = jax.sharding.PartitionSpec("devices")
    mapped = jax.shard_map(
        lambda start, rates: jax.vmap(gpu.descend, in_axes=IN_AXES)(core, start, rates, 3),
        mesh=jax.sharding.Mesh(jax.devices()[:1], "devices"),
        in_specs=over,
        out_specs=over,
        check_vma=jax.__version_info__ >= (0, 10, 2),
    )
    lowered = jax.jit(mapped).trace(start, rates).lower(lowering_platforms=("cuda",))
    assert "triton" in lowered.as_text()


@pytest.mark.parametrize("batch", [100, 10_000_000])
@pytest.mark.parametrize(("widths", "dtype"), [((4, 4, 4, 4), np.float32), ((16,) * 4, np.float64)])
def test_batches_up_to_ten_million_are_one_kernel_and_need_no_larger_numbers(batch, widths, dtype):
    core, start, rates = cases(widths, dtype)

    def many(array):
        return jax.ShapeDtypeStruct((batch, *array.shape[1:]), array.dtype)

    run = jax.jit(jax.vmap(gpu.descend, in_axes=IN_AXES))
    traced = run.trace(core, tuple(map(many, start)), many(rates), 5)
    (call,) = calls(traced.jaxpr.jaxpr)
    (programs,) = call.params["grid_mapping"].grid
    assert batch / 128 <= programs <= batch
    assert programs < 2**31  # what a grid may have
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"custom_call @\S*triton", text)) == 1


@pytest.fixture
def device():
    return jax.devices()[0]


@pytest.mark.parametrize("widths", [(2, 1), LANES[1], TILES[1]])
def test_a_kernel_is_tried_against_the_reference_whatever_is_being_traced(widths, device):
    found = []

    def tried(rate):
        plans = [make_plan(widths, dtype) for dtype in (np.float32, np.float64)]
        found.extend(trial.objection(plan, device, interpret=True) for plan in plans)
        return rate**2

    jax.jit(jax.vmap(jax.grad(tried)))(jnp.ones(2))
    assert found == [None, None]


@pytest.mark.parametrize(
    ("widths", "dtype"),
    [
        ((1, 1), "float64"),
        ((1,) * 33, "float64"),
        ((2,) * 17, "float64"),
        ((64,) * 4, "float64"),
        ((4, 1, 4), "float32"),
        ((8,) * 49, "float32"),
    ],
)
def test_what_a_kernel_is_tried_on_is_stable_but_for_one_network(widths, dtype):
    with trial._in_precision(dtype):
        problem, start, rates = trial.example(make_plan(widths, dtype))
        _, taken = trial._by_xla(problem, start, rates, jnp.int32(trial._STEPS))
    assert (taken[:-1] == trial._STEPS).all()
    assert taken[-1] < trial._STEPS


def spoil(layer, value, network=0):
    """Puts a factor before one layer of one network."""

    def spoiled(moved, taken):
        wrong = moved[layer].at[network].multiply(value)
        return (*moved[:layer], wrong, *moved[layer + 1 :]), taken

    return spoiled


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (spoil(0, 1.0001), "is off by .* of W_1"),
        (spoil(0, np.nan), "is off by nan of the norm of W_1"),
        (spoil(1, np.nan), "is off by nan of the norm of W_2"),
        (spoil(1, 1.1, network=-1), "W_2 that is off by .* where a network diverges"),
        (spoil(1, np.nan, network=-1), "W_2 that is off by nan where a network diverges"),
        (lambda moved, taken: (moved, taken.at[3].add(-1)), "takes 23 steps where XLA takes 24"),
        (lambda moved, taken: (moved, taken.at[-1].add(9)), "takes .* steps where XLA takes"),
        (lambda moved, taken: moved[10], "fails: IndexError"),
    ],
    ids=["weights", "nan", "nan later", "frozen", "frozen nan", "steps", "divergence", "error"],
)
@pytest.mark.parametrize("which", [launch.SMALL_BLOCK, launch.BLOCK])
def test_a_wrong_kernel_is_found_out_and_told(wrong, told, which, device, monkeypatch):
    def kernel(plan, periods, interpret, block):
        right = launch.batched(plan, periods, True, block)
        return (lambda *operands: wrong(*right(*operands))) if block == which else right

    monkeypatch.setattr(trial, "batched", kernel)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device])
    plan = make_plan((2, 1, 2), np.float32)
    try:
        with pytest.warns(RuntimeWarning, match=rf"auto.*\(2, 1, 2\) in float32.*kernel.*{told}"):
            assert not trial.passes(plan)
    finally:
        trial.passes.cache_clear()


def test_products_in_tf32_are_found_out(device, monkeypatch):
    exact = kernels.matmul

    def rounded(a, b):
        return exact(*(jax.lax.reduce_precision(each, 8, 10) for each in (a, b)))

    monkeypatch.setattr(kernels, "matmul", rounded)
    plan = make_plan((16, 16, 16), np.float32)
    assert "is off by" in trial.objection(plan, device, interpret=True)


def test_no_kernel_is_tried_for_a_program_on_a_cpu(monkeypatch):
    assert jax.default_backend() != "cpu" or not gpu.takes_part()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert gpu.takes_part()
    with jax.default_device(jax.devices("cpu")[0]):
        assert not gpu.takes_part()
    inside = []
    mesh = jax.sharding.Mesh(jax.devices()[:1], "devices")
    over = jax.sharding.PartitionSpec("devices")

    def tracing(rates):
        inside.append(gpu.takes_part())
        return rates

    jax.shard_map(tracing, mesh=mesh, in_specs=over, out_specs=over)(jnp.ones(1))
    assert inside[0] == (jax.__version_info__ >= (0, 10, 2))


def test_a_kernel_that_passes_is_tried_once(device, monkeypatch):
    tries = []

    def objection(plan, where, *, interpret):
        tries.append((plan.widths, where, interpret))

    monkeypatch.setattr(trial, "objection", objection)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device])
    try:
        answers = [gpu.proves_itself(widths, np.float32) for widths in [(5, 6), (7, 8), (2, 3)]]
    finally:
        trial.passes.cache_clear()
    assert answers == [True] * 3
    small = make_plan((5, 6), np.float32).widths  # padded as (7, 8) is
    assert tries == [(small, device, False), ((2, 3), device, False)]


def equations(jaxpr):
    """All that a kernel does, loops included."""
    inner = (inner for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn))
    return [*jaxpr.eqns, *(eqn for each in inner for eqn in equations(each))]


@pytest.mark.parametrize(
    ("depth", "width", "dtype", "fits"),
    [
        (1, 1, np.float32, True),
        (4, 4, np.float32, True),
        (6, 64, np.float32, True),
        (7, 64, np.float32, False),  # 14 x 16 KB of shared memory
        (3, 64, np.float64, True),
        (4, 64, np.float64, False),
        (16, 16, np.float32, True),
        (17, 16, np.float32, False),  # 17 KB of the 32 KB that one warp has in registers
        (1, 65, np.float32, False),
        (1, 4, np.float16, False),
    ],
)
def test_what_fits_on_the_chip(depth, width, dtype, fits):
    assert gpu.applies((width,) * (depth + 1), dtype) == fits


def test_what_does_not_fit_is_refused_by_name():
    widths = (65, 2)
    with pytest.raises(ValueError, match=r"weights must fit on the chip.*\(65, 2\) in float64"):
        emulated(core_of(widths), (jnp.zeros((2, 65)),), jnp.zeros(1), 1)


def test_a_machine_says_why_it_has_no_kernels(monkeypatch):
    def devices(platform=None, capability=None):
        if capability is None:
            raise RuntimeError(platform)
        return [type("Device", (), {"compute_capability": capability})]

    monkeypatch.setattr(jax, "devices", devices)
    assert "no NVIDIA GPU" in gpu.reason_for_absence()
    monkeypatch.setattr(jax, "devices", partial(devices, capability="7.0"))
    assert "compute capability 8.0, a GPU here has 7.0" in gpu.reason_for_absence()
    monkeypatch.setattr(jax, "devices", partial(devices, capability="9.0"))
    assert gpu.reason_for_absence() is None
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr("jax.experimental.pallas.triton")
    assert "no Triton lowering" in gpu.reason_for_absence()


def test_the_benchmark_says_what_it_did_not_measure(monkeypatch):
    monkeypatch.setattr(gpu, "reason_for_absence", lambda: "no GPU")
    rows = benchmark.run(repeats=1)
    assert {row.note for row in rows} == {"not measured: no GPU"}
    assert [row.runs for row in rows[-2:]] == [65_536, 16_777_216]
    assert all(row.run_seconds is None for row in rows)
