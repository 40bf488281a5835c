"""Two layers in closed form, aligned or whitened, against integration of the flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import alignjax as aj
from alignjax.closed_forms import aligned_two_layer_flow, two_layer_flow

TIMES = np.array([0.0, 0.3, 1.0, 3.0])
WIDTHS = [(3, 4, 3), (4, 6, 2), (2, 2, 5), (4, 1, 3)]  # k_0, k_1, k_d


def orthogonal(rng, size):
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def balanced(widths, scale=0.3, seed=0):
    rng, r = np.random.default_rng(seed), min(widths)
    V, R, U = (orthogonal(rng, k)[:, :r] for k in widths)
    s = scale * rng.uniform(0.5, 1.5, r)
    return (R * s) @ V.T, (U * s) @ R.T


def cross_moment(widths, spectrum, seed=1):
    rng = np.random.default_rng(seed)
    V, U = orthogonal(rng, widths[0]), orthogonal(rng, widths[-1])
    r = min(widths[0], widths[-1])
    s = {"generic": np.linspace(1.5, 0.5, r), "tied": np.ones(r)}.get(spectrum)
    if spectrum == "singular":
        s = np.linspace(1.2, 0.0, r)
    return (U[:, :r] * s) @ V[:, :r].T, U[:, :r], V[:, :r], s


def integrate(inner, outer, sxx, syx, times):
    n = inner.size

    def slope(_, y):
        a, b = y[:n].reshape(inner.shape), y[n:].reshape(outer.shape)
        error = syx - b @ a @ sxx
        return np.concatenate([(b.T @ error).ravel(), (error @ a.T).ravel()])

    run = solve_ivp(
        slope,
        (0, times[-1]),
        np.concatenate([inner.ravel(), outer.ravel()]),
        t_eval=times,
        method="DOP853",
        rtol=1e-13,
        atol=1e-14,
    )
    return [(y[:n].reshape(inner.shape), y[n:].reshape(outer.shape)) for y in run.y.T]


def white(syx, variance=1.0):
    return aj.from_moments(variance * np.eye(syx.shape[1]), syx, 100.0)


@pytest.mark.parametrize("spectrum", ["generic", "tied", "singular"])
@pytest.mark.parametrize("variance", [1.0, 2.5])
@pytest.mark.parametrize("widths", WIDTHS)
def test_two_layer_flow_solves_the_flow(widths, spectrum, variance):
    syx = cross_moment(widths, spectrum)[0]
    start = balanced(widths)
    path = two_layer_flow(white(syx, variance), start, TIMES)
    sxx = variance * np.eye(widths[0])
    for i, (a, b) in enumerate(integrate(*start, sxx, syx, TIMES)):
        np.testing.assert_allclose(path.product[i], b @ a, atol=1e-10)
        np.testing.assert_allclose(path.input_gram[i], a.T @ a, atol=1e-10)
        np.testing.assert_allclose(path.output_gram[i], b @ b.T, atol=1e-10)


def test_two_layer_flow_settles_at_the_best_product_it_can_reach():
    for widths in [(4, 6, 2), (2, 2, 5), (4, 1, 3)]:
        syx, U, V, s = cross_moment(widths, "generic")
        r = min(widths)
        late = two_layer_flow(white(syx, 2.0), balanced(widths), [1e6, 1e300]).product
        best = (U[:, :r] * s[:r]) @ V[:, :r].T / 2.0
        np.testing.assert_allclose(late, [best, best], atol=1e-13)


def test_a_start_of_the_wrong_orientation_never_learns_the_weakest_mode():
    syx, U, V, s = cross_moment((3, 4, 3), "generic")
    W_1, W_2 = balanced((3, 4, 3))
    if np.linalg.det(W_2 @ W_1) * np.linalg.det(syx) > 0:
        W_2 = np.diag([-1.0, 1.0, 1.0]) @ W_2
    late = two_layer_flow(white(syx), (W_1, W_2), 1e12).product
    np.testing.assert_allclose(late, (U[:, :2] * s[:2]) @ V[:, :2].T, atol=1e-11)


def test_a_start_orthogonal_to_modes_never_learns_them():
    syx, U, V, s = cross_moment((3, 2, 3), "generic")
    unit = np.array([0.6, 0.8])
    W_1, W_2 = 0.1 * np.outer(unit, V[:, 1]), 0.1 * np.outer(U[:, 1], unit)
    late = two_layer_flow(white(syx), (W_1, W_2), [1e2, 1e6, 1e300]).product
    np.testing.assert_allclose(late, [s[1] * np.outer(U[:, 1], V[:, 1])] * 3, atol=1e-13)


@pytest.mark.parametrize("tiny", [1e-8, 1e-15, 1e-100])
def test_modes_that_start_at_any_scales_are_learned_where_singular_vectors_are_sparse(tiny):
    times, start = np.array([0.0, 5.0, -np.log(tiny), 3e2]), np.array([0.3, tiny, 0.2])
    s, hidden = np.array([2.0, 1.0, 0.5]), orthogonal(np.random.default_rng(0), 3)
    for order in ([0, 1, 2], [1, 2, 0]):
        syx = np.diag(s[order])
        weights = hidden * start[order], start[order][:, None] * hidden.T
        path = two_layer_flow(white(syx), weights, times).product
        modes = aj.closed_forms.mode_flow(times[:, None], start[order] ** 2, s[order], 1.0)
        np.testing.assert_allclose(path, modes[:, :, None] * np.eye(3), rtol=1e-11, atol=1e-14)


def test_a_start_that_is_lost_beside_others_stays_nothing():
    inner = np.array([[0.3, 0.0, 0.0], [0.0, 0.8e-100, 0.0], [0.0, 0.6e-100, 0.2]]).T
    late = two_layer_flow(white(np.diag([2.0, 1.0, 0.5])), (inner.T, inner), [1e2, 3e2, 1e4])
    np.testing.assert_allclose(late.product, [np.diag([2.0, 0.0, 0.5])] * 3, atol=1e-13)


def test_derivatives_in_a_start_below_the_roundoff_of_others_are_those_of_its_mode():
    problem, others = white(np.diag([2.0, 1.0])), jnp.array([0.3, 0.0])

    def by_matrices(small):
        layer = jnp.diag(others + jnp.array([0.0, small]))
        return two_layer_flow(problem, (layer, layer), 36.0).product[1, 1]

    slope = jax.grad(lambda small: aj.closed_forms.mode_flow(36.0, small**2, 1.0, 1.0))(1e-15)
    np.testing.assert_allclose(jax.grad(by_matrices)(1e-15), slope, rtol=1e-12)


def test_what_singular_vectors_mix_in_by_roundoff_is_never_learned():
    rng = np.random.default_rng(0)
    syx = np.zeros((3, 3))
    syx[:2, :2] = orthogonal(rng, 2) @ np.diag([2.0, 1.5]) @ orthogonal(rng, 2)
    syx[2, 2] = 1.0
    start = np.diag([0.0, 0.0, 0.3])
    late = two_layer_flow(white(syx), (start, start), [60.0, 1e6]).product
    np.testing.assert_allclose(late, [np.diag([0.0, 0.0, 1.0])] * 2, atol=1e-14)


def test_two_layer_flow_composes():
    widths = (3, 5, 2)
    problem = white(cross_moment(widths, "generic")[0], 1.5)
    half = two_layer_flow(problem, balanced(widths), 0.8)
    # Any factor of the Gram matrix is a start: the flow knows no more.
    gram = np.block([[half.input_gram, half.product.T], [half.product, half.output_gram]])
    values, vectors = np.linalg.eigh(gram)
    factor = vectors[:, -2:] * np.sqrt(values[-2:])  # its rank
    again = two_layer_flow(problem, (factor[:3].T, factor[3:]), 1.4)
    np.testing.assert_allclose(
        again.product, two_layer_flow(problem, balanced(widths), 2.2).product, atol=1e-12
    )


def test_balance_is_kept():
    widths = (3, 5, 2)
    path = two_layer_flow(white(cross_moment(widths, "generic")[0]), balanced(widths), TIMES)
    # W_2 W_2^T and W_1^T W_1 share their eigenvalues while the layers are balanced.
    outer = np.linalg.eigvalsh(path.output_gram)
    inner = np.linalg.eigvalsh(path.input_gram)[:, -2:]
    np.testing.assert_allclose(outer, inner, atol=1e-13)


@pytest.mark.parametrize("widths", [(4, 6, 2), (2, 2, 5), (4, 1, 3)])
def test_derivatives_in_start_and_time_are_those_of_the_linearized_flow(widths):
    variance, rng, (k, _, k_d) = 1.5, np.random.default_rng(3), widths
    syx = cross_moment(widths, "generic")[0]
    W_1, W_2 = balanced(widths)
    Q, N = np.concatenate([W_1.T, W_2]), k + k_d
    dQ = rng.standard_normal(Q.shape)
    F = np.block([[np.zeros((k, k)), syx.T], [syx, np.zeros((k_d, k_d))]])

    def slope(_, y):
        P, D = y.reshape(2, N, N)
        G = F - variance * P
        return np.stack([F @ P + P @ G, G @ D + D @ G]).ravel()

    first = np.stack([Q @ Q.T, Q @ dQ.T + dQ @ Q.T]).ravel()
    run = solve_ivp(slope, (0, 3.0), first, t_eval=TIMES, method="DOP853", rtol=1e-13, atol=1e-14)
    expected = run.y.T.reshape(-1, 2, N, N)
    problem = white(syx, variance)
    start, moved = (jnp.asarray(W_1), jnp.asarray(W_2)), (dQ[:k].T, dQ[k:])
    path, tangent = jax.jvp(lambda *w: two_layer_flow(problem, w, TIMES), start, moved)
    np.testing.assert_allclose(tangent.product, expected[:, 1, k:, :k], atol=1e-9)
    np.testing.assert_allclose(tangent.input_gram, expected[:, 1, :k, :k], atol=1e-9)
    np.testing.assert_allclose(tangent.output_gram, expected[:, 1, k:, k:], atol=1e-9)

    weights = rng.standard_normal(path.product.shape)
    pulled = jax.grad(lambda w: jnp.vdot(weights, two_layer_flow(problem, w, TIMES).product))(start)
    forward = float(jnp.vdot(weights, tangent.product))
    assert sum(np.vdot(g, d) for g, d in zip(pulled, moved, strict=True)) == pytest.approx(
        forward, rel=1e-11
    )
    in_time = jax.jacfwd(lambda t: two_layer_flow(problem, start, t).product)(1.0)
    P = expected[2, 0]
    np.testing.assert_allclose(in_time, (F @ P + P @ F - variance * P @ P)[k:, :k], atol=1e-10)


def test_derivatives_in_the_start_fade_where_the_flow_forgets_it():
    problem = white(cross_moment((4, 6, 2), "generic")[0])
    start = tuple(map(jnp.asarray, balanced((4, 6, 2))))
    moved = tuple(map(jnp.ones_like, start))
    late = jax.jvp(lambda *w: two_layer_flow(problem, w, 1e6).product, start, moved)[1]
    np.testing.assert_allclose(late, 0.0, atol=1e-12)


def test_derivatives_that_are_not_offered_are_refused():
    syx = jnp.asarray(cross_moment((2, 2, 2), "generic")[0])
    start = tuple(map(jnp.asarray, balanced((2, 2, 2))))
    with pytest.raises(TypeError, match="not in the data"):
        jax.grad(
            lambda s: two_layer_flow(aj.from_moments(jnp.eye(2), s, 9.0), start, 1.0).product.sum()
        )(syx)
    problem = white(syx)
    with pytest.raises(TypeError, match="second derivatives of two_layer_flow"):
        jax.hessian(lambda w: two_layer_flow(problem, w, 1.0).product.sum())(start)


def test_two_layer_flow_under_jit_and_vmap_and_in_float32():
    widths = (3, 4, 2)
    problem, start = white(cross_moment(widths, "generic")[0]), balanced(widths)
    starts = tuple(jnp.stack([w, 0.5 * w]) for w in start)
    mapped = jax.jit(jax.vmap(lambda *w: two_layer_flow(problem, w, 2.0).product))(*starts)
    half = two_layer_flow(problem, tuple(0.5 * w for w in start), 2.0).product
    np.testing.assert_allclose(mapped[1], half, atol=1e-13)
    small = aj.from_moments(*(np.float32(m) for m in (np.eye(3), problem.cross_moment, 100.0)))
    got = two_layer_flow(small, tuple(np.float32(w) for w in start), np.float32([0.5, 1e6]))
    assert got.product.dtype == jnp.float32
    exact = two_layer_flow(problem, start, [0.5, 1e6]).product
    np.testing.assert_allclose(got.product, exact, atol=1e-5)


def aligned_case(widths=(4, 5, 3), seed=5):
    """Moments with common bases, a rank-deficient cross moment and unequal inputs."""
    rng = np.random.default_rng(seed)
    V, U = orthogonal(rng, widths[0]), orthogonal(rng, widths[-1])
    inputs, target = np.array([1.5, 0.8, 0.6, 0.3]), np.array([1.2, 0.7, 0.0])
    sxx, syx = (V * inputs) @ V.T, (U * target) @ V[:, :3].T
    return (
        sxx,
        syx,
        orthogonal(rng, widths[1]),
        aj.theory.alignment.certify(aj.from_moments(sxx, syx, 100.0)),
    )


@pytest.mark.parametrize("rows", [5, 3, 2])
def test_aligned_two_layer_flow_solves_the_flow(rows):
    sxx, syx, Q, certificate = aligned_case()
    deltas = np.array([0.8, 1.0, 0.6])[: min(rows, 3)]
    W_1, W_2 = aligned_two_layer_flow(certificate, Q[:rows], deltas, TIMES)
    assert W_1.shape == (4, 5, 4)
    assert W_2.shape == (4, 3, 5)
    paths = integrate(np.asarray(W_1[0]), np.asarray(W_2[0]), sxx, syx, TIMES)
    for i, (a, b) in enumerate(paths):
        np.testing.assert_allclose(W_1[i], a, atol=1e-10)
        np.testing.assert_allclose(W_2[i], b, atol=1e-10)
        np.testing.assert_allclose(
            np.swapaxes(W_2[i], 0, 1) @ W_2[i], W_1[i] @ np.swapaxes(W_1[i], 0, 1), atol=1e-14
        )
    np.testing.assert_allclose(np.linalg.norm(W_2[0], 2), np.exp(-deltas.min()), rtol=1e-14)


def test_aligned_two_layer_flow_holds_above_the_final_height_too():
    sxx, syx, Q, certificate = aligned_case()
    deltas = np.array([0.05, 0.01, 0.02])  # heights 0.8, 0.875 and 0
    W_1, W_2 = aligned_two_layer_flow(certificate, Q, deltas, TIMES)
    for i, (a, b) in enumerate(integrate(np.asarray(W_1[0]), np.asarray(W_2[0]), sxx, syx, TIMES)):
        np.testing.assert_allclose(W_2[i] @ W_1[i], b @ a, atol=1e-10)


def test_the_printed_theorem_fails_for_other_invertible_q():
    _, _, Q, certificate = aligned_case()
    skewed = Q @ np.diag([3**0.5, 1, 1, 1, 3**-0.5]) @ orthogonal(np.random.default_rng(0), 5)
    with pytest.raises(ValueError, match="balanced"):
        aligned_two_layer_flow(certificate, skewed, 1.0, TIMES)
    # What the message says: the printed layers, with Q of condition 3, leave the flow.
    s, time = np.array([1.0, 0.7, 0.4]), 20.0
    rng = np.random.default_rng(0)
    square = orthogonal(rng, 3) @ np.diag([3**0.5, 1, 3**-0.5]) @ orthogonal(rng, 3)
    start = np.exp(-2.0) * square.T, np.exp(-2.0) * np.linalg.inv(square).T
    reached, _ = integrate(*start, np.eye(3), np.diag(s), [time])[0]
    w = aj.closed_forms.mode_flow(time, np.exp(-4.0), s, 1.0)
    printed = square.T * np.sqrt(w)
    assert np.linalg.norm(reached - printed) > 0.3 * np.linalg.norm(printed)


def test_aligned_layers_have_the_product_of_the_whitened_flow():
    problem = white(cross_moment((3, 4, 3), "generic")[0])
    certificate = aj.theory.alignment.certify(problem)
    Q = orthogonal(np.random.default_rng(2), 4)
    W_1, W_2 = aligned_two_layer_flow(certificate, Q, 1.5, TIMES)
    path = two_layer_flow(problem, (W_1[0], W_2[0]), TIMES)
    np.testing.assert_allclose(W_2 @ W_1, path.product, atol=1e-13)


def test_bad_arguments_are_refused_by_name():
    sxx, syx, Q, certificate = aligned_case()
    coloured = aj.from_moments(sxx, syx, 100.0)
    start = balanced((4, 5, 3))
    with pytest.raises(ValueError, match="white inputs"):
        two_layer_flow(coloured, start, 1.0)
    with pytest.raises(ValueError, match="span only"):
        two_layer_flow(aj.autoencoding(np.eye(4)[:2]), balanced((4, 5, 4)), 1.0)
    problem = white(syx)
    with pytest.raises(ValueError, match=r"balanced, .* differ by"):
        two_layer_flow(problem, (start[0], 1.01 * start[1]), 1.0)
    with pytest.raises(ValueError, match="two layers"):
        two_layer_flow(problem, (syx,), 1.0)
    with pytest.raises(ValueError, match="times must increase"):
        two_layer_flow(problem, start, [1.0, 0.5])
    with pytest.raises(TypeError, match="squared loss"):
        two_layer_flow("problem", start, 1.0)
    with pytest.raises(ValueError, match="deltas must be above 0"):
        aligned_two_layer_flow(certificate, Q, [1.0, 0.0, 1.0], 1.0)
    with pytest.raises(ValueError, match="must leave a start"):
        aligned_two_layer_flow(certificate, Q, 400.0, 1.0)
    with pytest.raises(ValueError, match=r"shape \(\) or \(3,\)"):
        aligned_two_layer_flow(certificate, Q, np.ones(5), 1.0)
    with pytest.raises(ValueError, match="orthonormal rows"):
        aligned_two_layer_flow(certificate, Q[:, :3], 1.0, 1.0)
    with pytest.raises(TypeError, match="certificate must be what certify returned"):
        aligned_two_layer_flow(problem, Q, 1.0, 1.0)
    mixed = aj.from_moments(np.diag([1.0, 2.0]), np.array([[1.0, 1.0], [0.0, 1.0]]), 100.0)
    with pytest.raises(ValueError, match="no common bases"):
        aligned_two_layer_flow(aj.theory.alignment.certify(mixed), np.eye(2), 1.0, 1.0)
