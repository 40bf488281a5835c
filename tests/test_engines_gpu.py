"""The kernels for GPUs, run on the host: as a loop does, under any nest of vmap; and they lower."""

import ctypes
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from alignjax.engines import export_checks, gpu
from alignjax.engines.gpu import library, trial
from alignjax.engines.gpu.plan import make_plan
from benchmarks import gpu as benchmark
from tests import chains, emulated
from tests.chains import Case, Level


@pytest.fixture(autouse=True)
def _on_the_host():
    emulated.load()


FIVE = (Level(5, None, 0, 0),)


def case(widths, dtype="float64", levels=FIVE, segments=(40,), wild=0.0):
    return Case(widths, dtype, levels, segments, True, "best", 12, wild, 0, seed=0)


def by_gpu(case):
    return chains.by_segments(case, gpu.descend)


LANES = [(2, 1), (2, 3, 1, 2)]
# From the outputs, from the inputs, from a bottleneck, one layer; 32 threads, 64 of either kind,
# 256. The last ones have more tiles than threads, or fewer.
TILES = [(6, 9, 5), (4, 6, 9, 5), (8, 3, 2, 9, 3), (7, 8), (2, 33, 19), (17, 40, 3), (1, 5, 1)]
NESTS = {
    "problems outside, rates inside": (Level(2, 0, None, None), Level(3, None, None, 0)),
    "rates outside, problems inside": (Level(3, None, None, 0), Level(2, 0, None, None)),
    "problems around rates around problems": (
        Level(2, 1, None, None),
        Level(3, None, 2, 0),
        Level(2, 0, None, None),
    ),
}
CASES = {
    **{f"{widths}": case(widths) for widths in (*LANES, *TILES)},
    **{name: case((2, 3, 2), levels=levels) for name, levels in NESTS.items()},
    **{f"{name}, tiles": case((5, 2, 6), levels=levels) for name, levels in NESTS.items()},
    "one network": case((2, 2), levels=()),
    "segments": case((3, 2, 2), segments=(0, 7, 1)),
    "lanes that diverge": case((4, 3, 4), wild=0.4, levels=(Level(20, None, 0, 0),)),
    "tiles that diverge": case((5, 2, 3, 6), wild=0.4, levels=(Level(9, None, 0, 0),)),
    "lanes in float32": case((4, 4, 4, 4), "float32", wild=0.2),
    "tiles in float32": case((6, 9, 5), "float32", wild=0.2),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_shape_in_any_nest_of_batches_equals_a_loop_in_numpy(case):
    assert chains.difference(case, by_gpu(case)) < chains.TOLERANCE[case.dtype]


def test_where_networks_diverge_is_counted_and_their_neighbours_are_not_harmed():
    for shape in ((4, 3, 4), (5, 2, 3, 6)):
        levels = (Level(12, None, 0, 0),)
        mixed, calm = (case(shape, levels=levels, wild=wild) for wild in (0.4, 0.0))
        (moved, taken), (alone, _) = map(by_gpu, (mixed, calm))
        lost = taken[:, 0] < 40
        assert 0 < lost.sum() < 12
        same = (chains.operands(mixed)[2] == chains.operands(calm)[2]).all(1) & ~lost
        assert same.any()
        for a, b in zip(moved, alone, strict=True):
            np.testing.assert_array_equal(a[same], b[same])


@pytest.mark.parametrize("widths", [(6, 9, 5), (5, 2, 3, 6), (17, 40, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_bit_depends_on_the_order_of_threads_or_on_room_on_the_chip(widths, dtype):
    # A barrier that lacks shows as a result that depends on which thread comes first.
    core, starts, rates = chains.operands(case(widths, dtype, levels=(Level(3, None, 0, 0),)))
    rates[1] = 30.0  # diverges
    run = jax.jit(jax.vmap(gpu.descend, in_axes=(None, 0, 0, None)))
    found = []
    for backwards, room in ((False, None), (True, None), (True, 4096), (False, 1024)):
        with emulated.emulation(backwards=backwards, shared_bytes=room or emulated.SHARED_BYTES):
            found.append(jax.device_get(run(core, starts, rates, 9)))
    assert (np.asarray(found[0][1]) == 9).tolist() == [True, False, True]
    for other in found[1:]:
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(found[0]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_float32_is_as_near_to_float64_as_the_reference():
    for widths in ((4, 4, 4, 4), (6, 9, 5)):
        this = case(widths, "float32", segments=(20,))
        exact, _, _ = chains.by_numpy(this)

        def error(found, exact=exact):
            return max(np.abs(w - e).max() for w, e in zip(found[0], exact, strict=True))

        assert by_gpu(this)[0][0].dtype == np.float32
        # Sums in another order: either may be the luckier one by a rounding.
        assert error(by_gpu(this)) < 2 * error(chains.by_xla(this)) + np.finfo(np.float32).eps


def one(widths, dtype=np.float64):
    core, starts, rates = chains.operands(case(widths, np.dtype(dtype).name, levels=()))
    return core, tuple(map(jnp.asarray, starts)), jnp.asarray(rates)


def test_no_steps_and_steps_that_are_traced_but_not_batched():
    core, start, rates = one((2, 2))
    run = jax.jit(lambda steps: gpu.descend(core, start, rates, steps))
    moved, taken = run(0)
    assert int(taken) == 0
    assert all((m == w).all() for m, w in zip(moved, start, strict=True))
    assert int(run(3)[1]) == 3
    with pytest.raises(Exception, match="steps must be one int32"):
        jax.block_until_ready(jax.vmap(run)(jnp.arange(3)))


def test_nine_batch_axes_are_merged_or_refused_by_name():
    rates, problems = Level(2, None, None, 0), Level(2, 0, None, None)
    together = case((2, 1), levels=(rates,) * 9, segments=(3,))
    assert chains.difference(together, by_gpu(together)) < chains.TOLERANCE["float64"]
    with pytest.raises(Exception, match="nest fewer vmaps"):
        by_gpu(case((2, 1), levels=(rates, problems) * 4 + (rates,), segments=(3,)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("widths", [(2, 3, 1, 2), (16, 32, 16)])
def test_it_lowers_for_cuda_without_a_gpu_and_copies_no_moments(widths, dtype):
    core, start, rates = one(widths, dtype)

    def segments(rates):
        def advance(state, steps):
            return gpu.descend(core, state, rates, steps)

        return jax.lax.scan(advance, start, jnp.array([2, 3], jnp.int32))

    run = jax.jit(jax.vmap(segments))
    text = run.trace(jnp.stack([rates] * 4)).lower(lowering_platforms=("cuda",)).as_text()
    (call,) = [line for line in text.splitlines() if f"custom_call @{library.TARGET}" in line]
    inputs = make_plan(widths, dtype).widths[0]
    kind = {np.float32: "f32", np.float64: "f64"}[dtype]
    assert f"tensor<1x{inputs}x{inputs}x{kind}>" in call
    allowed = export_checks()  # also where there are no kernels for GPUs
    exported = export.export(run, platforms=["cuda"], disabled_checks=allowed)
    assert exported(jnp.stack([rates] * 4)).platforms == ("cuda",)


def test_it_runs_and_lowers_inside_shard_map():
    core, start, rates = one((2, 2))
    rates = jnp.stack([rates] * 4)
    over = jax.sharding.PartitionSpec("devices")
    run = jax.vmap(gpu.descend, in_axes=(None, None, 0, None))
    mapped = jax.jit(
        jax.shard_map(
            lambda rates: run(core, start, rates, 3),
            mesh=jax.sharding.Mesh(jax.devices()[:1], "devices"),
            in_specs=over,
            out_specs=over,
        )
    )
    assert mapped(rates)[1].tolist() == [3] * 4
    lowered = mapped.trace(rates).lower(lowering_platforms=("cuda",))
    assert f"custom_call @{library.TARGET}" in lowered.as_text()


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(trial, "_NETWORKS", 7)  # emulated blocks of threads are slow
    return jax.devices()[0]


@pytest.mark.parametrize("widths", [(2, 3, 1, 2), (5, 2, 3, 6)])
def test_a_kernel_is_tried_against_the_reference_whatever_is_being_traced(widths, device):
    found = []

    def tried(rate):
        plans = [make_plan(widths, dtype) for dtype in (np.float32, np.float64)]
        found.extend(trial.objection(plan, device) for plan in plans)
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
@pytest.mark.parametrize("spoiled", ["shared moments", "own moments"])
def test_a_wrong_kernel_is_found_out_and_told(wrong, told, spoiled, device, monkeypatch):
    right = trial._by_kernel

    def kernel(problem, start, rates, steps, shared):
        out = right(problem, start, rates, steps, shared)
        return wrong(*out) if shared == (spoiled == "shared moments") else out

    monkeypatch.setattr(trial, "_by_kernel", kernel)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device])
    plan = make_plan((2, 1, 2), np.float32)
    try:
        with pytest.warns(RuntimeWarning, match=rf"auto.*\(2, 2, 2\) in float32.*kernel.*{told}"):
            assert not trial.passes(plan)
    finally:
        trial.passes.cache_clear()


def test_products_in_tf32_are_found_out(device, monkeypatch):
    from alignjax import linalg
    from alignjax.problems import kinds

    exact = linalg.matmul

    def rounded(a, b):
        return exact(*(jax.lax.reduce_precision(each, 8, 10) for each in (a, b)))

    def kernel(*given):
        with monkeypatch.context() as patch:
            patch.setattr(linalg, "matmul", rounded)
            patch.setattr(kinds, "matmul", rounded)
            return trial._by_xla(*given[:4])

    monkeypatch.setattr(trial, "_by_kernel", kernel)
    assert "is off by" in trial.objection(make_plan((16, 16, 16), np.float32), device)


def test_no_kernel_is_tried_for_a_program_on_a_cpu(monkeypatch):
    assert jax.default_backend() != "cpu" or not gpu.takes_part()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert gpu.takes_part()
    with jax.default_device(jax.devices("cpu")[0]):
        assert not gpu.takes_part()


def test_a_kernel_that_passes_is_tried_once(device, monkeypatch):
    tries = []

    def objection(plan, where):
        tries.append((plan.widths, where))

    monkeypatch.setattr(trial, "objection", objection)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device])
    try:
        answers = [gpu.proves_itself(widths, np.float32) for widths in [(2, 3), (3, 1), (5, 6)]]
    finally:
        trial.passes.cache_clear()
    assert answers == [True] * 3
    assert tries == [((3, 3), device), ((5, 6), device)]  # (2, 3) is laid out as (3, 1) is


@pytest.mark.parametrize(
    ("depth", "width", "dtype", "fits", "lanes"),
    [
        (1, 1, np.float32, True, True),
        (4, 4, np.float32, True, True),
        (5, 4, np.float32, True, False),
        (4, 4, np.float64, True, False),  # 255 registers do not hold them
        (6, 64, np.float32, True, False),
        (7, 64, np.float32, False, None),
        (3, 64, np.float64, True, False),
        (4, 64, np.float64, False, None),
        (48, 16, np.float32, True, False),
        (49, 16, np.float32, False, None),
        (1, 65, np.float32, False, None),
        (1, 4, np.float16, False, None),
    ],
)
def test_what_fits_on_the_chip(depth, width, dtype, fits, lanes):
    widths = (width,) * (depth + 1)
    assert gpu.applies(widths, dtype) == fits
    if fits:
        assert make_plan(widths, dtype).lanes == lanes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_there_is_a_kernel_for_every_plan_by_lanes(dtype):
    # What Python takes for lanes and what csrc/gpu/kernels.h has code for are told in two places.
    for width in (2, 3, 4):
        for depth in range(1, 6):
            shape = (width,) * (depth + 1)
            if not make_plan(shape, dtype).lanes:
                continue
            _, taken = gpu.descend(*one(shape, dtype), 2)
            assert taken == 2


def test_what_does_not_fit_is_refused_by_name():
    widths = (65, 2)
    with pytest.raises(ValueError, match=r"weights must fit on the chip.*\(65, 2\) in float64"):
        gpu.descend(*one(widths), 1)


def test_a_machine_says_why_it_has_no_kernels(monkeypatch, tmp_path):
    def devices(platform=None, capability=None):
        if capability is None:
            raise RuntimeError(platform)
        return [type("Device", (), {"compute_capability": capability})]

    def reason(file):
        monkeypatch.setattr(library, "FILE", file)
        library.reason_for_absence.cache_clear()
        return gpu.reason_for_absence()

    try:
        monkeypatch.setattr(jax, "devices", devices)
        assert "no NVIDIA GPU" in reason(tmp_path)
        monkeypatch.setattr(jax, "devices", partial(devices, capability="7.0"))
        assert "compute capability 8.0, a GPU here has 7.0" in reason(tmp_path)
        monkeypatch.setattr(jax, "devices", partial(devices, capability="9.0"))
        assert "without its kernels for GPUs: they need" in reason(tmp_path / "none.so")
        broken = tmp_path / "broken.so"
        broken.write_bytes(b"no library")
        assert "cannot be loaded" in reason(broken)
        monkeypatch.setattr(library, "xla_interface", lambda: 0)
        assert "for a newer jaxlib" in reason(Path(emulated.load()._name))
        monkeypatch.setattr(library, "_INTERFACE", -1)
        assert "those of another version: install it again" in reason(Path(emulated.load()._name))
    finally:
        library.reason_for_absence.cache_clear()


@pytest.mark.slow
def test_it_compiles_for_cards_and_keeps_all_in_registers(tmp_path):
    import hatch_build

    nvcc = hatch_build.find_nvcc()
    if nvcc is None:
        pytest.skip("needs CUDA's compiler, nvcc")
    file = tmp_path / "kernels.so"
    said = hatch_build.compile_for_cards(
        emulated.ROOT / "csrc", file, nvcc, ("90",), ("-Xptxas", "-v")
    )
    kernels = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert len(kernels) == 27  # 12 by lanes in float32, 11 in float64, 4 by tiles
    assert set(kernels) == {("0", "0")}
    # It loads on a machine without a card, and says so.
    loaded = library.register(file, "CUDA")
    loaded.alignjax_gpu_objection.restype = ctypes.c_char_p
    if gpu.reason_for_absence() == "JAX sees no NVIDIA GPU here":
        assert loaded.alignjax_gpu_objection()


def test_the_benchmark_says_what_it_did_not_measure(monkeypatch):
    monkeypatch.setattr(gpu, "reason_for_absence", lambda: "no GPU")
    rows = benchmark.run(repeats=1)
    assert {row.note for row in rows} == {"not measured: no GPU"}
    assert [row.runs for row in rows[-2:]] == [65_536, 16_777_216]
    assert all(row.run_seconds is None for row in rows)
