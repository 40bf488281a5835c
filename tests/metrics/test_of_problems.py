"""Claims about metrics of a problem and weights: log-risk, margin, sharpness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax import metrics

DTYPES = [jnp.float64, jnp.float32]


def exact(dtype, factor=40):
    return factor * float(jnp.finfo(dtype).eps)


X = np.random.default_rng(0).normal(size=(12, 5))
SIGNS = np.where(X[:, 0] > 0, 1.0, -1.0)
IDS = np.argmax(X[:, :3], axis=1)
PROBLEMS = {
    "regression": aj.regression(X, X[:, :3] + X[:, 1:4] ** 2),
    "regression in the span": aj.regression(X[:3], X[:3, :3]),
    "sensing": aj.sensing(X[:, :3, None] * X[:, None, ::-1], X[:, 0]),
    "logistic": aj.classification(X, SIGNS),
    "exponential": aj.classification(X, SIGNS, loss="exponential"),
    "logistic in the span": aj.classification(X[:3], SIGNS[:3]),
    "cross-entropy": aj.classification(X, IDS, loss="cross_entropy"),
}


def layers_for(problem, seed, scale=0.5, dtype=jnp.float64):
    widths = (problem.input_width, 4, 3, problem.output_width)
    return aj.initializers.gaussian(jax.random.key(seed), widths, scale, dtype=dtype)


@pytest.mark.parametrize("name", PROBLEMS)
def test_log_risk_is_the_logarithm_of_the_risk_where_that_exists(name):
    problem = PROBLEMS[name]
    layers = layers_for(problem, 14)
    value = jax.jit(metrics.log_risk)(problem, layers)
    np.testing.assert_allclose(value, jnp.log(aj.risk(problem, layers)), rtol=1e-12)


@pytest.mark.parametrize("loss", ["logistic", "exponential", "cross_entropy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_risk_is_exact_where_the_losses_underflow(loss, dtype):
    inputs = np.array([[1.0], [2.0]], dtype)
    weights = (jnp.array([[5e3]], dtype),)
    if loss == "cross_entropy":
        weights = (jnp.array([[5e3], [0.0]], dtype),)
        problem = aj.classification(inputs, np.array([0, 0]), loss=loss)
    else:
        problem = aj.classification(inputs, np.ones(2, dtype), loss=loss)
    assert aj.risk(problem, weights) == 0
    expected = -5e3 - np.log(2)  # log of (exp(-5000) + exp(-10000)) / 2
    np.testing.assert_allclose(metrics.log_risk(problem, weights), expected, rtol=exact(dtype, 4))


@pytest.mark.parametrize("name", ["logistic", "exponential", "logistic in the span"])
def test_margin_of_signs_is_the_smallest_signed_distance_to_the_separating_plane(name):
    problem = PROBLEMS[name]
    count = problem.inputs.shape[0]
    layers = layers_for(problem, 15)
    w = np.asarray(aj.end_to_end(layers))[0]
    expected = (SIGNS[:count] * (X[:count] @ w)).min() / np.linalg.norm(w)
    np.testing.assert_allclose(jax.jit(metrics.margin)(problem, layers), expected, rtol=1e-12)
    scaled = (3 * layers[0], *layers[1:])
    np.testing.assert_allclose(metrics.margin(problem, scaled), expected, rtol=1e-12)


def test_margin_of_classes_is_the_least_lead_of_the_right_class():
    problem, layers = PROBLEMS["cross-entropy"], layers_for(PROBLEMS["cross-entropy"], 16)
    w = np.asarray(aj.end_to_end(layers))
    z = X @ w.T
    leads = [z[i, c] - np.delete(z[i], c).max() for i, c in enumerate(IDS)]
    expected = min(leads) / np.linalg.norm(w)
    np.testing.assert_allclose(metrics.margin(problem, layers), expected, rtol=1e-12)


# Scales of the layers whose product, or some power of it, no float holds.
EXTREMES = {
    "float64 tiny": (jnp.float64, (1e-200, 1e-200, 1e-200)),
    "float64 huge": (jnp.float64, (1e200, 1e200, 1e200)),
    "float64 mixed": (jnp.float64, (1e-250, 1e200, 1e250)),
    "float32 tiny": (jnp.float32, (1e-30, 1e-30, 1e-30)),
    "float32 huge": (jnp.float32, (1e30, 1e30, 1e30)),
}


@pytest.mark.parametrize("name", ["logistic", "logistic in the span", "cross-entropy"])
@pytest.mark.parametrize("case", EXTREMES)
def test_margin_does_not_depend_on_the_scale_of_any_layer(name, case):
    dtype, scales = EXTREMES[case]
    problem = jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, PROBLEMS[name]
    )
    layers = layers_for(problem, 15, dtype=dtype)
    scaled = tuple((c * w).astype(dtype) for c, w in zip(scales, layers, strict=True))
    value = metrics.margin(problem, scaled)
    assert value.dtype == dtype
    expected = metrics.margin(problem, layers)
    assert jnp.abs(expected) > 1e-3
    np.testing.assert_allclose(value, expected, rtol=exact(dtype))


def test_margin_of_a_hundred_layers_is_that_of_their_direction():
    # At unit norm the product of these layers would shrink by a tenth each: 1e-100 in the end.
    turns = [jax.random.orthogonal(jax.random.key(s), 100).astype(jnp.float32) for s in range(100)]
    x = jax.random.normal(jax.random.key(1), (4, 100), jnp.float32)
    problem = aj.classification(x, np.ones(4))
    row = jnp.ones((1, 100), jnp.float32)
    direction = np.ones((1, 100))
    for turn in reversed(turns):
        direction = direction @ np.asarray(turn, np.float64)
    expected = (np.asarray(x, np.float64) @ direction.T).min() / np.linalg.norm(direction)
    np.testing.assert_allclose(metrics.margin(problem, (*turns, row)), expected, rtol=1e-4)


def test_the_slope_of_the_margin_is_the_difference_quotient():
    problem = PROBLEMS["cross-entropy"]
    layers, direction = layers_for(problem, 16), layers_for(problem, 17)

    def along(t):
        moved = [w + t * v for w, v in zip(layers, direction, strict=True)]
        return metrics.margin(problem, moved)

    step = 1e-5
    quotient = (along(step) - along(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(along)(0.0), quotient, rtol=1e-7)


def test_margin_is_zero_where_the_product_is_zero():
    problem = PROBLEMS["logistic"]
    zeros = tuple(0 * w for w in layers_for(problem, 0))
    assert metrics.margin(problem, zeros) == 0
    left, right = jnp.array([[1.0, 0.0]]), jnp.zeros((2, 5)).at[1].set(1.0)
    assert metrics.margin(problem, (right, left)) == 0


@jax.jit
def dense_hessian(problem, layers):
    flat, unravel = jax.flatten_util.ravel_pytree(layers)
    return jax.hessian(lambda v: aj.risk(problem, unravel(v)))(flat)


def dense_spectrum(problem, layers):
    return np.linalg.eigvalsh(dense_hessian(problem, layers))


@jax.jit
def precise_sharpness(problem, layers):
    return metrics.sharpness(problem, layers, tolerance=1e-14, max_iterations=20_000)


@pytest.mark.parametrize("name", PROBLEMS)
def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian(name):
    problem = PROBLEMS[name]
    for seed in (17, 18):
        layers = layers_for(problem, seed)
        spectrum = dense_spectrum(problem, layers)
        value = precise_sharpness(problem, layers)
        assert abs(value - spectrum[-1]) < 1e-8 * np.abs(spectrum).max()
        # A quotient never exceeds the largest eigenvalue.
        assert value <= spectrum[-1] + 1e-12 * np.abs(spectrum).max()


def test_sharpness_is_not_misled_by_a_larger_negative_eigenvalue():
    problem = aj.factorization(jnp.diag(jnp.array([-4.0, 1.0, 0.5])))
    layers = (jnp.diag(jnp.array([1.0, 0.3, 0.1])), jnp.eye(3), -jnp.eye(3))
    found = False
    for scale in (0.5, 1.0, 1.5):
        scaled = tuple(scale * w for w in layers)
        for sign in (1.0, -1.0):
            turned = (sign * scaled[0], *scaled[1:])
            spectrum = dense_spectrum(problem, turned)
            found |= bool(-spectrum[0] > 1.01 * spectrum[-1])
            value = precise_sharpness(problem, turned)
            assert abs(value - spectrum[-1]) < 1e-8 * np.abs(spectrum).max()
    assert found


@pytest.mark.parametrize("dtype", DTYPES)
def test_sharpness_at_the_origin_of_two_layers_is_the_largest_cross_moment(dtype):
    # The Hessian there is [[0, -C], [-C^T, 0]]: its extreme eigenvalues are an exact pair +-sigma.
    problem = aj.from_moments(
        np.eye(3, dtype=dtype), np.diag([3.0, 1.0, 0.5]).astype(dtype), dtype(12.0)
    )
    zeros = (jnp.zeros((3, 3), dtype), jnp.zeros((3, 3), dtype))
    value = metrics.sharpness(problem, zeros)
    assert value.dtype == dtype
    np.testing.assert_allclose(value, 3.0, rtol=1e-8 if dtype == jnp.float64 else 1e-5)
    deep = (*zeros, zeros[0])
    assert metrics.sharpness(problem, deep) == 0


@pytest.mark.parametrize("widths", [(3, 3, 3), (4, 3, 3, 2), (3, 5, 4, 3), (3, 2)])
def test_sharpness_at_an_aligned_minimum_is_the_closed_form(widths):
    inputs, outputs, depth = widths[0], widths[-1], len(widths) - 1
    rank = min(widths)
    generator = np.random.default_rng(sum(widths))
    spectrum = generator.uniform(0.5, 2.0, inputs)
    spectrum[-1] = 5.0
    s = generator.uniform(0.5, 1.5, (depth, rank))
    cross = np.zeros((outputs, inputs))
    cross[range(rank), range(rank)] = s.prod(0) * spectrum[:rank]
    energy = (cross**2 / spectrum).sum()
    problem = aj.from_moments(np.diag(spectrum), cross, energy)
    layers = tuple(
        jnp.eye(after, before) * np.pad(row, (0, 9))[:before]
        for after, before, row in zip(widths[1:], widths[:-1], s, strict=True)
    )
    padded = np.pad(s, ((0, 0), (0, max(widths) - rank)))
    expected = max(
        spectrum[j]
        * sum((padded[i + 1 :, row].prod() * padded[:i, j].prod()) ** 2 for i in range(depth))
        for row in range(outputs)
        for j in range(inputs)
    )
    value = precise_sharpness(problem, layers)
    np.testing.assert_allclose(value, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(jnp.float64, c) for c in (1e-80, 1e-60, 1.0, 1e60, 1e80)]
    + [(jnp.float32, c) for c in (1e-14, 1e14)],
)
@pytest.mark.parametrize("name", ["regression", "sensing"])
def test_sharpness_is_the_largest_eigenvalue_at_every_scale_of_the_data(name, dtype, scale):
    if name == "regression":
        inputs = (scale * X).astype(dtype)
        problem = aj.regression(inputs, inputs[:, :3] - inputs[:, 2:])
    else:
        matrices = (scale * X[:, :3, None] * X[:, None, ::-1]).astype(dtype)
        problem = aj.sensing(matrices, matrices[:, 0, 0])
    layers = layers_for(problem, 22, dtype=dtype)
    # Brought to unit size, so that the reference itself cannot under- or overflow.
    hessian = np.asarray(dense_hessian(problem, layers), np.float64)
    size = np.abs(hessian).max()
    assert np.isfinite(size)
    assert size > 0
    largest = np.linalg.eigvalsh(hessian / size)[-1]
    value = np.float64(precise_sharpness(problem, layers)) / size
    np.testing.assert_allclose(value, largest, rtol=1e-8 if dtype == jnp.float64 else 1e-5)


@pytest.mark.parametrize("power", [-500, -300, 300, 500])
def test_sharpness_without_targets_is_homogeneous_in_the_weights(power):
    # Two layers and Y = 0: the risk has degree 4, its Hessian degree 2.
    problem = aj.regression(X, np.zeros((12, 3)))
    layers = aj.initializers.gaussian(jax.random.key(23), (5, 4, 3), 0.5)
    expected = precise_sharpness(problem, layers)
    value = precise_sharpness(problem, tuple(2.0**power * w for w in layers))
    np.testing.assert_allclose(value / 2.0 ** (2 * power), expected, rtol=1e-12)


def test_sharpness_where_every_eigenvalue_is_negative_is_the_least_negative():
    # A concave loss: the Hessian of one layer is minus the inputs' second moment.
    problem = aj.classification(X, SIGNS, loss=lambda z, y: -0.5 * jnp.sum(z**2), classes=1)
    value = precise_sharpness(problem, (jnp.ones((1, 5)),))
    np.testing.assert_allclose(value, np.linalg.eigvalsh(-X.T @ X / 12)[-1], rtol=1e-6)


def test_sharpness_can_be_mapped_compiled_and_differentiated():
    problem = PROBLEMS["regression"]
    runs = [layers_for(problem, seed) for seed in (19, 20)]
    batch = jax.tree.map(lambda *w: jnp.stack(w), *runs)
    together = jax.jit(jax.vmap(lambda w: metrics.sharpness(problem, w)))(batch)
    alone = jnp.stack([precise_sharpness(problem, run) for run in runs])
    np.testing.assert_allclose(together, alone, rtol=1e-6)

    direction = layers_for(problem, 21)

    def along(t):
        return tuple(w + t * v for w, v in zip(runs[0], direction, strict=True))

    slope = jax.grad(
        lambda t: metrics.sharpness(problem, along(t), tolerance=0.0, max_iterations=3000)
    )(0.0)
    step = 1e-5
    ends = [dense_spectrum(problem, along(t))[-1] for t in (step, -step)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


def random_problem(key, log_scale):
    """A regression, and layers of any size from .01 to 3."""
    keys = jax.random.split(key, 3)
    inputs = jax.random.normal(keys[0], (8, 4))
    problem = aj.regression(inputs, jax.random.normal(keys[1], (8, 2)))
    return problem, aj.initializers.gaussian(keys[2], (4, 3, 3, 2), 10.0**log_scale)


def test_sharpness_of_many_random_networks_is_the_largest_eigenvalue():
    def both(key, log_scale):
        problem, layers = random_problem(key, log_scale)
        found = metrics.sharpness_and_residual(problem, layers)
        return found, metrics.sharpness(problem, layers), dense_hessian(problem, layers)

    keys = jax.random.split(jax.random.key(0), 300)
    found, value, hessians = jax.jit(jax.vmap(both))(keys, jnp.linspace(-2, 0.5, 300))
    spectra = np.linalg.eigvalsh(hessians)
    rho = np.abs(spectra).max(1)
    assert not np.isnan(value).any()
    assert (np.abs(value - spectra[:, -1]) < 1e-13 * rho).all()
    assert (found[0] == value).all()
    assert (found[1] <= 1e-10 * rho * (1 + 1e-9)).all()


def test_sharpness_tells_near_eigenvalues_apart_or_says_that_it_has_not():
    inputs = np.concatenate([[1.0, 1 - 1e-7], np.linspace(0.1, 0.9, 28)])
    problem = aj.from_moments(np.diag(inputs), np.zeros((1, 30)), 1.0)
    layer = (jnp.zeros((1, 30)),)
    np.testing.assert_allclose(metrics.sharpness(problem, layer), 1.0, rtol=1e-13)
    few = {"max_iterations": 4, "tolerance": 0.0}
    with pytest.raises(RuntimeError, match="not converged after max_iterations = 4"):
        metrics.sharpness(problem, layer, **few)
    assert np.isnan(jax.jit(lambda w: metrics.sharpness(problem, w, **few))(layer))
    value, residual = metrics.sharpness_and_residual(problem, layer, **few)
    assert 0 < residual < 1
    # Some eigenvalue is that near, and none is above the largest.
    assert np.abs(inputs - value).min() <= residual
    assert value < 1


def test_sharpness_is_compiled_once_for_all_problems_of_the_same_shapes():
    traces, counts = [], [0]

    def loss(z, y):
        traces.append(z)
        return 0.5 * jnp.sum((z - y) ** 2)

    for key in jax.random.split(jax.random.key(1), 3):
        inputs = jax.random.normal(key, (12, 5))
        problem = aj.classification(inputs, SIGNS, loss=loss, classes=1)
        before = len(traces)
        metrics.sharpness(problem, (inputs[:1],))
        counts.append(len(traces) - before)
    assert counts[1] > 0
    assert counts[2:] == [0, 0]


def test_sharpness_and_trackers_run_inside_shard_map_and_with_other_generators():
    problem, layers = PROBLEMS["regression"], layers_for(PROBLEMS["regression"], 24)
    expected = metrics.sharpness(problem, layers), metrics.SpectralTracker.init(layers)
    expected = expected[0], expected[1].update(layers)[0]

    def measure(layers):
        tracker = metrics.SpectralTracker.init(layers)

        def again(tracker, _):
            ratios, tracker = tracker.update(layers)
            return tracker, ratios

        ratios = jax.lax.scan(again, tracker, None, length=1)[1]
        return metrics.sharpness(problem, layers), jax.tree.map(lambda a: a[0], ratios)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("runs",))
    spec = jax.sharding.PartitionSpec("runs")
    mapped = jax.shard_map(jax.vmap(measure), mesh=mesh, in_specs=spec, out_specs=spec)
    with jax.default_prng_impl("rbg"):
        found = jax.jit(mapped)(jax.tree.map(lambda w: w[None], layers))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-12)
