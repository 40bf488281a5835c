"""The risk and its gradient: by hand, from moments and from samples, against plain autodiff."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj

WIDTHS = {
    "one layer": (4, 3),
    "two layers": (3, 5, 2),
    "bottleneck": (6, 5, 1, 4, 3),
    "narrow input": (2, 5, 4, 3),
    "one output": (5, 4, 3, 1),
    "wide": (3, 7, 6, 8, 5),
    "depth eight": (3, 4, 2, 5, 3, 4, 6, 3, 2),
}


def normal(seed, *shape, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def network(widths, dtype=np.float64, scale=0.7):
    pairs = itertools.pairwise(widths)
    return tuple(
        jnp.asarray(scale * normal(10 + i, out, into, dtype=dtype))
        for i, (into, out) in enumerate(pairs)
    )


def product(weights):
    total = weights[0]
    for layer in weights[1:]:
        total = layer @ total
    return total


def close(actual, expected, tolerance):
    """Relative to the largest entry of what is expected, leaf by leaf."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * (float(np.abs(e).max()) + 1e-300))


def tolerance(dtype):
    return 1e-12 if dtype == np.float64 else 2e-4


def squared_case(samples):
    def build(widths, dtype):
        X = normal(0, samples, widths[0], dtype=dtype)
        Y = normal(1, samples, widths[-1], dtype=dtype)

        def direct(weights):
            return 0.5 * ((X @ product(weights).T - Y) ** 2).sum() / samples

        return aj.regression(X, Y), direct

    return build


def sign_case(loss, formula):
    def build(widths, dtype):
        X = normal(2, 9, widths[0], dtype=dtype)
        y = np.sign(normal(3, 9)).astype(dtype)

        def direct(weights):
            return formula(y * (X @ product(weights).T)[:, 0]).mean()

        return aj.classification(X, y, loss=loss), direct

    return build


def cross_entropy_case(widths, dtype):
    X = normal(4, 9, widths[0], dtype=dtype)
    ids = np.arange(9) % widths[-1]

    def direct(weights):
        z = X @ product(weights).T
        return -jnp.take_along_axis(jax.nn.log_softmax(z), ids[:, None], axis=1).mean()

    return aj.classification(X, ids, loss="cross_entropy", classes=widths[-1]), direct


def callable_case(widths, dtype):
    X = normal(5, 4, widths[0], dtype=dtype)
    y = normal(6, 4, dtype=dtype)

    def loss(z, y):
        return jnp.log(jnp.cosh(z - y)).sum()

    def direct(weights):
        return jnp.log(jnp.cosh(X @ product(weights).T - y[:, None])).sum() / 4

    return aj.classification(X, y, loss=loss), direct


def sensing_case(widths, dtype):
    matrices = normal(7, 5, widths[-1], widths[0], dtype=dtype)
    values = normal(8, 5, dtype=dtype)

    def direct(weights):
        return 0.5 * ((jnp.einsum("nij,ij->n", matrices, product(weights)) - values) ** 2).mean()

    return aj.sensing(matrices, values), direct


CASES = {
    "squared, n >= k_0": (squared_case(9), WIDTHS),
    "squared, n < k_0": (squared_case(1), WIDTHS),
    "logistic": (sign_case("logistic", lambda m: jnp.log1p(jnp.exp(-m))), ["one output"]),
    "exponential": (sign_case("exponential", lambda m: jnp.exp(-m)), ["one output"]),
    "cross-entropy": (cross_entropy_case, ["one layer", "bottleneck", "depth eight"]),
    "callable": (callable_case, ["two layers", "bottleneck", "depth eight"]),
    "sensing": (sensing_case, WIDTHS),
}
PAIRS = [(case, widths) for case, (_, names) in CASES.items() for widths in names]


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("case", "widths"), PAIRS)
def test_risk_and_gradient_equal_the_autodiff_of_the_sample_formula(case, widths, dtype):
    problem, direct = CASES[case][0](WIDTHS[widths], dtype)
    weights = network(WIDTHS[widths], dtype)

    @jax.jit
    def evaluate(weights):
        by_autodiff = jax.value_and_grad(aj.risk, argnums=1)(problem, weights)
        return (
            jax.value_and_grad(direct)(weights),
            aj.risk_and_gradient(problem, weights),
            by_autodiff,
        )

    expected, by_hand, by_autodiff = evaluate(weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(by_hand)} == {np.dtype(dtype)}
    close(by_hand, expected, tolerance(dtype))
    close(by_autodiff, expected, tolerance(dtype))


@pytest.mark.parametrize("depth", range(1, 9))
def test_gradient_equals_autodiff_at_every_depth(depth):
    widths = (4, *[3 + i % 4 for i in range(depth - 1)], 3)
    problem, direct = squared_case(8)(widths, np.float64)
    weights = network(widths)
    close(jax.jit(aj.gradient)(problem, weights), jax.jit(jax.grad(direct))(weights), 1e-12)


@pytest.mark.parametrize("samples", [3, 12])
def test_derivatives_in_the_data_equal_autodiff_of_the_sample_formula(samples):
    X, Y = normal(0, samples, 5), normal(1, samples, 2)
    weights = network((5, 4, 2))

    def direct(X, Y):
        return 0.5 * ((X @ product(weights).T - Y) ** 2).sum() / samples

    def ours(X, Y):
        return aj.risk(aj.regression(X, Y), weights)

    close(jax.grad(ours, (0, 1))(X, Y), jax.grad(direct, (0, 1))(X, Y), 1e-11)
    close(jax.jit(jax.grad(ours, (0, 1)))(X, Y), jax.grad(direct, (0, 1))(X, Y), 1e-11)


def test_derivatives_in_dependent_samples_are_nan_and_never_a_wrong_number():
    rows = jax.random.normal(jax.random.key(0), (3, 5))
    weights = (jnp.ones((1, 5)),)

    def value(X):
        return aj.risk(aj.regression(X, jnp.arange(3.0)), weights)

    assert jnp.isfinite(jax.grad(value)(rows)).all()
    dependent = rows.at[2].set(rows[0] + rows[1])
    assert jnp.isnan(jax.grad(value)(dependent)).all()
    assert jnp.isfinite(value(dependent))


def test_derivatives_in_the_moments_equal_autodiff_of_the_expanded_risk():
    X, Y = normal(0, 9, 4), normal(1, 9, 3)
    weights = network((4, 2, 3))
    moments = X.T @ X / 9, Y.T @ X / 9, np.asarray((Y**2).sum() / 9)

    def expanded(inputs, cross, energy):
        W = product(weights)
        return 0.5 * (energy - 2 * jnp.vdot(W, cross) + jnp.vdot(W @ inputs, W))

    def ours(*moments):
        return aj.risk(aj.from_moments(*moments), weights)

    close(jax.grad(ours, (0, 1, 2))(*moments), jax.grad(expanded, (0, 1, 2))(*moments), 1e-12)


@pytest.mark.parametrize("samples", [4, 40])
def test_risk_in_float32_is_never_negative_near_the_minimum(samples):
    X = normal(0, samples, 8, dtype=np.float32) * np.float32(30)
    Y = X @ normal(1, 8, 3, dtype=np.float32)
    problem = aj.regression(X, Y)
    W = np.linalg.lstsq(X.astype(np.float64), Y.astype(np.float64))[0].T
    noise = normal(2, 200, 3, 8) * np.logspace(-9, -2, 200)[:, None, None]
    risks = jax.vmap(lambda w: aj.risk(problem, (w,)))(jnp.asarray(W + noise, jnp.float32))
    assert risks.dtype == jnp.float32
    assert float(risks.min()) >= 0
    exact = 0.5 * ((np.einsum("ni,sji->snj", X, (W + noise)) - Y) ** 2).sum((1, 2)) / samples
    np.testing.assert_allclose(risks[-20:], exact[-20:], rtol=1e-3)


def test_moments_of_the_samples_state_the_same_problem():
    X, Y = normal(0, 9, 4), normal(1, 9, 3)
    energy = (Y**2).sum() / 9
    direct, other = aj.regression(X, Y), aj.from_moments(X.T @ X / 9, Y.T @ X / 9, energy)
    weights = network((4, 5, 3))
    close(aj.risk_and_gradient(other, weights), aj.risk_and_gradient(direct, weights), 1e-12)
    np.testing.assert_allclose(other.minimum_risk, direct.minimum_risk, rtol=1e-11)


@pytest.mark.parametrize("samples", [3, 12])
def test_full_moments_are_means_over_the_samples(samples):
    X, Y = normal(0, samples, 5), normal(1, samples, 2)
    inputs, cross = aj.regression(X, Y).full_moments()
    close((inputs, cross), (X.T @ X / samples, Y.T @ X / samples), 1e-13)


def test_no_square_matrix_of_the_inputs_is_kept_with_fewer_samples_than_inputs():
    problem = aj.regression(normal(0, 3, 50), normal(1, 3, 2))
    assert max(leaf.size for leaf in jax.tree.leaves(problem)) == 3 * 50
    assert (problem.input_width, problem.output_width, problem.sample_count) == (50, 2, 3)


def test_moments_of_a_stream_equal_the_moments_at_once():
    X, Y = normal(0, 50, 4), normal(1, 50, 3)
    cuts = [0, 1, 8, 30, 50]
    pieces = [(X[a:b], Y[a:b]) for a, b in itertools.pairwise(cuts)]
    moments = aj.accumulate(iter(pieces))
    assert int(moments.count) == 50
    close(moments.input_moment, X.T @ X / 50, 1e-13)
    close(moments.cross_moment, Y.T @ X / 50, 1e-13)
    close(moments.target_energy, np.asarray((Y**2).sum() / 50), 1e-13)


def test_factorization_inversion_and_autoencoding_are_the_stated_regressions():
    M = normal(0, 3, 4)
    weights = network((4, 5, 3))
    close(
        aj.risk(aj.factorization(M), weights),
        0.5 / 4 * ((M - product(weights)) ** 2).sum(),
        1e-13,
    )
    square = network((3, 5, 4))
    close(
        aj.risk(aj.inversion(M), square),
        0.5 / 4 * ((product(square) @ M - np.eye(4)) ** 2).sum(),
        1e-13,
    )
    own = network((4, 2, 4))
    close(
        aj.risk(aj.autoencoding(M), own),
        0.5 / 3 * ((M @ product(own).T - M) ** 2).sum(),
        1e-13,
    )


def test_squared_classification_is_regression_on_signs_or_on_indicators():
    X = normal(0, 6, 3)
    signs, ids = np.array([1, -1, 1, 1, -1, -1]), np.array([0, 2, 1, 1, 0, 2])
    close(
        aj.risk(aj.classification(X, signs, "squared"), network((3, 1))),
        aj.risk(aj.regression(X, signs), network((3, 1))),
        1e-14,
    )
    close(
        aj.risk(aj.classification(X, ids, "squared"), network((3, 3))),
        aj.risk(aj.regression(X, np.eye(3)[ids]), network((3, 3))),
        1e-14,
    )


def test_problems_are_pytrees_that_vmap_and_jit_take_as_arguments():
    X, Y = normal(0, 5, 9, 4), normal(1, 5, 9, 2)
    weights = network((4, 3, 2))
    single = [aj.risk(aj.regression(x, y), weights) for x, y in zip(X, Y, strict=True)]
    stacked = jax.vmap(aj.regression)(X, Y)
    risks = jax.jit(jax.vmap(aj.risk, in_axes=(0, None)))(stacked, weights)
    np.testing.assert_allclose(risks, np.array(single), rtol=1e-13)


def test_mixed_precisions_promote():
    problem = aj.regression(normal(0, 5, 3, dtype=np.float32), normal(1, 5, 2, dtype=np.float32))
    weights = (network((3, 4), np.float32)[0], network((3, 4, 2))[1])
    assert aj.risk(problem, weights).dtype == np.float64
    assert {g.dtype for g in aj.gradient(problem, weights)} == {np.dtype(np.float64)}


@pytest.mark.parametrize("width", [784, 1200])
def test_what_is_no_moment_is_refused_for_wide_inputs_of_single_precision_too(width):
    def problem(row, column, value):
        moment = np.eye(width, dtype=np.float32)
        moment[row, column] = value
        return aj.from_moments(moment, np.zeros((1, width), np.float32), np.float32(1))

    for lowest in (-1.0, -0.1, -1e-3):
        with pytest.raises(ValueError, match=rf"semidefinite, but has .* {lowest:.3g}$"):
            problem(0, 0, lowest)
    for skew in (1.0, 0.1, 1e-4):
        with pytest.raises(ValueError, match=r"^input_moment must be symmetric, but an entry"):
            problem(0, 1, skew)
    assert problem(0, 0, 0.0).dtype == jnp.float32


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e30])
def test_moments_of_any_scale_are_checked(scale):
    scale = np.float32(scale)
    cross = scale * np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match=r"semidefinite, but has the eigenvalue -(5e|0.5)"):
        aj.from_moments(scale * np.float32([[1, 0], [0, -0.5]]), cross, scale)
    with pytest.raises(ValueError, match="must be symmetric"):
        aj.from_moments(scale * np.float32([[1, 0.1], [0, 1]]), cross, scale)


@pytest.mark.parametrize("kind", ["low rank", "constant", "doubled", "one direction"])
def test_streamed_moments_of_single_precision_that_lack_ranks_are_accepted(kind):
    rng = np.random.default_rng(0)
    X = rng.random((600, 784)).astype(np.float32)
    if kind == "low rank":
        X = rng.standard_normal((600, 40)).astype(np.float32) @ X[:40]
    elif kind == "constant":
        X[:, ::3] = 0.7
    elif kind == "doubled":
        X[:, ::2] = X[:, 1::2]
    else:
        X = X[:1] * rng.random((600, 1)).astype(np.float32)
    m = aj.accumulate((X[i : i + 50], X[i : i + 50, :2]) for i in range(0, 600, 50))
    problem = aj.from_moments(m.input_moment, m.cross_moment, m.target_energy)
    assert problem.input_width == 784
    assert 0 <= aj.theory.sequential.isotropy_gap(m) < 1
