"""Structures are static: plain values to jit, and no bigger than what they must be."""

import copy
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax
from alignjax.structures import (
    Basis,
    Circulant,
    Conv2d,
    Diagonal,
    Pattern,
    Sparse,
    Toeplitz,
    as_structures,
    check_coefficients,
    forward,
    matrices,
)
from tests.jaxprs import inner_jaxprs
from tests.structures.cases import KINDS, STRUCTURES, normal


@pytest.mark.parametrize("name", KINDS)
def test_equal_structures_are_equal_and_share_one_trace(name):
    first, again = KINDS[name]("raw"), KINDS[name]("raw")
    assert first is not again
    assert first == again
    assert hash(first) == hash(again)
    assert first != KINDS[name]("orthonormal")

    traced = []

    def matrix(structure, c):
        traced.append(structure)
        return structure.matrix(c)

    run, c = jax.jit(matrix, static_argnums=0), normal(first.dim)
    np.testing.assert_array_equal(run(first, c), run(again, c))
    assert len(traced) == 1


def test_different_structures_differ():
    assert len(set(STRUCTURES.values())) == len(STRUCTURES)
    assert Basis([np.eye(2)]) != Basis([2 * np.eye(2)])
    assert Conv2d(5, 3) != Conv2d(5, 3, padding="circular")
    assert Toeplitz(4) == Toeplitz((4, 4))
    assert Diagonal(4) != Circulant(4)


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_structures_are_immutable_and_hold_no_array_of_jax(structure):
    with pytest.raises(AttributeError):
        structure.coordinates = "raw"
    structure.apply(normal(structure.dim), normal(structure.shape[1]))
    for value in vars(structure).values():
        assert not isinstance(value, jax.Array)
        assert not isinstance(value, np.ndarray) or not value.flags.writeable
    assert structure.coordinates in repr(structure)


def test_a_basis_copies_what_it_is_given():
    given = np.stack([np.eye(2), np.ones((2, 2))])
    structure = Basis(given, coordinates="raw")
    given[0] = 7
    np.testing.assert_array_equal(structure.matrix([1.0, 0.0]), np.eye(2))


def test_construction_starts_no_backend():
    program = """
        import numpy as np
        from alignjax.structures import *
        made = [Dense(3), Conv2d(5, 3), Toeplitz(4), Circulant(4), Diagonal(4),
                Sparse(np.eye(3)), Basis([np.eye(2)])]
        [(hash(s), s.dim, s.shape, s.norms) for s in made]
        from jax._src import xla_bridge
        assert not xla_bridge._backends
    """
    root = Path(alignjax.__file__).parent.parent
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=root)


def largest_intermediate(jaxpr):
    """The most numbers that any one operation of a jaxpr makes, those inside of it too."""
    largest = 0
    for equation in jaxpr.eqns:
        sizes = [int(np.prod(v.aval.shape)) for v in equation.outvars]
        inner = [largest_intermediate(sub) for sub in inner_jaxprs(equation)]
        largest = max([largest, *sizes, *inner])
    return largest


def step(structure):
    """A gradient of half the squared error of a layer, in all that it takes."""

    def value(c, x):
        return 0.5 * ((structure.apply(c, x) - 1.0) ** 2).sum()

    return jax.value_and_grad(value, (0, 1))


MATRIX_FREE = [
    Conv2d(32, 3),
    Conv2d(32, 3, padding="circular"),
    Conv2d(32, 15),
    Toeplitz(1024),
    Toeplitz((1024, 512)),
    Toeplitz(15),
    Circulant(1024),
    Circulant(31),
    Diagonal(1024),
]


@pytest.mark.parametrize("structure", MATRIX_FREE, ids=str)
def test_apply_and_its_derivatives_are_linear_in_the_inputs(structure):
    k = max(structure.shape)
    x, c = normal(structure.shape[1]), normal(structure.dim)
    jaxpr = jax.make_jaxpr(step(structure))(c, x)
    # A sum over shifts pads a vector to five times its length, a wide kernel an image to four.
    assert largest_intermediate(jaxpr.jaxpr) <= 5 * k
    # A primitive's inside is seen where it is compiled only.
    compiled = jax.jit(step(structure)).lower(c, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 32 * k * 8
    lanes = jax.make_jaxpr(jax.vmap(step(structure), (0, None)))(normal(5, structure.dim), x)
    assert largest_intermediate(lanes.jaxpr) <= 5 * k * 5


def test_the_walker_sees_a_matrix_inside_a_jitted_function():
    structure = Conv2d(8, 3)
    matrix = jax.make_jaxpr(jax.jit(structure.matrix))(normal(9))
    assert largest_intermediate(matrix.jaxpr) >= 64 * 64


@pytest.mark.parametrize("structure", [Conv2d(16, 5), Toeplitz(40), Circulant(40), Diagonal(40)])
def test_projection_makes_nothing_larger_than_the_matrix(structure):
    matrix = normal(*structure.shape)
    for function in (structure.project, structure.coefficients):
        jaxpr = jax.make_jaxpr(function)(matrix).jaxpr
        assert largest_intermediate(jaxpr) <= 2 * matrix.size


def test_chains_of_structures():
    layers = (Toeplitz((6, 9)), Circulant(6), Toeplitz((9, 6)))
    state = [normal(s.dim, seed=i) for i, s in enumerate(layers)]
    weights = matrices(layers, state)
    x = normal(2, 9, seed=5)
    expected = x @ (weights[2] @ weights[1] @ weights[0]).T
    np.testing.assert_allclose(forward(layers, state, x), expected, rtol=0, atol=1e-12)
    assert as_structures(Circulant(4), 2) == as_structures([Circulant(4)] * 2)
    assert as_structures(Circulant(4)) == (Circulant(4),)


def test_coefficients_of_any_kind_are_taken_and_share_one_dtype():
    given = ([1, 2], np.ones(2, np.float32), jnp.ones(2))
    layers, vectors = check_coefficients(Diagonal(2), given)
    assert layers == (Diagonal(2),) * 3
    assert all(isinstance(v, jax.Array) and v.dtype == jnp.float64 for v in vectors)
    _, narrow = check_coefficients(Diagonal(2), (np.ones(2, np.float32),))
    assert narrow[0].dtype == jnp.float32


class Shifted(Pattern):
    """A user's own structure, without a dataclass decorator."""

    def __init__(self, k, offset):
        self._set("raw", k=k, offset=offset)

    @property
    def shape(self):
        return self.k, self.k

    @property
    def dim(self):
        return self.k - abs(self.offset)

    def _entries(self):
        i = np.arange(self.dim)
        return i + max(-self.offset, 0), i + max(self.offset, 0), i


def test_a_structure_of_one_s_own_is_told_from_its_like():
    assert Shifted(4, 1) == Shifted(4, 1)
    assert hash(Shifted(4, 1)) == hash(Shifted(4, 1))
    assert Shifted(4, 1) != Shifted(4, -1)
    x = np.arange(1.0, 5.0)
    apply = jax.jit(lambda s, c: s.apply(c, x), static_argnums=0)
    c = np.ones(3)
    np.testing.assert_array_equal(apply(Shifted(4, 1), c), [2, 3, 4, 0])
    np.testing.assert_array_equal(apply(Shifted(4, -1), c), [0, 1, 2, 3])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_are_equal_and_cannot_be_written_to(duplicate):
    for structure in (Sparse([[1, 0], [1, 1]]), Basis(np.eye(3)[None]), Conv2d(4, 3)):
        assert structure.norms.sum() > 0
        again = duplicate(structure)
        assert again == structure
        assert hash(again) == hash(structure)
        arrays = [v for v in vars(again).values() if isinstance(v, np.ndarray)]
        assert arrays
        assert not any(a.flags.writeable for a in arrays)


@pytest.mark.parametrize(
    "structure", [Conv2d(28, 3, coordinates="raw"), Diagonal(784), Toeplitz(784)]
)
def test_membership_is_decided_in_float32_too(structure):
    inside = structure.project(np.eye(784, dtype=np.float32))
    assert structure.coefficients(inside).dtype == np.float32
    outside = np.array(inside)
    outside[5, 700] += 1e-3
    with pytest.raises(ValueError, match=r"Frobenius distance from it is 0\.0009|is 0\.001"):
        structure.coefficients(outside)
