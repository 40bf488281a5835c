"""Claims about metrics of weights: ranges, what they are invariant to, what they detect."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize("metric", [metrics.invariance, metrics.strong_invariance])
def test_frozen_bases_of_either_precision_are_taken_also_while_tracing(metric):
    layers = gaussian(16)
    for dtype in DTYPES:
        bases = frame(16, WIDTHS, dtype)
        alone = metric(layers, bases=bases)
        closed_over = jax.jit(lambda w, b=bases: metric(w, bases=b))(layers)
        passed = jax.jit(lambda w, b: metric(w, bases=b))(layers, bases)
        np.testing.assert_allclose(closed_over, alone, rtol=1e-13)
        np.testing.assert_allclose(passed, alone, rtol=1e-13)


def test_frozen_bases_are_checked_also_where_only_the_weights_are_traced():
    bases = [jnp.eye(k) for k in WIDTHS]
    bases[1] = bases[1] + 1e-3
    with pytest.raises(ValueError, match=r"^bases\[1\] must be orthogonal"):
        jax.jit(lambda w: metrics.invariance(w, bases=bases))(gaussian(16))


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


def by_hand_alignments(first, second):
    """``(alignment, chain_alignment)`` of two layers, or of stacks of them."""
    m, n = second.swapaxes(-1, -2) @ second, first @ first.swapaxes(-1, -2)
    off = 2**0.5 * np.linalg.norm(m @ n - n @ m, axis=(-2, -1))
    own = np.linalg.norm(m, axis=(-2, -1)) * np.linalg.norm(n, axis=(-2, -1))
    return 1 - off / own, 1 - off / np.trace(m, 0, -2, -1) / np.trace(n, 0, -2, -1)


@pytest.mark.parametrize("widths", [(16, 16, 16), (64, 64, 64), (10, 100, 30), (256, 64, 16)])
def test_chance_levels_are_near_the_documented_ones(widths):
    rng, (m, k, n) = np.random.default_rng(0), widths
    found = by_hand_alignments(rng.standard_normal((30, k, m)), rng.standard_normal((30, n, k)))
    pair = 1 - 2 * ((k - 1) * (k + 2) / (k * (m + k + 1) * (n + k + 1))) ** 0.5
    chain = 1 - 2 * ((k - 1) * (k + 2) / (k**3 * m * n)) ** 0.5
    assert abs(found[0].mean() - pair) < 0.012
    assert abs(found[1].mean() - chain) < 0.002


def test_chance_alignment_takes_the_measure_of_the_whole_chain():
    level = metrics.chance_alignment(
        jax.random.key(0), (16, 16, 16, 16), samples=50, of=metrics.chain_alignment
    )
    assert level.shape == (2,)
    np.testing.assert_allclose(level, 1 - 2 / 16**1.5, atol=0.005)
    with pytest.raises(TypeError, match=r"^of must be"):
        metrics.chance_alignment(jax.random.key(0), (4, 4, 4), of="chain")


def test_balancedness_drifts_by_the_square_of_the_rate_in_a_step_and_by_the_rate_over_a_time():
    rng = np.random.default_rng(1)
    target = rng.standard_normal((3, 3))
    start = [rng.standard_normal((3, 3)) for _ in range(2)]

    def difference(layers):
        return layers[1].T @ layers[1] - layers[0] @ layers[0].T

    def drift(rate, steps):
        a, b = start
        for _ in range(steps):
            error = b @ a - target
            a, b = a - rate * b.T @ error, b - rate * error @ a.T
        return np.linalg.norm(difference([a, b]) - difference(start))

    np.testing.assert_allclose(drift(1e-3, 1) / drift(5e-4, 1), 4.0, rtol=1e-6)
    np.testing.assert_allclose(drift(1e-3, 1000) / drift(5e-4, 2000), 2.0, rtol=1e-2)


def test_balancedness_is_the_norm_of_the_difference_and_zero_for_balanced_layers():
    layers = gaussian(11)
    expected = [np.linalg.norm(b.T @ b - a @ a.T) for a, b in pairwise(map(np.asarray, layers))]
    np.testing.assert_allclose(metrics.balancedness(layers), expected, rtol=1e-13)
    bases = frame(11, (3, 3, 3))
    balanced = aligned(bases, [[1.0, 2.0, 0.0]] * 2)
    np.testing.assert_allclose(metrics.balancedness(balanced), 0.0, atol=1e-14)


def test_balancedness_is_right_wherever_its_value_is_a_float():
    base = gaussian(11)
    plain = np.asarray(metrics.balancedness(base))
    for scale in (2.0**-500, 2.0**500):
        scaled = metrics.balancedness([scale * w for w in base])
        np.testing.assert_allclose(scaled, plain * scale**2, rtol=1e-13)
    # Squares of these layers overflow, their difference is exactly zero, and the third is far off.
    layers = (2.0**700 * jnp.eye(3), 2.0**700 * jnp.eye(3), jnp.eye(3))
    assert metrics.balancedness(layers).tolist() == [0.0, np.inf]


def test_the_slope_of_balancedness_is_the_difference_quotient():
    np.testing.assert_allclose(
        jax.grad(lambda w: metrics.balancedness((2 * jnp.ones((1, 1)), w * jnp.ones((1, 1))))[0])(
            3.0
        ),
        6.0,
        rtol=1e-14,
    )
    layers, direction = gaussian(13), gaussian(14)

    def along(t):
        moved = [w + t * v for w, v in zip(layers, direction, strict=True)]
        return metrics.balancedness(moved).sum()

    step = 1e-5
    quotient = (along(step) - along(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(along)(0.0), quotient, rtol=1e-8)


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
