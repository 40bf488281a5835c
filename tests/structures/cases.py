"""One structure of each kind, in both coordinates, and what several test files ask of them."""

import jax
import numpy as np

from alignjax.structures import Basis, Circulant, Conv2d, Dense, Diagonal, Sparse, Toeplitz

RNG = np.random.default_rng(0)
MASK = RNG.random((5, 7)) < 0.4
MATRICES = RNG.normal(size=(4, 5, 7)) * np.array([1.0, 3.0, 0.2, 10.0])[:, None, None]

KINDS = {
    "dense": lambda c: Dense((3, 4), coordinates=c),
    "conv": lambda c: Conv2d((5, 6), 3, coordinates=c),
    "conv wide kernel": lambda c: Conv2d((4, 9), (1, 7), coordinates=c),
    "conv many taps": lambda c: Conv2d((9, 11), (9, 9), coordinates=c),
    "conv circular": lambda c: Conv2d((5, 6), (5, 3), padding="circular", coordinates=c),
    "toeplitz": lambda c: Toeplitz(6, coordinates=c),
    "toeplitz wide": lambda c: Toeplitz((4, 7), coordinates=c),
    "toeplitz tall": lambda c: Toeplitz((7, 4), coordinates=c),
    "toeplitz fourier": lambda c: Toeplitz((41, 37), coordinates=c),
    "circulant": lambda c: Circulant(7, coordinates=c),
    "circulant fourier": lambda c: Circulant(67, coordinates=c),
    "diagonal": lambda c: Diagonal(5, coordinates=c),
    "sparse": lambda c: Sparse(MASK, coordinates=c),
    "basis": lambda c: Basis(MATRICES, coordinates=c),
}
STRUCTURES = {
    f"{name}, {coordinates}": make(coordinates)
    for name, make in KINDS.items()
    for coordinates in ("orthonormal", "raw")
}


def normal(*shape, dtype=np.float64, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def elements(structure):
    """The basis of the structure's own coordinates, shape (dim, k_out, k_in)."""
    return np.asarray(jax.jit(jax.vmap(structure.matrix))(np.eye(structure.dim)))


def raw_elements(structure):
    """The raw basis, whatever the coordinates are."""

    def element(e):
        orthonormal = structure.coordinates == "orthonormal"
        return structure.matrix(structure.orthonormal(e) if orthonormal else e)

    return np.asarray(jax.jit(jax.vmap(element))(np.eye(structure.dim)))
