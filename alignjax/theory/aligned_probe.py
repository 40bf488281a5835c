"""A numerical probe: does a structured network that interpolates its data exist aligned?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignjax._validation import as_count, as_key, as_real, describe, is_concrete
from alignjax.linalg import end_to_end, matmul, traceless

__all__ = ["AlignedProbe", "aligned_interpolation", "layer_bases"]

# Weight of the fit against the defect in the augmented residual; multipliers make the fit exact,
# so it only sets how fast they converge.
FIT_WEIGHT = 3.0
# Steps between two updates of the multipliers.
ROUND = 20
# Rounds on the fit alone, before and after.
FITTING = 4
# Below this share of a Gram matrix its anisotropic part is roundoff and no direction is left in it.
LEAST_SPREAD = 1e-6


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AlignedProbe:
    """What :func:`aligned_interpolation` found from each of its starts.

    Attributes:
        weights: the layers found, ``(W_1, ..., W_d)``, each ``(starts, k_i, k_{i-1})``.
        fits: ``||X W^T - Y||_F / ||Y||_F`` of the end-to-end matrix, shape ``(starts,)``.
        defects: how far each network is from aligned, in [0, 1], shape ``(starts,)``.
        spreads: how far the layers are from multiples of orthogonal matrices: the least
            ``||M - tr(M) I / k||_F / ||M||_F`` of the Gram matrices ``M`` that meet at an interior
            vertex, shape ``(starts,)``; 0 for an orthogonal layer.
        conditions: the largest over the layers of the ratio of the largest to the least singular
            value, shape ``(starts,)``.
        best: index of the start with the least defect among those whose fit is at most
            ``tolerance`` (and, where orthogonal layers are excluded, whose spread is at least
            1e-6); of the best fit, if there are none.
        interpolates: whether there is such a start.
    """

    weights: tuple[Array, ...]
    fits: Array
    defects: Array
    spreads: Array
    conditions: Array
    best: Array
    interpolates: Array

    @property
    def best_defect(self) -> Array:
        """The least defect of a network that interpolates; 1 where none does."""
        return jnp.where(self.interpolates, self._at_best(self.defects), 1.0)

    @property
    def best_fit(self) -> Array:
        """The fit of the best start."""
        return self._at_best(self.fits)

    @property
    def best_weights(self) -> tuple[Array, ...]:
        """The layers of the best start."""
        return tuple(self._at_best(w, 2) for w in self.weights)

    def _at_best(self, found: Array, rest: int = 0) -> Array:
        """The best start's part; under ``vmap`` the starts' axis is not the first."""
        best = self.best.reshape(*self.best.shape, *[1] * (rest + 1))
        return jnp.take_along_axis(found, best, axis=-1 - rest).squeeze(-1 - rest)


def layer_bases(structure: Any, depth: int | None = None) -> tuple[Array, ...]:
    """Matrices that span each layer's structure.

    Args:
        structure: one structure (an object with ``dim``, ``shape`` and ``matrix``), a stack of
            matrices of shape ``(r, k_out, k_in)``, or a sequence of these, one a layer.
        depth: how many layers share a single structure; of a sequence, its length or None.

    Returns:
        One array a layer, ``(r_i, k_i, k_{i-1})``, in one dtype. They need not be orthonormal, nor
        independent: the subspace is what they span.

    Raises:
        TypeError: if ``structure`` is none of these.
        ValueError: if shapes do not chain, ``depth`` is missing or differs from the layers', or a
            layer's matrices are all zero.

    Source: Radhakrishnan et al. 2020, Definition 4.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.theory.aligned_probe import layer_bases
        >>> [b.shape for b in layer_bases(jnp.ones((1, 2, 2)), 3)]
        [(1, 2, 2), (1, 2, 2), (1, 2, 2)]
    """
    if isinstance(structure, Sequence) and not isinstance(structure, (str, bytes)):
        if not structure:
            raise ValueError("structure must hold at least one layer, got an empty sequence")
        if depth is not None and as_count(depth, "depth", minimum=1) != len(structure):
            raise ValueError(f"depth is {depth}, but structure has {len(structure)} layers")
        bases = [_basis(s, f"structure[{i}]") for i, s in enumerate(structure)]
    else:
        if depth is None:
            raise ValueError("depth must say how many layers share the one structure, got None")
        bases = [_basis(structure, "structure")] * as_count(depth, "depth", minimum=1)
    for i in range(1, len(bases)):
        if bases[i].shape[2] != bases[i - 1].shape[1]:
            raise ValueError(
                f"structures do not chain: layer {i + 1} takes {bases[i].shape[2]} inputs, but "
                f"layer {i} gives {bases[i - 1].shape[1]}"
            )
    dtype = jnp.result_type(*bases)
    return tuple(b.astype(dtype) for b in bases)


def _basis(structure: Any, name: str) -> Array:
    if hasattr(structure, "matrix") and hasattr(structure, "dim"):
        return jax.vmap(structure.matrix)(jnp.eye(structure.dim))
    if not hasattr(structure, "ndim"):
        raise TypeError(
            f"{name} must be a structure, or an array (r, k_out, k_in) of matrices that span it, "
            f"got {describe(structure)}"
        )
    stack = as_real(structure, name, ndim=3)
    if is_concrete(stack) and not bool((stack != 0).any()):
        raise ValueError(f"{name} holds only zero matrices: no layer but 0 lies in it")
    return stack


def aligned_interpolation(
    key: Array,
    structure: Any,
    inputs: Float[Array, "n k_0"],
    targets: Float[Array, "n k_d"] | None = None,
    *,
    depth: int | None = None,
    starts: int = 64,
    steps: int = 300,
    exclude_orthogonal: bool = True,
    tolerance: float | None = None,
) -> AlignedProbe:
    r"""Look for an aligned network of structured layers that interpolates its data.

    From each start it minimizes the defect of alignment over the coefficients, subject to the fit
    ``X (W_d ... W_1)^T = Y``, by Levenberg-Marquardt steps on the augmented Lagrangian. With
    ``M`` and ``N`` the Gram matrices ``B^T B`` and ``A A^T`` of the products ``B`` above and ``A``
    below an interior vertex, the defect is the largest of

        ||[M, N]||_F / (sqrt(2) ||M_0||_F ||N_0||_F),    M_0 = M - tr(M) I / k

    for the two layers that meet, and of ``sqrt(2) ||[M, N]||_F / (||M||_F ||N||_F)`` for longer
    products. It is 0 exactly for aligned chains, has no scale to shrink, and does not fall as a
    layer approaches a multiple of an orthogonal matrix, which is aligned with everything; there
    it is undefined. With ``exclude_orthogonal=False`` all pairs are divided by the norms of
    ``M`` and ``N``, and such layers count as aligned. One way to a small defect remains: layers of
    large condition number, whose smaller singular vectors weigh little; look at ``conditions``.

    A least defect far above roundoff from many starts suggests that there is no such network; it
    is no proof. Can be traced: ``vmap`` over keys, stacks of matrices (pad with zero matrices to
    one dimension), inputs and targets (pad with zero rows).

    Args:
        key: a JAX random key, for the starts.
        structure: as in :func:`layer_bases`.
        inputs: shape ``(n, k_0)``, rows are samples.
        targets: shape ``(n, k_d)``; None for autoencoding, ``Y = X``.
        depth: how many layers share a single structure.
        starts: how many random starts are tried, at once.
        steps: Levenberg-Marquardt steps of each.
        exclude_orthogonal: whether multiples of orthogonal matrices are excluded.
        tolerance: the largest relative error of fit of a network that counts as interpolating; by
            default the square root of the data's machine epsilon.

    Returns:
        An :class:`AlignedProbe`. Residuals and cost grow like ``depth**3``, for the whole chain is
        tested.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if the layers do not chain or do not fit ``inputs`` and ``targets``, there are
            fewer than two layers, targets are zero, or a count or ``tolerance`` is out of range.

    Source: not in the papers; it tests Radhakrishnan et al. 2020, Theorem 3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from alignjax.theory.aligned_probe import aligned_interpolation
        >>> data, start = jax.random.split(jax.random.key(0))
        >>> dense = jnp.eye(4).reshape(4, 2, 2)
        >>> X, Y = jax.random.normal(data, (2, 2, 2))
        >>> found = aligned_interpolation(start, dense, X, Y, depth=2, starts=8, steps=60)
        >>> bool(found.best_defect < 1e-5)
        True
    """
    key = as_key(key)
    bases = layer_bases(structure, depth)
    if len(bases) < 2:
        raise ValueError("structure must have at least two layers: a single one is always aligned")
    X, Y = as_data(inputs, targets)
    for name, array, width, end in (
        ("inputs", X, bases[0].shape[2], "first layer takes"),
        ("targets", Y, bases[-1].shape[1], "last layer gives"),
    ):
        if array.shape[1] != width:
            raise ValueError(
                f"{name} must have {width} columns, for the {end} {width}, got shape {array.shape}"
            )
    if is_concrete(Y) and not bool((Y != 0).any()):
        raise ValueError("targets are zero: the zero network interpolates them")
    starts = as_count(starts, "starts", minimum=1)
    steps = as_count(steps, "steps", minimum=1)
    if not isinstance(exclude_orthogonal, bool):
        raise TypeError(f"exclude_orthogonal must be a bool, got {describe(exclude_orthogonal)}")
    dtype = jnp.result_type(*bases, X, Y)
    given = float(jnp.finfo(dtype).eps) ** 0.5 if tolerance is None else tolerance
    allowed = as_real(given, "tolerance", ndim=0)
    if is_concrete(allowed) and not bool(allowed > 0):
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    bases, X, Y = jax.tree.map(lambda a: a.astype(dtype), (bases, X, Y))
    return _probe(key, bases, X, Y, allowed.astype(dtype), starts, steps, exclude_orthogonal)


def as_data(inputs: Any, targets: Any) -> tuple[Array, Array]:
    """``(X, Y)`` with as many rows each; ``Y = X`` where ``targets`` is None."""
    X = as_real(inputs, "inputs", ndim=2)
    if targets is None:
        return X, X
    Y = as_real(targets, "targets", ndim=2)
    if X.shape[0] != Y.shape[0]:
        raise ValueError(
            f"inputs and targets must have as many rows, got shapes {X.shape} and {Y.shape}"
        )
    return X, Y


@partial(jax.jit, static_argnames=("starts", "steps", "exclude"))
def _probe(
    key: Array,
    bases: tuple[Array, ...],
    X: Array,
    Y: Array,
    tolerance: Array,
    starts: int,
    steps: int,
    exclude: bool,
) -> AlignedProbe:
    # With more samples than inputs only their span is trained on: what lies off it never moves.
    reduced = X, Y
    if X.shape[0] > X.shape[1]:
        q, triangle = jnp.linalg.qr(X)
        reduced = triangle, matmul(q.T, Y)
    start = jax.vmap(partial(_start, bases=bases, X=X, Y=Y))(jax.random.split(key, starts))
    residuals = partial(_residuals, bases=bases, X=reduced[0], Y=reduced[1], exclude=exclude)
    found = jax.vmap(lambda c: _minimize(residuals, c, steps))(start)
    weights = jax.vmap(lambda c: _layers(_split(c, bases), bases))(found)

    def measure(weights: tuple[Array, ...]) -> tuple[Array, ...]:
        fit = jnp.linalg.norm(matmul(X, end_to_end(weights).T) - Y) / jnp.linalg.norm(Y)
        values = [jnp.linalg.svd(w, compute_uv=False) for w in weights]
        condition = jnp.stack([v[0] / v[-1] for v in values]).max()
        pairs = _pair_defects(weights, exclude)
        sizes = [2**0.5 * jnp.linalg.norm(p) for p in pairs]
        defect = jnp.stack(sizes).max() if sizes else jnp.zeros((), fit.dtype)
        return fit, jnp.minimum(defect, 1.0), _spread(weights), condition

    fits, defects, spreads, conditions = jax.vmap(measure)(weights)
    fair = (fits <= tolerance) & (jnp.logical_not(exclude) | (spreads >= LEAST_SPREAD))
    # A start that failed is NaN and must not win.
    fits_known = jnp.where(jnp.isnan(fits), jnp.inf, fits)
    best = jnp.where(fair.any(), jnp.where(fair, defects, jnp.inf).argmin(), fits_known.argmin())
    return AlignedProbe(weights, fits, defects, spreads, conditions, best, fair.any())


def _start(key: Array, bases: tuple[Array, ...], X: Array, Y: Array) -> Array:
    """Gaussian coefficients, each layer at the scale at which the product maps X to Y's size."""
    scale = (jnp.linalg.norm(Y) / jnp.linalg.norm(X)) ** (1 / len(bases))
    parts = []
    for k, basis in zip(jax.random.split(key, len(bases)), bases, strict=True):
        c = jax.random.normal(k, basis.shape[:1], basis.dtype)
        size = jnp.linalg.norm(jnp.tensordot(c, basis, 1)) / min(basis.shape[1:]) ** 0.5
        parts.append(scale * c / size)
    return jnp.concatenate(parts)


def _split(flat: Array, bases: tuple[Array, ...]) -> list[Array]:
    ends, total = [], 0
    for basis in bases[:-1]:
        total += basis.shape[0]
        ends.append(total)
    return jnp.split(flat, ends)


def _layers(coefficients: Sequence[Array], bases: tuple[Array, ...]) -> tuple[Array, ...]:
    pairs = zip(coefficients, bases, strict=True)
    return tuple(jnp.tensordot(c, basis, 1, precision="highest") for c, basis in pairs)


def _residuals(
    flat: Array, *, bases: tuple[Array, ...], X: Array, Y: Array, exclude: bool
) -> tuple[Array, Array]:
    """The fit's residual and the defect's, as vectors."""
    weights = _layers(_split(flat, bases), bases)
    signal = X
    for w in weights:
        signal = matmul(signal, w.T)
    fit = ((signal - Y) / jnp.linalg.norm(Y)).ravel()
    defect = _pair_defects(weights, exclude)
    return fit, jnp.concatenate(defect) if defect else jnp.zeros((0,), fit.dtype)


def _pair_defects(weights: tuple[Array, ...], exclude: bool) -> list[Array]:
    """Normalized commutators' upper triangles, one vector for each pair of products."""
    out = []
    for i in range(1, len(weights)):
        width = weights[i].shape[1]
        if width == 1:  # a single line is a basis of its own
            continue
        upper = jnp.triu_indices(width, 1)
        for a, n in enumerate(_grams([w.T for w in reversed(weights[:i])])):
            for b, m in enumerate(_grams(weights[i:])):
                neighbours = a == b == 0
                product = matmul(m, n)
                if exclude and neighbours:
                    # Of traceless symmetric matrices: at most sqrt(2) ||M_0|| ||N_0||.
                    bound = _floored_anisotropy(m) * _floored_anisotropy(n) * 2**0.5
                else:
                    # Of positive semidefinite ones: at most ||M|| ||N|| / sqrt(2).
                    bound = jnp.linalg.norm(m) * jnp.linalg.norm(n) / 2**0.5
                out.append((product - product.T)[upper] / bound)
    return out


def _grams(layers: Sequence[Array]) -> list[Array]:
    """``B^T B`` of the products ``B`` of the first, the first two, ... layers."""
    product, out = layers[0], [matmul(layers[0].T, layers[0])]
    for w in layers[1:]:
        product = matmul(w, product)
        out.append(matmul(product.T, product))
    return out


def _floored_anisotropy(m: Array) -> Array:
    energy = (traceless(m) ** 2).sum()
    return jnp.sqrt(energy + (LEAST_SPREAD * jnp.linalg.norm(m)) ** 2)


def _spread(weights: tuple[Array, ...]) -> Array:
    shares = []
    for below, above in pairwise(weights):
        if above.shape[1] == 1:
            continue
        for gram in (matmul(below, below.T), matmul(above.T, above)):
            shares.append(jnp.linalg.norm(traceless(gram)) / jnp.linalg.norm(gram))
    return jnp.stack(shares).min() if shares else jnp.ones((), weights[0].dtype)


def _minimize(residuals: Any, start: Array, steps: int) -> Array:
    """Fit, then minimize the defect under the fit, then bring the fit back to roundoff."""

    def augmented(c: Array, multipliers: Array, aligning: Array) -> Array:
        fit, defect = residuals(c)
        return jnp.concatenate([FIT_WEIGHT * fit + multipliers, aligning * defect])

    def round_of_steps(state: tuple, aligning: Array) -> tuple[tuple, None]:
        c, fitted, multipliers = state
        residual = partial(augmented, multipliers=multipliers * aligning, aligning=aligning)
        c = _descend(residual, c, ROUND)
        # The multipliers are still zero in the first rounds, and only there.
        fitted = jnp.where((aligning == 1) | multipliers.any(), fitted, c)
        raised = multipliers + aligning * FIT_WEIGHT * residuals(c)[0]
        return (c, fitted, raised), None

    def misfit(c: Array) -> Array:
        return (residuals(c)[0] ** 2).sum()

    # One loop over rounds of all three kinds, so that the steps are compiled once.
    rounds = np.repeat([0.0, 1.0, 0.0], [FITTING, -(-steps // ROUND), FITTING])
    zero = jnp.zeros_like(residuals(start)[0])
    state = (start, start, zero)
    (c, fitted, _), _ = jax.lax.scan(round_of_steps, state, jnp.asarray(rounds, start.dtype))
    # Where few networks fit, the way to less defect may have left them for good.
    lost = (misfit(c) > 1e-12) & (misfit(fitted) < misfit(c))
    return jnp.where(lost, fitted, c)


def _descend(residual: Any, c: Array, steps: int) -> Array:
    """Levenberg-Marquardt steps on ``||residual||^2``, damped in proportion to it."""

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        c, damping = state
        value = residual(c)
        energy = (value**2).sum()
        moved = c + _damped_solution(jax.jacfwd(residual)(c), value, damping * energy)
        better = (residual(moved) ** 2).sum() < energy
        damping = jnp.clip(jnp.where(better, damping / 4, damping * 4), 1e-12, 1e12)
        return (jnp.where(better, moved, c), damping), None

    return jax.lax.scan(step, (c, jnp.ones((), c.dtype)), None, length=steps)[0][0]


def _damped_solution(slope: Array, value: Array, damping: Array) -> Array:
    """The minimizer of ``||slope x + value||^2 + damping ||x||^2``, by the smaller of two systems.

    NaN where the damping is too small for the rank; the caller refuses such a step.
    """
    rows, columns = slope.shape
    if columns <= rows:
        gram = matmul(slope.T, slope) + damping * jnp.eye(columns, dtype=slope.dtype)
        factor = jax.scipy.linalg.cho_factor(gram)
        return -jax.scipy.linalg.cho_solve(factor, matmul(slope.T, value))
    gram = matmul(slope, slope.T) + damping * jnp.eye(rows, dtype=slope.dtype)
    return -matmul(slope.T, jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram), value))
