"""ImageNet 64x64: files of its layout are streamed, and what does not fit it is named."""

import io
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

import alignjax as aj
from alignjax import datasets
from alignjax.datasets.imagenet64 import FILES

# The package's function hides the module of the same name.
module = sys.modules["alignjax.datasets.imagenet64"]

PIXELS = 12288


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNJAX_DATA_DIR", str(tmp_path))
    folder = tmp_path / "imagenet64"
    folder.mkdir()
    return folder


def part(seed, count=7, pixels=PIXELS):
    random = np.random.default_rng(seed)
    return {
        "data": random.integers(0, 256, (count, pixels), np.uint8),
        "labels": random.integers(1, 1001, count),
    }


def write_training_set(folder, save=np.savez):
    parts = [part(seed, 5 + seed) for seed in range(10)]
    for name, content in zip(FILES["train"], parts, strict=True):
        save(folder / name, mean=np.zeros(PIXELS), **content)
    return {key: np.concatenate([p[key] for p in parts]) for key in ("data", "labels")}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_ten_files_are_one_stream_in_order(folder, save):
    everything = write_training_set(folder, save)
    blocks = list(datasets.imagenet64("train", size=4))
    assert {len(block) for block in blocks} == {4, 3, 2, 1}
    labels = np.concatenate([block.labels for block in blocks])
    np.testing.assert_array_equal(labels, everything["labels"] - 1)
    pixels = np.concatenate([block.images for block in blocks])
    np.testing.assert_array_equal(pixels, everything["data"].reshape(-1, 3, 64, 64))
    assert labels.dtype == np.uint16
    assert {block.name for block in blocks} == {"ImageNet 64x64"}
    assert blocks[-1].source == str(folder / "train_data_batch_10.npz")


def test_streaming_moments_are_those_of_all_rows(folder, monkeypatch):
    # 8 x 8 pixels: moments of 12,288 inputs would take a gigabyte
    monkeypatch.setattr(module, "SHAPE", (3, 8, 8))
    monkeypatch.setattr(module, "ROW_BYTES", 192)
    contents = [part(seed, 5 + seed, pixels=192) for seed in range(10)]
    for name, content in zip(FILES["train"], contents, strict=True):
        np.savez(folder / name, **content)
    images = datasets.imagenet64("train", size=4)
    moments = aj.accumulate(datasets.batches(images, 3, classes=1000))
    X, labels = (np.concatenate([c[key] for c in contents]) for key in ("data", "labels"))
    X, Y = X / 255, np.eye(1000)[labels - 1]
    assert int(moments.count) == len(X) == 95
    np.testing.assert_allclose(moments.input_moment, X.T @ X / 95, rtol=1e-12)
    np.testing.assert_allclose(moments.cross_moment, Y.T @ X / 95, rtol=1e-12, atol=1e-15)


def test_a_file_is_never_held_whole(folder):
    count = 1500
    np.savez(folder / "val_data.npz", **part(0, count))
    tracemalloc.start()
    for block in datasets.imagenet64("val", size=50):
        assert len(block) == 50
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * count * PIXELS


def test_a_missing_file_is_named_before_anything_is_read(folder):
    write_training_set(folder)
    (folder / "train_data_batch_7.npz").unlink()
    with pytest.raises(datasets.DataUnavailableError) as error:
        datasets.imagenet64("train")
    message = str(error.value)
    assert f"{folder} has no train_data_batch_7.npz." in message
    assert "https://image-net.org/download-images" in message
    assert "ALIGNJAX_DATA_DIR" in message


def test_without_a_data_folder_the_error_says_where_to_put_the_files(monkeypatch):
    monkeypatch.delenv("ALIGNJAX_DATA_DIR", raising=False)
    with pytest.raises(datasets.DataUnavailableError, match=r"is not set.*imagenet64"):
        datasets.imagenet64("val")


def npz(**entries):
    stream = io.BytesIO()
    np.savez(stream, **entries)
    return stream.getvalue()


GOOD = part(3)


def with_labels(value):
    return npz(data=GOOD["data"], labels=np.append(GOOD["labels"][1:], value))


def with_data(data):
    return npz(data=data, labels=GOOD["labels"])


def short_entry():
    """An archive in order whose data end early."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, GOOD["data"])
    labels = io.BytesIO()
    np.lib.format.write_array(labels, GOOD["labels"])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data.npy", stream.getvalue()[:-1000])
        archive.writestr("labels.npy", labels.getvalue())
    return packed.getvalue()


def spoiled():
    content = bytearray(npz(**GOOD))
    content[len(content) // 3] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"\(0 bytes\) is damaged or cut short: BadZipFile"),
        (b"a login page", r"\(12 bytes\) is damaged or cut short"),
        (npz(**GOOD)[:-5000], r"\([0-9,]+ bytes\) is damaged or cut short: BadZipFile"),
        (spoiled(), "damaged or cut short: BadZipFile.*CRC"),
        (short_entry(), "should hold 86,016 bytes, and ends after 85,016"),
        (npz(images=GOOD["data"]), "should hold 'data' and 'labels', and holds images"),
        (npz(labels=GOOD["labels"]), "should hold 'data' and 'labels', and holds labels"),
        (with_labels(0), r"'labels' should lie in 1\.\.1000, and lie in 0\.\."),
        (with_labels(1001), r"'labels' should lie in 1\.\.1000, .*\.\.1001"),
        (with_data(GOOD["data"][:-1]), r"shape \(7, 12288\).*uint8 of shape \(6, 12288\)"),
        (with_data(GOOD["data"][:, :3072]), r"shape \(7, 12288\).*shape \(7, 3072\)"),
        (with_data(GOOD["data"] / 255), r"'data' should be uint8.*is float64"),
        (with_data(np.asfortranarray(GOOD["data"])), "in Fortran order"),
        (npz(data=GOOD["data"], labels=GOOD["labels"] / 1), "integers of shape.*float64"),
        (npz(data=GOOD["data"], labels=GOOD["labels"][None]), r"shape \(n,\).*\(1, 7\)"),
        (npz(data=GOOD["data"], labels=np.array([{}] * 7)), "damaged.*ValueError.*pickle"),
        (with_data(np.array([{}] * 7)), r"'data' should be uint8.*object"),
    ],
    ids=[
        "empty",
        "text",
        "cut off",
        "spoiled",
        "an entry cut off",
        "no data",
        "only labels",
        "label 0",
        "label 1001",
        "an image short",
        "other pixels",
        "floats",
        "columns first",
        "float labels",
        "labels in a row",
        "pickled labels",
        "pickled data",
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(folder, content, complaint):
    path = folder / "val_data.npz"
    path.write_bytes(content)
    with pytest.raises(datasets.DataCorruptedError, match=complaint) as error:
        list(datasets.imagenet64("val", size=3))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        (("test",), ValueError, "split.*'train' or 'val'.*'test'"),
        (("val", 0), ValueError, "size.*at least 1.*0"),
        (("val", 1.5), TypeError, "size.*integer.*1.5"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, error, complaint):
    with pytest.raises(error, match=complaint):
        datasets.imagenet64(*arguments)
