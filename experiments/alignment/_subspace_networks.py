"""Aligned networks of layers in small subspaces, built by hand: what Theorem 3 leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from alignjax.linalg import traceless


@dataclass(frozen=True)
class SubspaceNetwork:
    """An aligned network of layers in one subspace, and the data that it interpolates.

    Attributes:
        basis: an orthonormal basis of the subspace, ``(r, k, k)``.
        coefficients: of each layer, ``(d, r)``.
        bases: ``(d+1, k, k)``: orthogonal ``P_i`` with all ``P_i^T W_i P_{i-1}`` diagonal.
        inputs: ``X``, ``(n, k)``, rows are samples.
        targets: ``Y``, ``(n, k)``.
    """

    basis: jax.Array
    coefficients: jax.Array
    bases: jax.Array
    inputs: jax.Array
    targets: jax.Array

    @property
    def weights(self) -> jax.Array:
        """The layers, ``(d, k, k)``."""
        return layers_of(self.coefficients, self.basis)


def layers_of(coefficients: jax.Array, basis: jax.Array) -> jax.Array:
    """``W_i = sum_j c_ij A_j``, shape ``(d, k, k)``."""
    return jnp.tensordot(coefficients, basis, 1)


def outputs(weights: jax.Array, inputs: jax.Array) -> jax.Array:
    """``X (W_d ... W_1)^T`` by a loop over the layers."""
    return jax.lax.scan(lambda x, w: (x @ w.T, None), inputs, weights)[0]


def fit_error(network: SubspaceNetwork, coefficients: jax.Array | None = None) -> jax.Array:
    """``||X f^T - Y||_F / ||Y||_F``."""
    c = network.coefficients if coefficients is None else coefficients
    found = outputs(layers_of(c, network.basis), network.inputs)
    return jnp.linalg.norm(found - network.targets) / jnp.linalg.norm(network.targets)


def defect(network: SubspaceNetwork, coefficients: jax.Array | None = None) -> jax.Array:
    """The largest share of a layer off its diagonal in the network's bases."""
    c = network.coefficients if coefficients is None else coefficients
    weights = layers_of(c, network.basis)
    turned = jnp.einsum("iba,ibc,icd->iad", network.bases[1:], weights, network.bases[:-1])
    off = jnp.where(jnp.eye(turned.shape[-1], dtype=bool), 0.0, turned)
    shares = jnp.linalg.norm(off, axis=(1, 2)) / jnp.linalg.norm(weights, axis=(1, 2))
    return shares.max()


def anisotropy(weights: jax.Array) -> jax.Array:
    """How far each layer is from a multiple of an orthogonal matrix, shape ``(d,)``."""
    gram = jnp.einsum("iba,ibc->iac", weights, weights)
    return jnp.linalg.norm(traceless(gram), axis=(1, 2)) / jnp.linalg.norm(gram, axis=(1, 2))


def real_rooted(nodes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Roots and leading coefficient of a polynomial with real roots only, by its values at nodes.

    ``p = q + c prod_k (x - x_k)`` takes the values of the interpolating ``q`` at the nodes; for
    large ``c`` it changes sign between any two gaps of the nodes, and once on either side.

    Args:
        nodes: ``x_1 < ... < x_m``.
        values: ``p(x_k)``.

    Returns:
        The ``m`` roots and ``c``; the roots in an order in which products of the first few factors
        stay of one size over the nodes.
    """
    ends = [nodes[0] - 1.0, nodes[-1] + 1.0]
    q = np.polynomial.Chebyshev.fit(nodes, values, len(nodes) - 1, domain=ends)

    def product(x: np.ndarray) -> np.ndarray:
        return np.prod(np.subtract.outer(x, nodes), axis=-1)

    gaps = [np.linspace(a, b, 101) for a, b in pairwise(nodes)]
    peaks = np.array([gap[np.abs(product(gap)).argmax()] for gap in gaps])
    lead = 2 * float(np.abs(q(peaks) / product(peaks)).max())
    outer = 1.0

    def p(x: float) -> float:
        return float(q(x) + lead * product(np.array(x)))

    while p(peaks[0] - outer) * p(peaks[0]) > 0 or p(peaks[-1] + outer) * p(peaks[-1]) > 0:
        outer *= 1.5
    brackets = np.concatenate([[peaks[0] - outer], peaks, [peaks[-1] + outer]])

    roots = np.array([brentq(p, a, b) for a, b in pairwise(brackets)])
    # Newton steps on the product of the factors itself, which is what the layers multiply to.
    for _ in range(3):
        differences = np.subtract.outer(nodes, roots)
        reached = lead * differences.prod(axis=1)
        roots = roots + np.linalg.solve(-reached[:, None] / differences, values - reached)
    return _leja_order(roots), lead


def _leja_order(points: np.ndarray) -> np.ndarray:
    """Each next point is the one farthest, in the product of distances, from those before."""
    rest = list(points)
    chosen = [rest.pop(int(np.abs(points).argmax()))]
    while rest:
        distances = np.log(np.abs(np.subtract.outer(rest, chosen))).sum(axis=1)
        chosen.append(rest.pop(int(distances.argmax())))
    return np.array(chosen)


def rotation_angles(rotation: np.ndarray) -> np.ndarray:
    """Angles ``t_j`` with ``rotation = prod_j Z G(t_j)``, ``k (k-1)`` of them.

    ``Z`` shifts the axes down by one, cyclically, and ``G(t)`` turns the plane of the first two;
    so each factor turns the next pair of neighbouring axes, and a sweep over all pairs clears one
    column below the diagonal, as in a QR decomposition.
    """
    rest, k = rotation.copy(), len(rotation)
    angles = []
    for column in range(k - 1):
        for step in range(1, k + 1):
            p, q = (-step) % k, (1 - step) % k
            angle = np.arctan2(rest[q, column], rest[p, column]) if column <= p < k - 1 else 0.0
            c, s = np.cos(angle), np.sin(angle)
            rest[[p, q]] = np.array([[c, s], [-s, c]]) @ rest[[p, q]]
            angles.append(angle)
    return np.array(angles)


def gaussian_counterexample(key: jax.Array, width: int = 8) -> SubspaceNetwork:
    """A network in a 5-dimensional subspace that fits Gaussian data exactly and is aligned.

    The subspace is spanned by ``I``, a diagonal ``D``, and ``Z``, ``Z E``, ``Z J``, where ``Z``
    shifts the axes cyclically, ``E`` projects onto the first two and ``J`` turns them by a right
    angle. With ``M = U S V^T`` the matrix of the data, ``U`` and ``V^T`` are products of
    ``Z G(t) = Z + (cos t - 1) Z E + sin t Z J``, and ``S`` of ``width`` factors ``a (D - b_i I)``.

    Args:
        key: for ``width`` Gaussian samples.
        width: ``k``; from 7 on the printed Theorem 3 excludes this network.
    """
    input_key, target_key = jax.random.split(key)
    X = jax.random.normal(input_key, (width, width))
    Y = jax.random.normal(target_key, (width, width))
    u, s, vt = np.linalg.svd(np.linalg.solve(np.asarray(X), np.asarray(Y)).T)
    # Rotations, at the price of signed singular values.
    if np.linalg.det(u) < 0:
        u[:, -1], s[-1] = -u[:, -1], -s[-1]
    if np.linalg.det(vt) < 0:
        vt[-1], s[-1] = -vt[-1], -s[-1]
    nodes = np.cos((2 * np.arange(width, 0, -1) - 1) * np.pi / (2 * width))
    # Largest last: values that rise along the nodes have a tame interpolant.
    roots, lead = real_rooted(nodes, s[::-1])
    u, vt = u[:, ::-1], vt[::-1]
    if np.linalg.det(u) < 0:  # the reversal of an even number of axes may be a reflection
        u[:, 0], vt[0] = -u[:, 0], -vt[0]
    eye = np.eye(width)
    shift = np.roll(eye, -1, axis=0)
    first = np.diag((np.arange(width) < 2).astype(float))
    turn = np.zeros((width, width))
    turn[1, 0], turn[0, 1] = 1.0, -1.0

    def turns(rotation: np.ndarray) -> list[np.ndarray]:
        return [
            shift + (np.cos(t) - 1) * shift @ first + np.sin(t) * shift @ turn
            for t in rotation_angles(rotation)
        ]

    scale = lead ** (1 / width)
    stretches = [scale * (np.diag(nodes) - root * eye) for root in roots]
    # W_1 acts first and stands last in the product.
    weights = [*turns(u), *stretches, *turns(vt)][::-1]
    spanning = [eye, np.diag(nodes), shift, shift @ first, shift @ turn]
    bases, stretched = [vt.T], range(width * (width - 1), width * width)
    for i, w in enumerate(weights):
        bases.append(bases[-1] if i in stretched else w @ bases[-1])
    return _in_subspace(spanning, weights, bases, X, Y)


def vertical_filters(key: jax.Array, image_size: int, samples: int) -> SubspaceNetwork:
    """An aligned linear autoencoder of 3 x 3 convolutions, none a multiple of the identity.

    Layer ``i`` is the vertical filter ``a (T - b_i I)``, ``T`` the sum of the neighbours above and
    below, with ``a^m prod_i (x - b_i) = 1`` at all eigenvalues ``x`` of ``T``.

    Args:
        key: for Gaussian images.
        image_size: ``m``.
        samples: ``n``.
    """
    m = image_size
    line = np.eye(m, k=1) + np.eye(m, k=-1)
    nodes, vectors = np.linalg.eigh(line)
    roots, lead = real_rooted(nodes, np.ones(m))
    scale = lead ** (1 / m)
    taps = [np.kron(np.eye(m, k=i), np.eye(m, k=j)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    weights = [scale * np.kron(line - root * np.eye(m), np.eye(m)) for root in roots]
    X = jax.random.normal(key, (samples, m * m))
    return _in_subspace(taps, weights, [np.kron(vectors, np.eye(m))] * (m + 1), X, X)


def _in_subspace(
    spanning: list[np.ndarray],
    weights: list[np.ndarray],
    bases: list[np.ndarray],
    X: jax.Array,
    Y: jax.Array,
) -> SubspaceNetwork:
    """The network in coefficients of an orthonormal basis, which alone is kept."""
    k = spanning[0].shape[0]
    basis = np.linalg.qr(np.stack([a.ravel() for a in spanning]).T)[0].T
    basis[np.abs(basis) < 1e-14] = 0.0  # a sum of many layers would gather this roundoff
    coefficients = np.stack([basis @ w.ravel() for w in weights])
    shaped = basis.reshape(-1, k, k)
    return SubspaceNetwork(*map(jnp.asarray, (shaped, coefficients, np.stack(bases))), X, Y)
