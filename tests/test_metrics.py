"""Claims about metrics: their ranges, what they are invariant to, and what they detect."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax import metrics

DTYPES = [jnp.float64, jnp.float32]
WIDTHS = (5, 4, 6, 3)
OF_WEIGHTS = {
    "alignment": metrics.alignment,
    "chain_alignment": metrics.chain_alignment,
    "singular_vector_alignment": metrics.singular_vector_alignment,
    "balancedness": metrics.balancedness,
    "spectral_ratio": metrics.spectral_ratio,
    "invariance": lambda w: metrics.invariance(w, w),
    "strong_invariance": lambda w: metrics.strong_invariance(w, w),
}


def exact(dtype, factor=40):
    return factor * float(jnp.finfo(dtype).eps)


def gaussian(seed, widths=WIDTHS, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(seed), len(widths) - 1)
    return tuple(
        jax.random.normal(k, (b, a), dtype)
        for k, (a, b) in zip(keys, pairwise(widths), strict=True)
    )


def orthogonal(seed, size, dtype=jnp.float64):
    return jax.random.orthogonal(jax.random.key(seed), size).astype(dtype)


def frame(seed, widths, dtype=jnp.float64):
    return tuple(orthogonal(100 * seed + i, k, dtype) for i, k in enumerate(widths))


def aligned(bases, values, dtype=jnp.float64):
    """Layers ``P_i diag(values_i) P_{i-1}^T``, ragged widths allowed."""
    layers = []
    for before, after, s in zip(bases[:-1], bases[1:], values, strict=True):
        middle = np.zeros((after.shape[0], before.shape[0]))
        count = min(middle.shape)
        middle[range(count), range(count)] = np.asarray(s)[:count]
        layers.append((after @ jnp.asarray(middle, dtype) @ before.T).astype(dtype))
    return tuple(layers)


# Signs, ties, zeros and no order: everything an unsorted, signed decomposition allows.
VALUES = [[1.0, -1.0, 0.0, 2.0], [0.5, 3.0, 3.0, -1.0], [2.0, 2.0, 2.0]]
DEGENERATE = {
    "zero": tuple(jnp.zeros_like(w) for w in gaussian(0)),
    "one zero layer": (gaussian(0)[0], jnp.zeros((6, 4)), gaussian(0)[2]),
    "rank one": tuple(jnp.ones_like(w) for w in gaussian(0)),
    "ties": tuple(jnp.eye(*w.shape) for w in gaussian(0)),
    "aligned, with ties and zeros": aligned(frame(1, WIDTHS), VALUES),
    "huge": tuple(1e150 * w for w in gaussian(0)),
    "tiny": tuple(1e-150 * w for w in gaussian(0)),
}


@pytest.mark.parametrize("name", OF_WEIGHTS)
@pytest.mark.parametrize("case", DEGENERATE)
def test_no_metric_is_nan_on_zero_tied_or_rank_deficient_layers(name, case):
    values = OF_WEIGHTS[name](DEGENERATE[case])
    assert jnp.isfinite(values).all()
    if name != "balancedness":
        assert (jnp.abs(values) <= 1).all()
    if name not in ("balancedness", "singular_vector_alignment"):
        assert (values >= 0).all()


@pytest.mark.parametrize("name", OF_WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_metrics_keep_the_dtype_and_give_one_value_a_pair_or_layer(name, dtype):
    values = OF_WEIGHTS[name](gaussian(1, dtype=dtype))
    per_layer = name in ("spectral_ratio", "invariance", "strong_invariance")
    assert values.dtype == dtype
    assert values.shape == ((3,) if per_layer else (2,))
    assert OF_WEIGHTS[name](gaussian(1, (3, 2), dtype)).shape == ((1,) if per_layer else (0,))


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_metrics_under_jit_and_vmap_equal_one_call_at_a_time(name):
    runs = [gaussian(seed) for seed in range(3)]
    batch = jax.tree.map(lambda *w: jnp.stack(w), *runs)
    together = jax.jit(jax.vmap(OF_WEIGHTS[name]))(batch)
    alone = jnp.stack([OF_WEIGHTS[name](run) for run in runs])
    np.testing.assert_allclose(together, alone, rtol=0, atol=exact(jnp.float64, 400))


@pytest.mark.parametrize("metric", [metrics.alignment, metrics.chain_alignment])
@pytest.mark.parametrize("dtype", DTYPES)
def test_aligned_chains_have_alignment_one_with_ties_signs_and_zeros(metric, dtype):
    layers = aligned(frame(2, WIDTHS, dtype), VALUES, dtype)
    np.testing.assert_allclose(metric(layers), 1.0, rtol=0, atol=exact(dtype))


@pytest.mark.parametrize("metric", [metrics.alignment, metrics.chain_alignment])
def test_alignment_is_attained_at_zero_and_never_below(metric):
    first = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    second = jnp.array([[1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(metric((first, second)), 0.0, atol=exact(jnp.float64))
    for seed in range(20):
        rank_one = [jnp.outer(w[:, 0], w[0]) for w in gaussian(seed)]
        for layers in (gaussian(seed), rank_one):
            assert ((metric(layers) >= 0) & (metric(layers) <= 1)).all()


@pytest.mark.parametrize("metric", [metrics.alignment, metrics.chain_alignment])
def test_alignment_ignores_scales_and_orthogonal_changes_of_every_basis(metric):
    layers, turns = gaussian(3), frame(3, WIDTHS)
    turned = [
        10.0**i * b @ w @ a.T
        for i, (w, a, b) in enumerate(zip(layers, turns[:-1], turns[1:], strict=True))
    ]
    np.testing.assert_allclose(metric(turned), metric(layers), rtol=0, atol=exact(jnp.float64, 100))


def test_the_chain_test_catches_what_an_identity_between_two_layers_hides_from_pairs():
    first, _, last = gaussian(4, (3, 3, 3, 3))
    layers = (first, jnp.eye(3), last)
    np.testing.assert_allclose(metrics.alignment(layers), 1.0, rtol=0, atol=exact(jnp.float64))
    m, n = np.asarray(first @ first.T), np.asarray(last.T @ last)
    # The identity's own norm, sqrt(3), divides the product of W_2 with either neighbour.
    scale = 3 * np.trace(m) * np.trace(n)
    expected = 1 - 2**0.5 * np.linalg.norm(m @ n - n @ m) / scale
    assert expected < 0.96
    np.testing.assert_allclose(metrics.chain_alignment(layers), expected, rtol=1e-13)


def test_alignment_has_finite_derivatives_at_zero_and_at_aligned_layers():
    for case in ("zero", "ties", "aligned, with ties and zeros"):
        for metric in (metrics.alignment, metrics.chain_alignment):
            slopes = jax.grad(lambda w, m=metric: m(w).sum())(DEGENERATE[case])
            assert all(jnp.isfinite(s).all() for s in slopes)


def test_chance_alignment_is_the_mean_over_independent_gaussian_layers():
    widths = (4, 5, 6, 3)
    level = metrics.chance_alignment(jax.random.key(0), widths, samples=1000)
    sample = jnp.stack([metrics.alignment(gaussian(1000 + s, widths)) for s in range(150)])
    error = sample.std(0) * (1 / 150 + 1 / 1000) ** 0.5
    assert level.shape == (2,)
    assert (jnp.abs(level - sample.mean(0)) < 4.5 * error).all()
    assert ((level > 0.5) & (level < 0.95)).all()
    assert (level == metrics.chance_alignment(jax.random.key(0), widths)).all()


def test_the_papers_metric_is_ill_defined_on_exactly_aligned_layers():
    bases = frame(5, (4, 4, 4))
    values = ([4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0])
    layers = aligned(bases, values)
    np.testing.assert_allclose(metrics.alignment(layers), 1.0, atol=exact(jnp.float64))
    # Sorted downwards, the two orders are opposite, so no corresponding vectors match.
    np.testing.assert_allclose(metrics.singular_vector_alignment(layers), 0.0, atol=1e-13)


def test_the_papers_metric_is_one_in_size_for_rank_one_layers_that_share_a_vector():
    bases = frame(6, (1, 4, 1))
    layers = (bases[1][:, :1], bases[1][:, :1].T)
    size = jnp.abs(metrics.singular_vector_alignment(layers))
    np.testing.assert_allclose(size, 1.0, rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [WIDTHS, (3, 4), (4, 4, 4, 4, 4)])
def test_layers_that_stay_diagonal_in_the_given_bases_are_invariant(dtype, widths):
    bases = frame(7, widths, dtype)
    values = [[1.0, 1.0, -2.0, 0.0, 3.0, 1.0][i % 2 :] for i in range(len(widths) - 1)]
    layers = aligned(bases, values, dtype)
    for metric in (metrics.invariance, metrics.strong_invariance):
        np.testing.assert_allclose(metric(layers, bases=bases), 1.0, rtol=0, atol=exact(dtype))


@pytest.mark.parametrize("metric", [metrics.invariance, metrics.strong_invariance])
def test_every_start_is_invariant_to_itself_and_to_new_singular_values(metric):
    start = gaussian(8)
    decompositions = [jnp.linalg.svd(w, full_matrices=False) for w in start]
    moved = tuple((u * jnp.sin(1 + 9 * s)) @ vt for u, s, vt in decompositions)
    for now in (start, moved):
        np.testing.assert_allclose(metric(now, start), 1.0, rtol=0, atol=exact(jnp.float64))


def test_invariance_leaves_the_outer_bases_free_and_strong_invariance_does_not():
    bases = frame(9, (4, 4, 4, 4))
    values = [[1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 2.0, 3.0], [2.0, 1.0, 4.0, 3.0]]
    first, middle, last = aligned(bases, values)
    moved = (first @ orthogonal(1, 4), middle, orthogonal(2, 4) @ last)
    np.testing.assert_allclose(
        metrics.invariance(moved, bases=bases), 1.0, rtol=0, atol=exact(jnp.float64)
    )
    strong = metrics.strong_invariance(moved, bases=bases)
    assert strong[0] < 0.9
    assert strong[2] < 0.9
    assert strong[1] == pytest.approx(1.0, abs=1e-14)


def test_invariance_falls_where_an_inner_basis_turns():
    bases = frame(10, (4, 4, 4, 4))
    values = [[1.0, 2.0, 3.0, 4.0]] * 3
    first, middle, last = aligned(bases, values)
    turn = orthogonal(3, 4)
    turned = (turn @ first, turn @ middle @ turn.T, last @ turn.T)
    assert (metrics.invariance(turned, bases=bases) < 0.95).all()
    np.testing.assert_allclose(metrics.chain_alignment(turned), 1.0, rtol=0, atol=1e-14)


def test_strong_invariance_is_the_cosine_squared_of_a_rotation():
    angle = 0.3
    turn = jnp.array([[jnp.cos(angle), jnp.sin(angle)], [-jnp.sin(angle), jnp.cos(angle)]])
    share = metrics.strong_invariance((turn,), bases=(jnp.eye(2), jnp.eye(2)))
    np.testing.assert_allclose(share, jnp.cos(angle) ** 2, rtol=1e-14)


def test_balancedness_is_the_norm_of_the_difference_and_zero_for_balanced_layers():
    layers = gaussian(11)
    expected = [np.linalg.norm(b.T @ b - a @ a.T) for a, b in pairwise(map(np.asarray, layers))]
    np.testing.assert_allclose(metrics.balancedness(layers), expected, rtol=1e-13)
    bases = frame(11, (3, 3, 3))
    balanced = aligned(bases, [[1.0, 2.0, 0.0]] * 2)
    np.testing.assert_allclose(metrics.balancedness(balanced), 0.0, atol=1e-14)


def test_balancedness_is_unchanged_by_orthogonal_changes_of_hidden_bases():
    layers, turns = gaussian(12), frame(12, WIDTHS)
    turned = [b @ w @ a.T for w, a, b in zip(layers, turns[:-1], turns[1:], strict=True)]
    np.testing.assert_allclose(
        metrics.balancedness(turned), metrics.balancedness(layers), rtol=1e-13
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_spectral_ratio_spans_from_a_flat_spectrum_to_rank_one(dtype):
    flat = orthogonal(13, 5, dtype)
    layers = (7 * flat, jnp.outer(flat[0], flat[1]), jnp.zeros((5, 5), dtype))
    np.testing.assert_allclose(
        metrics.spectral_ratio(layers), [5**-0.5, 1.0, 1.0], rtol=exact(dtype)
    )


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
    if isinstance(problem, aj.problems.SensingProblem):
        _, outputs, inputs = problem.matrices.shape
    else:
        inputs, outputs = problem.input_width, problem.output_width
    return tuple(scale * w for w in gaussian(seed, (inputs, 4, 3, outputs), dtype))


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


def test_margin_of_zero_weights_is_zero_and_of_other_problems_refused():
    zeros = tuple(0 * w for w in layers_for(PROBLEMS["logistic"], 0))
    assert metrics.margin(PROBLEMS["logistic"], zeros) == 0
    for name in ("regression", "sensing"):
        with pytest.raises(TypeError, match="margin needs a classification problem"):
            metrics.margin(PROBLEMS[name], layers_for(PROBLEMS[name], 0))
    own = aj.classification(X, SIGNS, loss=lambda z, y: (z[0] - y) ** 4)
    with pytest.raises(TypeError, match="margin needs a classification problem"):
        metrics.margin(own, layers_for(PROBLEMS["logistic"], 0))


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
    bases = [jnp.eye(k) for k in widths]
    layers = aligned(bases, [np.pad(row, (0, 9)) for row in s])
    padded = np.pad(s, ((0, 0), (0, max(widths) - rank)))
    expected = max(
        spectrum[j]
        * sum((padded[i + 1 :, row].prod() * padded[:i, j].prod()) ** 2 for i in range(depth))
        for row in range(outputs)
        for j in range(inputs)
    )
    value = precise_sharpness(problem, layers)
    np.testing.assert_allclose(value, expected, rtol=1e-9)


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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: metrics.alignment((w[0], w[2])), ValueError, "chain"),
        (lambda w: metrics.chain_alignment(w[0]), TypeError, "weights"),
        (lambda w: metrics.invariance(w), TypeError, "start and bases"),
        (lambda w: metrics.invariance(w, w, bases=frame(0, WIDTHS)), TypeError, "got both"),
        (lambda w: metrics.invariance(w, w[:2]), ValueError, "start must have the shapes"),
        (lambda w: metrics.strong_invariance(w, bases=w), ValueError, "bases must be"),
        (lambda w: metrics.strong_invariance(w, bases=jnp.eye(3)), TypeError, "bases"),
        (lambda w: metrics.chance_alignment(0, WIDTHS), TypeError, "key"),
        (lambda w: metrics.chance_alignment(jax.random.key(0), (3,)), ValueError, "widths"),
        (
            lambda w: metrics.chance_alignment(jax.random.key(0), WIDTHS, samples=0),
            ValueError,
            "samples",
        ),
        (lambda w: metrics.sharpness(PROBLEMS["regression"], w[:1]), ValueError, "weights"),
        (
            lambda w: metrics.sharpness(PROBLEMS["regression"], w, max_iterations=0),
            ValueError,
            "max_iterations",
        ),
        (
            lambda w: metrics.sharpness(PROBLEMS["regression"], w, tolerance=float("nan")),
            ValueError,
            "tolerance",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call(gaussian(0))
