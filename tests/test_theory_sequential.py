"""Sequential learning: reduced-rank regression, the standing assumption, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import alignjax as aj
from alignjax.theory import sequential as theory

NORMS = ("fro", "spectral", "nuclear")


def data(seed, samples, inputs, outputs, rank=None):
    """Inputs of a given rank and noisy linear targets."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((samples, inputs))
    if rank is not None:
        X = rng.standard_normal((samples, rank)) @ rng.standard_normal((rank, inputs))
    Y = X @ rng.standard_normal((inputs, outputs)) + 0.5 * rng.standard_normal((samples, outputs))
    return X, Y


def diagonal_problem(inputs, target):
    inputs, target = np.asarray(inputs, float), np.asarray(target, float)
    return aj.from_moments(np.diag(inputs), np.diag(target), 1.0 + 10 * float((target**2).sum()))


def orthogonal(seed, size):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


# Orders and reduced-rank regression ----------------------------------------------------------


def risk_of(problem, matrix):
    return float(aj.risk(problem, (matrix,)))


def alternating_least_squares(X, Y, rank, seed, sweeps=400):
    """The least risk that ``Y ~ X B^T A^T`` reaches from one random start."""
    rng = np.random.default_rng(seed)
    B = rng.standard_normal((rank, X.shape[1]))
    best = np.linalg.pinv(X) @ Y
    for _ in range(sweeps):
        A = np.linalg.lstsq(X @ B.T, Y, rcond=None)[0].T
        B = (best @ A @ np.linalg.pinv(A.T @ A)).T
    return 0.5 * ((Y - X @ B.T @ A.T) ** 2).sum() / len(X)


SHAPES = [(40, 5, 4, None), (40, 6, 3, 4), (6, 9, 4, None), (40, 3, 7, None)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_matrix_of_that_rank_has_less_risk(shape):
    X, Y = data(0, *shape)
    problem = aj.regression(X, Y)
    for rank in range(1, min(shape[1:3]) + 1):
        fit = theory.reduced_rank_regression(problem, rank)
        assert fit.shape == (shape[2], shape[1])
        assert np.linalg.matrix_rank(fit, tol=1e-9) <= rank
        found = min(alternating_least_squares(X, Y, rank, seed) for seed in range(4))
        np.testing.assert_allclose(risk_of(problem, fit), found, rtol=1e-10, atol=1e-24)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_excess_risk_is_half_the_squares_of_what_is_left_out(shape):
    X, Y = data(1, *shape)
    problem = aj.regression(X, Y)
    left = np.linalg.svd(X, full_matrices=False)[0]
    left = left[:, : np.linalg.matrix_rank(X)]
    s = np.linalg.svd(Y.T @ left / len(X) ** 0.5, compute_uv=False)
    least = 0.5 * ((Y - left @ (left.T @ Y)) ** 2).sum() / len(X)
    for rank in range(len(s) + 2):
        fit = theory.reduced_rank_regression(problem, rank)
        expected = least + 0.5 * (s[rank:] ** 2).sum()
        np.testing.assert_allclose(risk_of(problem, fit), expected, rtol=1e-12, atol=1e-24)


def test_among_minimizers_the_one_of_least_norm_is_taken():
    X, Y = data(2, 40, 6, 3, 4)
    problem = aj.regression(X, Y)
    off = np.eye(6) - np.linalg.pinv(X) @ X
    for rank in range(4):
        fit = theory.reduced_rank_regression(problem, rank)
        np.testing.assert_allclose(fit @ off, 0.0, atol=1e-12)
    np.testing.assert_allclose(fit, (np.linalg.pinv(X) @ Y).T, rtol=1e-10)


def test_no_small_step_along_the_matrices_of_a_rank_lowers_the_risk():
    X, Y = data(3, 50, 5, 4)
    problem = aj.regression(X, Y)
    rng = np.random.default_rng(0)
    u, s, vt = np.linalg.svd(theory.reduced_rank_regression(problem, 2))
    A, B = u[:, :2] * s[:2], vt[:2]
    least = risk_of(problem, A @ B)
    for size in (1e-1, 1e-3, 1e-5):
        for _ in range(20):
            nearby = (A + size * rng.standard_normal(A.shape)) @ (
                B + size * rng.standard_normal(B.shape)
            )
            assert risk_of(problem, nearby) >= least


def test_with_whitened_inputs_it_is_the_truncated_matrix():
    M = np.random.default_rng(0).standard_normal((4, 6))
    u, s, vt = np.linalg.svd(M, full_matrices=False)
    for rank in range(6):
        expected = (u[:, :rank] * s[:rank]) @ vt[:rank]
        fit = theory.reduced_rank_regression(aj.factorization(M), rank)
        np.testing.assert_allclose(fit, expected, atol=1e-13)


def test_learning_and_regression_order_the_modes_differently():
    target, inputs = [2.0, 1.0, 0.5], [8.0, 0.5, 0.5]
    np.testing.assert_array_equal(theory.learning_order(target), [0, 1, 2])
    np.testing.assert_array_equal(theory.regression_order(target, inputs), [1, 0, 2])
    problem = diagonal_problem(inputs, target)
    nothing = risk_of(problem, np.zeros((3, 3)))
    learned_first = np.diag([0.25, 0, 0])
    np.testing.assert_allclose(risk_of(problem, learned_first) - nothing, -0.25, rtol=1e-13)
    best = theory.reduced_rank_regression(problem, 1)
    np.testing.assert_allclose(best, np.diag([0, 2.0, 0]), atol=1e-14)
    np.testing.assert_allclose(risk_of(problem, best) - nothing, -1.0, rtol=1e-13)


def test_descent_passes_the_learned_order_and_not_the_best_rank():
    problem = diagonal_problem([8.0, 0.5, 0.5], [2.0, 1.0, 0.5])
    start = aj.initializers.identity((3, 3, 3), np.exp(-20.0))
    run = aj.gradient_descent(problem, start, 0.1, steps=150, save_at=[150], observe=aj.end_to_end)
    between = run.observations[0]  # after δ/ln(1.2) = 110 steps, before δ/ln(1.1) = 210
    np.testing.assert_allclose(between, np.diag([0.25, 0.0, 0.0]), atol=1e-4)
    assert np.abs(between - theory.reduced_rank_regression(problem, 1)).max() > 1.9


def test_modes_with_no_inputs_come_last():
    order = theory.regression_order([[0.0, 1.0, 0.0]], [[0.0, 4.0, 2.0]])
    np.testing.assert_array_equal(order, [[1, 0, 2]])


@pytest.mark.parametrize("shape", [(30, 4, 3), (4, 7, 3), (30, 2, 5)], ids=str)
def test_reduced_rank_regression_is_differentiable_in_the_data(shape):
    X, Y = data(4, *shape)
    weights = np.random.default_rng(0).standard_normal((shape[2], shape[1]))
    for rank in (0, 1, 2, 5):

        @jax.jit
        def f(X, Y, rank=rank):
            return (weights * theory.reduced_rank_regression(aj.regression(X, Y), rank)).sum()

        check_grads(f, (X, Y), 1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-6)


def test_its_derivative_stands_ties_on_one_side_and_is_nan_where_there_is_none():
    weights = np.random.default_rng(0).standard_normal((4, 4))

    def f(cross, inputs, rank):
        problem = aj.from_moments(inputs, cross, 100.0)
        return (weights * theory.reduced_rank_regression(problem, rank)).sum()

    tied = jnp.diag(jnp.array([2.0, 2.0, 1.0, 1.0]))
    check_grads(
        lambda c: f(c, jnp.eye(4), 2), (tied,), 1, modes=("fwd", "rev"), atol=1e-6, eps=1e-6
    )
    assert jnp.isnan(jax.grad(f)(tied, jnp.eye(4), 1)).all()
    missing = jnp.diag(jnp.array([1.0, 1.0, 1.0, 0.0]))
    assert jnp.isnan(jax.grad(f)(tied * missing, missing, 2)).all()


# The standing assumption ---------------------------------------------------------------------


def by_hand(problem):
    """The gap's numerator from numpy: the coupling of thin singular vectors, all of them."""
    inputs, cross = map(np.asarray, problem.full_moments())
    V = np.linalg.svd(cross, full_matrices=False)[2].T
    coupled = V.T @ inputs @ V
    return coupled - np.diag(np.diag(coupled)), inputs


ORDER = {"fro": "fro", "spectral": 2, "nuclear": "nuc"}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(40, 6, 3), (40, 3, 6), (6, 9, 4)], ids=str)
def test_the_gaps_are_what_their_formulas_say(norm, shape):
    problem = aj.regression(*data(5, *shape))
    B, inputs = by_hand(problem)
    total = np.linalg.norm(inputs, ORDER[norm])
    gap = theory.commutation_gap(problem, norm=norm)
    np.testing.assert_allclose(gap, np.linalg.norm(B, ORDER[norm]) / total, rtol=1e-11)
    identity = np.eye(len(inputs)) / np.linalg.norm(np.eye(len(inputs)), ORDER[norm])
    expected = 0.5 * np.linalg.norm(inputs / total - identity, ORDER[norm])
    np.testing.assert_allclose(theory.isotropy_gap(problem, norm=norm), expected, rtol=1e-11)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(40, 6, 3), (40, 3, 6), (6, 9, 4)], ids=str)
def test_the_full_gap_is_the_norm_of_the_full_decomposition(norm, shape):
    problem = aj.regression(*data(6, *shape))
    B = theory.joint_decomposition(problem).B
    total = np.linalg.norm(problem.full_moments()[0], ORDER[norm])
    gap = theory.commutation_gap(problem, norm=norm, completion="full")
    np.testing.assert_allclose(gap, np.linalg.norm(B, ORDER[norm]) / total, rtol=1e-11)


@pytest.mark.parametrize("shape", [(40, 6, 3), (40, 3, 6), (6, 9, 4), (40, 5, 5)], ids=str)
def test_the_decomposition_gives_the_moments_back(shape):
    problem = aj.regression(*data(7, *shape))
    inputs, cross = problem.full_moments()
    parts = theory.joint_decomposition(problem)
    U, V, r = parts.U, parts.V, len(parts.target_spectrum)
    np.testing.assert_allclose(U.T @ U, np.eye(shape[2]), atol=1e-13)
    np.testing.assert_allclose(V.T @ V, np.eye(V.shape[1]), atol=1e-13)
    moved = np.diag(parts.input_spectrum) + parts.B
    np.testing.assert_allclose(V @ moved @ V.T, inputs, atol=1e-12)
    np.testing.assert_allclose((U[:, :r] * parts.target_spectrum) @ V[:, :r].T, cross, atol=1e-12)
    np.testing.assert_allclose(parts.epsilon, np.linalg.norm(parts.B, 2), rtol=1e-12)
    # The completion makes the inputs diagonal in what no target reaches.
    np.testing.assert_allclose(parts.B[r:, r:], 0.0, atol=1e-13)
    thin = theory.joint_decomposition(problem, completion="thin")
    assert thin.U.shape == (shape[2], r)
    assert thin.V.shape == (shape[1], r)
    np.testing.assert_allclose(thin.input_spectrum, parts.input_spectrum[:r], rtol=1e-12)


def test_problems_that_commute_have_no_gap_where_singular_values_tie_too():
    for seed in range(5):
        V, U = orthogonal(seed, 6), orthogonal(seed + 50, 5)[:, :4]
        inputs = (V * np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.5])) @ V.T
        cross = (U * np.array([2.0, 2.0, 2.0, 0.7])) @ V[:, :4].T
        problem = aj.from_moments(inputs, cross, 100.0)
        naive, _ = by_hand(problem)
        assert np.linalg.norm(naive) > 0.1
        for completion in ("thin", "full"):
            assert theory.commutation_gap(problem, completion=completion) < 1e-14
        parts = theory.joint_decomposition(problem)
        assert parts.epsilon < 1e-13
        np.testing.assert_allclose(parts.input_spectrum, [5, 4, 3, 2, 1, 0.5], rtol=1e-13)
        rebuilt = (parts.U * parts.target_spectrum) @ parts.V[:, :5].T
        np.testing.assert_allclose(rebuilt, cross, atol=1e-13)


def test_autoencoding_and_whitened_inputs_have_no_commutation_gap():
    X, _ = data(8, 30, 6, 2)
    for problem in (aj.autoencoding(X), aj.autoencoding(X[:4]), aj.factorization(X[:3])):
        for completion in ("thin", "full"):
            assert theory.commutation_gap(problem, completion=completion) < 1e-13
    assert theory.isotropy_gap(aj.factorization(X)) < 1e-15


@pytest.mark.parametrize("size", [100, 400])
def test_many_modes_of_single_precision_keep_their_digits(size):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2 * size, size)) * np.geomspace(1, 1e-2, size)
    problem = aj.autoencoding(jnp.asarray(X, jnp.float32))
    assert theory.commutation_gap(problem) < 1e-5
    parts = theory.joint_decomposition(problem)
    assert parts.epsilon < 1e-5 * parts.input_spectrum.max()
    np.testing.assert_allclose(parts.V.T @ parts.V, np.eye(size), atol=1e-5)


def test_many_ties_of_single_precision_are_all_resolved():
    rng, pairs = np.random.default_rng(0), 40
    V = orthogonal(0, 2 * pairs)
    inputs = (V * rng.uniform(0.5, 1.5, 2 * pairs)) @ V.T
    cross = V * np.repeat(np.linspace(2.0, 1.0, pairs), 2) @ V.T
    symmetric = 0.5 * (inputs + inputs.T)
    problem = aj.from_moments(*(np.float32(moment) for moment in (symmetric, cross, 1e4)))
    assert problem.dtype == jnp.float32
    parts = theory.joint_decomposition(problem)
    # Pairs lie 1/39 apart, so that roundoff turns their directions by 40 eps and a bit.
    assert parts.epsilon < 2e-4
    assert theory.commutation_gap(problem) < 2e-4


def test_the_gaps_do_not_depend_on_the_scale_of_the_moments():
    inputs, cross = np.diag([1.0, 2.0]), np.array([[1.0, 0.3], [0.0, 1.0]])
    for dtype, scales in ((np.float32, (1e-25, 1e30)), (np.float64, (1e-170, 1e160, 1e300))):
        for function in (theory.isotropy_gap, theory.commutation_gap):
            expected = function(moments(inputs, cross))
            for scale in scales:
                size = dtype(scale)
                scaled = moments(size * inputs.astype(dtype), size * cross, energy=size * 9)
                got = function(scaled)
                np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("norm", NORMS)
def test_the_isotropy_gap_has_derivatives_also_at_isotropic_inputs(norm):
    def gap(size):
        inputs = jnp.diag(jnp.array([1.0, 1.0, 1.0, 1.0 + size]))
        return theory.isotropy_gap(aj.from_moments(inputs, jnp.eye(4), 9.0), norm=norm)

    assert jax.grad(gap)(0.0) == 0.0
    check_grads(gap, (0.5,), 1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-6)


def test_the_gaps_do_not_depend_on_the_axes_of_inputs_and_outputs():
    X, Y = data(9, 40, 6, 3)
    turned = aj.regression(3.0 * X @ orthogonal(0, 6), 0.1 * Y @ orthogonal(1, 3))
    for norm in NORMS:
        for gap in (
            lambda p, n=norm: theory.commutation_gap(p, norm=n),
            lambda p, n=norm: theory.commutation_gap(p, norm=n, completion="full"),
            lambda p, n=norm: theory.isotropy_gap(p, norm=n),
        ):
            np.testing.assert_allclose(gap(turned), gap(aj.regression(X, Y)), rtol=1e-11)


def test_the_isotropy_gap_has_a_bound_which_one_direction_of_inputs_reaches():
    for width in (1, 5):
        x = np.random.default_rng(width).standard_normal((1, width))
        bound = theory.isotropy_bound(width)
        np.testing.assert_allclose(
            theory.isotropy_gap(aj.autoencoding(np.repeat(x, width, 0))), bound, atol=1e-8
        )
        X, _ = data(width, 30, width, 1)
        assert theory.isotropy_gap(aj.autoencoding(X)) <= bound + 1e-15
    assert theory.isotropy_bound(784) < 0.695 < 0.70


def test_streamed_moments_tell_the_same_as_a_problem():
    X, Y = data(10, 40, 6, 3)
    moments = aj.accumulate((X[i : i + 10], Y[i : i + 10]) for i in range(0, 40, 10))
    problem = aj.regression(X, Y)
    for function in (theory.commutation_gap, theory.isotropy_gap):
        np.testing.assert_allclose(function(moments), function(problem), rtol=1e-11)
    np.testing.assert_allclose(
        theory.reduced_rank_regression(moments, 2),
        theory.reduced_rank_regression(problem, 2),
        rtol=1e-9,
    )


def test_the_gaps_of_mnist(mnist_dir):
    images = aj.datasets.mnist("train")
    X = aj.datasets.flatten(images, mean=0, std=1)
    Y = aj.datasets.one_hot(images.labels, 10)
    batches = (np.s_[i : i + 10_000] for i in range(0, 60_000, 10_000))
    moments = aj.accumulate((np.asarray(X[b], float), np.asarray(Y[b], float)) for b in batches)
    np.testing.assert_allclose(theory.commutation_gap(moments), 3.055e-2, rtol=1e-3)
    np.testing.assert_allclose(theory.isotropy_gap(moments), 0.6782, rtol=1e-3)


def test_a_problem_without_its_perturbation_keeps_all_but_it():
    for shape in ((40, 6, 3), (40, 3, 5), (6, 9, 4)):
        problem = aj.regression(*data(11, *shape))
        plain = theory.unperturbed(problem)
        assert aj.theory.alignment.certify(plain).holds
        parts = theory.joint_decomposition(problem)
        expected = (parts.V * parts.input_spectrum) @ parts.V.T
        inputs, cross = plain.full_moments()
        np.testing.assert_allclose(inputs, expected, atol=1e-13)
        np.testing.assert_allclose(cross, problem.full_moments()[1], atol=1e-14)


def test_wide_inputs_stay_in_the_span_of_their_samples():
    X, Y = data(12, 5, 20_000, 3)  # a (k_0, k_0) matrix would take 3 GB
    problem = aj.regression(X, Y)
    parts = theory.joint_decomposition(problem)
    assert parts.V.shape == (20_000, 5)
    assert 0 < theory.commutation_gap(problem) < 1
    np.testing.assert_allclose(theory.isotropy_gap(problem), 0.5, atol=0.3)
    assert theory.reduced_rank_regression(problem, 2).shape == (3, 20_000)


# Precision, transformations, refusals --------------------------------------------------------


def test_single_precision_stays_single():
    X, Y = (a.astype(np.float32) for a in data(13, 40, 6, 3))
    one, two = aj.regression(X, Y), aj.regression(X.astype(float), Y.astype(float))
    for function in (
        theory.commutation_gap,
        theory.isotropy_gap,
        lambda p: theory.commutation_gap(p, completion="full"),
        lambda p: theory.reduced_rank_regression(p, 2),
    ):
        assert function(one).dtype == jnp.float32
        np.testing.assert_allclose(function(one), function(two), rtol=2e-4, atol=2e-6)
    half, rate = np.array([2.0, 0.5], np.float32), np.float32(0.1)
    for value in (
        theory.transition_times(half, 1.0, 9.0),
        theory.transition_steps(half, 1.0, 9.0, rate),
        theory.limit_of_mode(half, 1.0, 2.0),
        theory.limiting_norm(half, 1.0, np.float32(2.0)),
    ):
        assert value.dtype == jnp.float32


def test_everything_compiles_and_maps():
    X, Y = data(14, 40, 6, 3)
    stack = jnp.stack([jnp.asarray(Y), jnp.asarray(Y) ** 2])

    def measure(Y):
        problem = aj.regression(X, Y)
        parts = theory.joint_decomposition(problem)
        return (
            theory.commutation_gap(problem),
            theory.isotropy_gap(problem),
            theory.reduced_rank_regression(problem, 2),
            parts.epsilon,
            aj.risk(theory.unperturbed(problem), (jnp.zeros((3, 6)),)),
        )

    for mapped, alone in zip(jax.jit(jax.vmap(measure))(stack), measure(stack[1]), strict=True):
        np.testing.assert_allclose(mapped[1], alone, rtol=1e-10, atol=1e-12)

    def times(sigma, delta, rate):
        return (
            theory.transition_times(sigma, 1.0, delta).sum(),
            theory.transition_steps(sigma, 1.0, delta, rate, exact=True).sum(),
            theory.limiting_norm(sigma, 1.0, 0.7),
            theory.separates(sigma, rate),
            theory.printed_separates(sigma, rate),
        )

    sigma, delta = jnp.array([2.0, 1.0, 0.1]), jnp.array([5.0, 8.0])
    mapped = jax.jit(jax.vmap(times, (None, 0, None)))(sigma, delta, 0.1)
    for several, alone in zip(mapped, times(sigma, 8.0, 0.1), strict=True):
        np.testing.assert_allclose(several[1], alone, rtol=1e-13)
    for part in (0, 1):
        check_grads(
            lambda s, d, r, part=part: times(s, d, r)[part],
            (sigma, 5.0, 0.1),
            1,
            modes=("fwd", "rev"),
            atol=1e-6,
            rtol=1e-6,
            eps=1e-6,
        )


def test_thousands_of_spectra_and_rates_in_one_call():
    rng = np.random.default_rng(0)
    target = -np.sort(-rng.uniform(0, 1, (50, 4)), axis=1)
    rates = np.geomspace(0.1, 2, 30)[:, None]
    assert theory.separates(target, rates).shape == (30, 50)
    assert theory.printed_separates(target, rates).shape == (30, 50)
    one = theory.separates(target[7], rates[3, 0])
    assert theory.separates(target, rates)[3, 7] == one


PROBLEM = aj.regression(*data(15, 20, 4, 3))
LOGISTIC = aj.classification(np.eye(2), [1, -1], loss="logistic")
SENSING = aj.sensing(np.eye(2)[None], np.ones(1))


def moments(inputs, cross=None, count=5, energy=9.0):
    inputs = jnp.asarray(inputs)
    cross = jnp.ones((1, len(inputs))) if cross is None else jnp.asarray(cross)
    return aj.Moments(jnp.asarray(count), inputs, cross, jnp.asarray(energy))


SKEW = np.array([[2.0, 1.0], [0.5, 2.0]])
INDEFINITE = np.array([[1.0, 2.0], [2.0, 1.0]])

CASES = [
    (f"{name} {kind}", function, value, error, message)
    for name, function in {
        "commutation_gap": theory.commutation_gap,
        "isotropy_gap": theory.isotropy_gap,
        "joint_decomposition": theory.joint_decomposition,
        "reduced_rank_regression": lambda p: theory.reduced_rank_regression(p, 1),
    }.items()
    for kind, value, error, message in [
        ("array", np.eye(2), TypeError, rf"^{name} takes Moments, or a problem.*ndarray"),
        ("loss", LOGISTIC, TypeError, rf"^{name} takes.*squared loss.*SampleProblem"),
        ("sensing", SENSING, TypeError, rf"^{name} takes.*SensingProblem"),
        (
            "skew",
            moments(SKEW),
            ValueError,
            r"^input_moment must be symmetric, but an entry differs from its mirror image by 0\.5",
        ),
        (
            "indefinite",
            moments(INDEFINITE),
            ValueError,
            r"^input_moment must be positive semidefinite, but has the eigenvalue -1",
        ),
        ("zero", moments(np.zeros((2, 2))), ValueError, r"^input_moment must not vanish"),
        ("empty", moments(np.eye(2), count=0), ValueError, rf"^{name} .*at least one sample"),
        ("NaN", moments(np.eye(2) * np.nan), ValueError, r"^input_moment must be finite"),
        ("shape", moments(np.eye(2), np.ones((1, 3))), ValueError, r"^input_moment must be \(k_0"),
    ]
]


@pytest.mark.parametrize(
    ("function", "value", "error", "message"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_what_holds_no_moments_is_refused(function, value, error, message):
    with pytest.raises(error, match=message):
        function(value)


CALLS = [
    ("delta 0", lambda: theory.transition_times(1.0, 1.0, 0.0), r"^delta must be positive.*= 0"),
    ("delta < 0", lambda: theory.transition_steps(1.0, 1.0, -2.0, 0.1), r"^delta must be .*-2"),
    ("delta NaN", lambda: theory.transition_times(1.0, 1.0, np.nan), r"^delta must be finite"),
    (
        "start above",
        lambda: theory.transition_times([1.0, 0.1], 8.0, 1.0),
        r"^delta must be so large that the start .*\(0, target / input\).*target = 1, input = 8",
    ),
    ("rate 0", lambda: theory.transition_steps(1.0, 1.0, 2.0, 0.0), r"^learning_rate must be pos"),
    ("target", lambda: theory.transition_times(-1.0, 1.0, 2.0), r"^target must be at least 0.*-1"),
    ("time", lambda: theory.limit_of_mode(1.0, 1.0, -1.0), r"^time must be at least 0, got -1"),
    ("norm", lambda: theory.limiting_norm([1.0], 1.0, 1.0, norm="fro"), r"^norm must be 'squared"),
    ("gap norm", lambda: theory.commutation_gap(PROBLEM, norm="2"), r"^norm must be .*'2'"),
    ("isotropy norm", lambda: theory.isotropy_gap(PROBLEM, norm=2), r"^norm must be one of fro"),
    (
        "completion array",
        lambda: theory.commutation_gap(PROBLEM, completion=np.array([1, 2])),
        r"^completion must be 'thin' or 'full', got array",
    ),
    (
        "norm array",
        lambda: theory.isotropy_gap(PROBLEM, norm=np.array([1, 2])),
        r"^norm must be one of fro",
    ),
    (
        "ascending later",
        lambda: theory.separates([[2.0, 1.0, 0.5], [2.0, 1.0, 1.5]], 0.1),
        r"^target must descend .* target\[1, 1\] = 1 is followed by target\[1, 2\] = 1\.5",
    ),
    (
        "completion",
        lambda: theory.commutation_gap(PROBLEM, completion="square"),
        r"^completion must be 'thin' or 'full', got 'square'",
    ),
    ("ascending", lambda: theory.separates([0.1, 1.0], 0.1), r"^target must .*\[0\] = 0\.1 is fo"),
    ("scalar", lambda: theory.separates(1.0, 0.1), r"^target must hold the modes"),
    ("rate", lambda: theory.printed_separates([1.0], -0.1), r"^learning_rate must be positive"),
    ("rank", lambda: theory.reduced_rank_regression(PROBLEM, -1), r"^rank must be at least 0.*-1"),
    ("width", lambda: theory.isotropy_bound(0), r"^input_width must be at least 1, got 0"),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS]
)
def test_values_outside_the_domain_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("rank", [1.0, "1", None, True], ids=repr)
def test_a_rank_is_an_integer(rank):
    with pytest.raises(TypeError, match=r"^rank must be an integer"):
        theory.reduced_rank_regression(PROBLEM, rank)


def test_a_traced_rank_is_refused():
    with pytest.raises(TypeError, match=r"^rank shapes the computation"):
        jax.jit(lambda k: theory.reduced_rank_regression(PROBLEM, k))(1)


@pytest.mark.parametrize(
    "function",
    [
        theory.commutation_gap,
        lambda p: theory.joint_decomposition(p).epsilon,
        lambda p: aj.risk(theory.unperturbed(p), (jnp.ones((3, 4)),)),
    ],
    ids=["commutation_gap", "joint_decomposition", "unperturbed"],
)
def test_derivatives_through_singular_vectors_are_refused(function):
    X, Y = data(15, 20, 4, 3)
    with pytest.raises(TypeError, match="has no derivative: it depends on singular vectors"):
        jax.grad(lambda X: function(aj.regression(X, Y)))(X)


def test_only_problems_lose_their_perturbation():
    with pytest.raises(TypeError, match=r"^problem must have the squared loss, got Moments"):
        theory.unperturbed(moments(np.eye(2)))
