"""Every closed form of the flow against the integrated flow of full matrices, at 1e-10."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax.closed_forms import (
    aligned_two_layer_flow,
    deep_mode_time,
    linear_flow,
    mode_flow,
    two_layer_flow,
)

# The closed forms share no code with the integration, which is told to keep 13 digits a step.
flow = partial(aj.gradient_flow, rtol=1e-13, solver="explicit")
TIMES = jnp.array([0.0, 0.2, 1.0, 3.0, 8.0, 20.0])


def keep(weights):
    return weights


def apart(found, expected) -> float:
    return float(jnp.abs(found - expected).max())


@pytest.mark.parametrize("n", [3, 6, 40])  # fewer samples than inputs, as many, more
def test_one_layer_of_any_rank(n):
    X, Y = aj.datasets.gaussian_regression(jax.random.key(n), n, 6, 4)
    problem = aj.regression(X, Y)
    start = aj.initializers.gaussian(jax.random.key(1), (6, 4), 1.0)
    run = flow(problem, start, times=TIMES, observe=aj.end_to_end)
    assert apart(linear_flow(problem, start[0], TIMES), run.observations) < 1e-10


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_a_mode_of_any_depth(depth):
    inputs, target = jnp.array([2.0, 1.0, 0.5, 1.5, 0.7]), jnp.array([3.0, 1.0, 0.4, 0.2, 0.0])
    products = jnp.array([0.01, 0.1, 0.3, 0.4, 0.5])  # the last two start above their height
    problem = aj.from_moments(jnp.diag(inputs), jnp.diag(target), 100.0)
    start = (jnp.diag(products ** (1 / depth)),) * depth
    run = flow(problem, start, times=TIMES, observe=aj.end_to_end)
    found = mode_flow(TIMES[:, None], products, target, inputs, depth=depth)
    assert apart(found, jnp.diagonal(run.observations, axis1=1, axis2=2)) < 1e-10
    # and the time at which the trained network is where it is
    reached = jnp.diagonal(run.observations[2])[:4]
    time = deep_mode_time(reached, products[:4], target[:4], inputs[:4], depth=depth)
    assert float(jnp.abs(time - TIMES[2]).max()) < 1e-8


@pytest.mark.parametrize("hidden", [3, 4, 6])
def test_two_layers_aligned_with_their_data(hidden):
    data = aj.datasets.aligned_regression(
        jax.random.key(0), [2.0, 1.0, 0.5, 0.3, 0.1], [2.0, 0.8, 0.3, 0.0], n=20
    )
    problem = aj.regression(data.inputs, data.targets)
    certificate = aj.theory.alignment.certify(problem)
    Q = jax.random.orthogonal(jax.random.key(1), hidden)
    deltas = jnp.array([1.0, 0.5, 1.5, 0.7])[: min(hidden, 4)]
    layers = aligned_two_layer_flow(certificate, Q, deltas, TIMES)
    run = flow(problem, tuple(w[0] for w in layers), times=TIMES, observe=keep)
    assert max(apart(a, b) for a, b in zip(layers, run.observations, strict=True)) < 1e-10


def balanced(hidden: int, rank: int, seed: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 4)
    inner = jax.random.orthogonal(keys[0], hidden)[:, :rank]
    size = jax.random.uniform(keys[1], (rank,), minval=0.2, maxval=1.0)
    right = jax.random.orthogonal(keys[2], 5)[:, :rank]
    left = jax.random.orthogonal(keys[3], 4)[:, :rank]
    return (inner * size) @ right.T, (left * size) @ inner.T


@pytest.mark.parametrize(("hidden", "rank"), [(1, 1), (2, 2), (4, 1), (4, 4), (7, 3)])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_two_balanced_layers_on_whitened_inputs(hidden, rank, scale):
    cross = jax.random.normal(jax.random.key(2), (4, 5))
    problem = aj.from_moments(scale * jnp.eye(5), cross, 100.0)
    start = balanced(hidden, rank, seed=hidden)
    # A start without all ranks is on its way to a saddle: roundoff of 1e-17 in what it lacks grows
    # like e^{sigma t}, in the integrated flow as in any training.
    times = TIMES if rank == 4 else TIMES[:4]
    run = flow(problem, start, times=times, observe=keep)
    first, second = run.observations
    found = two_layer_flow(problem, start, times)
    assert apart(found.product, second @ first) < 1e-10
    assert apart(found.input_gram, jnp.swapaxes(first, 1, 2) @ first) < 1e-10
    assert apart(found.output_gram, second @ jnp.swapaxes(second, 1, 2)) < 1e-10


def test_printed_invertible_Q_is_no_solution():
    # the layers of the printed theorem, with Q of condition 3 and its inverse
    problem = aj.from_moments(jnp.eye(2), jnp.diag(jnp.array([2.0, 1.0])), 100.0)
    left, right = (jax.random.orthogonal(jax.random.key(k), 2) for k in (0, 1))
    Q = (left * jnp.array([3.0, 1.0]) / 3**0.5) @ right.T
    p = np.exp(-2.0)
    w = mode_flow(TIMES[:, None], p, jnp.array([2.0, 1.0]), 1.0)
    first = Q.T @ (jnp.sqrt(w)[..., None] * jnp.eye(2))
    second = (jnp.sqrt(w)[..., None] * jnp.eye(2)) @ jnp.linalg.inv(Q).T
    run = flow(problem, (first[0], second[0]), times=TIMES, observe=aj.end_to_end)
    assert apart(second[0] @ first[0], run.observations[0]) < 1e-14
    assert apart(second @ first, run.observations) > 0.05
