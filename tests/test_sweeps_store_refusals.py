"""A store refuses what is not its own, says why, and touches nothing."""

import dataclasses
import re

import numpy as np
import pytest

from alignjax.sweeps.spec import Output
from alignjax.sweeps.store import open_store
from alignjax.sweeps.store_manifest import StoreMismatchError, stored_block
from tests.small_store import SPEC, arrays_of, fill, with_fingerprint, with_output, with_rates
from tests.soak_store import contents

pytest.importorskip("zarr")
xarray = pytest.importorskip("xarray")


@pytest.fixture
def half(tmp_path):
    """A store with two of its six blocks."""
    fill(open_store(tmp_path / "half", SPEC), blocks=[(0, 0), (1, 2)])
    return tmp_path / "half"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            with_fingerprint(function={"name": "run", "source": "5678"}),
            'fingerprint.function.source: the store has "1234", this sweep has "5678"',
        ),
        (
            with_fingerprint(key=[0, 2]),
            "fingerprint.key: the store has [0, 1], this sweep has [0, 2]",
        ),
        (
            with_fingerprint(static={"depth": 2}),
            "fingerprint.static.depth: the store has no such entry, this sweep has 2",
        ),
        (
            dataclasses.replace(SPEC, fingerprint={}),
            "fingerprint.key: the store has [0, 1], this sweep has no such entry",
        ),
        (
            with_output(dtype="float32"),
            'outputs.risk.dtype: the store has "float64", this sweep has "float32"',
        ),
        (
            with_output(shape=(4,)),
            "outputs.risk.shape: the store has [3], this sweep has [4]",
        ),
        (
            dataclasses.replace(SPEC, outputs={"risk": SPEC.outputs["risk"]}),
            'outputs.status.dtype: the store has "int32", this sweep has no such entry',
        ),
        (
            dataclasses.replace(SPEC, block=(2, 2)),
            "block: the store has [1, 2], this sweep has [2, 2]",
        ),
        (
            dataclasses.replace(SPEC, dims={"rate": 5, "loss": 2}, block=(1, 2)),
            'dims: the store has [["loss", 2], ["rate", 5]]',
        ),
        (with_rates(np.linspace(0.1, 0.6, 5)), "coords.rate.values: the store has"),
        (
            with_rates(np.linspace(0.1, 0.5, 5, dtype=np.float32)),
            'coords.rate.dtype: the store has "float64", this sweep has "float32"',
        ),
    ],
)
def test_another_sweep_is_refused_and_the_difference_named(half, other, told):
    before = contents(half)
    with pytest.raises(StoreMismatchError, match=re.escape(told)):
        open_store(half, other)
    assert contents(half) == before


def test_only_what_differs_is_named(half):
    with pytest.raises(StoreMismatchError) as caught:
        open_store(half, with_fingerprint(key=[3, 4]))
    assert len(str(caught.value).splitlines()) == 3  # whose store, the difference, what to do


def test_the_block_shape_is_remembered(half, tmp_path):
    assert stored_block(half) == (1, 2)
    assert stored_block(tmp_path / "nothing") is None
    assert stored_block(tmp_path) is None


def test_without_resume_an_existing_store_is_refused(half):
    before = contents(half)
    with pytest.raises(FileExistsError, match=r"resume is False.*overwrite=True"):
        open_store(half, SPEC, resume=False)
    assert contents(half) == before


def test_without_resume_a_new_store_is_made(tmp_path):
    assert len(open_store(tmp_path / "s", SPEC, resume=False).missing()) == 6


def test_overwrite_replaces_a_store_of_any_sweep(half):
    other = with_output(dtype="float32")
    store = open_store(half, other, overwrite=True)
    assert len(store.missing()) == 6
    fill(store, other)
    assert store.dataset()["risk"].dtype == np.float32
    assert [p.name for p in half.parent.iterdir()] == ["half"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_sweep_store_is_never_touched(tmp_path, overwrite):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    file.write_text("more work")
    foreign = tmp_path / "foreign.zarr"
    xarray.Dataset({"x": ("i", np.arange(3))}).to_zarr(foreign, zarr_format=3, consolidated=False)
    before = contents(tmp_path)
    for path in (folder, file, foreign):
        with pytest.raises(FileExistsError, match="no sweep store"):
            open_store(path, SPEC, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_overwrite_spares_a_store_with_foreign_files_and_names_them(half):
    (half / "figure.png").write_bytes(b"picture")
    before = contents(half)
    with pytest.raises(FileExistsError, match=r"figure\.png"):
        open_store(half, SPEC, overwrite=True)
    assert contents(half) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "damage", [lambda text: text[:-3], lambda text: text.replace('"block"', '"blok"')]
)
def test_a_damaged_manifest_is_told_and_nothing_is_touched(half, damage, overwrite):
    path = half / "complete" / "manifest.json"
    path.write_text(damage(path.read_text()))
    before = contents(half)
    with pytest.raises(ValueError, match="damaged manifest"):
        open_store(half, SPEC, overwrite=overwrite)
    assert contents(half) == before


def test_an_empty_folder_is_a_fine_place(tmp_path):
    (tmp_path / "s").mkdir()
    fill(open_store(tmp_path / "s", SPEC))
    assert open_store(tmp_path / "s", SPEC).missing() == []


# --- what a store cannot hold ---


@pytest.mark.parametrize("name", ["complete", "rate", "step", "zarr.json", "a/b", ".x", "__x", ""])
def test_a_name_that_a_store_cannot_give_is_refused(tmp_path, name):
    spec = dataclasses.replace(SPEC, outputs={name: SPEC.outputs["status"]})
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        open_store(tmp_path / "s", spec)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["complete", "zarr.json", "a/b"])
def test_a_coordinate_that_a_store_cannot_name_is_refused(tmp_path, name):
    coords = {**SPEC.coords, name: (("rate",), np.zeros(5), {})}
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        open_store(tmp_path / "s", dataclasses.replace(SPEC, coords=coords))
    assert list(tmp_path.iterdir()) == []


def test_a_dtype_that_zarr_has_not_is_refused(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    spec = dataclasses.replace(SPEC, outputs={"risk": Output((), (), np.dtype(ml_dtypes.bfloat16))})
    with pytest.raises(TypeError, match=r"'risk'.*bfloat16"):
        open_store(tmp_path / "s", spec)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (with_fingerprint(key=np.arange(2)), "fingerprint"),
        (dataclasses.replace(SPEC, attrs={"when": object()}), "attrs"),
    ],
)
def test_what_json_cannot_hold_is_refused(tmp_path, spec, named):
    with pytest.raises(TypeError, match=named):
        open_store(tmp_path / "s", spec)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"risk": np.zeros((1, 2, 4))}, r"arrays\['risk'\].*\(1, 2, 4\).*expected \(1, 2, 3\)"),
        ({"risk": np.zeros((1, 2, 3), np.float32)}, "float32, expected .* float64"),
        ({"extra": np.zeros((1, 2))}, "extra"),
    ],
)
def test_a_block_of_another_shape_or_dtype_is_refused(tmp_path, change, told):
    store = open_store(tmp_path / "s", SPEC)
    with pytest.raises(ValueError, match=told):
        store.write((0, 0), arrays_of((0, 0)) | change)
    assert len(store.missing()) == 6
