"""Descent by optax transformations, on the full batch and on minibatches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import alignjax as aj

WIDTHS = (3, 4, 2)


def data(samples=8, widths=WIDTHS, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(samples, widths[0])), rng.normal(size=(samples, widths[-1]))


def network(seed=1):
    return aj.initializers.gaussian(jax.random.key(seed), WIDTHS, 0.4)


def equal(actual, expected, rtol=1e-11):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol)


def by_hand(X, Y, weights, optimizer, steps):
    def direct(weights):
        W = weights[1] @ weights[0]
        return 0.5 * ((X @ W.T - Y) ** 2).sum() / len(X)

    slope, memory = jax.jit(jax.grad(direct)), optimizer.init(weights)
    for _ in range(steps):
        changes, memory = optimizer.update(slope(weights), memory, weights)
        weights = optax.apply_updates(weights, changes)
    return weights, memory


@pytest.mark.parametrize("samples", [2, 8], ids=["n < k_0", "n >= k_0"])
def test_plain_sgd_is_gradient_descent(samples):
    problem, save_at = aj.regression(*data(samples)), (0, 3, 10)
    run = aj.optimizer_descent(problem, network(), optax.sgd(0.1), steps=12, save_at=save_at)
    other = aj.gradient_descent(problem, network(), 0.1, steps=12, save_at=save_at)
    equal((run.weights, run.observations), (other.weights, other.observations))
    assert run.time is None
    assert (int(run.status), int(run.stopped_at)) == (aj.Status.COMPLETED, 12)


@pytest.mark.parametrize("samples", [2, 8], ids=["n < k_0", "n >= k_0"])
def test_adam_is_the_plain_optax_loop_and_its_state_is_returned(samples):
    X, Y = data(samples)
    run = aj.optimizer_descent(aj.regression(X, Y), network(), optax.adam(0.05), steps=15)
    weights, memory = by_hand(X, Y, network(), optax.adam(0.05), 15)
    equal(run.weights, weights, rtol=1e-9)
    equal(run.optimizer_state, memory, rtol=1e-9)


def test_traced_hyperparameters_in_one_vmap_equal_separate_runs():
    problem = aj.regression(*data())
    rates, momenta = jnp.array([0.01, 0.05, 0.1]), jnp.array([0.9, 0.5, 0.0])
    traces = []

    def counted(weights):
        traces.append(1)
        return aj.risk(problem, weights)

    def one(rate, b1):
        optimizer = optax.adam(rate, b1=b1)
        return aj.optimizer_descent(problem, network(), optimizer, steps=10, observe=counted)

    runs = jax.jit(jax.vmap(one))(rates, momenta)
    assert len(traces) <= 2
    for i in range(3):
        alone = one(float(rates[i]), float(momenta[i]))
        equal(jax.tree.map(lambda leaf, i=i: leaf[i], runs.weights), alone.weights, rtol=1e-10)


def test_the_derivative_in_a_rate_equals_finite_differences():
    problem = aj.regression(*data())

    def final(rate):
        run = aj.optimizer_descent(problem, network(), optax.adam(rate), steps=10)
        return run.observations["risk"][-1]

    slope, h = jax.grad(final)(0.03), 1e-6
    np.testing.assert_allclose(slope, (final(0.03 + h) - final(0.03 - h)) / (2 * h), rtol=1e-6)


def test_no_optimizer_is_traced_again_for_new_weights():
    problem, optimizer, traces = aj.regression(*data()), optax.adam(0.05), []

    def counted(weights):
        traces.append(1)
        return aj.risk(problem, weights)

    for seed in (1, 2, 3):
        aj.optimizer_descent(problem, network(seed), optimizer, steps=4, observe=counted)
        if seed == 1:
            first = len(traces)
    assert len(traces) == first


@pytest.mark.parametrize("save_at", [(0, 15), (0, 1, 4, 6, 13, 15)])
def test_every_epoch_visits_every_sample_once_whatever_is_saved(save_at):
    # One layer of n inputs that are unit vectors: the columns that moved are the batch.
    n, size = 15, 3
    problem = aj.regression(np.eye(n), np.ones(n))

    def look(weights):
        return weights[0][0]

    def descend(points):
        return aj.optimizer_descent(
            problem,
            (jnp.zeros((1, n)),),
            optax.sgd(0.3),
            steps=15,
            save_at=points,
            observe=look,
            batch_size=size,
            key=jax.random.key(0),
        )

    seen = descend(range(16)).observations
    batches = [set(np.flatnonzero(a != b)) for a, b in itertools.pairwise(seen)]
    assert all(len(batch) == size for batch in batches)
    epochs = [batches[i : i + 5] for i in (0, 5, 10)]
    for epoch in epochs:
        assert set().union(*epoch) == set(range(n))
    assert epochs[0] != epochs[1] != epochs[2]
    equal(descend(save_at).observations, seen[np.array(save_at)], rtol=1e-14)


def test_a_batch_of_all_samples_is_the_full_batch():
    problem = aj.regression(*data())
    run = aj.optimizer_descent(
        problem, network(), optax.adam(0.05), steps=9, batch_size=8, key=jax.random.key(3)
    )
    equal(run, aj.optimizer_descent(problem, network(), optax.adam(0.05), steps=9), rtol=1e-9)


@pytest.mark.parametrize(
    "make", [aj.regression, lambda X, Y: aj.classification(X, Y[:, 0] > 0, "cross_entropy")]
)
def test_keys_decide_the_run_and_vmap_over_keys_equals_single_runs(make):
    problem = make(*data(7))

    def one(key):
        return aj.optimizer_descent(
            problem, network(), optax.sgd(0.2), steps=7, batch_size=2, key=key
        ).weights

    keys = jax.random.split(jax.random.key(0), 3)
    runs, again = jax.vmap(one)(keys), one(keys[1])
    for i in range(3):
        equal([w[i] for w in runs], one(keys[i]))
    assert all(bool((a == b).all()) for a, b in zip(again, one(keys[1]), strict=True))
    assert not np.allclose(runs[0][0], runs[0][1])


def test_divergence_is_reported_and_the_state_stays_finite():
    run = aj.optimizer_descent(aj.regression(*data()), network(), optax.sgd(50.0), steps=40)
    assert int(run.status) == aj.Status.DIVERGED
    assert 0 < int(run.stopped_at) < 40
    assert all(bool(jnp.isfinite(w).all()) for w in run.weights)


def test_a_line_search_gets_the_value_and_the_function():
    problem = aj.regression(*data())
    run = aj.optimizer_descent(problem, network(), optax.lbfgs(), steps=60)
    assert int(run.status) == aj.Status.COMPLETED
    assert float(run.observations["risk"][-1] - problem.minimum_risk) < 1e-9
