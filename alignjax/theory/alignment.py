"""Alignment: when singular vectors stay still, how fast training is then, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._roundoff import above, cleared, norm_roundoff, power, relative_roundoff
from alignjax._validation import (
    as_count,
    as_key,
    as_learning_rate,
    as_real,
    as_widths,
    describe,
    is_concrete,
)
from alignjax.bases import Certificate, WeakCondition, certify, weak_condition
from alignjax.linalg import leave_one_out_products, matmul
from alignjax.reduced import Reduced
from alignjax.theory.aligned_probe import AlignedProbe, aligned_interpolation
from alignjax.theory.subspaces import (
    Architecture,
    DimensionTest,
    architectures,
    dimension_test,
    element_bound,
    least_depth,
    outer_alignment,
    printed_element_bound,
)

__all__ = [
    "AlignedProbe",
    "Architecture",
    "Certificate",
    "DimensionTest",
    "WeakCondition",
    "aligned_interpolation",
    "architectures",
    "certify",
    "dimension_test",
    "element_bound",
    "learning_rate_bound",
    "least_depth",
    "minimum_norm",
    "minimum_norm_factorization",
    "minimum_singular_values",
    "one_dimensional_start",
    "outer_alignment",
    "predicted_rate",
    "printed_element_bound",
    "printed_learning_rate_bound",
    "printed_update",
    "safe_learning_rate",
    "stability_threshold",
    "weak_condition",
]

Spectra = Certificate | Reduced


def _matched(spectra: Spectra) -> tuple[Array, Array]:
    """Target and matching input spectrum, one entry a mode, exactly 0 where they are roundoff."""
    if not isinstance(spectra, (Certificate, Reduced)):
        raise TypeError(f"spectra must be a Certificate or a Reduced, got {describe(spectra)}")
    if spectra.input_spectrum.ndim != 1:
        raise TypeError("spectra of a sensing problem couple the modes: no formula applies to them")
    if isinstance(spectra, Certificate) and spectra.verdict == "no":
        raise ValueError(
            f"spectra come from a certificate whose verdict is 'no' (residual "
            f"{float(spectra.residual):.3g}): the modes do not decouple, and no formula applies"
        )
    target, inputs = jnp.asarray(spectra.target_spectrum), jnp.asarray(spectra.input_spectrum)
    # Spectra of certify and reduce are cleared already, with what is known of the data.
    target = jnp.where(above(abs(target), norm_roundoff(target.dtype, len(target))), target, 0.0)
    inputs = cleared(inputs, relative_roundoff(inputs.dtype, len(inputs)))
    return target, inputs[: len(target)]


def _goal(target: Array, inputs: Array) -> Array:
    """``|p*| = |lambda' / lambda|``, and 0 for modes without input, which have no minimum."""
    return jnp.abs(_divide(target, inputs, 0.0))


def _values(singular_values: Any, modes: int) -> Array:
    values = as_real(singular_values, "singular_values", ndim=2, finite=False)
    if values.shape[1] > modes:
        raise ValueError(
            f"singular_values must have shape (d, r) with r at most {modes}, got {values.shape}"
        )
    return values


def _divide(numerator: Array, denominator: Array, otherwise: float) -> Array:
    """A quotient, or ``otherwise`` where it would divide by zero; its derivative stays finite."""
    safe = jnp.where(denominator == 0, 1.0, denominator)
    return jnp.where(denominator == 0, otherwise, numerator / safe)


def printed_update(
    spectra: Spectra, singular_values: Float[Array, "d r"], learning_rate: Any
) -> Float[Array, "d r"]:
    """One step of the recursion as it is printed, kept to show that it is not what training does.

        s_i + eta prod_j s_j (lambda' - lambda prod_j s_j)

    The product over all ``j`` should leave ``i`` out: see :func:`alignjax.reduced_descent`.

    Args:
        spectra: a :class:`Certificate` or :class:`Reduced`.
        singular_values: shape ``(d, r)``.
        learning_rate: eta, a scalar.

    Raises:
        TypeError, ValueError: for arguments that do not fit.

    Source: Radhakrishnan et al. 2020, Corollary 1, eq. 6, as printed.
    """
    target, inputs = _matched(spectra)
    values = _values(singular_values, target.shape[0])
    r = values.shape[1]
    rate = as_real(learning_rate, "learning_rate", ndim=0)
    product = jnp.prod(values, axis=0)
    return values + (rate * product * (target[:r] - inputs[:r] * product))[None]


def learning_rate_bound(spectra: Spectra, singular_values: Float[Array, "d r"]) -> Float[Array, ""]:
    """The learning rate up to which every mode goes where the gradient flow goes, from any start.

        eta <= 1 / max_k lambda_k sum_i prod_{j != i} S_{j,k}^2,
        S_{j,k}^2 = s_{j,k}^2 + max(0, |p*_k|^{2/d} - min_i s_{i,k}^2),    p* = lambda' / lambda

    with spectra divided by ``n``. No ``|s_{j,k}|`` ever exceeds ``S_{j,k}``, and ``|p_k - p*_k|``
    never grows. The start may be above the minimum or below, balanced or not, of any signs, with
    zeros. A mode ends at ``p*``, unless two or more layers tie for the smallest ``|s_i|`` on the
    wrong side of 0, or are 0: then it ends at a saddle, see :func:`minimum_singular_values`. It
    holds for the recursion; full matrices need :func:`safe_learning_rate`.

    Why: a step maps ``s_i`` to ``s_i + t g prod_{j != i} s_j`` at ``t = eta``, with
    ``g = lambda (p* - p)``; signs may be changed in pairs of layers, and in one layer together with
    ``lambda'``, so let ``p* >= 0``. (a) Above the minimum, ``p > p*``, each layer shrinks by
    ``a_i = eta |g| p / s_i^2``, and ``prod (1 - a_i) >= 1 - sum a_i`` keeps ``p >= p*`` if
    ``eta lambda sum_i prod_{j != i} s_j^2 <= 1``, which shrinking layers keep true. (b) Below it, a
    step multiplies each ``s_i^2 - s_j^2`` by ``1 - (eta g prod_{k != i,j} s_k)^2``, which is in
    [0, 1]. As the smallest ``s_i`` is at most ``p*^{1/d}`` until ``p = p*``, ``S`` bounds all
    layers until then. If ``p`` met ``p*`` within a step, at ``t < eta``, it would have moved by at
    most ``t g sum_i prod_{j != i} S_j^2 < p* - p`` until there. (c) On the wrong side of 0 layers
    shrink, differences of squares as in (b), until the smallest one, unless it ties, changes sign.

    Args:
        spectra: a :class:`Certificate` or :class:`Reduced`.
        singular_values: of the start, shape ``(d, r)``.

    Returns:
        The bound, at least 0. Infinite where no mode has inputs or targets: modes without either,
        up to roundoff, set no bound. 0 where a mode has a target but no input, and so no minimum.

    Raises:
        TypeError: for spectra of a sensing problem.
        ValueError: for another shape.

    Source: not in Radhakrishnan et al. 2020, whose Proposition 1, for starts below the minimum, is
    :func:`printed_learning_rate_bound`.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> spectra = aj.theory.alignment.certify(aj.factorization(jnp.eye(1)))
        >>> round(float(aj.theory.alignment.learning_rate_bound(spectra, [[3.0], [3.0]])), 4)
        0.0556
    """
    target, inputs = _matched(spectra)
    values = _values(singular_values, target.shape[0])
    others = leave_one_out_products(tuple(_largest_squares(target, inputs, values)))
    target, inputs = target[: values.shape[1]], inputs[: values.shape[1]]
    # A mode without inputs has no curvature, even where the product of its layers overflows.
    curvature = jnp.where(inputs > 0, inputs * sum(others), 0.0)
    bound = _divide(jnp.ones_like(curvature), curvature, jnp.inf)
    endless = (inputs == 0) & (target != 0)
    return jnp.where(endless, 0.0, bound).min(initial=jnp.inf)


def _largest_squares(target: Array, inputs: Array, values: Array) -> Array:
    """``S^2`` of :func:`learning_rate_bound`: what no ``s_i^2`` exceeds on its way, ``(d, r)``."""
    d, r = values.shape
    squares = values**2
    room = power(_goal(target[:r], inputs[:r]), 2.0 / d) - squares.min(axis=0)
    return squares + jnp.maximum(room, 0.0)[None]


def printed_learning_rate_bound(
    spectra: Spectra, singular_values: Float[Array, "d r"]
) -> Float[Array, ""]:
    """The paper's bound for starts below the minimum, far below what is needed for small ones.

        eta <= (ln 2 / d) min_{i,k} s_{i,k}(0)^2 lambda_k / lambda'_k^2

    It assumes ``s_{i,k}(0) > 0`` and ``0 < p_k(0) <= p*_k`` in every mode with a target. Elsewhere
    it says nothing: from starts above the minimum, descent at this rate may diverge.

    Args:
        spectra: a :class:`Certificate` or :class:`Reduced`.
        singular_values: of the start, shape ``(d, r)``.

    Returns:
        The bound; infinite if no mode has a target.

    Raises:
        TypeError: for spectra of a sensing problem.
        ValueError: for another shape.

    Source: Radhakrishnan et al. 2020, Proposition 1; the printed form leaves out the minimum over
    the layers ``i``, without which it fails.
    """
    target, inputs = _matched(spectra)
    values = _values(singular_values, target.shape[0])
    r = values.shape[1]
    bound = _divide(values**2 * inputs[None, :r], target[None, :r] ** 2, jnp.inf)
    return jnp.log(2.0).astype(bound.dtype) / values.shape[0] * bound.min(initial=jnp.inf)


def safe_learning_rate(spectra: Spectra, singular_values: Float[Array, "d r"]) -> Float[Array, ""]:
    """A learning rate at which full matrices follow their modes to the minimum.

    The least of :func:`learning_rate_bound` and of :func:`stability_threshold`, at the minimum that
    the flow reaches from this start and at the largest singular values on the way there: from a
    start above the minimum, or far from balanced, roundoff off the diagonals may grow before the
    minimum is near. Along saddles on the way it grows at any rate.

    Args:
        spectra: a :class:`Certificate` or :class:`Reduced`.
        singular_values: of the start, shape ``(d, r)``.

    Returns:
        The rate, at least 0. 0 where no rate does: a mode has a target but no input, or a
        bottleneck drops one of more gain than one that it keeps. Infinite where nothing moves.

    Raises:
        TypeError: for spectra of a sensing problem.
        ValueError: for another shape; if roundoff hides whether layers tie, so that the minimum
            cannot be told.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> problem = aj.from_moments(jnp.diag(jnp.array([1.0, 1.0, 60.0])),
        ...                           jnp.array([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), 30.0)
        >>> spectra = aj.theory.alignment.certify(problem)
        >>> start = jnp.full((2, 2), 0.1)
        >>> round(float(aj.theory.alignment.safe_learning_rate(spectra, start)), 5)
        0.00833
    """
    target, inputs = _matched(spectra)
    values = _values(singular_values, target.shape[0])
    rates = [learning_rate_bound(spectra, values)]
    largest = power(_largest_squares(target, inputs, values), 0.5)
    for at in (largest, minimum_singular_values(spectra, values)):
        rates.append(stability_threshold(spectra, singular_values=at))
    return jnp.stack(rates).min()


def minimum_singular_values(
    spectra: Spectra,
    singular_values: Float[Array, "d r"] | None = None,
    *,
    depth: int | None = None,
) -> Float[Array, "d r"]:
    """Singular values that gradient flow reaches from a start: the minimum, unless it is stuck.

        |s_i| = sqrt(s_i(0)^2 + c),    prod_i |s_i| = p* = |lambda'/lambda|,

    since the flow keeps every ``s_i^2 - s_j^2``. Where at least two layers tie for the smallest
    ``|s_i|`` and ``p(0) p* <= 0``, ``p`` only creeps up to 0, and the mode ends at a saddle:
    ``c = -min_i s_i(0)^2``. Two layers at 0 are a case of it, and stay where they are. Modes with
    ``lambda = 0`` do not move. Without a start the layers are balanced: ``s_i = p*^{1/d}``.

    Args:
        spectra: a :class:`Certificate` or :class:`Reduced`.
        singular_values: the start, shape ``(d, r)``.
        depth: ``d``, for balanced layers.

    Returns:
        Absolute values, shape ``(d, r)``.

    Raises:
        TypeError: for spectra of a sensing problem.
        ValueError: if neither or both of ``singular_values`` and ``depth`` are given; if roundoff
            hides whether layers tie, so that the limit cannot be told.

    Source: Radhakrishnan et al. 2020, eq. 5 (the conserved differences).
    """
    if (singular_values is None) == (depth is None):
        raise ValueError("give either singular_values or depth, and not both")
    if singular_values is None:
        d = as_count(depth, "depth", minimum=1)
        target, inputs = _matched(spectra)
        goal = _goal(target, inputs)
        return jnp.broadcast_to(power(goal, 1.0 / d), (d, goal.shape[0]))
    return _flow_limit(spectra, singular_values)[0]


def _flow_limit(spectra: Spectra, singular_values: Any) -> tuple[Array, Array]:
    """Where the flow ends, in absolute values ``(d, r)``, and which modes end at a saddle."""
    target, inputs = _matched(spectra)
    values = _values(singular_values, target.shape[0])
    d, r = values.shape
    target, inputs = target[:r], inputs[:r]
    moves, goal = inputs > 0, _goal(target, inputs)
    _refuse_doubtful_ties(values, moves & (goal > 0), target)
    squares = values**2
    gaps = squares - squares.min(axis=0, keepdims=True)
    # Of the shift above the smallest square: prod of sqrt(gaps + shift) grows with it, and the
    # balanced value is an upper end of the bracket.
    low, high = jnp.zeros_like(goal), power(goal, 2.0 / d)
    for _ in range(2 * jnp.finfo(values.dtype).nmant):
        middle = 0.5 * (low + high)
        below = jnp.prod(jnp.sqrt(gaps + middle[None]), axis=0) < goal
        low, high = jnp.where(below, middle, low), jnp.where(below, high, middle)
    # A product of signs, where that of the values could underflow.
    towards = jnp.prod(jnp.sign(values), axis=0) * target
    stuck = ((gaps == 0).sum(axis=0) > 1) & (towards <= 0)
    limit = jnp.sqrt(gaps + jnp.where(stuck, 0.0, high)[None])
    return jnp.where(moves[None], limit, jnp.abs(values)), moves & stuck & (goal > 0)


def _refuse_doubtful_ties(values: Array, has_goal: Array, target: Array) -> None:
    """Refuse modes whose limit hangs on whether their two smallest layers tie exactly."""
    if values.shape[0] < 2 or not all(map(is_concrete, (values, has_goal, target))):
        return
    sizes = jnp.sort(jnp.abs(values), axis=0)
    roundoff = 8 * relative_roundoff(values.dtype, values.shape[0]) * sizes.max()
    wrong = jnp.prod(jnp.sign(values), axis=0) * target < 0
    nearly = (sizes[1] - sizes[0] <= roundoff) & (sizes[1] != sizes[0])
    doubtful = has_goal & ((wrong & nearly) | ((sizes[1] <= roundoff) & (sizes[1] > 0)))
    if bool(doubtful.any()):
        mode = int(jnp.argmax(doubtful))
        raise ValueError(
            f"singular_values of mode {mode}, {values[:, mode].tolist()}, tie up to roundoff only: "
            f"with exact ties the flow ends at a saddle, without it goes on to the minimum; give "
            f"exact ties or clear differences"
        )


def stability_threshold(
    spectra: Spectra,
    *,
    depth: int | None = None,
    singular_values: Float[Array, "d r"] | None = None,
) -> Float[Array, ""]:
    """The learning rate above which roundoff off the diagonals grows at the minimum.

        2 / max_{i <= k_d, j <= k_0} lambda_j sum_l prod_{m>l} s_{m,i}^2 prod_{m<l} s_{m,j}^2

    where ``j`` runs over all eigenvalues of ``Sigma_xx``, matched or not, and ``s_m`` holds the
    whole diagonal of layer ``m``: for a :class:`Reduced` its entries beyond ``r`` too, which no
    gradient moves but which carry perturbations; for a :class:`Certificate` zeros there. Where a
    bottleneck drops modes ``j`` with targets, what the network misses couples each to the modes
    ``c`` that pass, in blocks of the Hessian of the entries ``(j, c)`` and ``(c, j)`` of all
    layers; with two layers,

        [[lambda_c s_{1,c}^2, lambda'_j], [lambda'_j, lambda_j s_{2,c}^2]],

    whose eigenvalues count too. One is negative where a dropped mode has more gain
    ``lambda'^2 / lambda`` than one that is kept: then no rate keeps the aligned set, and the
    threshold is 0. Otherwise the maximum is the largest Hessian eigenvalue. Necessary, not
    sufficient: along saddles on the way the aligned set is unstable at any rate.

    Args:
        spectra: a :class:`Certificate` or :class:`Reduced`.
        depth: ``d``, for the balanced minimum ``s = p*^{1/d}``.
        singular_values: at the minimum, shape ``(d, r)``; for a :class:`Reduced` by default those
            that the flow reaches from its start.

    Raises:
        TypeError: for spectra of a sensing problem.
        ValueError: if the minimum is not determined by the arguments, or the flow from the start
            ends at a saddle.

    Source: not in Radhakrishnan et al. 2020, whose Proposition 1 is about the modes alone.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> problem = aj.from_moments(jnp.diag(jnp.array([1.0, 1.0, 60.0])),
        ...                           jnp.array([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), 30.0)
        >>> spectra = aj.theory.alignment.certify(problem)
        >>> round(float(0.07 * 2 / aj.theory.alignment.stability_threshold(spectra, depth=2)), 1)
        16.8
    """
    target, _ = _matched(spectra)
    if singular_values is None:
        if isinstance(spectra, Reduced) and depth is None:
            singular_values, stuck = _flow_limit(spectra, spectra.singular_values)
            if is_concrete(stuck) and bool(stuck.any()):
                raise ValueError(
                    f"spectra start where the flow ends at a saddle in mode "
                    f"{int(jnp.argmax(stuck))}, not at a minimum: give singular_values or depth"
                )
        else:
            singular_values = minimum_singular_values(spectra, depth=depth)
    elif depth is not None:
        raise ValueError("give either singular_values or depth, and not both")
    values = _values(singular_values, target.shape[0])
    low, high = _extreme_curvatures(spectra, values)
    threshold = _divide(jnp.asarray(2.0, high.dtype), high, jnp.inf)
    roundoff = 10 * relative_roundoff(high.dtype, 2 * values.shape[0])
    return jnp.where(low < -roundoff * high, 0.0, threshold)


def _diagonals(spectra: Spectra, values: Array) -> tuple[Array, Array, Array, list[int]]:
    """Whole diagonals ``(d, K)``, both spectra ``(K,)``, zero up to the widest, and the widths."""
    d, r = values.shape
    if isinstance(spectra, Reduced):
        widths = [spectra.V.shape[0], *(b.shape[0] for b in spectra.inner_bases), len(spectra.U)]
        inputs, target = spectra.full_input_spectrum, spectra.full_target_spectrum
        rest = spectra.frozen
        diagonals = [jnp.concatenate([s, tail]) for s, tail in zip(values, rest, strict=True)]
    else:
        widths = [spectra.V.shape[0], *[r] * (d - 1), spectra.U.shape[0]]
        inputs, target = jnp.asarray(spectra.input_spectrum), jnp.asarray(spectra.target_spectrum)
        diagonals = [values]  # of one width all

    def padded(array: Array) -> Array:
        missing = max(widths) - array.shape[-1]
        return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])

    whole = jnp.concatenate([padded(jnp.atleast_2d(s)) for s in diagonals])
    return whole, padded(inputs), padded(target), widths


def _extreme_curvatures(spectra: Spectra, values: Array) -> tuple[Array, Array]:
    """The least negative and the largest eigenvalue of the Hessian at an aligned minimum."""
    s, inputs, target, widths = _diagonals(spectra, values)
    (d, size), r = s.shape, values.shape[1]
    exists = (jnp.arange(size)[None] < jnp.asarray(widths)[:, None]).astype(s.dtype)
    # What layers above and below a layer do to a perturbation of it.
    one = jnp.ones_like(s[:1])
    up = exists[-1:] * jnp.concatenate([jnp.cumprod(s[:0:-1], axis=0)[::-1], one])
    down = exists[:1] * jnp.concatenate([one, jnp.cumprod(s[:-1], axis=0)])
    # A perturbation at (a, b) of the product, by all layers.
    low, high = jnp.zeros((), s.dtype), jnp.max(matmul((up**2).T, down**2) * inputs[None])
    modes = min(widths[0], widths[-1])
    if d == 1 or modes <= r:
        return low, high
    # The residual at the minimum: what the bottleneck drops.
    missed = jnp.where((jnp.arange(size) >= r) & (jnp.arange(size) < modes), target, 0.0)
    j = jnp.arange(r, modes)[:, None]
    c = jnp.arange(size)[None, :]
    first = jnp.moveaxis(up[:, j] * down[:, c], 0, -1)
    second = jnp.moveaxis(up[:, c] * down[:, j], 0, -1)
    # The first axis is the lower of two layers, the second the upper one.
    layer = jnp.arange(d)
    passes = jnp.concatenate([one, s[:-1] * exists[1:-1]])
    lies_between = (layer[None] > layer[:, None] + 1)[..., None]
    between = exists[1:, None] * jnp.cumprod(jnp.where(lies_between, passes[None], 1), axis=1)
    # Entry (j, c) of the upper layer and (c, j) of the lower one meet in the residual at j,
    # with the roles exchanged in that at c.
    reach = missed[None, None] * up[None] * down[:, None]
    at_j, at_c = reach[..., j] * between[..., c], reach[..., c] * between[..., j]
    is_pair = (layer[None] > layer[:, None])[..., None, None]
    at_j, at_c = jnp.where(is_pair, at_j, 0), jnp.where(is_pair, at_c, 0)
    coupling = jnp.moveaxis(at_j, (0, 1), (-1, -2)) + jnp.moveaxis(at_c, (0, 1), (-2, -1))
    own = inputs[c][..., None, None] * first[..., :, None] * first[..., None, :]
    other = inputs[j][..., None, None] * second[..., :, None] * second[..., None, :]
    turned = jnp.swapaxes(coupling, -1, -2)
    block = jnp.block([[own, coupling], [turned, other]])
    found = jnp.linalg.eigvalsh(block)
    return jnp.minimum(low, found.min()), jnp.maximum(high, found.max())


def predicted_rate(
    spectra: Spectra, singular_values: Float[Array, "d r"], learning_rate: Any
) -> Float[Array, " r"]:
    """The factor by which a mode's distance ``p - p*`` shrinks per step near the minimum.

        1 - eta lambda sum_i (p* / s_i)^2

    Modes without a target decay by a power law instead, where layers tie.

    Args:
        spectra: a :class:`Certificate` or :class:`Reduced`.
        singular_values: at the minimum, shape ``(d, r)``; see :func:`minimum_singular_values`.
        learning_rate: eta, a scalar or one rate a layer, shape ``(d,)``.

    Raises:
        TypeError, ValueError: for arguments that do not fit.

    Source: Radhakrishnan et al. 2020, Proposition 1.
    """
    target, inputs = _matched(spectra)
    values = _values(singular_values, target.shape[0])
    rate = as_learning_rate(learning_rate, values.shape[0])
    per_layer = jnp.broadcast_to(rate, (values.shape[0],))[:, None]
    others = jnp.stack(leave_one_out_products(tuple(values))) ** 2
    return 1.0 - inputs[: values.shape[1]] * jnp.sum(per_layer * others, axis=0)


def minimum_norm(P: Float[Array, "k_d k_0"], depth: int) -> Float[Array, ""]:
    """The least ``sum_i ||W_i||_F^2`` with ``W_d ... W_1 = P``: ``d sum_k sigma_k^{2/d}``.

    Args:
        P: an end-to-end matrix, shape ``(k_d, k_0)``.
        depth: ``d``.

    Source: Radhakrishnan et al. 2020, Proposition 2 (two layers: twice the nuclear norm).
    """
    depth = as_count(depth, "depth", minimum=1)
    P = as_real(P, "P", ndim=2)
    sigma = cleared(jnp.linalg.svd(P, compute_uv=False), relative_roundoff(P.dtype, *P.shape))
    return depth * jnp.sum(power(sigma, 2.0 / depth))


def minimum_norm_factorization(
    P: Float[Array, "k_d k_0"], depth: int, widths: Sequence[int] | None = None
) -> tuple[Float[Array, "k_i k_j"], ...]:
    """Layers of least ``sum_i ||W_i||_F^2`` with ``W_d ... W_1 = P``: balanced and aligned.

    With ``P = U S V^T``, ``W_1 = S^{1/d} V^T``, ``W_d = U S^{1/d}`` and ``W_i = S^{1/d}`` between.

    Args:
        P: an end-to-end matrix, shape ``(k_d, k_0)``.
        depth: ``d``.
        widths: ``(k_0, ..., k_d)``; inner widths are ``min(k_0, k_d)`` by default.

    Raises:
        ValueError: if the widths do not fit, or are too narrow for the rank of ``P``.

    Source: Radhakrishnan et al. 2020, Proposition 2, at any depth.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> layers = aj.theory.alignment.minimum_norm_factorization(jnp.diag(jnp.array([8.0, 1.0])),
        ...                                                         3)
        >>> round(sum(float((w**2).sum()) for w in layers), 4)
        15.0
    """
    P, depth = as_real(P, "P", ndim=2), as_count(depth, "depth", minimum=1)
    if widths is None:
        widths = (P.shape[1], *[min(P.shape)] * (depth - 1), P.shape[0])
    widths = as_widths(widths)
    if len(widths) != depth + 1 or (widths[0], widths[-1]) != P.shape[::-1]:
        raise ValueError(
            f"widths must be (k_0, ..., k_d) with d = {depth}, k_0 = {P.shape[1]} and "
            f"k_d = {P.shape[0]}, got {widths}"
        )
    r = min(widths)
    u, sigma, vt = jnp.linalg.svd(P, full_matrices=False)
    sigma = cleared(sigma, relative_roundoff(P.dtype, *P.shape))
    if r < sigma.shape[0] and not isinstance(sigma, jax.core.Tracer):
        beyond = float(sigma[r])
        if beyond > 0:
            raise ValueError(
                f"widths {widths} allow rank {r} only, but P has singular value number {r + 1} "
                f"equal to {beyond:.3g}"
            )
    root = power(sigma[:r], 1.0 / depth)
    if depth == 1:
        return (P,)
    inner = [
        jnp.zeros((k, r), P.dtype).at[jnp.arange(r), jnp.arange(r)].set(1.0) for k in widths[1:-1]
    ]
    bases = [vt[:r].T, *inner, u[:, :r]]
    return tuple(matmul(out * root[None], into.T) for into, out in pairwise(bases))


def one_dimensional_start(
    key: Array, widths: Sequence[int], scale: Any
) -> tuple[Float[Array, "k_i k_j"], ...]:
    """A start whose layers stay aligned with each other for one output, on any data, for any loss.

        W_1 = sigma u_1 w^T,    W_i = sigma u_i u_{i-1}^T,    W_d = sigma u_{d-1}^T

    with uniformly random unit vectors ``u_i`` and ``w``: every layer keeps rank 1, and only ``w``
    and the singular values move.

    Args:
        key: a random key.
        widths: ``(k_0, ..., k_d)`` with ``k_d = 1``.
        scale: ``sigma``, of all layers; may be traced.

    Raises:
        ValueError: if ``k_d`` is not 1.

    Source: Radhakrishnan et al. 2020, the case of 1-dimensional outputs.
    """
    widths, scale = as_widths(widths), as_real(scale, "scale", ndim=0)
    if widths[-1] != 1:
        raise ValueError(f"widths must end in k_d = 1, got {widths}")
    units = [
        v / jnp.linalg.norm(v)
        for k, width in zip(jax.random.split(as_key(key), len(widths) - 1), widths, strict=False)
        for v in [jax.random.normal(k, (width,), scale.dtype)]
    ]
    units.append(jnp.ones((1,), scale.dtype))
    return tuple(scale * jnp.outer(out, into) for into, out in pairwise(units))
