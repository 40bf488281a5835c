"""Every benchmark's peers give the same answer; nothing here looks at a time."""

import importlib.util
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import alignjax as aj
import benchmarks
from alignjax import datasets
from alignjax.engines import available
from benchmarks import __main__ as command
from benchmarks import (
    engine,
    gpu,
    moments,
    peers,
    reduced,
    scaling,
    table_1,
    threads,
    timing,
    widths,
)
from benchmarks.__main__ import BENCHMARKS, main, record
from benchmarks.peers import c_kernel, pytorch
from benchmarks.peers.job import make_job
from benchmarks.report import SECTIONS, fill, report, table
from benchmarks.targets import checks
from benchmarks.timing import Row, agree

TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not TORCH, reason="PyTorch is not installed")


def differences(rows):
    return {row.contender: row.difference for row in rows if row.difference is not None}


def toy(contenders, **options):
    """One width, few networks, no minimal time."""
    given = {"steps": {3: 5}, "double": {}, "batches": {}, "batch": 19, "seconds": 0}
    return engine.run(repeats=1, contenders=contenders, **given | options)


def test_moments_peer_on_samples_gives_the_same_weights():
    rows = moments.run(repeats=1, sizes=(50, 200), peer_up_to=100, steps=20)
    assert [(row.case, row.difference is None) for row in rows] == [
        ("n = 50", True),
        ("n = 50", False),
        ("n = 200", True),
    ]
    assert differences(rows)[moments.PEER] < 1e-5


def test_full_matrices_give_the_same_weights_as_the_reduction():
    rows = reduced.run(repeats=1, width=4, runs=3, steps=10, full_steps=5, recursions=())
    assert differences(rows)[reduced.FULL] < 1e-5
    assert "scaled linearly" in rows[1].note


def test_table_1_is_the_same_row_from_all_samples_at_once():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (60, 3, 4, 4), np.uint8)
    images = datasets.Images(pixels, random.integers(0, 10, 60, np.uint8), "noise", "a test")
    rows = table_1.run(repeats=1, rows={"noise": lambda: images})
    assert differences(rows)[table_1.PEER] < 1e-10


def test_table_1_without_images_says_not_measured():
    def unavailable():
        raise datasets.DataUnavailableError("no such data")

    (row,) = table_1.run(repeats=1, rows={"CIFAR-10": unavailable})
    assert row.run_seconds is None
    assert row.note == "not measured: CIFAR-10 is not available"


REFERENCE = {peers.NUMPY: peers.PEERS[peers.NUMPY]}


def test_every_contender_gives_the_weights_of_the_numpy_loop():
    chosen = {
        name: contend
        for name, contend in engine.CONTENDERS.items()
        if name not in (engine.OURS_XLA, peers.TORCH_COMPILED)
    }
    rows = toy(REFERENCE | chosen)
    assert [row.contender for row in rows if row.note.startswith("not measured")] == [
        name
        for name, here in ((engine.OURS_CPU, "cpu" in available()), (peers.TORCH, TORCH))
        if not here
    ]
    assert max(differences(rows).values()) < 1e-5


def test_widths_between_have_the_batch_of_their_size_and_the_same_answers():
    rows = widths.run(repeats=1, widths=(3, 5), batches=((4, 19), (8, 7)), steps=5, seconds=0)
    assert {(row.benchmark, engine.width_of(row), row.runs) for row in rows} == {
        ("widths", 3, 19),
        ("widths", 5, 7),
    }
    rows += widths.run_single(repeats=1, widths=(3,), steps=5, seconds=0)
    assert [(row.benchmark, row.runs) for row in rows[6:]] == [("single", 1)] * 3
    assert len(rows) == 9
    assert max(differences(rows).values()) < 1e-5


def test_the_c_kernel_is_exact_in_float64_where_networks_do_not_fill_its_lanes():
    job = make_job(5, 19, dtype="float64")
    expected = peers.PEERS[peers.NUMPY](job, 7).call()
    answer = c_kernel.train_in_c(job, 7).call()
    assert agree("C", expected, answer, tolerance=1e-13) < 1e-13


@needs_torch
def test_a_compiled_torch_step_gives_the_same_weights():
    job = make_job(3, 4)
    expected = peers.PEERS[peers.NUMPY](job, 5).call()
    answer = pytorch.train_in_compiled_torch(job, 5, backend="aot_eager").call()
    assert agree("torch", expected, answer, tolerance=1e-5) < 1e-5


def test_a_job_is_white_and_its_target_is_the_cross_moment():
    job = make_job(4, 2, samples=30, dtype="float64")
    np.testing.assert_allclose(job.X.T @ job.X / 30, np.eye(4), atol=1e-14)
    np.testing.assert_allclose(job.target, job.Y.T @ job.X / 30, rtol=1e-13)


def test_a_faster_contender_is_timed_over_more_steps():
    (row,) = toy(REFERENCE, seconds=0.01)
    assert row.steps > 5
    # the same count of operations whoever works: 3 layers, 6 products
    operations = 6 * 2 * 3**3 * 19
    assert row.gflops == pytest.approx(1e-3 * operations / row.step_microseconds)


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        (peers.TORCH, "torch", "PyTorch is not installed"),
        (peers.TORCH_COMPILED, "torch", "PyTorch is not installed"),
        (peers.C_KERNEL, "compiler", "there is no C compiler"),
        (peers.C_KERNEL, "flags", "the C compiler failed"),
        (engine.OURS_CPU, "engine", "engine 'cpu' cannot run here: no kernel"),
    ],
)
def test_who_cannot_run_is_a_row_that_says_not_measured(monkeypatch, name, spoil, reason):
    if spoil == "torch":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    elif spoil == "compiler":
        monkeypatch.setenv("CC", "no-such-compiler")
    elif spoil == "flags":
        monkeypatch.setattr(c_kernel, "FLAGS", ("--no-such-flag",))
    else:
        monkeypatch.setattr(engine.aj.engines, "unavailable", lambda: {"cpu": "no kernel"})
    rows = toy(REFERENCE | {name: engine.CONTENDERS[name]})
    (absent,) = [row for row in rows if row.contender == name]
    assert absent.run_seconds is None
    assert absent.note.startswith(f"not measured: {reason}")


def test_scaling_divides_by_what_a_size_should_cost():
    rows = scaling.run(repeats=1, networks=(2,), steps=(2,), depths=(2, 3), samples=(20,))
    time = {row.contender: row.step_microseconds for row in rows}
    (deep,) = [row for row in rows if row.contender == "alignjax, 3 layers"]
    grows = time["alignjax, 3 layers"] / time["alignjax, 2 layers"]
    assert deep.ratio == pytest.approx(grows * 4 / 7)
    assert {row.case for row in rows} == set(scaling.SERIES)


def test_fewer_networks_take_more_steps_so_that_calls_last_alike():
    rows = scaling.run(repeats=1, networks=(2, 8), steps=(4,), depths=(2,), samples=(20,))
    (few, many) = [row for row in rows if row.case == "networks"]
    assert (few.runs, few.steps, many.runs, many.steps) == (2, 16, 8, 4)
    assert many.ratio == pytest.approx(many.step_microseconds / few.step_microseconds / 4)


WORKER = """
import sys
print("ready", flush=True)
for _ in sys.stdin:
    print(3.0 if sys.argv[1] == "0,1" else 2.0 + int(sys.argv[1]), flush=True)
"""


def test_one_process_is_compared_with_the_slower_of_two(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(threads, "WORKER", (sys.executable, "-c", WORKER))
    one, two = threads.run(repeats=2, steps={9: 3}, batch=4)
    assert (one.contender, one.run_seconds) == (threads.ONE, 3.0)
    assert (two.contender, two.run_seconds, two.ratio) == (threads.TWO, 3.0, 1.0)


def test_a_worker_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(threads, "WORKER", (sys.executable, "-c", "exit(7)"))
    with pytest.raises(RuntimeError, match="ended with 7"):
        threads.run(repeats=1, steps={9: 3}, batch=4)


def test_a_worker_pins_itself_and_answers_each_line_with_a_time(monkeypatch, capsys):
    pinned = []
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda _, cores: pinned.append(cores), raising=False
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n"))
    threads.serve("0,1", width=2, batch=4, steps=2)
    ready, *seconds = capsys.readouterr().out.split()
    assert (pinned, ready, len(seconds)) == ([{0, 1}], "ready", 2)
    assert all(float(second) > 0 for second in seconds)


def test_on_one_core_threads_are_not_measured(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    rows = threads.run(repeats=1, steps={2: 2})
    assert [row.note.startswith("not measured") for row in rows] == [True, True]


def measured(contender, gflops, width=16, **more):
    return Row("engine", engine.case_name(width, "float32"), contender, 1, gflops=gflops, **more)


def test_targets_compare_alignjax_with_each_peer_at_the_same_width():
    rows = [
        measured(engine.OURS, 30.0),
        measured(peers.PLAIN, 40.0),
        measured(peers.TORCH, 10.0),
        measured(peers.C_KERNEL, None),
        measured(peers.TORCH, 1000.0, width=4),
        Row("scaling", "steps", "alignjax, 1 steps", 1, ratio=1.0),
        Row("scaling", "steps", "alignjax, 2 steps", 1, ratio=0.8),
        Row("threads", "k = 9, d = 3", threads.TWO, 1, ratio=0.97),
    ]
    assert [str(check) for check in checks(rows)] == [
        "≥ 3× PyTorch at k = 16: 3 ✓",
        "≥ 1× plain JAX at k = 16: 0.75 ✗",
        "≥ 0.6× plain C at k = 16: not measured",
        "linear in steps up to 1.1×: 1.25 ✗",
        "≥ 0.95× two processes, k = 9: 0.97 ✓",
    ]


def test_targets_at_widths_between_tell_the_least_ratio_and_where():
    def row(name, width, ratio):
        return Row("widths", engine.case_name(width, "float32"), name, 1, ratio=ratio)

    rows = [row(peers.PLAIN, 3, 5.0), row(peers.PLAIN, 40, 0.9), row(peers.TORCH, 3, 0.1)]
    told = "≥ 1× plain JAX at 2 other widths from 2, least at k = 40: 0.9 ✗"
    assert [str(check) for check in checks(rows)] == [told]
    rows += [row(peers.TORCH, 40, None)]
    wanted = "≥ 0.9× PyTorch at 1 other widths from 32: not measured"
    assert [str(check) for check in checks(rows)] == [told, wanted]


def test_targets_for_gpus_compare_with_plain_jax_and_the_card():
    case = engine.case_name(16, "float32")
    rows = [
        Row("gpu", case, gpu.OURS_GPU, 1, gflops=30.0),
        Row("gpu", case, peers.PLAIN, 1, gflops=1.0),
        Row("gpu", case, gpu.PEAK, 1, gflops=100.0),
        Row("gpu", gpu.MANY_CASE, gpu.OURS_GPU, 1_000, run_seconds=0.5),
    ]
    told = [
        "≥ 20× plain JAX at k = 16 on a GPU: 30 ✓",
        "≥ 0.4× the card's peak in float32 at k = 16 on a GPU: 0.3 ✗",
        "≤ 1 s for 1,000 networks of width 4 on a GPU: 0.5 ✓",
    ]
    assert [str(check) for check in checks(rows)] == told
    assert report(rows).endswith("\n".join(f"- {line}" for line in told))


def test_without_a_gpu_its_rows_and_targets_say_not_measured():
    if aj.engines.unavailable().get("gpu") is None:
        pytest.skip("there is a GPU")
    rows = gpu.run(repeats=1)
    assert all(row.run_seconds is None and "not measured" in row.note for row in rows)
    told = [str(check) for check in checks(rows)]
    assert len(told) == 8
    assert all(line.endswith("not measured") for line in told)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_map_of_many_networks_is_compared_with_the_reference(monkeypatch, wrong):
    real = aj.engines.advance

    def instead(problem, start, rates, *args, engine, **options):
        off = 1.01 if wrong and engine == "gpu" else 1.0
        return real(problem, start, off * rates, *args, engine="xla", **options)

    monkeypatch.setattr(aj.engines, "advance", instead)
    if wrong:
        with pytest.raises(ValueError, match="differs"):
            gpu._many(16**2, 20, 1)
    else:
        (row,) = gpu._many(16**2, 20, 1)
        assert row.runs == 256
        assert row.difference < 1e-6


def test_a_benchmark_that_fails_loses_nothing_of_the_others(tmp_path, monkeypatch, capsys):
    def fails(repeats):
        raise RuntimeError("no such peer")

    monkeypatch.setattr(
        command,
        "BENCHMARKS",
        {"bad": fails, "good": lambda repeats: [measured(engine.OURS, 3.0)]},
    )
    stored = tmp_path / "results.json"
    assert main(["--output", str(stored)]) == 1
    assert "no such peer" in capsys.readouterr().err
    assert [row["gflops"] for row in json.loads(stored.read_text())["rows"]] == [3.0]


def test_a_page_is_filled_with_what_was_measured():
    rows = [measured(engine.OURS, 3.0), measured(peers.NUMPY, 0.5), measured(peers.TORCH, None)]
    page = "".join(f"{name}\n<!-- {name} -->\nold\n<!-- end -->\n" for name in SECTIONS)
    filled = fill(page, rows)
    assert fill(filled, rows) == filled
    assert "old" not in filled
    assert filled.startswith(
        f"""engine
<!-- engine -->

| case | batch | {engine.OURS} | {peers.TORCH} | {peers.NUMPY} |
| --- | --- | --- | --- | --- |
| k = 16, d = 3 | 1 | 3 | – | 0.5 |

<!-- end -->
"""
    )


def test_a_page_without_a_place_is_refused():
    with pytest.raises(ValueError, match="no '<!-- engine -->'"):
        fill("# Benchmarks", [])


def test_the_page_shows_what_is_stored_beside_it():
    folder = Path(benchmarks.__file__).parent
    stored = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert fill(page, [Row(**row) for row in stored["rows"]]) == page


def test_what_was_written_is_read_and_drawn(tmp_path, capsys):
    rows = [measured(engine.OURS, 3.0 * k, width=k) for k in (2, 4)]
    rows.append(Row("scaling", "depth", "alignjax, 2 layers", 1, ratio=1.0))
    stored, figure = tmp_path / "results.json", tmp_path / "engine.png"
    stored.write_text(json.dumps(record(rows, 1)))
    assert main(["--read", str(stored), "--figure", str(figure)]) == 0
    assert table(rows) in capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_call_is_timed_by_the_chosen_clock_and_by_wall_time_afterwards(monkeypatch):
    ticks = {"wall": iter([1.0, 2.0]), "processor": iter([10.0, 40.0])}
    for name, times in ticks.items():
        monkeypatch.setitem(timing.CLOCKS, name, times.__next__)
    with timing.clock("processor"):
        assert timing.timed(lambda: "answer") == ("answer", 30.0)
    assert timing.timed(lambda: None)[1] == 1.0


@pytest.mark.parametrize("wrong", [1.01, np.nan])
def test_a_wrong_answer_stops_the_benchmark(wrong):
    layer = np.eye(3)
    with pytest.raises(ValueError, match="peer differs"):
        agree("peer", [layer, layer], [layer, wrong * layer], tolerance=1e-3)


def test_table_and_record_hold_every_row():
    rows = [measured(engine.OURS, 3.0), measured(peers.TORCH, None)]
    assert len(table(rows).splitlines()) == 2 + len(rows)
    stored = json.loads(json.dumps(record(rows, 1)))
    assert len(stored["rows"]) == len(rows)
    assert {"jax", "torch", "python"} <= stored["versions"].keys()
    assert stored["hardware"]["cpu"]


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert f"NAME must be among {', '.join(BENCHMARKS)}, got nothing" in capsys.readouterr().err
