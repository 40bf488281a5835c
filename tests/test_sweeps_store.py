"""A store keeps what it was given: whole blocks or none, one sweep, nothing lost."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import jax
import numpy as np
import pytest

import alignjax
from alignjax.sweeps import store as store_module
from alignjax.sweeps import store_creation
from alignjax.sweeps.folder import Folder
from alignjax.sweeps.spec import Output
from alignjax.sweeps.store import open_store
from alignjax.sweeps.store_creation import StoreWriteError
from alignjax.sweeps.store_manifest import StoreMismatchError
from tests.small_store import SPEC, arrays_of, fill, with_fingerprint, with_output
from tests.soak_store import contents
from tests.sweep_to_kill import make_run

pytest.importorskip("zarr")
xarray = pytest.importorskip("xarray")


@pytest.fixture
def whole(tmp_path):
    """A finished store."""
    fill(open_store(tmp_path / "whole", SPEC))
    return tmp_path / "whole"


@pytest.fixture
def half(tmp_path):
    """A store with two of its six blocks."""
    fill(open_store(tmp_path / "half", SPEC), blocks=[(0, 0), (1, 2)])
    return tmp_path / "half"


def test_what_is_written_is_read_back_bit_for_bit(whole):
    data = open_store(whole, SPEC).dataset()
    for block in SPEC.blocks():
        for name, expected in arrays_of(block).items():
            got = data[name].values[SPEC.region(block)]
            assert got.dtype == expected.dtype
            assert got.tobytes() == expected.tobytes()


def test_dimensions_coordinates_units_and_provenance_are_there(whole):
    data = open_store(whole, SPEC).dataset()
    assert data["risk"].dims == ("loss", "rate", "step")
    assert data["status"].dims == ("loss", "rate")
    assert data["risk"].attrs == {"units": "1"}
    assert data["rate"].attrs == {"units": "1/step"}
    assert data.attrs == SPEC.attrs
    assert data["loss"].dtype == SPEC.coords["loss"][1].dtype
    assert data["loss"].values.tolist() == ["squared", "logistic"]
    np.testing.assert_array_equal(data["rate"], SPEC.coords["rate"][1])
    assert float(data["status"].sel(loss="squared", rate=0.5)) == arrays_of((0, 2))["status"][0, 0]


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint32", "int64", "float16", "float32", "float64", "complex64", "complex128"],
)
def test_every_numeric_dtype_keeps_its_bits_nan_and_minus_zero_too(tmp_path, dtype):
    spec = dataclasses.replace(SPEC, outputs={"x": Output((), (), dtype)}, coords={})
    raw = np.random.default_rng(0).integers(0, 256, (2, 5, np.dtype(dtype).itemsize), np.uint8)
    raw[0] = 0
    if dtype == "bool":
        raw %= 2
    values = raw.view(dtype)[..., 0]
    if np.dtype(dtype).kind == "f":
        values[0] = [np.nan, -np.nan, -0.0, np.inf, 0.0]
    store = open_store(tmp_path / "s", spec)
    for block in spec.blocks():
        store.write(block, {"x": values[spec.region(block)]})
    assert store.missing() == []
    assert store.dataset()["x"].values.tobytes() == values.tobytes()


def test_an_output_without_elements_is_stored(tmp_path):
    spec = dataclasses.replace(SPEC, outputs={"x": Output(("none",), (0,), "float32")}, coords={})
    store = open_store(tmp_path / "s", spec)
    for block in spec.blocks():
        store.write(block, arrays_of(block, spec))
    assert open_store(tmp_path / "s", spec).missing() == []
    assert store.dataset()["x"].shape == (2, 5, 0)


def test_a_finished_block_shares_no_file_with_another(tmp_path):
    store = open_store(tmp_path / "s", SPEC)
    start = contents(tmp_path / "s")
    seen = set(start)
    for block in SPEC.blocks():
        fill(store, blocks=[block])
        now = contents(tmp_path / "s")
        assert len(set(now) - seen) == 4  # risk, status, complete, record
        assert {name: now[name] for name in start} == start
        seen = set(now)


def test_only_what_is_missing_is_missing(half):
    done = {(0, 0), (1, 2)}
    assert open_store(half, SPEC).missing() == [b for b in SPEC.blocks() if b not in done]


def test_an_unfinished_store_says_which_runs_are_finished(half):
    data = open_store(half, SPEC).dataset()
    expected = np.zeros((2, 5), bool)
    expected[0, :2] = expected[1, 4:] = True
    np.testing.assert_array_equal(data["complete"], expected)
    assert np.isnan(data["risk"].values[~expected]).all()
    assert (data["status"].values[~expected] == 0).all()
    masked = data.where(data["complete"])
    np.testing.assert_array_equal(np.isnan(masked["status"]), ~expected)


def test_a_finished_store_is_the_plain_data_set(whole):
    assert set(open_store(whole, SPEC).dataset().data_vars) == {"risk", "status"}


def test_a_sweep_is_the_same_data_set_with_a_store_and_without(tmp_path):
    run = make_run(width=3)
    axes = {"rate": np.array([0.1, 1.0, 10.0]), ("scale", "again"): (np.arange(5.0), np.ones(5))}
    options = {
        "static": {"momentum": [True, False]},
        "key": jax.random.key(0),
        "dims": {"risk": {"step": np.arange(0, 40, 4)}},
        "units": {"rate": "1/step"},
        "chunk": 4,
        "progress": False,
    }

    def zipped(rate, scale, again, momentum, key):
        return run(rate, scale * again, momentum, key)

    without = alignjax.sweep(zipped, axes, **options)
    stored = alignjax.sweep(zipped, axes, **options, store=tmp_path / "s")
    xarray.testing.assert_identical(stored.load(), without)
    assert {name: v.dtype for name, v in stored.variables.items()} == {
        name: v.dtype for name, v in without.variables.items()
    }


def test_a_resumed_store_is_the_undisturbed_one_file_by_file(whole, half):
    fill(open_store(half, SPEC))
    assert contents(half) == contents(whole)


def test_provenance_may_change_between_runs_and_the_first_stays(half):
    later = dataclasses.replace(SPEC, attrs={"jax": "9.9"})
    assert open_store(half, later).dataset().attrs == SPEC.attrs


def test_xarray_alone_opens_a_store(half):
    program = """
        import json, sys, warnings
        warnings.simplefilter("error", UserWarning)
        import xarray
        data = xarray.open_zarr(sys.argv[1])
        data.load()
        assert "alignjax" not in sys.modules and "jax" not in sys.modules
        print(json.dumps({
            "risk": data.risk.values[0, :2].tolist(),
            "done": int(data.complete.sum()),
            "losses": [str(x) for x in data.loss.values],
            "variables": sorted(map(str, data.variables)),
        }))
    """
    run = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(program), str(half)],
        capture_output=True,
        text=True,
        check=True,
        cwd=half,
    )
    seen = json.loads(run.stdout)
    assert seen == {
        "risk": arrays_of((0, 0))["risk"][0].tolist(),
        "done": 3,
        "losses": ["squared", "logistic"],
        "variables": ["complete", "loss", "rate", "risk", "status", "step"],
    }


# --- a block whose files do not match its record is done again ---


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
@pytest.mark.parametrize(
    "file",
    ["risk/c.1.0.0", "status/c.1.0", "complete/c.1.0", "complete/records/block-1-0.json"],
)
def test_a_damaged_block_is_done_again_and_no_other(whole, file, damage):
    undisturbed = contents(whole)
    damage(whole / file)
    store = open_store(whole, SPEC)
    assert store.missing() == [(1, 0)]
    fill(store)
    assert contents(whole) == undisturbed


def test_a_record_of_another_block_is_no_record(whole):
    records = whole / "complete" / "records"
    shutil.copy(records / "block-0-0.json", records / "block-1-1.json")
    assert open_store(whole, SPEC).missing() == [(1, 1)]


def test_chunks_swapped_between_blocks_are_seen(whole):
    one, other = whole / "risk/c.0.0.0", whole / "risk/c.1.0.0"
    one_bytes = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(one_bytes)
    assert open_store(whole, SPEC).missing() == [(0, 0), (1, 0)]


def test_leftovers_of_a_killed_writer_go_when_their_block_is_written(whole, half):
    for name in ("risk/c.0.1.0.abcd.partial", "complete/records/block-0-1.json.ef.partial"):
        path = half / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"cut off")
    fill(open_store(half, SPEC))
    assert contents(half) == contents(whole)


# --- disks that are full, folders that are closed ---


def fail(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def at(monkeypatch, file, instead):
    """Replace what a store does to write one file."""
    real = Folder.write

    def write(folder, name, content, *, flushed):
        if name == file:
            return instead(folder, name, content, flushed=flushed)
        return real(folder, name, content, flushed=flushed)

    monkeypatch.setattr(Folder, "write", write)


def file_of(store, moment, block=(0, 1)):
    return store._record(block) if moment == "record" else store._chunk(moment, block)


MOMENTS = ["risk", "status", "complete", "record"]


@pytest.mark.parametrize("failing", MOMENTS)
def test_a_failing_writer_tells_the_path_and_spares_finished_blocks(
    half, whole, monkeypatch, failing
):
    store, before = open_store(half, SPEC), contents(half)
    told = r"No space left.*block \(0, 1\).*finished blocks are intact.*half"
    with monkeypatch.context() as patch:
        at(patch, file_of(store, failing), fail)
        with pytest.raises(StoreWriteError, match=told) as got:
            store.write((0, 1), arrays_of((0, 1)))
    assert got.value.errno == errno.ENOSPC
    after = contents(half)
    assert before.items() <= after.items()
    assert not [name for name in after if name.endswith(".partial")]
    assert (0, 1) in open_store(half, SPEC).missing()
    fill(open_store(half, SPEC))
    assert contents(half) == contents(whole)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_failing_writer_spares_a_block_that_another_finished(half, monkeypatch, moment):
    store = open_store(half, SPEC)

    def finished_by_another(*given, **options):
        monkeypatch.undo()
        open_store(half, SPEC).write((0, 1), arrays_of((0, 1)))
        fail()

    at(monkeypatch, file_of(store, moment), finished_by_another)
    with pytest.raises(StoreWriteError, match="No space left"):
        store.write((0, 1), arrays_of((0, 1)))
    assert open_store(half, SPEC).has((0, 1))


@pytest.mark.parametrize("moment", MOMENTS)
def test_of_two_that_write_one_block_neither_takes_from_the_other(half, whole, monkeypatch, moment):
    """One takes the other's file for a leftover, and finishes the block, at any moment."""
    store, other, real = open_store(half, SPEC), open_store(half, SPEC), Folder.write

    def whole_all_along(folder, name, content, *, flushed):
        real(folder, name, content, flushed=flushed)
        assert other.has((0, 1))

    def cross(folder, name, content, *, flushed):
        (half / f"{name}.abcd.partial").write_bytes(b"")
        assert (0, 1) in other.missing()
        monkeypatch.setattr(Folder, "write", real)
        other.write((0, 1), arrays_of((0, 1)))
        monkeypatch.setattr(Folder, "write", whole_all_along)
        os.replace(half / f"{name}.abcd.partial", half / name)

    at(monkeypatch, file_of(store, moment), cross)
    store.write((0, 1), arrays_of((0, 1)))
    assert not list(half.rglob("*.partial"))
    monkeypatch.setattr(Folder, "write", real)
    fill(open_store(half, SPEC))
    assert contents(half) == contents(whole)


@pytest.mark.parametrize("instead", ["removed", "another sweep", "the same sweep", "made again"])
@pytest.mark.parametrize("moment", ["before", *MOMENTS])
def test_a_store_that_another_replaced_or_removed_is_left_alone(half, monkeypatch, instead, moment):
    store = open_store(half, SPEC)
    now = {}

    def replace():
        if instead in ("removed", "made again"):
            shutil.rmtree(half)
        if instead != "removed":
            spec = with_output(dtype="float32") if instead == "another sweep" else SPEC
            fill(open_store(half, spec, overwrite=instead != "made again"), spec)
        now.update(contents(half.parent))

    def replaced_meanwhile(folder, name, content, *, flushed):
        monkeypatch.undo()
        replace()
        Folder.write(folder, name, content, flushed=flushed)

    if moment == "before":
        replace()
    else:
        at(monkeypatch, file_of(store, moment), replaced_meanwhile)
    with pytest.raises(StoreWriteError, match=r"another process replaced or removed the store"):
        store.write((0, 1), arrays_of((0, 1)))
    assert not store.has((0, 1))
    with pytest.raises(StoreWriteError, match=r"another process replaced or removed the store"):
        store.dataset()
    assert contents(half.parent) == now


def test_files_that_are_gone_are_told_and_not_read_as_nan(whole):
    store = open_store(whole, SPEC)
    (whole / "risk" / "c.0.1.0").unlink()
    with pytest.raises(StoreWriteError, match=r"risk/c\.0\.1\.0 of a finished block"):
        store.dataset()


def test_a_record_is_of_one_sweep(half, tmp_path):
    other = with_fingerprint(key=[0, 2])
    fill(open_store(tmp_path / "other", other), other)
    shutil.copytree(
        tmp_path / "other" / "complete" / "records",
        half / "complete" / "records",
        dirs_exist_ok=True,
    )
    for name in ("risk", "status", "complete"):
        for file in (tmp_path / "other" / name).glob("c.*"):
            shutil.copy(file, half / name)
    assert open_store(half, SPEC).missing() == list(SPEC.blocks())


def test_a_store_that_cannot_be_created_tells_where(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(StoreWriteError, match=r"Permission denied.*must be writable.*/s'") as got:
        open_store(tmp_path / "s", SPEC)
    assert got.value.errno == errno.EACCES


def test_a_disk_full_at_creation_leaves_nothing_and_an_old_store_alone(half, monkeypatch):
    before = contents(half.parent)
    with monkeypatch.context() as patch:
        patch.setattr(store_creation, "_flush", fail)
        for path, overwrite in ((half.parent / "new", False), (half, True)):
            with pytest.raises(StoreWriteError, match="No space left"):
                open_store(path, SPEC, overwrite=overwrite)
    assert contents(half.parent) == before


def test_a_replacement_that_cannot_be_renamed_puts_the_old_store_back(half, monkeypatch):
    before, real = contents(half.parent), os.rename

    def rename(source, target):
        if ".creating-" in str(source):
            fail()
        real(source, target)

    monkeypatch.setattr(store_creation.os, "rename", rename)
    with pytest.raises(StoreWriteError, match="No space left"):
        open_store(half, SPEC, overwrite=True)
    assert contents(half.parent) == before


def test_a_store_that_may_only_be_read_is_refused_before_computing(half, whole, monkeypatch):
    monkeypatch.setattr(store_module.os, "access", lambda *_: False)
    with pytest.raises(StoreWriteError, match=r"no permission to write, and 4 of 6 blocks"):
        open_store(half, SPEC).missing()
    assert open_store(whole, SPEC).missing() == []


# --- several at once ---


def test_of_many_that_create_a_store_at_once_one_wins_and_all_write(tmp_path, whole):
    workers = 6
    barrier = Barrier(workers)

    def work(number):
        barrier.wait()
        fill(open_store(tmp_path / "s", SPEC), blocks=[list(SPEC.blocks())[number]])

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    assert contents(tmp_path / "s") == contents(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "whole"]


def test_a_loser_of_the_race_with_another_sweep_is_refused(tmp_path, monkeypatch):
    real = store_creation._prepare

    def slow(*args):
        monkeypatch.setattr(store_creation, "_prepare", real)
        open_store(tmp_path / "s", SPEC)
        return real(*args)

    monkeypatch.setattr(store_creation, "_prepare", slow)
    with pytest.raises(StoreMismatchError, match="dtype"):
        open_store(tmp_path / "s", with_output(dtype="float32"))
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
