"""A run that is carried on is the run that did not stop: 20 + 20 steps are 40, to the last bit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import alignjax as aj

pytestmark = pytest.mark.optimized

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2))
WIDE = RNG.normal(size=(4, 6))
LABELS = np.array([1, -1, 1, -1])
START = aj.initializers.gaussian(jax.random.key(1), (3, 4, 2), 0.4)
HALF = 5


def momentum(count):
    return -0.1 / (1 + count)


def reduced():
    problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
    return aj.reduce(problem, aj.initializers.identity((2, 2, 2), 0.3))


ADAM = optax.adam(optax.exponential_decay(0.1, 3, 0.7))
MOMENTUM = optax.chain(optax.trace(0.9), optax.scale_by_schedule(momentum))
STRUCTURE = (aj.structures.Toeplitz((4, 3)), aj.structures.Toeplitz((2, 4)))
DOORS = {
    "gradient_descent": (partial(aj.gradient_descent, aj.regression(X, Y)), START, (0.07,), {}),
    "gradient_descent in a span": (
        partial(aj.gradient_descent, aj.regression(WIDE, WIDE[:, :2])),
        aj.initializers.gaussian(jax.random.key(1), (6, 3, 2), 0.4),
        (jnp.array([0.05, 0.02]),),
        {"engine": "xla"},
    ),
    # Two batches an epoch, so that the second half begins within one and goes on to the next.
    "adam on batches": (
        partial(aj.optimizer_descent, aj.regression(X, Y)),
        START,
        (ADAM,),
        {"batch_size": 3, "key": jax.random.key(3)},
    ),
    "structured momentum": (
        partial(aj.optimizer_descent, aj.regression(X, Y)),
        (jnp.linspace(0.1, 0.6, 6), jnp.linspace(-0.2, 0.3, 5)),
        (MOMENTUM,),
        {"structure": STRUCTURE},
    ),
    "adaptive_descent": (
        partial(aj.adaptive_descent, aj.classification(WIDE, LABELS)),
        (*aj.initializers.gaussian(jax.random.key(1), (6, 3), 0.4), jnp.zeros((1, 3))),
        (),
        {"rule": "ball"},
    ),
    "reduced_descent": (
        lambda start, rate, **options: aj.reduced_descent(
            reduced(), rate, singular_values=start, **options
        ),
        reduced().singular_values,
        (0.05,),
        {},
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_twice_as_many_steps_are_two_runs(door):
    run, start, arguments, options = DOORS[door]
    first = run(start, *arguments, steps=HALF, save_at=(0, 2, HALF), **options)
    second = run(first, *arguments, steps=HALF, save_at=(2, HALF), **options)
    points = (0, 2, HALF, HALF + 2, 2 * HALF)
    whole = run(start, *arguments, steps=2 * HALF, save_at=points, **options)

    def joined(a, b):
        return jnp.concatenate([a, b])

    pieces = (
        joined(first.step, second.step),
        jax.tree.map(joined, first.observations, second.observations),
        *(second.weights, second.status, second.stopped_at, second.optimizer_state),
        second.end.step,
    )
    expected = (
        *(whole.step, whole.observations, whole.weights, whole.status, whole.stopped_at),
        *(whole.optimizer_state, whole.end.step),
    )
    for a, b in zip(jax.tree.leaves(pieces), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(*(jax.tree.leaves(r.weights)[0] for r in (first, second)))
    if whole.time is None:
        assert (second.time, second.end.time) == (None, None)
    else:
        # A sum of rates, in another order.
        np.testing.assert_allclose(joined(first.time, second.time), whole.time, rtol=1e-14)
        np.testing.assert_allclose(second.end.time, whole.end.time, rtol=1e-14)


def test_time_goes_on_from_the_end_at_other_rates():
    problem = aj.regression(X, Y)
    first = aj.gradient_descent(problem, START, 0.1, steps=6, save_at=(0, 4))
    second = aj.gradient_descent(problem, first, jnp.array([0.1, 0.2]), steps=2)
    np.testing.assert_allclose(second.time, [[0.6, 0.6], [0.8, 1.0]], rtol=1e-14)
    assert second.step.tolist() == [6, 8]


def test_a_diverged_run_stays_and_one_that_reached_its_risk_goes_on():
    problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
    start, rates = aj.initializers.identity((2, 2, 2), 0.5), jnp.array([0.2, 30.0])

    def descend(weights, rate, until):
        return aj.gradient_descent(problem, weights, rate, steps=40, save_at=range(41), until=until)

    first = jax.vmap(lambda rate: descend(start, rate, 1e-3))(rates)
    assert first.status.tolist() == [aj.Status.REACHED, aj.Status.DIVERGED]
    second = jax.vmap(lambda run, rate: descend(run, rate, 1e-9))(first, rates)
    assert second.status.tolist() == [aj.Status.REACHED, aj.Status.DIVERGED]
    assert second.observations["risk"][0, -1] <= 1e-9
    assert second.stopped_at[0] > first.stopped_at[0]
    assert second.step[0, 0] == first.stopped_at[0]
    assert second.stopped_at[1] == first.stopped_at[1]
    np.testing.assert_array_equal(second.weights[0][1], first.weights[0][1])


def test_batches_go_on_under_vmap():
    problem = aj.regression(X, Y)

    def run(start, key, steps):
        return aj.optimizer_descent(
            problem, start, optax.sgd(0.1), steps=steps, batch_size=3, key=key
        )

    keys = jax.random.split(jax.random.key(0), 2)
    first = jax.vmap(lambda key: run(START, key, 3))(keys)
    second = jax.vmap(lambda half, key: run(half, key, 3))(first, keys)
    whole = jax.vmap(lambda key: run(START, key, 6))(keys)
    for a, b in zip(second.weights, whole.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_a_flow_goes_on_from_the_time_that_it_reached():
    problem = aj.classification(WIDE, LABELS)
    start = aj.initializers.gaussian(jax.random.key(1), (6, 3, 1), 0.4)
    flow = partial(aj.gradient_flow, problem, log_time=True, solver="explicit")
    first = flow(start, times=[0.5, 2.0])
    second = flow(first, times=[2.0, 5.0])
    whole = flow(start, times=[0.5, 2.0, 5.0])
    risks = [*first.observations["risk"], *second.observations["risk"]]
    np.testing.assert_allclose([risks[0], *risks[2:]], whole.observations["risk"], rtol=1e-9)
    np.testing.assert_allclose(second.end.time, 5.0, rtol=1e-14)
    with pytest.raises(ValueError, match="times must be at least 2, where the flow starts"):
        flow(first, times=[1.0, 3.0])


def test_trajectories_that_cannot_be_carried_on_are_refused_by_name():
    problem = aj.regression(X, Y)
    flow = aj.Trajectory(None, jnp.ones(1), {}, START, jnp.int32(0), jnp.int32(3))
    for door, argument in ((aj.gradient_descent, 0.1), (aj.optimizer_descent, optax.sgd(0.1))):
        with pytest.raises(ValueError, match="weights is a Trajectory that counts no steps"):
            door(problem, flow, argument, steps=1)
    with pytest.raises(ValueError, match="weights is a Trajectory without one time"):
        aj.gradient_flow(problem, flow, times=[1.0])
    run = aj.optimizer_descent(problem, START, optax.sgd(0.1, momentum=0.9), steps=1)
    with pytest.raises(ValueError, match="optimizer_state that this optimizer does not have"):
        aj.optimizer_descent(problem, run, optax.adam(0.1), steps=1)
