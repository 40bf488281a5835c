"""A problem seen through outputs is the same problem, and so are its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax.problems import gradient, risk

KEYS = jax.random.split(jax.random.key(0), 8)
X = jax.random.normal(KEYS[0], (9, 5))
Y = jax.random.normal(KEYS[1], (9, 3))
W = jax.random.normal(KEYS[2], (3, 5))
TIED = jnp.kron(jnp.eye(5), jnp.ones((2, 1)))

PROBLEMS = {
    "more samples than inputs": lambda X, Y: aj.regression(X, Y),
    "fewer samples than inputs": lambda X, Y: aj.regression(X[:3], Y[:3]),
    "moments": lambda X, Y: aj.from_moments(X.T @ X / 9, Y.T @ X / 9, (Y**2).sum() / 9),
    "sensing": lambda X, Y: aj.sensing(Y[:, :, None] * X[:, None, :], X[:, 0]),
    "samples": lambda X, Y: aj.classification(X, np.arange(9) % 3, "cross_entropy"),
    "few samples": lambda X, Y: aj.classification(X[:3], np.arange(3), "cross_entropy"),
    "repeated eigenvalues": lambda X, Y: aj.regression(
        jnp.kron(jnp.eye(5, dtype=X.dtype), X[:2, :1]), Y[:5].repeat(2, 0)
    ),
}


def by_outputs(problem, matrix):
    seen = problem.by_outputs()
    return seen.risk_of(seen.inputs @ matrix.T)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_risk_and_slope_are_those_of_the_problem(name, dtype):
    problem = PROBLEMS[name](X.astype(dtype), Y.astype(dtype))
    matrix = W.astype(dtype)
    tolerance = 1e-12 if dtype == jnp.float64 else 2e-5
    seen = problem.by_outputs()
    value, slope = seen.slope_at(seen.inputs @ matrix.T)
    expected = risk(problem, (matrix,))
    assert slope.dtype == value.dtype == dtype
    np.testing.assert_allclose(value, expected, rtol=tolerance)
    np.testing.assert_allclose(by_outputs(problem, matrix), expected, rtol=tolerance)
    np.testing.assert_allclose(
        slope.T @ seen.inputs, gradient(problem, (matrix,))[0], rtol=0, atol=5 * tolerance
    )


@pytest.mark.parametrize(
    "name", ["more samples than inputs", "fewer samples than inputs", "moments"]
)
def test_derivatives_in_data_and_matrix_are_those_of_the_problem(name):
    def direct(X, Y, matrix):
        return risk(PROBLEMS[name](X, Y), (matrix,))

    def seen(X, Y, matrix):
        return by_outputs(PROBLEMS[name](X, Y), matrix)

    for number in range(3):
        np.testing.assert_allclose(
            jax.grad(seen, argnums=number)(X, Y, W),
            jax.grad(direct, argnums=number)(X, Y, W),
            rtol=0,
            atol=1e-11,
        )


@pytest.mark.parametrize(
    "name", ["more samples than inputs", "fewer samples than inputs", "moments"]
)
def test_the_slope_has_the_problem_s_second_derivatives(name):
    weight = jax.random.normal(KEYS[3], (3, 5))

    def direct(X, Y, matrix):
        return jnp.vdot(weight, gradient(PROBLEMS[name](X, Y), (matrix,))[0])

    def seen(X, Y, matrix):
        problem = PROBLEMS[name](X, Y).by_outputs()
        _, slope = problem.slope_at(problem.inputs @ matrix.T)
        return jnp.vdot(weight, slope.T @ problem.inputs)

    for number in range(3):
        np.testing.assert_allclose(
            jax.grad(seen, argnums=number)(X, Y, W),
            jax.grad(direct, argnums=number)(X, Y, W),
            rtol=0,
            atol=1e-10,
        )


def test_derivatives_stay_finite_where_eigenvalues_of_the_moment_repeat():
    def value(X):
        return by_outputs(aj.regression(X, jnp.ones((10, 3))), W)

    def direct(X):
        return risk(aj.regression(X, jnp.ones((10, 3))), (W,))

    np.testing.assert_allclose(jax.grad(value)(TIED), jax.grad(direct)(TIED), atol=1e-12)


def test_few_wide_samples_are_seen_through_as_many_inputs_as_samples():
    problem = aj.autoencoding(jax.random.normal(KEYS[4], (2, 400)))
    assert problem.by_outputs().inputs.shape == (2, 400)
    assert max(a.size for a in jax.tree.leaves(problem.by_outputs())) == 800
