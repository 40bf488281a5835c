"""Common bases: found where they exist, refused where they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax.bases import NotAlignedError, certify, chain_bases, weak_condition
from alignjax.bases.tiling import columns_of_arcs


def rotation(rng, k):
    q, r = np.linalg.qr(rng.standard_normal((k, k)))
    return q * np.sign(np.diagonal(r))


def rectangle(values, rows, columns):
    out = np.zeros((rows, columns))
    count = min(rows, columns)
    out[np.arange(count), np.arange(count)] = values[:count]
    return out


def aligned(rng, widths, values, target, inputs):
    """Moments and layers that are diagonal in random bases, with the given diagonals."""
    bases = [rotation(rng, k) for k in widths]
    layers = [
        bases[i + 1] @ rectangle(values[i], widths[i + 1], widths[i]) @ bases[i].T
        for i in range(len(widths) - 1)
    ]
    sxx = bases[0] @ np.diag(inputs) @ bases[0].T
    syx = bases[-1] @ rectangle(target, widths[-1], widths[0]) @ bases[0].T
    energy = 1.0 + float((target**2).sum() / inputs[inputs > 0].min())
    return aj.from_moments((sxx + sxx.T) / 2, syx, energy), layers


def check(found, problem, layers, tolerance=1e-11):
    widths = [layers[0].shape[1], *(w.shape[0] for w in layers)]
    r = min(widths)
    for basis, k in zip(found.bases, widths, strict=True):
        np.testing.assert_allclose(basis.T @ basis, np.eye(k), atol=1e-13)
    for i, w in enumerate(layers):
        turned = found.bases[i + 1].T @ w @ found.bases[i]
        off = turned - rectangle(np.diagonal(turned), *turned.shape)
        assert np.abs(off).max() <= tolerance * max(np.abs(w).max(), 1e-300)
    sxx, syx = (np.asarray(m) for m in problem.full_moments())
    turned = found.bases[-1].T @ syx @ found.bases[0]
    diagonal = np.diagonal(turned)
    assert (diagonal[:r] >= -1e-12).all()
    assert (np.diff(diagonal[:r]) <= 1e-10).all()
    turned = turned - rectangle(diagonal, *turned.shape)
    turned[r:, r:] = 0
    assert np.abs(turned).max() <= tolerance * max(np.abs(syx).max(), 1e-300)
    turned = (found.bases[0].T @ sxx @ found.bases[0])[:r]
    turned[np.arange(r), np.arange(r)] = 0
    assert np.abs(turned).max() <= tolerance * np.abs(sxx).max()


WIDTHS = [
    (4, 4),
    (3, 5),
    (4, 4, 4),
    (5, 2, 4),
    (3, 5, 5, 2),
    (6, 3, 5, 4),
    (5, 4, 1),
    (1, 3, 2),
    (4, 6, 5, 6, 4),
    (3,) * 9,
    (7, 4, 4, 6, 5, 8),
]


def spectra(rng, kind, widths):
    depth, big = len(widths) - 1, max(widths)
    values = rng.uniform(0.3, 1.0, (depth, big))
    target, inputs = rng.uniform(0.5, 2.0, big), rng.uniform(0.5, 2.0, widths[0])
    if kind == "repeated":
        values, target, inputs = np.full((depth, big), 0.5), np.ones(big), np.ones(widths[0])
    elif kind == "balanced":
        values = np.broadcast_to(rng.uniform(0.3, 1.0, big), (depth, big)).copy()
    elif kind == "tied pairs":
        values[:, 1::2] = values[:, : 2 * (big // 2) : 2]
        target[1::2] = target[: 2 * (big // 2) : 2]
        inputs[:] = 1.0
    elif kind == "negative":
        values *= rng.choice([-1.0, 1.0], values.shape)
        target *= rng.choice([-1.0, 1.0], big)
    elif kind == "zero mode":
        values[:, 0] = 0.0
    elif kind == "broken layer":
        values[0, 0], values[-1, 1 % big] = 0.0, 0.0
    elif kind == "twice broken":
        values[0, : big // 2], values[-1, : big // 2] = 0.0, 0.0
    elif kind == "zero network":
        values[:] = 0.0
    elif kind == "low rank target":
        target[: (big + 1) // 2] = 0.0
    elif kind == "low rank inputs":
        inputs[: widths[0] // 2] = 0.0
        target[: widths[0] // 2] = 0.0
    elif kind == "whitened":
        inputs[:] = 1.0
    elif kind == "zero target":
        target[:] = 0.0
    else:
        assert kind == "generic"
    return values, target[: min(widths[0], widths[-1])], inputs


KINDS = [
    "generic", "repeated", "balanced", "tied pairs", "negative", "zero mode", "broken layer",
    "twice broken", "zero network", "low rank target", "low rank inputs", "whitened", "zero target",
]  # fmt: skip


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_aligned_network_is_made_diagonal(kind, widths):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        problem, layers = aligned(rng, widths, *spectra(rng, kind, widths))
        check(chain_bases(problem, layers), problem, layers)


def test_fewer_samples_than_inputs():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4, 9))
    problem = aj.autoencoding(X)
    certificate = certify(problem)
    assert certificate.holds
    V = np.asarray(certificate.V)
    layers = [V @ np.diag(rng.uniform(0.3, 1, 9)) @ V.T for _ in range(2)]
    check(chain_bases(problem, layers), problem, layers)


def test_singular_values_are_nonnegative_but_in_the_last_layer():
    rng = np.random.default_rng(1)
    problem, layers = aligned(rng, (4, 4, 4, 4), *spectra(rng, "negative", (4, 4, 4, 4)))
    bases = chain_bases(problem, layers).bases
    for i in (0, 1):
        assert (np.diagonal(bases[i + 1].T @ layers[i] @ bases[i]) > 0).all()


def test_layers_that_are_not_aligned_are_refused_with_the_defect():
    rng = np.random.default_rng(2)
    problem = aj.factorization(rng.standard_normal((4, 4)))
    layers = [rng.standard_normal((4, 4)) for _ in range(3)]
    with pytest.raises(NotAlignedError, match="not aligned") as caught:
        chain_bases(problem, layers)
    assert caught.value.defect > 1e-2


def test_commuting_pairs_are_not_enough():
    rng = np.random.default_rng(3)
    layers = [rng.standard_normal((4, 4)), np.eye(4), rng.standard_normal((4, 4))]
    with pytest.raises(NotAlignedError):
        chain_bases(aj.factorization(np.eye(4)), layers)


def test_a_small_defect_is_measured_at_its_size():
    rng = np.random.default_rng(4)
    problem, layers = aligned(rng, (4, 4, 4), *spectra(rng, "generic", (4, 4, 4)))
    layers[1] = layers[1] + 1e-6 * rng.standard_normal((4, 4))
    with pytest.raises(NotAlignedError) as caught:
        chain_bases(problem, layers)
    assert 1e-8 < caught.value.defect < 1e-4
    assert chain_bases(problem, layers, tolerance=1e-4).defect == caught.value.defect


@pytest.mark.parametrize("shape", [(4, 4), (2, 5), (5, 2), (1, 4)], ids=str)
@pytest.mark.parametrize("kind", ["generic", "repeated", "low rank target", "low rank inputs"])
def test_certify_finds_common_bases_of_moments(kind, shape):
    rng = np.random.default_rng(5)
    values, target, inputs = spectra(rng, kind, (shape[1], shape[0]))
    problem, _ = aligned(rng, (shape[1], shape[0]), values, target, inputs)
    certificate = certify(problem)
    assert certificate.verdict == "yes"
    assert certificate.residual < 1e-13
    np.testing.assert_allclose(
        certificate.target_spectrum, np.sort(target)[::-1], rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(
        np.sort(certificate.input_spectrum), np.sort(inputs), rtol=1e-12, atol=1e-13
    )


def test_certify_says_no_to_generic_data_and_cannot_tell_in_between():
    rng = np.random.default_rng(6)
    X, Y = rng.standard_normal((50, 4)), rng.standard_normal((50, 3))
    certificate = certify(aj.regression(X, Y))
    assert certificate.verdict == "no"
    assert not certificate.holds
    assert certificate.commutator > 1e-4
    sxx = np.diag([1.0, 2.0, 3.0]) + 1e-8 * np.ones((3, 3))
    between = certify(aj.from_moments(sxx, np.diag([3.0, 2.0, 1.0]), 20.0))
    assert between.verdict == "cannot tell"
    assert certify(aj.from_moments(sxx, np.diag([3.0, 2.0, 1.0]), 20.0), tolerance_yes=1e-7).holds


@pytest.mark.parametrize("make", [aj.autoencoding, aj.factorization, aj.inversion])
def test_the_papers_aligned_problems_are_certified(make):
    assert certify(make(np.random.default_rng(7).standard_normal((5, 5)))).holds


def test_sensing_with_common_bases_is_certified_and_without_refused():
    rng = np.random.default_rng(8)
    u, v = rotation(rng, 4), rotation(rng, 5)
    good = np.stack([u @ rectangle(rng.standard_normal(4), 4, 5) @ v.T for _ in range(6)])
    assert certify(aj.sensing(good, rng.standard_normal(6))).holds
    bad = rng.standard_normal((6, 4, 5))
    assert certify(aj.sensing(bad, rng.standard_normal(6))).verdict == "no"


def test_float32_is_judged_by_its_own_tolerance():
    rng = np.random.default_rng(9)
    X = jnp.asarray(rng.standard_normal((20, 5)), jnp.float32)
    certificate = certify(aj.autoencoding(X))
    assert certificate.holds
    assert certificate.U.dtype == jnp.float32


def test_other_losses_and_traced_problems_are_refused():
    X, labels = np.eye(3), np.array([1, -1, 1])
    with pytest.raises(TypeError, match="squared loss"):
        certify(aj.classification(X, labels, loss="logistic"))
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda p: certify(p).U)(aj.autoencoding(X))
    with pytest.raises(ValueError, match="tolerance_yes"):
        certify(aj.autoencoding(X), tolerance_yes=1.0, tolerance_no=0.1)
    with pytest.raises(ValueError, match="weights map"):
        chain_bases(aj.autoencoding(X), [np.eye(4)])


@pytest.mark.parametrize("widths", [(4, 4, 4), (3, 5, 5, 2), (6, 3, 5, 4)], ids=str)
@pytest.mark.parametrize("kind", ["generic", "repeated", "negative", "broken layer", "whitened"])
def test_float32_networks_are_recognized_and_reduced_as_in_float64(kind, widths):
    rng = np.random.default_rng(10)
    exact, layers = aligned(rng, widths, *spectra(rng, kind, widths))
    sxx, syx = exact.full_moments()
    single = aj.from_moments(
        jnp.asarray(sxx, jnp.float32),
        jnp.asarray(syx, jnp.float32),
        jnp.float32(20 * exact.target_energy),
    )
    start = [jnp.asarray(w, jnp.float32) for w in layers]
    found = chain_bases(single, start)
    assert found.defect < 1e-6
    reduced, expected = aj.reduce(single, start), aj.reduce(exact, layers)
    assert reduced.singular_values.dtype == reduced.U.dtype == jnp.float32
    np.testing.assert_allclose(reduced.target_spectrum, expected.target_spectrum, atol=2e-6)
    for w, again in zip(start, aj.expand(reduced, reduced.singular_values), strict=True):
        np.testing.assert_allclose(again, w, atol=3e-6)
    # Equal targets leave the order of modes free, so products are compared as sets.
    products = [np.sort(r.singular_values.prod(axis=0)) for r in (reduced, expected)]
    np.testing.assert_allclose(*products, atol=5e-6)


def test_float32_starts_off_by_more_than_roundoff_are_refused():
    rng = np.random.default_rng(11)
    problem, layers = aligned(rng, (4, 4, 4), *spectra(rng, "generic", (4, 4, 4)))
    start = [jnp.asarray(w + 1e-2 * rng.standard_normal(w.shape), jnp.float32) for w in layers]
    with pytest.raises(NotAlignedError):
        chain_bases(problem, start)


def test_moments_whose_norm_overflows_are_refused_by_name():
    X = 1e60 * np.random.default_rng(12).standard_normal((5, 3))
    for problem, name in ((aj.autoencoding(1e25 * X), "xx"), (aj.regression(X, 1e40 * X), "yx")):
        for decide in (certify, weak_condition, lambda p: aj.reduce(p, (np.eye(3),))):
            with pytest.raises(ValueError, match=f"Sigma_{name} has a finite norm.*scale the data"):
                decide(problem)


def test_large_finite_moments_are_judged_as_their_scaled_copies():
    rng = np.random.default_rng(13)
    X, Y = rng.standard_normal((9, 3)), rng.standard_normal((9, 2))
    for scale in (1e60, 1e-60):
        for decide in (certify, weak_condition):
            plain = decide(aj.regression(X, Y))
            large = decide(aj.regression(scale * X, scale * Y))
            assert large.holds == plain.holds
            np.testing.assert_allclose(large.residual, plain.residual, rtol=1e-6)
    large, plain = certify(aj.regression(1e60 * X, 1e60 * Y)), certify(aj.regression(X, Y))
    np.testing.assert_allclose(large.commutator, plain.commutator, rtol=1e-9)


@pytest.mark.slow
def test_reduce_takes_images_wider_than_their_number():
    digits = pytest.importorskip("sklearn.datasets").load_digits().images[:40] / 16
    X = np.zeros((40, 28, 28))
    X[:, 6:22, 6:22] = np.kron(digits, np.ones((2, 2)))
    X = X.reshape(40, 784) + 0.05 * np.random.default_rng(14).standard_normal((40, 784))
    problem = aj.autoencoding(X / np.linalg.norm(X) * np.sqrt(len(X)))
    assert problem.basis is not None
    widths, rank = (784, 12, 784), 12
    values = np.random.default_rng(15).uniform(0.3, 1.0, (2, rank))
    start = aj.initializers.aligned(jax.random.key(0), problem, widths, values)
    reduced = aj.reduce(problem, start)
    assert reduced.rank == rank
    full = aj.gradient_descent(problem, start, 0.5, steps=20)
    short = aj.reduced_descent(reduced, 0.5, steps=20)
    moved = np.linalg.norm(full.weights[0] - start[0])
    assert moved > 1e-2
    for a, b in zip(full.weights, aj.expand(reduced, short.weights), strict=True):
        assert np.linalg.norm(a - b) <= 1e-12 * np.linalg.norm(b)
    np.testing.assert_allclose(full.observations["risk"], short.observations["risk"], rtol=1e-11)


def sparse_sensing(seed, widths, zeros, turned):
    """Diagonal layers and two diagonal measurements with many zeros, in the given bases."""
    rng = np.random.default_rng(seed)

    def diagonal(rows, columns):
        values = rng.uniform(0.3, 1.0, max(widths)) * rng.choice([-1.0, 1.0], max(widths))
        return rectangle(values * (rng.random(max(widths)) > zeros), rows, columns)

    bases = [rotation(rng, k) if turned else np.eye(k) for k in widths]
    layers = [
        bases[i + 1] @ diagonal(widths[i + 1], widths[i]) @ bases[i].T
        for i in range(len(widths) - 1)
    ]
    matrices = [bases[-1] @ diagonal(widths[-1], widths[0]) @ bases[0].T for _ in range(2)]
    return aj.sensing(np.stack(matrices), rng.standard_normal(2)), layers


def test_sparse_aligned_sensing_problems_are_reduced_in_any_bases():
    cases = [((4, 4, 3, 6, 5), 0.5, seed) for seed in (1072, 1111)]
    cases += [((4, 4, 3, 6, 5), zeros, seed) for zeros in (0.4, 0.6) for seed in range(8)]
    cases += [((40,) * 12, 0.4, 0)]
    for widths, zeros, seed in cases:
        for turned in (False, True):
            problem, layers = sparse_sensing(seed, widths, zeros, turned)
            assert chain_bases(problem, layers).defect < 1e-11


def test_sparse_sensing_problems_that_are_not_aligned_are_refused():
    for seed in range(8):
        problem, layers = sparse_sensing(seed, (4, 4, 3, 6, 5), 0.5, seed % 2)
        layers[seed % 4] += 1e-4 * np.random.default_rng(seed).standard_normal(
            layers[seed % 4].shape
        )
        with pytest.raises(NotAlignedError):
            chain_bases(problem, layers)


def test_arcs_that_tile_all_columns_are_given_their_columns():
    rng = np.random.default_rng(16)
    for _ in range(300):
        widths = rng.integers(1, 9, rng.integers(2, 8)).tolist()
        depth, straight = len(widths) - 1, rng.choice([0.2, 0.5, 0.8])
        extents, partners = [], {}
        for column in range(max(widths)):
            first, before = len(extents), -1
            for vertex in range(len(widths)):
                inside = widths[vertex] > column
                ends = vertex == depth or widths[vertex + 1] <= column
                if inside and (ends or rng.random() > straight):
                    start = before + 1
                    while widths[start] <= column:
                        start += 1
                    extents.append((start, vertex))
                    before = vertex
                elif not inside:
                    before = vertex
            several = len(extents) - first > 1
            if (
                several
                and extents[first][0] == 0
                and extents[-1][1] == depth
                and rng.random() < 0.6
            ):
                partners[first] = len(extents) - 1
        order = rng.permutation(len(extents))
        place = np.argsort(order)
        extents = [extents[i] for i in order]
        partners = {int(place[a]): int(place[b]) for a, b in partners.items()}
        table = columns_of_arcs(widths, extents, partners)
        assert sorted(a for row in table for a in row) == sorted(
            a for a, (first, last) in enumerate(extents) for _ in range(last - first + 1)
        )
        for column in range(max(widths)):
            carried = {row[column] for row in table if len(row) > column}
            assert all((a in carried) == (b in carried) for a, b in partners.items())


def in_random_bases(rng, inputs, cross, dtype=np.float64):
    turn = rotation(rng, len(inputs))
    moment = turn @ np.diag(inputs) @ turn.T
    moment, cross = ((moment + moment.T) / 2).astype(dtype), (cross @ turn.T).astype(dtype)
    return aj.from_moments(moment, cross, dtype(1e3))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_weak_condition_holds_for_white_symmetric_repeated_and_deficient_spectra(dtype):
    rng = np.random.default_rng(17)
    white = 50**0.5 * np.linalg.qr(rng.standard_normal((50, 4)))[0]
    problem = aj.regression(white.astype(dtype), rng.standard_normal((50, 3)).astype(dtype))
    assert weak_condition(problem).verdict == "yes"
    for inputs in ([1, 2, 3, 4, 5], [1, 1, 2, 3, 3], [1, 1, 1, 1, 1], [2, 1, 0, 0, 0], [0] * 5):
        for targets in ([3, 1, 2, 0, 4], [1, 1, 1, 1, 1], [0] * 5):
            cross = rotation(rng, 5) @ np.diag(np.where(inputs, targets, 0)).astype(float)
            found = weak_condition(in_random_bases(rng, np.asarray(inputs, float), cross, dtype))
            assert found.verdict == "yes", (inputs, targets)
            assert found.U.dtype == dtype


def test_the_weak_condition_sees_a_violation_at_every_degree():
    # B Pi_c B^T = 2 I + D + c_c E with sum_c c_c x_c^j = 0 for j < 32: only then do they commute.
    count = 34
    angles = np.pi * (np.arange(count) + 0.5) / count
    off = np.cos(32 * angles)  # orthogonal to all polynomials of lower degree
    family = np.multiply.outer(off, [[0, 0.5], [0.5, 0]]) + np.diag([2.3, 1.7])
    cross = np.concatenate(list(np.linalg.cholesky(family)), axis=1)
    inputs = np.repeat(2 + np.cos(angles), 2)
    found = weak_condition(in_random_bases(np.random.default_rng(18), inputs, cross))
    assert found.verdict == "no"
    assert found.residual > 0.1


def test_the_weak_condition_sees_a_violation_in_one_small_member_of_many():
    rng = np.random.default_rng(19)
    turn, inputs = rotation(rng, 3), np.linspace(1, 2, 40)
    cross = np.stack([turn[:, i % 3] * rng.uniform(0.5, 1) for i in range(40)], axis=1)
    assert weak_condition(in_random_bases(rng, inputs, cross)).verdict == "yes"
    assert certify(in_random_bases(rng, inputs, cross)).verdict == "no"
    cross[:, 7] = 1e-4 * rng.standard_normal(3)
    assert weak_condition(in_random_bases(rng, inputs, cross)).verdict == "no"


def test_the_weak_condition_cannot_tell_where_roundoff_is_much_of_the_cross_moment():
    generic = np.random.default_rng(7).normal(size=(3, 3))
    generic /= np.linalg.norm(generic)

    def verdict(size, inputs=(3.0, 2.0, 1.0), outputs=3):
        # Roundoff is judged to be near 5e-15 at inputs and targets of these sizes.
        problem = aj.from_moments(np.diag(inputs), size * generic[:outputs], 1.0)
        return weak_condition(problem).verdict

    sizes = (1e-2, 1e-10, 2e-14, 1e-16)
    assert [verdict(size) for size in sizes] == ["no", "no", "cannot tell", "yes"]
    assert verdict(2e-14, inputs=(1.0, 1.0, 1.0)) == verdict(4e-14, outputs=1) == "yes"


def test_the_weak_condition_cannot_tell_where_it_hangs_on_the_smallest_gaps():
    rng = np.random.default_rng(20)
    step, cross = rng.standard_normal((4, 4)), rng.standard_normal((3, 4))
    for size, verdict in ((0.0, "yes"), (1e-11, "cannot tell"), (1e-4, "no")):
        moment = np.eye(4) + size * (step + step.T)
        assert weak_condition(aj.from_moments(moment, cross, 1e2)).verdict == verdict
