"""Training in coefficients: Theorem 2, and all that descents of matrices can do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import alignjax as aj
from alignjax import engines
from alignjax.structures import (
    Basis,
    Circulant,
    Conv2d,
    Dense,
    Diagonal,
    Sparse,
    Toeplitz,
    matrices,
)

KEY = jax.random.key(0)
MASK = np.array(jax.random.uniform(jax.random.key(1), (9, 9)) < 0.4, int)
BASIS = np.array(jax.random.normal(jax.random.key(2), (4, 9, 9)))
ORTHONORMAL = {
    "dense": Dense((9, 9)),
    "conv": Conv2d(3, 3),
    "circular conv": Conv2d(3, 3, padding="circular"),
    "toeplitz": Toeplitz(9),
    "circulant": Circulant(9),
    "diagonal": Diagonal(9),
    "sparse": Sparse(MASK),
    "basis": Basis(BASIS),
    "mixed": (Toeplitz((6, 9)), Dense((4, 6)), Toeplitz((9, 4))),
}
X = jax.random.normal(jax.random.key(3), (12, 9))
Y = jax.random.normal(jax.random.key(4), (12, 9))
PROBLEM = aj.regression(X, Y)
RATE = 0.02


def layers_of(structure, depth=3):
    return structure if isinstance(structure, tuple) else (structure,) * depth


def start_of(structure, key=KEY, scale=0.6, dtype=jnp.float64):
    layers = layers_of(structure)
    keys = jax.random.split(key, len(layers))
    return tuple(
        (scale * jax.random.normal(k, (s.dim,)) / s.dim**0.5).astype(dtype)
        for k, s in zip(keys, layers, strict=True)
    )


def projected_descent(structure, weights, rate, steps):
    """The other side of Theorem 2: a gradient step on matrices, then back to the subspace."""
    layers = layers_of(structure)

    @jax.jit
    def step(weights):
        slopes = aj.gradient(PROBLEM, weights)
        return tuple(
            s.project(w - rate * g) for s, w, g in zip(layers, weights, slopes, strict=True)
        )

    for _ in range(steps):
        weights = step(weights)
    return weights


def apart(found, expected):
    pairs = zip(found, expected, strict=True)
    return max(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in pairs)


@pytest.mark.parametrize("name", ORTHONORMAL)
def test_descent_in_orthonormal_coordinates_is_projected_descent(name):
    structure = ORTHONORMAL[name]
    start = start_of(structure)
    run = aj.gradient_descent(PROBLEM, start, RATE, steps=1000, structure=structure)
    assert run.status == aj.Status.COMPLETED
    assert run.observations["risk"][-1] < 0.99 * run.observations["risk"][0]
    expected = projected_descent(structure, matrices(structure, start), RATE, 1000)
    assert apart(matrices(structure, run.weights), expected) < 1e-12


@pytest.mark.parametrize(
    "make", [lambda c: Conv2d(3, 3, coordinates=c), lambda c: Toeplitz(9, coordinates=c)]
)
def test_descent_on_raw_taps_is_not_projected_descent(make):
    raw = make("raw")
    start = start_of(raw, scale=0.2)
    run = aj.gradient_descent(PROBLEM, start, RATE / 9, steps=100, structure=raw)
    assert run.status == aj.Status.COMPLETED
    expected = projected_descent(raw, matrices(raw, start), RATE / 9, 100)
    assert apart(matrices(raw, run.weights), expected) > 1e-2


@pytest.mark.parametrize(
    "make", [lambda c: Conv2d(3, 3, coordinates=c), lambda c: Toeplitz(9, coordinates=c)]
)
def test_raw_descent_is_descent_with_a_rate_of_its_own_for_each_tap(make):
    raw, orthonormal = make("raw"), make("orthonormal")
    start = start_of(raw, scale=0.2)
    norms = jnp.asarray(raw.norms)
    scaled = tuple(norms * c for c in start)
    rate = RATE / 9
    run = aj.gradient_descent(PROBLEM, start, rate, steps=50, structure=raw)

    def risk_of(coefficients):
        return aj.risk(PROBLEM, matrices(orthonormal, coefficients))

    for _ in range(50):
        slopes = jax.grad(risk_of)(scaled)
        scaled = tuple(c - rate * norms**2 * g for c, g in zip(scaled, slopes, strict=True))
    assert apart(tuple(norms * c for c in run.weights), scaled) < 1e-12


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("name", ORTHONORMAL)
def test_the_gradient_is_that_of_the_risk_of_the_matrices(name, dtype):
    structure = ORTHONORMAL[name]
    start = start_of(structure, dtype=dtype)
    problem = aj.regression(X.astype(dtype), Y.astype(dtype))
    moved, taken = engines.advance(
        problem, start, jnp.asarray(1.0, dtype), 1, max_steps=1, structure=layers_of(structure)
    )
    slopes = jax.grad(lambda c: aj.risk(problem, matrices(structure, c)))(start)
    assert taken == 1
    for a, b, c in zip(start, moved, slopes, strict=True):
        assert b.dtype == dtype
        tolerance = 1e-13 if dtype == jnp.float64 else 1e-5
        np.testing.assert_allclose(a - b, c, rtol=0, atol=tolerance * float(jnp.abs(c).max() + 1))


@pytest.mark.parametrize(
    "problem",
    [
        aj.regression(X[:4], Y[:4]),
        aj.from_moments(X.T @ X / 12, Y.T @ X / 12, (Y**2).sum() / 12),
        aj.classification(X, np.arange(12) % 9, "cross_entropy"),
        aj.classification(X[:4], np.arange(4) % 9, "cross_entropy", classes=9),
        aj.sensing(Y[:, :, None] * X[:, None, :], X[:, 0]),
    ],
    ids=["few samples", "moments", "cross entropy", "few samples' cross entropy", "sensing"],
)
def test_dense_structures_train_as_matrices_on_every_problem(problem):
    structure = Dense((9, 9))
    start = start_of(structure, scale=2.0)
    weights = matrices(structure, start)
    full = aj.gradient_descent(problem, weights, 1e-2, steps=50)
    run = aj.gradient_descent(problem, start, 1e-2, steps=50, structure=structure)
    assert apart(matrices(structure, run.weights), full.weights) < 1e-11
    assert apart(full.weights, weights) > 1e-4
    np.testing.assert_allclose(run.observations["risk"], full.observations["risk"], rtol=1e-10)


def test_one_compilation_serves_a_sweep_over_rates_and_starts():
    structure = Conv2d(3, 3)
    rates = jnp.linspace(0.001, 0.02, 5)
    starts = jax.vmap(lambda key: start_of(structure, key))(jax.random.split(KEY, 4))

    def risk_after(start, rate, until=None):
        run = aj.gradient_descent(PROBLEM, start, rate, steps=40, structure=structure)
        return run.observations["risk"][-1]

    swept = jax.vmap(jax.vmap(risk_after, (None, 0)), (0, None))(starts, rates)
    assert swept.shape == (4, 5)
    one = risk_after(jax.tree.map(lambda c: c[2], starts), rates[3])
    np.testing.assert_allclose(swept[2, 3], one, rtol=1e-12)


def test_equal_structures_share_one_compilation():
    from alignjax.descent import _gradient_descent

    start = start_of(Toeplitz(9))
    aj.gradient_descent(PROBLEM, start, 0.01, steps=7, structure=Toeplitz(9))
    compiled = _gradient_descent._cache_size()
    aj.gradient_descent(PROBLEM, start, 0.02, steps=7, structure=(Toeplitz(9),) * 3)
    assert _gradient_descent._cache_size() == compiled


@pytest.mark.parametrize("name", ["conv", "circulant", "mixed"])
def test_derivatives_through_a_run_equal_finite_differences(name):
    structure = ORTHONORMAL[name]
    start = start_of(structure)

    def final(rate, scale):
        moved = tuple(scale * c for c in start)
        run = aj.gradient_descent(
            PROBLEM, moved, rate, steps=30, save_at=(3, 30), structure=structure
        )
        return run.observations["risk"][-1]

    slopes = jax.grad(final, argnums=(0, 1))(0.01, 1.0)
    h = 1e-5
    by_rate = (final(0.01 + h, 1.0) - final(0.01 - h, 1.0)) / (2 * h)
    by_scale = (final(0.01, 1.0 + h) - final(0.01, 1.0 - h)) / (2 * h)
    np.testing.assert_allclose(slopes, (by_rate, by_scale), rtol=1e-7)


def test_diverged_lanes_freeze_and_leave_the_derivatives_of_others_alone():
    structure = Conv2d(3, 3)
    start = start_of(structure)

    def final(rate):
        run = aj.gradient_descent(PROBLEM, start, rate, steps=60, structure=structure)
        return run.observations["risk"][-1], run.status

    rates = jnp.array([0.01, 50.0])
    (values, status), slopes = jax.vmap(lambda r: (final(r), jax.grad(lambda q: final(q)[0])(r)))(
        rates
    )
    assert status.tolist() == [aj.Status.COMPLETED, aj.Status.DIVERGED]
    assert jnp.isfinite(values).all()
    np.testing.assert_allclose(slopes[0], jax.grad(lambda q: final(q)[0])(0.01), rtol=1e-10)


def test_until_and_observe_see_coefficients():
    structure = Toeplitz(9)
    start = start_of(structure)

    def look(coefficients):
        return {
            "norm": jnp.linalg.norm(coefficients[0]),
            "risk": aj.risk(PROBLEM, matrices(structure, coefficients)),
        }

    free = aj.gradient_descent(
        PROBLEM,
        start,
        RATE,
        steps=100,
        structure=structure,
        observe=look,
        save_at=aj.every(100, 10),
    )
    bound = free.observations["risk"][4] * (1 + 1e-9)  # two programs round differently
    run = aj.gradient_descent(
        PROBLEM, start, RATE, steps=100, structure=structure, until=bound, save_at=aj.every(100, 10)
    )
    assert run.status == aj.Status.REACHED
    assert run.stopped_at == 40
    np.testing.assert_allclose(free.observations["norm"][0], jnp.linalg.norm(start[0]))


def test_a_rate_for_each_layer():
    structure = Toeplitz(9)
    start = start_of(structure)
    run = aj.gradient_descent(PROBLEM, start, [0.01, 0.0, 0.02], steps=10, structure=structure)
    assert (run.weights[1] == start[1]).all()
    assert not (run.weights[0] == start[0]).all()


@pytest.mark.parametrize("batch_size", [None, 4])
def test_optimizers_see_coefficients(batch_size):
    structure = Dense((9, 9), coordinates="raw")
    start = start_of(structure)
    options = {} if batch_size is None else {"batch_size": batch_size, "key": KEY}
    adam = optax.adam(1e-2)
    weights = matrices(structure, start)
    full = aj.optimizer_descent(PROBLEM, weights, adam, steps=30, **options)
    run = aj.optimizer_descent(PROBLEM, start, adam, steps=30, structure=structure, **options)
    assert apart(matrices(structure, run.weights), full.weights) < 1e-9
    toeplitz = Toeplitz(9)
    run = aj.optimizer_descent(
        PROBLEM, start_of(toeplitz), adam, steps=200, structure=toeplitz, **options
    )
    assert run.observations["risk"][-1] < run.observations["risk"][0]


def test_wide_images_are_trained_without_a_matrix():
    size = 128
    structure = Conv2d(size, 3)
    image = jax.random.normal(KEY, (1, size * size), jnp.float32)
    problem = aj.autoencoding(image)
    start = tuple(jnp.zeros(9, jnp.float32).at[4].set(0.6 * size) for _ in range(3))
    run = aj.gradient_descent(problem, start, 1e-3, steps=3, structure=structure)
    # A matrix of the layer would have 2.7e8 entries.
    assert run.weights[0].dtype == jnp.float32
    assert run.observations["risk"][-1] < run.observations["risk"][0]


TOEPLITZ = Toeplitz(9)
START = start_of(TOEPLITZ)
BAD = [
    ("text", lambda: descend(structure="conv"), TypeError, r"^structure .*'conv'"),
    ("class", lambda: descend(structure=Toeplitz), TypeError, r"^structure"),
    ("count", lambda: descend(structure=(Toeplitz(9),) * 2), ValueError, r"^structure .*2.*3"),
    ("empty", lambda: descend(structure=()), ValueError, r"^structure"),
    (
        "chain",
        lambda: descend(structure=(Toeplitz(9), Toeplitz(8), Toeplitz(9))),
        ValueError,
        r"^structure.*chain",
    ),
    ("inputs", lambda: descend(structure=Toeplitz(8)), ValueError, r"weights\[0\]|structure\[0\]"),
    ("length", lambda: descend((START[0][:3], *START[1:])), ValueError, r"^weights\[0\] .*17.*3"),
    ("matrix", lambda: descend((jnp.eye(9),) * 3), ValueError, r"^weights\[0\]"),
    ("complex", lambda: descend((1j * START[0], *START[1:])), TypeError, r"^weights\[0\]"),
    ("no layers", lambda: descend(()), ValueError, r"^weights"),
    ("an array", lambda: descend(jnp.stack(START)), TypeError, r"^weights"),
    ("rate", lambda: descend(rate=[0.1, 0.1]), ValueError, r"^learning_rate"),
]


def descend(weights=START, structure=TOEPLITZ, rate=0.1):
    return aj.gradient_descent(PROBLEM, weights, rate, steps=2, structure=structure)


@pytest.mark.parametrize(
    ("call", "error", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_bad_structures_and_coefficients_are_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_minibatches_of_fewer_samples_than_pixels_train_in_coefficients(loss):
    images, labels = X[:4], np.arange(4) % 9
    if loss == "squared":
        problem = aj.autoencoding(images)
    else:
        problem = aj.classification(images, labels, loss, classes=9)
    structure = Dense((9, 9), coordinates="raw")
    start = start_of(structure, scale=2.0)
    options = {"steps": 6, "batch_size": 2, "key": KEY}
    sgd = optax.sgd(1e-2)
    full = aj.optimizer_descent(problem, matrices(structure, start), sgd, **options)
    run = aj.optimizer_descent(problem, start, sgd, structure=structure, **options)
    assert apart(matrices(structure, run.weights), full.weights) < 1e-12
