"""CIFAR-10: records are read as they are laid out, and a damaged or another file never passes."""

import gzip
import hashlib
import io
import lzma
import sys
import tarfile
from pathlib import Path

import numpy as np
import pooch
import pytest

import alignjax as aj
from alignjax import datasets
from alignjax.datasets.cifar10 import BATCHES, NAME, RECORD_BYTES, UNOFFICIAL_NAME

# The package's function hides the module of the same name.
module = sys.modules["alignjax.datasets.cifar10"]

RECORDS = 6
PACKERS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def batch(seed):
    records = np.random.default_rng(seed).integers(0, 256, (RECORDS, RECORD_BYTES), np.uint8)
    records[:, 0] %= 10
    return records


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder whose batches have six records, on a machine without pooch."""
    monkeypatch.setattr(module, "RECORDS", RECORDS)
    monkeypatch.setenv("ALIGNJAX_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pooch", None)
    folder = tmp_path / "cifar10"
    folder.mkdir()
    return folder


def write_training_set(folder, suffix="", pack=bytes):
    contents = [batch(seed) for seed in range(5)]
    for i, records in enumerate(contents, start=1):
        (folder / f"data_batch_{i}.bin{suffix}").write_bytes(pack(records.tobytes()))
    return np.concatenate(contents)


@pytest.mark.parametrize("suffix", PACKERS)
def test_records_are_a_label_then_red_green_and_blue(folder, suffix):
    records = write_training_set(folder, suffix, PACKERS[suffix])
    data = datasets.cifar10("train")
    np.testing.assert_array_equal(data.labels, records[:, 0])
    for channel in range(3):
        start = 1 + 1024 * channel
        np.testing.assert_array_equal(
            data.images[:, channel], records[:, start : start + 1024].reshape(-1, 32, 32)
        )
    rows = datasets.flatten(data, mean=0, std=1)
    np.testing.assert_array_equal(rows, records[:, 1:] / 255)
    assert data.source == str(folder)


def test_the_plain_file_is_preferred_to_packed_ones(folder):
    (folder / "test_batch.bin").write_bytes(batch(0).tobytes())
    (folder / "test_batch.bin.gz").write_bytes(b"not even gzip")
    np.testing.assert_array_equal(datasets.cifar10("test").labels, batch(0)[:, 0])


def test_only_the_official_checksums_earn_the_plain_name(folder, monkeypatch):
    write_training_set(folder)
    assert datasets.cifar10("train").name == UNOFFICIAL_NAME
    sums = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in BATCHES["train"]
    }
    monkeypatch.setitem(BATCHES, "train", sums)
    assert datasets.cifar10("train").name == NAME
    monkeypatch.setitem(BATCHES, "train", sums | {"data_batch_3.bin": 64 * "0"})
    assert datasets.cifar10("train").name == UNOFFICIAL_NAME


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize(
    ("size", "found"),
    [
        (RECORDS * RECORD_BYTES - 1, f"holds {RECORDS * RECORD_BYTES - 1:,}"),
        ((RECORDS - 1) * RECORD_BYTES, f"holds {(RECORDS - 1) * RECORD_BYTES:,}"),
        (RECORDS * RECORD_BYTES + 1, f"holds {RECORDS * RECORD_BYTES + 1:,}"),
        (10 * RECORDS * RECORD_BYTES, f"holds {10 * RECORDS * RECORD_BYTES:,}"),
        (100 * RECORDS * RECORD_BYTES, f"holds more than {10 * RECORDS * RECORD_BYTES:,}"),
        (0, "holds 0"),
    ],
    ids=["a byte short", "a record short", "a byte more", "ten batches", "a bomb", "empty"],
)
def test_another_length_is_refused_with_both_sizes(folder, suffix, size, found):
    content = batch(0).tobytes().ljust(size, b"\0")[:size]
    (folder / f"test_batch.bin{suffix}").write_bytes(PACKERS[suffix](content))
    expected = f"should hold {RECORDS * RECORD_BYTES:,} bytes"
    with pytest.raises(datasets.DataCorruptedError, match=f"test_batch.bin.*{expected}.*{found}$"):
        datasets.cifar10("test")


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("damage", ["cut off", "spoiled", "text"])
def test_a_packed_file_that_does_not_unpack_is_refused_by_name(folder, suffix, damage):
    packed = PACKERS[suffix](batch(0).tobytes())
    middle = len(packed) // 2
    content = {
        "cut off": packed[:middle],
        "spoiled": packed[:middle] + b"\xff" * 50 + packed[middle + 50 :],
        "text": b"a login page",
    }[damage]
    path = folder / f"test_batch.bin{suffix}"
    path.write_bytes(content)
    expected = f"expected {RECORDS * RECORD_BYTES:,} bytes in it, found [0-9,]+ before"
    with pytest.raises(datasets.DataCorruptedError, match=f"does not decompress: {expected}") as e:
        datasets.cifar10("test")
    assert str(path) in str(e.value)


@pytest.mark.parametrize("suffix", PACKERS)
def test_no_damage_ends_in_another_error(folder, suffix):
    records = batch(0)
    packed = PACKERS[suffix](records.tobytes())
    path = folder / f"test_batch.bin{suffix}"
    random = np.random.default_rng(0)
    refused = []
    for case in range(150):
        content = bytearray(packed)
        # Every third time at the beginning, where a packed file has its headers.
        start = int(random.integers(24 if case % 3 == 0 else len(content)))
        if case % 2:
            content[start : start + 20] = random.bytes(len(content[start : start + 20]))
        else:
            del content[start : start + int(random.integers(1, len(content)))]
        path.write_bytes(content)
        try:
            data = datasets.cifar10("test")
        except datasets.DataCorruptedError as error:
            refused.append(str(error))
            continue
        # Plain records have no checksum of their own, but another file never has the plain name.
        assert data.name == UNOFFICIAL_NAME
        assert data.labels.max() < 10
        if suffix:
            np.testing.assert_array_equal(data.images.reshape(RECORDS, -1), records[:, 1:])
    assert len(refused) >= 70
    assert all(str(path) in message for message in refused)


def test_a_label_that_no_class_has_is_refused(folder):
    records = batch(0)
    records[4, 0] = 10
    (folder / "test_batch.bin").write_bytes(records.tobytes())
    with pytest.raises(
        datasets.DataCorruptedError, match=r"test_batch.*labels 0\.\.9.*record 4 has 10"
    ):
        datasets.cifar10("test")


def test_some_of_the_batches_are_not_enough(folder):
    write_training_set(folder)
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(datasets.DataUnavailableError, match=r"lacks data_batch_4\.bin \("):
        datasets.cifar10("train")


def test_without_files_and_network_the_error_says_what_was_tried(folder, monkeypatch):
    with pytest.raises(datasets.DataUnavailableError) as error:
        datasets.cifar10("test")
    for part in (str(folder), "test_batch.bin", ".xz", "cifar-10-binary.tar.gz", "pip install"):
        assert part in str(error.value)
    monkeypatch.delenv("ALIGNJAX_DATA_DIR")
    with pytest.raises(datasets.DataUnavailableError, match="ALIGNJAX_DATA_DIR is not set"):
        datasets.cifar10("test")


@pytest.fixture
def archive(monkeypatch, tmp_path):
    """The official archive's layout, served from an address, and its checksum known."""
    monkeypatch.setattr(module, "RECORDS", RECORDS)
    monkeypatch.delenv("ALIGNJAX_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for i, name in enumerate((*BATCHES["train"], *BATCHES["test"], "readme.html")):
            content = batch(i).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = stream.getvalue()
    requests = []

    def download(url, output_file, pooch):
        requests.append(url)
        Path(output_file).write_bytes(content)

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda timeout: download)
    monkeypatch.setattr(module, "ARCHIVE_SHA256", hashlib.sha256(content).hexdigest())
    return requests


def test_the_official_archive_is_fetched_once_and_checked(archive, monkeypatch):
    train, test = datasets.cifar10("train"), datasets.cifar10("test")
    assert len(archive) == 1
    assert archive[0] == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert train.name == test.name == NAME
    np.testing.assert_array_equal(train.labels, np.concatenate([batch(i)[:, 0] for i in range(5)]))
    np.testing.assert_array_equal(test.images.reshape(RECORDS, -1), batch(5)[:, 1:])
    monkeypatch.setattr(module, "ARCHIVE_SHA256", 64 * "0")
    with pytest.raises(datasets.DataUnavailableError, match="hash"):
        datasets.cifar10("train")


def test_another_split_is_refused():
    with pytest.raises(ValueError, match=r"split.*'train' or 'test'.*'val'"):
        datasets.cifar10("val")


def test_the_real_test_batch_has_its_known_content(cifar10_dir):
    data = datasets.cifar10("test")
    assert data.images.shape == (10_000, 3, 32, 32)
    np.testing.assert_array_equal(np.bincount(data.labels), np.full(10, 1000))
    # A cat, two ships, an aeroplane and a frog.
    np.testing.assert_array_equal(data.labels[:5], [3, 8, 8, 0, 6])
    np.testing.assert_array_equal(data.images[0, :, 0, 0], [158, 112, 49])
    assert data.name in (NAME, UNOFFICIAL_NAME)


COLOUR = datasets.Images(
    np.random.default_rng(0).integers(0, 256, (7, 3, 4, 5), np.uint8),
    np.arange(7, dtype=np.uint8),
    "noise",
    "a test",
)


def test_batches_are_the_rows_in_order_and_only_cut():
    pairs = list(datasets.batches(COLOUR, 3, classes=8))
    assert [len(X) for X, _ in pairs] == [3, 3, 1]
    X, Y = (np.concatenate(part) for part in zip(*pairs, strict=True))
    np.testing.assert_array_equal(X, COLOUR.images.reshape(7, -1) / 255)
    np.testing.assert_array_equal(Y, np.eye(8)[:7])
    streamed = list(datasets.batches(iter([COLOUR[:2], COLOUR[2:]]), 2, classes=8))
    np.testing.assert_array_equal(np.concatenate([X for X, _ in streamed]), X)
    assert {
        x.dtype for pair in datasets.batches(COLOUR, 2, classes=8, dtype="float32") for x in pair
    } == {np.dtype("float32")}


def test_moments_of_batches_are_those_of_all_rows():
    moments = aj.accumulate(datasets.batches(COLOUR, 2, classes=7, mean=0.5, std=0.25))
    X = (COLOUR.images.reshape(7, -1) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(moments.input_moment, X.T @ X / 7, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(moments.cross_moment, X / 7, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_a_wrong_batch_size_is_refused_at_once(size, error):
    with pytest.raises(error, match=f"size: .*{size}"):
        datasets.batches(COLOUR, size, classes=8)


def test_colour_comes_before_the_pixels():
    with pytest.raises(ValueError, match=r"\(n, 3, height, width\).*\(2, 4, 5, 3\)"):
        datasets.flatten(np.zeros((2, 4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r"images: expected uint8, got float64"):
        datasets.Images(np.zeros((2, 3, 4, 5)), np.zeros(2, np.uint8), "", "")
    with pytest.raises(ValueError, match=r"labels: expected uint8 or uint16.*int64"):
        datasets.Images(np.zeros((2, 3, 4, 5), np.uint8), np.zeros(2, np.int64), "", "")
