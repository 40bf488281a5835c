"""Chains of layers of any shape, run by the compiled kernels and by a loop in NumPy."""

import itertools

import jax
import numpy as np
from hypothesis import strategies as st

from alignjax.engines import fused
from alignjax.problems import MomentProblem

# Widths k_0, ..., k_d, samples, networks, steps, a seed, how products are made, and the precision.
cases = st.tuples(
    st.lists(st.integers(1, 20), min_size=2, max_size=6).map(tuple),
    st.integers(1, 24),
    st.integers(1, 20),
    st.integers(0, 70),
    st.integers(0, 2**20),
    st.booleans(),
    st.just(np.float64),
)


def least_squares(X, Y):
    """The problem without a basis, whatever the number of samples."""
    moment, cross = X.T @ X / len(X), Y.T @ X / len(X)
    best = cross @ np.linalg.pinv(moment, hermitian=True)
    energy = (Y**2).sum() / len(X)
    floor = 0.5 * max(energy - (best * cross).sum(), 0.0)
    parts = (moment, cross, energy, best, floor, best @ moment - cross)
    return MomentProblem(*(np.asarray(part, X.dtype) for part in parts))


def product(layers, batch, size):
    """The product of stacked layers, the last one leftmost; of none, the identity."""
    out = np.broadcast_to(np.eye(size), (batch, size, size))
    for layer in layers:
        out = layer @ out
    return out


def descend(problem, starts, rates, steps):
    """Stacks ``(batch, k_i, k_{i-1})`` after some steps at rates ``(batch, d)``."""
    layers, batch, inputs = list(starts), len(rates), starts[0].shape[2]
    for _ in range(steps):
        error = product(layers, batch, inputs) @ problem.input_moment - problem.cross_moment
        slopes = []
        for i, layer in enumerate(layers):
            below = product(layers[:i], batch, inputs)
            above = product(layers[i + 1 :], batch, layer.shape[1])
            slopes.append(above.swapaxes(1, 2) @ error @ below.swapaxes(1, 2))
        layers = [
            w - rates[:, i, None, None] * slope
            for i, (w, slope) in enumerate(zip(layers, slopes, strict=True))
        ]
    return layers


def difference(case):
    """How far kernel and loop are apart, relative to the largest entry of a layer."""
    widths, samples, batch, steps, seed, columns, dtype = case
    rng = np.random.default_rng(seed)
    X, Y = (rng.normal(size=(samples, k)).astype(dtype) for k in (widths[0], widths[-1]))
    starts = tuple(
        (0.5 * rng.normal(size=(batch, rows, cols)) / max(rows, cols) ** 0.5).astype(dtype)
        for cols, rows in itertools.pairwise(widths)
    )
    rates = rng.uniform(0.001, 0.01, (batch, len(starts))).astype(dtype)
    problem = least_squares(X, Y)

    def run(weights, rates):
        return fused.on_cpu(problem, weights, rates, np.int32(steps), columns=columns)

    found, taken = jax.jit(jax.vmap(run))(starts, rates)
    np.testing.assert_array_equal(taken, steps)
    pairs = zip(found, descend(problem, starts, rates, steps), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
