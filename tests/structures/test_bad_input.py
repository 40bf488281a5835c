"""Bad structures, coefficients and matrices are refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.structures import (
    Basis,
    Circulant,
    Conv2d,
    Dense,
    Diagonal,
    Sparse,
    Toeplitz,
    as_structures,
    check_coefficients,
    forward,
    matrices,
)

EYE = np.eye(2)
CONV = Conv2d(4, 3)
CASES = [
    ("even kernel", lambda: Conv2d(8, 2), ValueError, r"^kernel_size must be odd.*\(2, 2\)"),
    ("half even kernel", lambda: Conv2d(8, (3, 4)), ValueError, r"^kernel_size must be odd.*4"),
    ("large kernel", lambda: Conv2d((8, 4), 5), ValueError, r"^kernel_size .*\(8, 4\).*\(5, 5\)"),
    ("kernel zero", lambda: Conv2d(8, 0), ValueError, r"^kernel_size must be at least 1, got 0"),
    ("kernel float", lambda: Conv2d(8, 3.0), TypeError, r"^kernel_size must be an integer.*3\.0"),
    ("kernel triple", lambda: Conv2d(8, (3, 3, 3)), ValueError, r"^kernel_size .*pair"),
    ("image pair float", lambda: Conv2d((8, 8.5), 3), TypeError, r"^image_size\[1\] .*8\.5"),
    ("image text", lambda: Conv2d("8", 3), TypeError, r"^image_size .*'8'"),
    ("image negative", lambda: Conv2d((-8, 8), 3), ValueError, r"^image_size\[0\] .*-8"),
    ("padding", lambda: Conv2d(8, 3, padding="same"), ValueError, r"^padding .*'same'"),
    ("padding None", lambda: Conv2d(8, 3, padding=None), ValueError, r"^padding .*None"),
    (
        "coordinates",
        lambda: Toeplitz(3, coordinates="taps"),
        ValueError,
        r"^coordinates .*'orthonormal' or 'raw'.*'taps'",
    ),
    ("coordinates None", lambda: Dense(3, coordinates=None), ValueError, r"^coordinates .*None"),
    ("dense None", lambda: Dense(None), TypeError, r"^shape must be an integer.*None"),
    ("dense zero", lambda: Dense((0, 3)), ValueError, r"^shape\[0\] .*at least 1"),
    ("toeplitz zero", lambda: Toeplitz(0), ValueError, r"^size must be at least 1"),
    ("toeplitz bool", lambda: Toeplitz(True), TypeError, r"^size must be an integer"),
    ("circulant pair", lambda: Circulant((3, 3)), TypeError, r"^k must be an integer.*\(3, 3\)"),
    ("circulant traced", lambda: jax.jit(lambda k: Circulant(k).dim)(3), TypeError, r"^k .*traced"),
    ("diagonal zero", lambda: Diagonal(0), ValueError, r"^k must be at least 1, got 0"),
    ("diagonal float", lambda: Diagonal(2.5), TypeError, r"^k must be an integer.*2\.5"),
    ("mask values", lambda: Sparse(2 * EYE), ValueError, r"^mask .*zeros and ones.*2"),
    ("mask NaN", lambda: Sparse([[np.nan, 1]]), ValueError, r"^mask .*nan"),
    ("mask vector", lambda: Sparse([1, 0]), ValueError, r"^mask must have 2 dim.*got 1"),
    ("mask zeros", lambda: Sparse(0 * EYE), ValueError, r"^mask must leave an entry free"),
    ("mask empty", lambda: Sparse(np.ones((0, 3))), ValueError, r"^mask must leave an entry free"),
    ("mask text", lambda: Sparse("dense"), TypeError, r"^mask must hold real"),
    ("mask traced", lambda: jax.jit(lambda m: Sparse(m).dim)(EYE), TypeError, r"mask is traced"),
    (
        "basis dependent",
        lambda: Basis([EYE, np.ones((2, 2)), 2 * EYE]),
        ValueError,
        r"^matrices .*independent.*3 given.*rank 2",
    ),
    ("basis zero", lambda: Basis([EYE, 0 * EYE]), ValueError, r"^matrices .*2 given.*rank 1"),
    (
        "basis too many",
        lambda: Basis(np.random.default_rng(0).normal(size=(5, 2, 2))),
        ValueError,
        r"^matrices .*5 given.*rank 4",
    ),
    ("basis shapes", lambda: Basis([EYE, np.eye(3)]), ValueError, r"^matrices .*one shape.*3, 3"),
    ("basis empty", lambda: Basis([]), ValueError, r"^matrices must be one or more"),
    ("basis matrix", lambda: Basis(EYE), ValueError, r"^matrices .*\(dim, k_out, k_in\).*\(2, 2\)"),
    ("basis vector", lambda: Basis([EYE[0]]), ValueError, r"^matrices .*\(1, 2\)"),
    ("basis NaN", lambda: Basis([np.nan * EYE]), ValueError, r"^matrices must be finite"),
    ("basis complex", lambda: Basis([1j * EYE]), TypeError, r"^matrices\[0\] .*complex"),
    ("basis traced", lambda: jax.jit(lambda m: Basis(m).dim)(EYE[None]), TypeError, r"is traced"),
    ("short", lambda: CONV.matrix(np.ones(8)), ValueError, r"^coefficients .*9 .*Conv2d.*got 8"),
    ("apply short", lambda: CONV.apply([1.0], np.ones(16)), ValueError, r"^coefficients .*got 1"),
    (
        "kernel as it is",
        lambda: CONV.matrix(np.ones((3, 3))),
        ValueError,
        r"^coefficients .*got a matrix",
    ),
    ("complex", lambda: CONV.matrix(1j * np.ones(9)), TypeError, r"^coefficients .*complex"),
    ("raw long", lambda: CONV.raw(np.ones(10)), ValueError, r"^coefficients .*got 10"),
    ("x width", lambda: CONV.apply(np.ones(9), np.ones((2, 9))), ValueError, r"^x .*k_in = 16.*9"),
    ("x scalar", lambda: CONV.apply(np.ones(9), 1.0), ValueError, r"^x must hold rows"),
    ("x text", lambda: CONV.apply(np.ones(9), "x"), TypeError, r"^x must hold real"),
    ("matrix shape", lambda: CONV.project(EYE), ValueError, r"^matrix .*\(16, 16\).*\(2, 2\)"),
    ("matrix vector", lambda: CONV.project(np.ones(16)), ValueError, r"^matrix must have 2 dim"),
    ("matrix NaN", lambda: Diagonal(2).project(np.nan * EYE), ValueError, r"^matrix .*finite"),
    (
        "matrix outside",
        lambda: Diagonal(2).coefficients([[1, 3], [4, 1]]),
        ValueError,
        r"^matrix must lie in the subspace of Diagonal.*distance from it is 5 ",
    ),
    ("structure None", lambda: as_structures(None), TypeError, r"^structure .*None"),
    ("structure class", lambda: as_structures(Toeplitz, 2), TypeError, r"^structure .*Toeplitz"),
    ("structure item", lambda: as_structures([CONV, EYE]), TypeError, r"^structure\[1\] .*ndarray"),
    ("structure empty", lambda: as_structures([]), ValueError, r"^structure .*at least one"),
    ("structure count", lambda: as_structures([CONV], 2), ValueError, r"^structure .*got 1 for 2"),
    (
        "structure chain",
        lambda: as_structures(Toeplitz((2, 3)), 2),
        ValueError,
        r"^structure does not chain: layer 1 .*takes 3.*gives 2",
    ),
    (
        "coefficients length",
        lambda: check_coefficients(CONV, [np.ones(9), np.ones(4)]),
        ValueError,
        r"^weights\[1\] must hold 9 coefficients.*got 4",
    ),
    (
        "coefficients name",
        lambda: check_coefficients(CONV, [np.ones(4)], name="start"),
        ValueError,
        r"^start\[0\]",
    ),
    ("coefficients array", lambda: check_coefficients(CONV, EYE), TypeError, r"^weights .*tuple"),
    (
        "coefficients none",
        lambda: check_coefficients(CONV, []),
        ValueError,
        r"^weights .*one layer",
    ),
    (
        "coefficients matrix",
        lambda: check_coefficients(CONV, [np.eye(3)]),
        ValueError,
        r"^weights\[0\] must be a vector of 9 coefficients.*got a matrix",
    ),
    (
        "coefficients NaN",
        lambda: check_coefficients(Diagonal(2), [[1.0, np.nan]]),
        ValueError,
        r"^weights\[0\] must be finite",
    ),
    ("state", lambda: matrices(CONV, "state"), TypeError, r"^state must be a tuple"),
    ("forward", lambda: forward(CONV, [[1.0]], np.ones(16)), ValueError, r"^coefficients\[0\] .*9"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), [row[1:] for row in CASES], ids=[row[0] for row in CASES]
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_shape_that_does_not_fit_is_refused_when_traced_too():
    with pytest.raises(ValueError, match=r"^coefficients must hold 9"):
        jax.jit(CONV.matrix)(jnp.ones(8))


def test_traced_matrices_get_the_coefficients_of_their_projection():
    found = jax.jit(Diagonal(2).coefficients)(jnp.array([[1.0, 3.0], [4.0, 2.0]]))
    np.testing.assert_array_equal(found, [1.0, 2.0])
