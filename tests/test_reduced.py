"""The recursion in singular values is what training of full matrices does."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax.reduced import reduced_gradient, reduced_risk
from alignjax.theory.alignment import stability_threshold


def rotation(rng, k):
    return np.linalg.qr(rng.standard_normal((k, k)))[0]


def network(seed, widths):
    """A well-conditioned aligned problem and a start with singular values in U(0.3, 1)."""
    rng = np.random.default_rng(seed)
    bases = [rotation(rng, k) for k in widths]
    inputs = rng.uniform(0.8, 1.2, widths[0])
    target = np.zeros((widths[-1], widths[0]))
    # The network's modes carry the largest targets: else what it leaves out makes a saddle.
    np.fill_diagonal(target, np.sort(rng.uniform(0.6, 1.0, min(target.shape)))[::-1])
    inputs = np.sort(inputs)[::-1]
    layers = []
    for into, out in pairwise(bases):
        s = np.zeros((len(out), len(into)))
        np.fill_diagonal(s, rng.uniform(0.3, 1.0, min(s.shape)))
        layers.append(jnp.asarray(out @ s @ into.T))
    sxx = (bases[0] * inputs) @ bases[0].T
    problem = aj.from_moments((sxx + sxx.T) / 2, bases[-1] @ target @ bases[0].T, 20.0)
    return problem, tuple(layers)


def assert_layers_agree(left, right, tolerance):
    for a, b in zip(left, right, strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
    "widths",
    [(4,) * (d + 1) for d in range(2, 9)] + [(3, 5, 5, 2), (5, 2, 4), (6, 4, 5, 1), (7, 5, 3)],
    ids=str,
)
def test_ten_thousand_steps_agree_with_full_matrices(widths):
    problem, start = network(0, widths)
    reduced = aj.reduce(problem, start)
    rate = 0.25 * float(stability_threshold(reduced))
    full = aj.gradient_descent(problem, start, rate, steps=10_000, save_at=(0, 10, 10_000))
    short = aj.reduced_descent(reduced, rate, steps=10_000, save_at=(0, 10, 10_000))
    assert_layers_agree(full.weights, aj.expand(reduced, short.weights), 1e-12)
    np.testing.assert_allclose(
        full.observations["risk"], short.observations["risk"], rtol=1e-11, atol=1e-13
    )
    np.testing.assert_allclose(full.time, short.time, rtol=1e-14)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("widths", [(8, 2, 6), (6, 3, 8), (7, 2, 4, 6)])
def test_dropped_modes_have_an_order_of_their_own(widths, seed):
    rng = np.random.default_rng(seed)
    problem, start = network(seed, widths)
    reduced = aj.reduce(problem, start)
    # The same data and layers in other coordinates of inputs and outputs.
    out, into = rotation(rng, widths[-1]), rotation(rng, widths[0])
    turned = aj.from_moments(
        into @ problem.input_moment @ into.T, out @ problem.cross_moment @ into.T, 20.0
    )
    moved = (start[0] @ into.T, *start[1:-1], out @ start[-1])
    again = aj.reduce(turned, moved)
    for name in ("full_target_spectrum", "full_input_spectrum"):
        count = min(widths[0], widths[-1])
        first, second = (getattr(r, name)[:count] for r in (reduced, again))
        np.testing.assert_allclose(first, second, atol=1e-12)
    cuts = sorted({0, *widths})
    for low, high in pairwise(cuts[: cuts.index(count) + 1]):
        assert (np.diff(reduced.full_target_spectrum[low:high]) <= 0).all()
    assert_layers_agree(aj.expand(again, again.singular_values), moved, 1e-13)


def test_expand_inverts_reduce():
    problem, start = network(1, (5, 7, 3, 4))
    reduced = aj.reduce(problem, start)
    assert_layers_agree(aj.expand(reduced, reduced.singular_values), start, 1e-14)


def test_risk_and_gradient_are_those_of_the_full_matrices():
    problem, start = network(2, (5, 4, 3, 6))
    reduced = aj.reduce(problem, start)
    s = reduced.singular_values
    np.testing.assert_allclose(reduced_risk(reduced, s), aj.risk(problem, start), rtol=1e-13)
    by_autodiff = jax.grad(lambda s: aj.risk(problem, aj.expand(reduced, s)))(s)
    np.testing.assert_allclose(reduced_gradient(reduced, s), by_autodiff, rtol=1e-12, atol=1e-14)


def test_per_layer_rates_agree_with_full_matrices():
    problem, start = network(3, (4, 4, 4, 4))
    reduced = aj.reduce(problem, start)
    rates = jnp.array([0.05, 0.1, 0.02])
    full = aj.gradient_descent(problem, start, rates, steps=300)
    short = aj.reduced_descent(reduced, rates, steps=300)
    assert_layers_agree(full.weights, aj.expand(reduced, short.weights), 1e-12)
    assert short.time.shape == (2, 3)


def test_the_recursion_of_sensing_is_exact():
    rng = np.random.default_rng(4)
    u, v, inner = rotation(rng, 4), rotation(rng, 5), rotation(rng, 6)
    diagonals = rng.standard_normal((7, 4))
    matrices = np.einsum("ka,na,ja->nkj", u, diagonals, v[:, :4])
    problem = aj.sensing(matrices, rng.standard_normal(7))
    s = rng.uniform(0.3, 1.0, (2, 4))
    start = ((inner[:, :4] * s[0]) @ v[:, :4].T, (u * s[1]) @ inner[:, :4].T)
    reduced = aj.reduce(problem, start)
    assert reduced.input_spectrum.shape == (4, 4)
    full = aj.gradient_descent(problem, start, 0.05, steps=2000)
    short = aj.reduced_descent(reduced, 0.05, steps=2000)
    assert_layers_agree(full.weights, aj.expand(reduced, short.weights), 1e-11)
    np.testing.assert_allclose(full.observations["risk"], short.observations["risk"], rtol=1e-11)


def test_rates_and_starts_run_under_vmap_and_grad():
    problem, start = network(5, (3, 3, 3))
    reduced = aj.reduce(problem, start)
    rates = jnp.array([0.05, 0.1, 50.0])

    def last_risk(rate):
        run = aj.reduced_descent(reduced, rate, steps=20)
        return run.observations["risk"][-1]

    runs = jax.vmap(lambda rate: aj.reduced_descent(reduced, rate, steps=20))(rates)
    assert runs.status.tolist() == [aj.Status.COMPLETED, aj.Status.COMPLETED, aj.Status.DIVERGED]
    for i in (0, 1):
        alone = aj.reduced_descent(reduced, rates[i], steps=20)
        np.testing.assert_allclose(runs.weights[i], alone.weights, rtol=1e-14)
    slopes = jax.vmap(jax.grad(last_risk))(rates)[:2]
    h = 1e-6
    numeric = [(last_risk(r + h) - last_risk(r - h)) / (2 * h) for r in rates[:2]]
    np.testing.assert_allclose(slopes, numeric, rtol=1e-6)
    starts = jnp.stack([reduced.singular_values, 0.5 * reduced.singular_values])
    many = jax.vmap(lambda s: aj.reduced_descent(reduced, 0.1, steps=5, singular_values=s))(starts)
    assert many.weights.shape == (2, 2, 3)


def test_divergence_freezes_the_last_finite_state():
    problem, start = network(6, (3, 3, 3))
    reduced = aj.reduce(problem, start)
    run = aj.reduced_descent(reduced, 10.0, steps=200, save_at=(0, 100, 200))
    assert run.status == aj.Status.DIVERGED
    assert 0 < run.stopped_at < 100
    assert np.isfinite(run.weights).all()
    np.testing.assert_array_equal(run.weights, run.observations["singular_values"][1])
    np.testing.assert_allclose(run.time[-1], 10.0 * run.stopped_at)


def by_hand(reduced, s, rates, steps):
    """Descent with the check after every step, in NumPy: the last good state, and its step."""
    lam, target = np.asarray(reduced.input_spectrum), np.asarray(reduced.target_spectrum)
    goal, largest = np.asarray(reduced.minimizer), np.sqrt(np.finfo(np.float64).max)

    def look(s):
        others = np.stack([np.delete(s, i, axis=0).prod(axis=0) for i in range(len(s))])
        slope = others * (lam * s.prod(axis=0) - target)
        risk = float(reduced.minimum_risk) + 0.5 * (lam * (s.prod(axis=0) - goal) ** 2).sum()
        return slope, np.isfinite(slope).all() and risk <= largest

    with np.errstate(all="ignore"):
        slope, good = look(s)
        for step in range(steps):
            moved = s - rates * slope
            slope, good = look(moved) if good else (slope, good)
            if not good:
                return s, step
            s = moved
    return s, steps


def test_every_step_at_which_a_run_can_diverge_is_found():
    problem, start = network(8, (3, 3, 3))
    reduced = aj.reduce(problem, start)
    rates = jnp.append(jnp.geomspace(0.5, 1e4, 60), 1e30)
    runs = jax.vmap(lambda rate: aj.reduced_descent(reduced, rate, steps=90))(rates)
    expected = [by_hand(reduced, np.asarray(reduced.singular_values), r, 90) for r in rates]
    assert runs.stopped_at.tolist() == [step for _, step in expected]
    # Several blocks and all remainders, and some that never stop.
    assert len({step % 4 for _, step in expected if step < 90}) == 4
    assert {step for _, step in expected} >= {1, 2, 3, 4, 90}
    for found, (state, step) in zip(runs.weights, expected, strict=True):
        if step < 20:  # at these rates, longer runs magnify roundoff
            np.testing.assert_allclose(found, state, rtol=1e-9)


def test_healthy_runs_keep_their_bits_beside_diverged_ones():
    problem, start = network(9, (4, 4, 4, 4))
    reduced = aj.reduce(problem, start)
    run = jax.vmap(lambda rate: aj.reduced_descent(reduced, rate, steps=203).weights)
    healthy = jnp.linspace(0.01, 0.1, 8)
    mixed = healthy.at[1::2].set(1e3)
    np.testing.assert_array_equal(run(healthy)[::2], run(mixed)[::2])


def test_a_risk_just_below_the_limit_is_no_divergence():
    reduced = aj.reduce(aj.factorization(np.eye(1)), (np.eye(1),))
    largest = np.sqrt(np.finfo(np.float64).max)
    below, above = np.sqrt(1.9 * largest), np.sqrt(2.1 * largest)
    run = jax.vmap(
        lambda s: aj.reduced_descent(reduced, 0.5, steps=9, singular_values=s[None, None])
    )(jnp.array([below, above]))
    assert run.stopped_at.tolist() == [9, 0]
    np.testing.assert_allclose(run.weights[0, 0, 0], below / 2**9, rtol=1e-14)
    assert run.weights[1, 0, 0] == above


@pytest.mark.parametrize(
    ("s", "rate"), [([[1e-230], [1e300]], 1e-3), ([[0.0], [1e250]], 1e-225)], ids=["start", "step"]
)
def test_a_gradient_that_overflows_stops_a_run_of_finite_risk(s, rate):
    reduced = aj.reduce(aj.factorization([[1e-200]]), (np.eye(1), np.eye(1)))
    s = jnp.asarray(s)
    bad = s if rate == 1e-3 else s - rate * reduced_gradient(reduced, s)
    assert reduced_risk(reduced, bad) < 1e150
    assert not np.isfinite(reduced_gradient(reduced, bad)).all()
    run = aj.reduced_descent(reduced, rate, steps=8, singular_values=s)
    assert run.stopped_at == by_hand(reduced, np.asarray(s), rate, 8)[1] == 0
    np.testing.assert_array_equal(run.weights, s)


@pytest.mark.parametrize("steps", [1, 3, 4, 31, 32, 33, 75])
def test_blocks_take_the_steps_that_single_ones_take(steps):
    problem, start = network(10, (4, 4, 4, 4))
    reduced = aj.reduce(problem, start)
    rates = np.array([0.05, 0.1, 0.02])
    run = aj.reduced_descent(reduced, rates, steps=steps, save_at=(0, steps))
    state, taken = by_hand(reduced, np.asarray(reduced.singular_values), rates[:, None], steps)
    assert run.stopped_at == taken == steps
    np.testing.assert_allclose(run.weights, state, rtol=1e-13)
    # The derivative's own loop ends at the same state.
    value, _ = jax.jvp(
        lambda r: aj.reduced_descent(reduced, r, steps=steps).weights, (rates,), (rates,)
    )
    np.testing.assert_allclose(value, run.weights, rtol=1e-13)


def test_runs_nest_under_vmap_over_problems_starts_and_rates():
    problem, start = network(11, (3, 3, 3))
    reduced = aj.reduce(problem, start)
    reduceds = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.9 * leaf]), reduced)
    starts = jnp.stack([reduced.singular_values * x for x in (0.5, 1.0, 1.1)])
    rates = jnp.array([[0.05, 0.1], [0.1, 0.05], [30.0, 30.0], [0.1, 0.1]])

    def last(reduced, s, rate):
        return aj.reduced_descent(reduced, rate, steps=21, singular_values=s).weights

    inner = jax.vmap(jax.vmap(last, (None, 0, None)), (None, None, 0))
    many = jax.vmap(inner, (0, None, None))(reduceds, starts, rates)
    assert many.shape == (2, 4, 3, 2, 3)
    for i, j, k in np.ndindex(2, 4, 3):
        alone = last(jax.tree.map(lambda leaf, i=i: leaf[i], reduceds), starts[k], rates[j])
        np.testing.assert_allclose(many[i, j, k], alone, rtol=1e-13)
    slopes = jax.vmap(jax.grad(lambda rate: last(reduced, starts[1], rate).sum()))(rates)
    assert np.isfinite(slopes[jnp.array([0, 1, 3])]).all()


def test_what_is_not_aligned_or_traced_is_refused():
    problem, start = network(7, (3, 3, 3))
    with pytest.raises(aj.NotAlignedError):
        aj.reduce(problem, (start[0], np.ones((3, 3)) + start[1]))
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda w: aj.reduce(problem, w).U)(start)
    reduced = aj.reduce(problem, start)
    with pytest.raises(ValueError, match=r"singular_values must have shape"):
        aj.reduced_descent(reduced, 0.1, steps=1, singular_values=jnp.ones((3, 3)))
    with pytest.raises(ValueError, match="learning_rate"):
        aj.reduced_descent(reduced, -0.1, steps=1)
    with pytest.raises(TypeError, match="reduced must be"):
        aj.expand(problem, jnp.ones((2, 3)))
