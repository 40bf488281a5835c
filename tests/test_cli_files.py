"""Arrays from files: what is read, and refusals that name the file and the cell."""

import numpy as np
import pytest

from alignjax.cli.errors import BAD_INPUT, MISSING_FILE, CommandError
from alignjax.cli.files import read_array, read_matrix, read_weights

TABLE = np.array([[1.0, -2.5], [3e-3, 4.0]])


@pytest.mark.parametrize(
    "text",
    [
        "1,-2.5\n0.003,4\n",
        "left,right\n1,-2.5\n3e-3,4\n",
        '"left, or so","right"\n1,-2.5\n3e-3,4\n',
        "\ufeffleft,right\r\n1,-2.5\r\n3e-3,4\r\n",
        "# a comment\n1, -2.5\n\n3e-3, 4\n",
        "1;-2.5\n3e-3;4\n",
        "1\t-2.5\n3e-3\t4",
        "  1   -2.5\n3e-3   4.0\n",
    ],
)
def test_tables_in_text_are_read_with_and_without_a_header(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    np.testing.assert_array_equal(read_matrix(str(path)), TABLE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3,x\n", ["row 3, column 2", "'x'"]),
        ("1,2\n3,\n", ["row 2, column 2", "an empty cell"]),
        ("1,2\n3,4,5\n", ["row 2", "3 cells", "2"]),
        ("a,b\n", ["no row of numbers"]),
        ("", ["no row of numbers"]),
        ("1,2\nnan,4\n", ["finite", "[1, 0]"]),
        ("1,2\n3,inf\n", ["finite", "[1, 1]"]),
        ("1_000,2\n3,4\n", ["row 1, column 1", "'1_000'"]),
        ('1,2\n"3,4\n' + "5,6\n" * 50_000, ["quotation mark"]),
    ],
)
def test_a_bad_cell_is_named_by_row_and_column(tmp_path, text, words):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(CommandError) as caught:
        read_matrix(str(path))
    assert caught.value.code == BAD_INPUT
    for word in ["table.csv", *words]:
        assert word in str(caught.value)


def test_arrays_are_read_by_name_or_where_there_is_one(tmp_path):
    np.save(tmp_path / "a.npy", TABLE)
    np.savez(tmp_path / "one.npz", TABLE)
    np.savez(tmp_path / "two.npz", X=TABLE, Y=TABLE[0])
    for name in ("a.npy", "one.npz", "two.npz:X"):
        np.testing.assert_array_equal(read_matrix(name, tmp_path), TABLE)
    # One value a sample is a column.
    assert read_matrix("two.npz:Y", tmp_path).shape == (2, 1)


@pytest.mark.parametrize("dtype", [">f8", ">i4", np.longdouble])
def test_numbers_of_any_width_and_byte_order_become_what_jax_knows(tmp_path, dtype):
    np.save(tmp_path / "a.npy", TABLE.astype(dtype))
    array = read_matrix("a.npy", tmp_path)
    np.testing.assert_array_equal(array, TABLE.astype(dtype))
    assert array.dtype.isnative
    assert array.dtype.itemsize <= 8


def test_what_is_no_matrix_of_numbers_is_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", X=TABLE, Y=TABLE)
    np.save(tmp_path / "complex.npy", TABLE * 1j)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    np.save(tmp_path / "empty.npy", np.zeros((0, 2)))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "no.npz").write_bytes(b"PK no archive")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name, words in {
        "objects.npy": "Python objects",
        "objects.npz": "Python objects",
        "two.npz": "two.npz:X",
        "two.npz:Z": "no array 'Z'",
        "complex.npy": "real numbers",
        "text.npy": "real numbers",
        "cube.npy": "(2, 2, 2)",
        "empty.npy": "(0, 2)",
        "cut.npy": "damaged",
        "no.npz": "damaged",
        "binary.csv": "UTF-8",
        "table.xlsx": ".csv",
    }.items():
        with pytest.raises(CommandError, match=name.partition(":")[0]) as caught:
            read_matrix(name, tmp_path)
        assert caught.value.code == BAD_INPUT
        assert words in str(caught.value)


def test_what_is_not_there_is_a_missing_file(tmp_path):
    for name in ("absent.npy", "absent.npz:X", "absent.csv"):
        with pytest.raises(CommandError, match="no such file") as caught:
            read_array(name, tmp_path)
        assert caught.value.code == MISSING_FILE
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(CommandError, match="is a folder"):
        read_array("folder.csv", tmp_path)


def test_weights_are_the_arrays_from_w_1_on(tmp_path):
    np.savez(tmp_path / "W.npz", **{f"W_{i}": np.full((1, 1), float(i)) for i in range(1, 12)})
    assert [w.item() for w in read_weights("W.npz", tmp_path)] == list(range(1, 12))
    np.savez(tmp_path / "gap.npz", W_1=TABLE, W_3=TABLE)
    with pytest.raises(CommandError, match="W_1, W_3"):
        read_weights("gap.npz", tmp_path)
