"""How near to rank 1 the dense layers of any model are, followed through a training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from alignjax._meshes import on_automatic_axes, tied
from alignjax._validation import as_callable, as_count, as_raw, describe
from alignjax.linalg import matmul
from alignjax.metrics._norms import norm, ratio, to_unit_norm, unit

__all__ = ["SpectralTracker"]

# Squared, over 4 e k iterations, is the most that it adds to the error of a converged vector.
FRESH_SHARE = 1e-2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpectralTracker:
    """Follows ``||W||_2 / ||W||_F`` of every dense layer of a pytree, by power iterations.

    The Frobenius norm is computed; the spectral norm is estimated by alternating

        u = W v / ||W v||,    v = W^T u / ||W^T u||,    ||W||_2 ≈ ||W v||,

    from the vector ``v`` that the last call ended with, so that a few iterations a call do once the
    layers change little between calls. Any model's parameters will do: a tuple of matrices, a
    dictionary of a neural network's layers, an Equinox module. A tracker is a pytree and can be
    made and used under ``jit``, ``vmap`` and ``scan``, and saved with a model.

    Accuracy: an estimate is ``||W v||`` of a unit vector, so it is never above the norm but for
    roundoff. After ``k`` iterations on a matrix that stays as it is, it falls short by at most a
    share of ``(s / ||W||_2)^(4k) tan^2(θ) / 2``, where ``s`` is the largest singular value below
    the top and ``θ`` the angle at the start to the top singular vectors. Where ``s`` is near the
    top this says little, but then the error is small itself: whatever the singular values of ``n``
    columns, the square falls short by at most a share of ``.871 ln(n) / k`` on average over random
    starts (Kuczyński & Woźniakowski 1992). Singular values that tie do no harm: the norm is right
    though their vectors are arbitrary. The hardest case is a large random matrix, whose singular
    values crowd below the top: a Gaussian one of shape ``(4096, 4096)`` comes out low by 4% after 8
    iterations, by 0.4% after 50. So give the first call more iterations, and the others few.

    Each call mixes a share of 1e-2 of a fresh random vector into ``v``, lest it stay with a
    singular vector that is no longer the top one; that costs a share of at most
    ``1e-5 / iterations``.

    Make one by :meth:`init`. Leaves keep float32 or float64; narrower floats count as float32.

    Attributes:
        vectors: the unit vector ``v`` of each layer, by the path of its leaf
            (``jax.tree_util.keystr``); shapes ``(k_in,)``, the number of columns.
        calls: how many updates there were, ``()``; it numbers the random vectors, which are the
            same for all trackers.

    Source: Ji & Telgarsky 2019, Figure 2 (the ratio, without a method to compute it).

    Example:
        A network trained with Optax and watched on the way; its layers come near to rank 1:

        >>> import alignjax as aj, jax, jax.numpy as jnp, optax
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> x = jax.random.normal(keys[0], (64, 8))
        >>> labels = (x[:, 0] > x[:, 1]).astype(int)
        >>> params = {"W1": 0.1 * jax.random.normal(keys[1], (8, 32)), "bias": jnp.zeros(32),
        ...           "W2": 0.1 * jax.random.normal(keys[2], (32, 2))}
        >>> def loss(p):
        ...     scores = jax.nn.relu(x @ p["W1"] + p["bias"]) @ p["W2"]
        ...     return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()
        >>> optimizer = optax.sgd(0.5)
        >>> state = optimizer.init(params)
        >>> tracker = aj.metrics.SpectralTracker.init(params)
        >>> watch = jax.jit(aj.metrics.SpectralTracker.update)
        >>> for step in range(201):
        ...     if step % 100 == 0:
        ...         ratios, tracker = watch(tracker, params)
        ...         print(step, {path: round(float(value), 1) for path, value in ratios.items()})
        ...     updates, state = optimizer.update(jax.grad(loss)(params), state)
        ...     params = optax.apply_updates(params, updates)
        0 {"['W1']": 0.5, "['W2']": 0.8}
        100 {"['W1']": 0.8, "['W2']": 1.0}
        200 {"['W1']": 0.8, "['W2']": 1.0}
    """

    vectors: dict[str, Float[Array, " k_in"]]
    calls: Int[Array, ""]

    @classmethod
    def init(cls, tree: PyTree, select: Callable[[str], bool] | None = None) -> SpectralTracker:
        """A tracker of the dense layers in ``tree``, with random start vectors.

        Args:
            tree: any pytree; leaves that are no arrays are passed over.
            select: told a leaf's path, as ``jax.tree_util.keystr`` writes it
                (``".dense[0].weight"``, ``"['W1']"``), says whether to follow it. By default all
                matrices of floats are followed, embeddings among them. A stack of matrices in one
                leaf (layers under ``scan``) takes a ``vmap``.

        Raises:
            TypeError: if ``select`` cannot be called, or a selected leaf holds no real floats.
            ValueError: if a selected leaf is no matrix or is empty, or none is followed.
        """
        leaves = _leaves(tree)
        if select is None:
            paths = [path for path, leaf in leaves.items() if _is_matrix(leaf)]
        else:
            as_callable(select, "select")
            paths = [path for path in leaves if select(path)]
        if not paths:
            listed = ", ".join(f"{path} ({describe(leaf)})" for path, leaf in leaves.items())
            chooses = "holds no matrix of floats" if select is None else "no leaf is selected"
            raise ValueError(f"tree: {chooses}; its leaves: {listed or 'none'}")
        calls = jnp.zeros((), jnp.int32)
        vectors = {
            path: _random_unit(calls, index, _matrix(path, leaves[path]))
            for index, path in enumerate(sorted(paths))
        }
        return cls(vectors, calls)

    def update(
        self, tree: PyTree, *, iterations: int = 8
    ) -> tuple[dict[str, Float[Array, ""]], SpectralTracker]:
        """The ratios of the layers of ``tree`` as they are now, and the tracker for the next call.

        Derivatives of a ratio are those at a fixed vector ``v``, which are right once it has
        converged to a singular vector that does not tie.

        Args:
            tree: the tree of :meth:`init` with other values; leaves not followed do not matter.
            iterations: products with ``W`` and ``W^T`` before the last one with ``W``.

        Returns:
            ``(ratios, tracker)``: ``||W||_2 / ||W||_F`` by path, each ``()``, in
            ``(0, 1]`` (1 for a zero layer, as in :func:`alignjax.metrics.spectral_ratio`; NaN for
            one that is not finite, which leaves the tracker's vector alone).

        Raises:
            TypeError: if ``iterations`` is no Python integer, or a leaf holds no real floats.
            ValueError: if ``iterations`` is below 1, or a leaf is missing or has another shape.
        """
        iterations = as_count(iterations, "iterations", minimum=1)
        leaves = _leaves(tree)
        calls = self.calls + 1
        ratios, vectors = {}, {}
        for index, (path, vector) in enumerate(sorted(self.vectors.items())):
            if path not in leaves:
                raise ValueError(f"tree: has no leaf {path}, which the tracker follows")
            matrix = _matrix(path, leaves[path])
            if vector.shape != matrix.shape[1:]:
                raise ValueError(
                    f"tree: {path} had {vector.shape[0]} columns at init, and now has shape "
                    f"{matrix.shape}"
                )
            fresh = _random_unit(calls, index, matrix)
            start = to_unit_norm(vector.astype(matrix.dtype) + FRESH_SHARE * fresh)
            ratios[path], vectors[path] = _spectral_ratio(matrix, start, iterations=iterations)
        return ratios, SpectralTracker(vectors, calls)


def _leaves(tree: PyTree) -> dict[str, Any]:
    """What a tree holds, by path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def _is_matrix(leaf: Any) -> bool:
    shape, dtype = getattr(leaf, "shape", ()), getattr(leaf, "dtype", object)
    return len(shape) == 2 and 0 not in shape and jnp.issubdtype(dtype, jnp.floating)


def _matrix(path: str, leaf: Any) -> Array:
    """A leaf that is followed, in float32 or float64."""
    if not jnp.issubdtype(getattr(leaf, "dtype", object), jnp.floating):
        raise TypeError(f"tree: {path} must be a matrix of real floats, got {describe(leaf)}")
    if not _is_matrix(leaf):
        raise ValueError(f"tree: {path} must be a matrix that is not empty, got {describe(leaf)}")
    matrix = jnp.asarray(as_raw(leaf, f"tree: {path}"))
    return matrix if jnp.finfo(matrix.dtype).bits >= 32 else matrix.astype(jnp.float32)


def _random_unit(calls: Array, index: int, matrix: Array) -> Array:
    """A random direction in the space of a matrix's rows, another one for each call and layer."""
    # Threefry by name: the default may be a generator that draws other numbers in a batch.
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), index)
    vector = jax.random.normal(jax.random.fold_in(key, calls), matrix.shape[1:], matrix.dtype)
    # It starts a loop with the matrix, here or in the caller's, and so varies where that does.
    return tied(to_unit_norm(vector), matrix)


@on_automatic_axes
def _spectral_ratio(matrix: Array, start: Array, *, iterations: int) -> tuple[Array, Array]:
    """The ratio of one matrix after power iterations from a unit vector, and the vector after."""
    scaled = unit(matrix)
    fixed = jax.lax.stop_gradient(scaled)

    def iterate(_: Any, vector: Array) -> Array:
        return to_unit_norm(matmul(fixed.T, to_unit_norm(matmul(fixed, vector))))

    start = jax.lax.stop_gradient(start)
    vector = jax.lax.fori_loop(0, iterations, iterate, start)
    # of a zero matrix, or one that is not finite, there is nothing to learn
    usable = jnp.isfinite(vector).all() & (vector != 0).any()
    value = ratio(norm(matmul(scaled, vector)), norm(scaled), otherwise=1.0)
    return jnp.minimum(value, 1.0), jnp.where(usable, vector, start)
