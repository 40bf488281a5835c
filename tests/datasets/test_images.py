"""MNIST, the digits, and how images become rows."""

import gzip
import pickle
import shutil
import struct
import sys

import jax
import numpy as np
import pytest

from alignjax import datasets
from alignjax.datasets.mnist import FILES, parse_idx

TEST_IMAGES = "t10k-images-idx3-ubyte.gz"


def idx(array, *, magic=b"\0\0\x08", shape=None):
    shape = array.shape if shape is None else shape
    header = magic + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def no_mnist(tmp_path, monkeypatch):
    """A machine with neither the files nor pooch."""
    monkeypatch.setenv("ALIGNJAX_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pooch", None)


@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_mnist_has_its_known_content(mnist_dir, split, count):
    data = datasets.mnist(split)
    assert data.images.shape == (count, 28, 28)
    assert data.images.dtype == data.labels.dtype == np.uint8
    assert data.name == "MNIST"
    assert data.source == str(mnist_dir / FILES[split][0][0])
    known = {
        "train": ([5, 0, 4, 1, 9], [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        "test": ([7, 2, 1, 0, 4], [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    }
    first, counts = known[split]
    np.testing.assert_array_equal(data.labels[:5], first)
    np.testing.assert_array_equal(np.bincount(data.labels), counts)


def test_the_default_standardization_is_that_of_mnists_training_pixels(mnist_dir):
    rows = datasets.flatten(datasets.mnist("train"), dtype=np.float64)
    # 0.1307 and 0.3081 are given to four digits.
    assert abs(rows.mean()) < 1e-4 / 0.3081
    assert abs(rows.std() - 1) < 1e-4 / 0.3081


def test_a_truncated_file_is_refused_and_nothing_stands_in_for_it(mnist_dir, tmp_path, monkeypatch):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for (name, _), _ in FILES.values():
        shutil.copy(mnist_dir / name, folder / name)
    damaged = folder / TEST_IMAGES
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    monkeypatch.setenv("ALIGNJAX_DATA_DIR", str(tmp_path))
    for read in (datasets.mnist, datasets.mnist_or_digits):
        with pytest.raises(datasets.DataCorruptedError, match=TEST_IMAGES):
            read("test")


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 28, 28)])
def test_idx_round_trip(shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(parse_idx(idx(array), "file"), array)


SIX = np.arange(6, dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "does not decompress|no IDX file"),
        (b"plain text", "does not decompress"),
        (idx(SIX)[:-9], "does not decompress"),
        (idx(SIX)[:10] + b"\xff" * 20, "does not decompress"),
        (gzip.compress(b""), "no IDX file of unsigned bytes"),
        (idx(SIX, magic=b"\0\0\x0d"), "no IDX file of unsigned bytes"),
        (gzip.compress(pickle.dumps([1, 2])), "no IDX file of unsigned bytes"),
        (gzip.compress(b"\0\0\x08\x03\0\0"), "ends within its header"),
        (idx(SIX, shape=(7,)), "should hold 7 entries.*holds 6"),
        (idx(SIX, shape=(5,)), "should hold 5 entries.*holds 6"),
    ],
    # gzip writes the time into its header, so bytes as ids would differ between workers.
    ids=[
        "empty",
        "text",
        "cut off",
        "spoiled",
        "nothing packed",
        "another dtype",
        "a pickle",
        "half a header",
        "one too few",
        "one too many",
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(content, complaint):
    with pytest.raises(datasets.DataCorruptedError, match=f"the-file.*({complaint})"):
        parse_idx(content, "the-file")


def test_the_digits_are_all_there_and_span_the_grey_levels():
    data = datasets.digits()
    assert data.images.shape == (1797, 8, 8)
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert len(np.unique(data.images)) == 17
    np.testing.assert_array_equal(np.unique(data.labels), np.arange(10))


def test_the_digits_splits_are_disjoint_and_complete():
    train, test, everything = (datasets.digits(split) for split in ("train", "test", "all"))
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), everything.images)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), everything.labels)


def test_offline_the_digits_stand_in_for_mnist_and_say_so(no_mnist):
    with pytest.warns(datasets.SubstituteDataWarning, match="stand in for MNIST") as record:
        data = datasets.mnist_or_digits("train")
    assert "digits" in data.name
    assert "MNIST" not in data.name
    assert record[0].filename == __file__, "the warning points at the caller"
    np.testing.assert_array_equal(data.images, datasets.digits("train").images)


def test_with_mnist_there_nothing_stands_in(mnist_dir):
    assert datasets.mnist_or_digits("test").name == "MNIST"


def test_with_neither_the_error_tells_of_both(no_mnist, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(datasets.DataUnavailableError, match=r"pooch.*scikit-learn"):
        datasets.mnist_or_digits("train")


def test_no_pickle_is_ever_loaded(monkeypatch, request):
    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert len(datasets.digits()) == 1797
    request.getfixturevalue("mnist_dir")
    assert len(datasets.mnist("test")) == 10_000


def test_images_cannot_be_written_to_and_slices_keep_their_name():
    data = datasets.digits()
    for part in (data, data[:7], data[np.array([3, 1])]):
        assert part.name == data.name
        assert part.source == data.source
        with pytest.raises(ValueError, match="read-only"):
            part.images[0, 0, 0] = 1
    assert len(data[:7]) == 7
    np.testing.assert_array_equal(data[np.array([3, 1])].labels, data.labels[[3, 1]])


def test_flatten_reads_row_by_row_and_standardizes():
    image = np.array([[[0, 51], [102, 255]]], np.uint8)
    expected = (np.array([[0, 0.2, 0.4, 1.0]]) - 0.1307) / 0.3081
    np.testing.assert_allclose(datasets.flatten(image), expected, rtol=1e-15)
    data = datasets.Images(image, np.zeros(1, np.uint8), name="one", source="test")
    np.testing.assert_array_equal(datasets.flatten(data), datasets.flatten(image))


def test_rows_take_the_default_float_or_the_one_asked_for():
    image, labels = np.zeros((1, 2, 2), np.uint8), [0]
    assert datasets.flatten(image).dtype == datasets.one_hot(labels, 2).dtype == np.float64
    assert datasets.flatten(image, dtype="float32").dtype == np.float32
    assert datasets.one_hot(labels, 2, dtype="float32").dtype == np.float32
    jax.config.update("jax_enable_x64", False)
    try:
        assert datasets.flatten(image).dtype == datasets.one_hot(labels, 2).dtype == np.float32
    finally:
        jax.config.update("jax_enable_x64", True)


def test_one_hot_rows_are_unit_vectors():
    np.testing.assert_array_equal(datasets.one_hot([2, 0], 3), [[0, 0, 1], [1, 0, 0]])


PIXELS = np.zeros((2, 3, 3), np.uint8)
CLASSES = np.zeros(2, np.uint8)


@pytest.mark.parametrize(
    ("call", "error", "complaint"),
    [
        (lambda: datasets.mnist("valid"), ValueError, "split.*'train' or 'test'.*'valid'"),
        (lambda: datasets.mnist_or_digits("all"), ValueError, "split.*'train' or 'test'.*'all'"),
        (lambda: datasets.digits("valid"), ValueError, "split.*'all'.*'valid'"),
        (lambda: datasets.flatten(PIXELS / 255), TypeError, "images.*uint8.*float64"),
        (
            lambda: datasets.flatten(PIXELS[0]),
            ValueError,
            r"images.*\(n, height, width\).*\(3, 3\)",
        ),
        (lambda: datasets.flatten(PIXELS, std=0), ValueError, "std.*positive.*0"),
        (lambda: datasets.flatten(PIXELS, std=np.nan), ValueError, "std.*positive.*nan"),
        (lambda: datasets.one_hot([0.0, 1.0], 2), TypeError, "labels.*integers.*float64"),
        (lambda: datasets.one_hot([[0, 1]], 2), ValueError, r"labels.*\(n,\).*\(1, 2\)"),
        (lambda: datasets.one_hot([0, 2], 2), ValueError, r"labels.*0\.\.1.*0\.\.2"),
        (lambda: datasets.one_hot([-1, 1], 2), ValueError, r"labels.*0\.\.1.*-1\.\.1"),
        (
            lambda: datasets.Images(PIXELS[0], CLASSES, name="", source=""),
            ValueError,
            r"images.*\(n, height, width\).*\(3, 3\)",
        ),
        (
            lambda: datasets.Images(PIXELS, CLASSES[:1], name="", source=""),
            ValueError,
            r"labels.*\(2,\).*\(1,\)",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, error, complaint):
    with pytest.raises(error, match=complaint):
        call()
