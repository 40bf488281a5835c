"""ImageNet 64x64: files of its layout are streamed, and what does not fit it is named."""

import errno
import io
import struct
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


def npz(save=np.savez, **entries):
    stream = io.BytesIO()
    save(stream, **entries)
    return stream.getvalue()


GOOD = part(3)
HUGE = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"


def with_labels(value):
    return npz(data=GOOD["data"], labels=np.append(GOOD["labels"][1:], value))


def with_data(data):
    return npz(data=data, labels=GOOD["labels"])


def npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def archive(data=None, labels=None, method=zipfile.ZIP_STORED):
    """An archive in order, whatever its entries are."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as packed:
        packed.writestr("data.npy", npy(GOOD["data"]) if data is None else data)
        packed.writestr("labels.npy", npy(GOOD["labels"]) if labels is None else labels)
    return stream.getvalue()


def header(text):
    """An npy entry of seven images whose header says something else."""
    padded = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(padded)) + padded + GOOD["data"].tobytes()


def directory_with(content, offset, form, value):
    """An archive whose first directory record has another value."""
    changed = bytearray(content)
    struct.pack_into(form, changed, content.index(b"PK\1\2") + offset, value)
    return bytes(changed)


def spoiled():
    content = bytearray(npz(**GOOD))
    content[len(content) // 3] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cut short: expected a zip archive of at least 22 bytes, found 0 bytes: BadZip"),
        (b"a login page", "of at least 22 bytes, found 12 bytes: BadZipFile"),
        (npz(**GOOD)[:5000], r"of at least 86,[0-9]{3} bytes, found 5,000 bytes: BadZipFile"),
        (npz(**GOOD)[:-1], f"at least {len(npz(**GOOD)):,} .* found {len(npz(**GOOD)) - 1:,} "),
        (spoiled(), "'data' should hold 86,016 bytes, found [0-9,]+ before .*BadZipFile.*CRC"),
        (archive(npy(GOOD["data"])[:-1000]), "should hold 86,016 bytes, and ends after 85,016"),
        (archive(npy(GOOD["data"]) + b"\0"), "hold 86,016 bytes, and holds at least 86,017"),
        (archive(labels=npy(GOOD["labels"])[:-8]), "'labels' .* 56 bytes, and ends after 48"),
        (archive(labels=npy(GOOD["labels"]) + b"\0"), "'labels'.* 56 bytes.* at least 57"),
        (archive(header("{'descr': '|u1', 'fortran_order")), "'data' should begin .* npy header"),
        (archive(header("-" * 100 + "1")), "'data' should begin with an npy header: ValueError"),
        (archive(header("-" * 9000 + "1")), "npy header: ValueError: .*nested too deeply"),
        (archive(labels=header(HUGE)), "should hold 8,000,000,000,000 bytes, .* 86,016"),
        (directory_with(archive(), 8, "<H", 1), "'data' should hold .* RuntimeError: .*encrypted"),
        (directory_with(archive(), 10, "<H", 14), "'data' should begin .*: LZMAError"),
        (directory_with(archive(), 10, "<H", 77), "'data' .*NotImplementedError"),
        (directory_with(archive(), 42, "<I", 2**31), "'data' .* does not open: BadZipFile"),
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
        (npz(data=GOOD["data"], labels=np.array([{}] * 7)), "'labels' should be integers.*object"),
        (with_data(np.array([{}] * 7)), r"'data' should be uint8.*object"),
    ],
    ids=[
        "empty",
        "text",
        "cut off",
        "a byte cut off",
        "spoiled",
        "an entry cut off",
        "an entry too long",
        "labels cut off",
        "labels too long",
        "a header cut off",
        "a header of signs",
        "a header of far too many signs",
        "a header of far too many labels",
        "encrypted",
        "another packing",
        "an unknown packing",
        "an entry beyond the end",
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


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_damage_passes_or_ends_in_another_error(folder, monkeypatch, save):
    # 2 x 2 pixels: most bytes are headers, where damage does more than change a pixel.
    monkeypatch.setattr(module, "SHAPE", (3, 2, 2))
    monkeypatch.setattr(module, "ROW_BYTES", 12)
    contents = part(4, pixels=12)
    whole = npz(save, mean=np.zeros(12), **contents)
    path = folder / "val_data.npz"
    random = np.random.default_rng(0)
    refused = []
    for case in range(600):
        path.write_bytes(damaged(whole, case, random))
        try:
            blocks = list(datasets.imagenet64("val", size=3))
        except datasets.DataCorruptedError as error:
            refused.append(str(error))
            continue
        # Only what nobody reads may differ: the mean, dates, the headers' copies.
        images = np.concatenate([block.images.reshape(-1, 12) for block in blocks])
        labels = np.concatenate([block.labels for block in blocks])
        np.testing.assert_array_equal(images, contents["data"], err_msg=f"case {case}")
        np.testing.assert_array_equal(labels + 1, contents["labels"], err_msg=f"case {case}")
    assert len(refused) > 300
    assert all(str(path) in message for message in refused)


def damaged(content, case, random):
    """A byte or a run of bytes changed, cut off, taken out, doubled, or behind a cut all zeros."""
    start, length = int(random.integers(len(content))), int(random.integers(1, 40))
    changed = bytearray(content)
    match case % 6:
        case 0:
            changed[start] ^= 1 << int(random.integers(8))
        case 1:
            changed[start : start + length] = random.bytes(len(changed[start : start + length]))
        case 2:
            del changed[start:]
        case 3:
            del changed[start : start + length]
        case 4:
            changed[start:start] = changed[start : start + length]
        case 5:
            changed[start:] = bytes(len(changed) - start)
    return bytes(changed)


def test_what_the_consumer_throws_is_its_own(folder):
    np.savez(folder / "val_data.npz", **GOOD)
    blocks = datasets.imagenet64("val", size=3)
    reader = module.read_npz(folder / "val_data.npz", 3)
    assert len(next(blocks)) == len(next(reader)) == 3
    with pytest.raises(ValueError, match="of the consumer"):
        reader.throw(ValueError("of the consumer"))


@pytest.mark.parametrize("trouble", [OSError(errno.EIO, "a dying disk"), MemoryError()])
def test_the_machines_troubles_are_no_damage(folder, monkeypatch, trouble):
    np.savez(folder / "val_data.npz", **GOOD)

    def fail(self, count):
        raise trouble

    monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    with pytest.raises(type(trouble)) as error:
        list(datasets.imagenet64("val"))
    assert error.value is trouble


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
