"""What is measured on a network: alignment, invariance, balance, margin, risk, sharpness.

Everything here can be traced, by ``jit`` and by ``vmap``, and stays finite on zero matrices,
repeated singular values and deficient ranks; only the logarithm of a zero risk is ``-inf``. A share
whose total is zero (a zero layer is aligned with anything) is 1.

Singular vectors are defined up to signs and, where singular values repeat, up to rotations. Metrics
that compare them one by one inherit that, so :func:`alignment`, :func:`chain_alignment` and the
metrics below them use commutators and energies, which no choice of basis enters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignjax._validation import as_count, as_key, as_real, as_weights, as_widths, describe
from alignjax.linalg import end_to_end, matmul, split_products
from alignjax.problems import Problem, SampleProblem, check_weights, gradient, risk, to_span

__all__ = [
    "alignment",
    "balancedness",
    "chain_alignment",
    "chance_alignment",
    "invariance",
    "log_risk",
    "margin",
    "sharpness",
    "singular_vector_alignment",
    "spectral_ratio",
    "strong_invariance",
]


def alignment(weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, " d-1"]:
    """How nearly neighbouring layers share a basis, from the commutator of their Gram matrices.

        a_i = 1 - sqrt(2) ||[M, N]||_F / (||M||_F ||N||_F),  M = W_{i+1}^T W_{i+1},  N = W_i W_i^T

    It is 1 exactly where the pair commutes, hence where some usSVDs have ``U_i = V_{i+1}``. For
    positive semidefinite matrices the commutator is at most ``||M|| ||N|| / sqrt(2)``, so 0 is the
    least. Random layers are far from 0: compare with :func:`chance_alignment`. All pairs may be
    aligned while the chain is not: see :func:`chain_alignment`.

    Args:
        weights: layers ``(W_1, ..., W_d)``, ``W_i`` of shape ``(k_i, k_{i-1})``.

    Returns:
        Shape ``(d-1,)``, in [0, 1]; 1 where a layer of the pair is zero.

    Raises:
        TypeError, ValueError: if ``weights`` are no real matrices that chain.

    Source: a basis-free form of Radhakrishnan et al. 2020, Definition 2; the printed metric
    (section 6) differs and is :func:`singular_vector_alignment`.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import alignment
        >>> tilted = jnp.array([[1.0, 1.0], [0.0, 0.0]])
        >>> alignment((jnp.diag(jnp.array([2.0, 1.0])), jnp.eye(2), tilted)).round(3).tolist()
        [1.0, 1.0]
        >>> alignment((jnp.diag(jnp.array([1.0, 0.0])), tilted)).round(3).tolist()
        [0.0]
    """
    layers = [_unit(w) for w in as_weights(weights)]
    return _stack([_pair_alignment(a, b) for a, b in pairwise(layers)], layers[0].dtype)


def chance_alignment(
    key: Array, widths: Sequence[int], *, samples: int = 1000
) -> Float[Array, " d-1"]:
    """The mean of :func:`alignment` over independent Gaussian layers: its chance level.

    Args:
        key: a JAX random key.
        widths: ``(k_0, ..., k_d)``.
        samples: over how many networks the mean is taken.

    Returns:
        Shape ``(d-1,)``, in the default float; its standard error falls like ``samples ** -0.5``.

    Raises:
        TypeError, ValueError: if an argument is no key, no widths or no positive count.

    Example:
        >>> import jax
        >>> from alignjax.metrics import chance_alignment
        >>> chance_alignment(jax.random.key(0), (4, 4, 4), samples=100).shape
        (1,)
    """
    key, widths = as_key(key), as_widths(widths)
    samples = as_count(samples, "samples", minimum=1)
    shapes = list(zip(widths[1:], widths[:-1], strict=True))

    def one(key: Array) -> Array:
        keys = jax.random.split(key, len(shapes))
        return alignment([jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)])

    # Wide layers are drawn a few at a time, so that memory does not grow with the samples.
    batch = max(1, min(samples, 2**20 // sum(rows * columns for rows, columns in shapes)))
    return jax.lax.map(one, jax.random.split(key, samples), batch_size=batch).mean(0)


def chain_alignment(weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, " d-1"]:
    """How nearly the whole chain shares common bases, at every interior vertex.

        c_i = 1 - sqrt(2) max_{j < i < k} ||[A_j A_j^T, B_k^T B_k]||_F,
        A_j = W_i ... W_{j+1},  B_k = W_k ... W_{i+1},  of layers scaled to ||W_l||_F = 1

    Bases ``P_0, ..., P_d`` with all ``P_i^T W_i P_{i-1}`` diagonal make every ``c_i`` 1. The test
    of neighbours alone is weaker: with ``W_2 = I`` it passes whatever ``W_1`` and ``W_3`` are. The
    commutators are divided by the layers' norms, not by the products', because an aligned chain can
    have a zero product; products of many layers are small at that scale, and so is their defect.

    Args:
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        Shape ``(d-1,)``, in [0, 1], one value for each of the vertices ``1, ..., d-1``.

    Raises:
        TypeError, ValueError: if ``weights`` are no real matrices that chain.

    Source: Radhakrishnan et al. 2020, Definition 2 (the printed one leaves open whether one basis
    for each vertex is meant; here it is).

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import alignment, chain_alignment
        >>> w_1, w_3 = jnp.diag(jnp.array([1.0, 0.0])), jnp.array([[1.0, 1.0], [0.0, 0.0]])
        >>> alignment((w_1, jnp.eye(2), w_3)).round(3).tolist()
        [1.0, 1.0]
        >>> chain_alignment((w_1, jnp.eye(2), w_3)).round(3).tolist()
        [0.5, 0.5]
    """
    layers = [_to_unit_norm(w) for w in as_weights(weights)]
    values = []
    for i in range(1, len(layers)):
        before, after = _running_products(layers, i)
        defects = jnp.stack([_commutator_norm(m, n) for m in after for n in before])
        values.append(jnp.clip(1.0 - 2**0.5 * defects.max(), 0.0, 1.0))
    return _stack(values, layers[0].dtype)


def singular_vector_alignment(weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, " d-1"]:
    """The mean inner product of corresponding sorted singular vectors of neighbouring layers.

        s_i = mean_j <u_{i,j}, v_{i+1,j}>,  singular values sorted downwards

    **Ill defined**: signs are the algorithm's choice, repeated singular values rotate the vectors,
    and layers that are aligned in another order do not match, so exactly aligned networks give
    anything up to 1, negative values too. Kept for comparison with the paper; use
    :func:`alignment` and :func:`chain_alignment`. Not to be differentiated.

    Args:
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        Shape ``(d-1,)``, in [-1, 1]; the mean is over the singular vectors that both layers have.

    Raises:
        TypeError, ValueError: if ``weights`` are no real matrices that chain.

    Source: Radhakrishnan et al. 2020, section 6, as printed.
    """
    layers = [_unit(w) for w in as_weights(weights)]
    values = []
    for before, after in pairwise(layers):
        u = jnp.linalg.svd(before, full_matrices=False)[0]
        vt = jnp.linalg.svd(after, full_matrices=False)[2]
        count = min(u.shape[1], vt.shape[0])
        values.append(jnp.clip((u[:, :count] * vt[:count].T).sum(0).mean(), -1.0, 1.0))
    return _stack(values, layers[0].dtype)


def invariance(
    weights: Sequence[Float[Array, "k_i k_j"]],
    start: Sequence[Float[Array, "k_i k_j"]] | None = None,
    *,
    bases: Sequence[Float[Array, "k k"]] | None = None,
) -> Float[Array, " d"]:
    """How much of each layer stays diagonal in the start's bases, where alignment must keep them.

    With ``E(M)`` the share of ``||M||_F^2`` that lies on the diagonal of ``M``,

        E(U_i(0)^T W_i V_i(0))         1 < i < d,
        E(U_1(0)^T W_1 W_1^T U_1(0))   i = 1, whose right basis may move,
        E(V_d(0)^T W_d^T W_d V_d(0))   i = d, whose left basis may move.

    A single layer has no basis that must stay, and gets 1.

    Args:
        weights: layers ``(W_1, ..., W_d)`` now.
        start: the layers at the start, whose own singular vectors are the bases. These are
            arbitrary where singular values of a layer repeat, and then the result depends on the
            algorithm: pass ``bases`` instead.
        bases: ``(P_0, ..., P_d)``, ``P_i`` orthogonal ``(k_i, k_i)``, for ``U_i = P_i`` and
            ``V_i = P_{i-1}``.

    Returns:
        Shape ``(d,)``, in [0, 1]; 1 for a zero layer.

    Raises:
        TypeError: if not exactly one of ``start`` and ``bases`` is given, or one is no sequence.
        ValueError: if shapes do not fit ``weights``.

    Source: Radhakrishnan et al. 2020, Definition 3; the printed metric (section 6) averages inner
    products of singular vectors and is ill defined.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import invariance
        >>> start = (jnp.diag(jnp.array([2.0, 1.0])), jnp.diag(jnp.array([2.0, 1.0])))
        >>> turned = start[0] @ jnp.array([[0.6, 0.8], [-0.8, 0.6]])
        >>> invariance((turned, start[1]), start).round(3).tolist()
        [1.0, 1.0]
    """
    layers, frames = _frames(weights, start, bases)
    last = len(layers) - 1
    if last == 0:
        return jnp.ones((1,), layers[0].dtype)
    shares = []
    for i, (w, (u, v)) in enumerate(zip(layers, frames, strict=True)):
        if i == 0:
            inside = matmul(u.T, w)
            shares.append(_diagonal_share(matmul(inside, inside.T)))
        elif i == last:
            inside = matmul(w, v)
            shares.append(_diagonal_share(matmul(inside.T, inside)))
        else:
            shares.append(_diagonal_share(matmul(matmul(u.T, w), v)))
    return jnp.stack(shares)


def strong_invariance(
    weights: Sequence[Float[Array, "k_i k_j"]],
    start: Sequence[Float[Array, "k_i k_j"]] | None = None,
    *,
    bases: Sequence[Float[Array, "k k"]] | None = None,
) -> Float[Array, " d"]:
    """How much of each layer stays diagonal in the start's bases, outer bases included.

        E(U_i(0)^T W_i V_i(0)),  E(M) = sum_j M_jj^2 / ||M||_F^2

    Args:
        weights: layers ``(W_1, ..., W_d)`` now.
        start: the layers at the start; see :func:`invariance` for repeated singular values.
        bases: ``(P_0, ..., P_d)`` in place of ``start``.

    Returns:
        Shape ``(d,)``, in [0, 1]; 1 for a zero layer.

    Raises:
        TypeError: if not exactly one of ``start`` and ``bases`` is given, or one is no sequence.
        ValueError: if shapes do not fit ``weights``.

    Source: Radhakrishnan et al. 2020, Definition 3 (strong alignment).

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import strong_invariance
        >>> turned = jnp.array([[0.6, 0.8], [-0.8, 0.6]])
        >>> strong_invariance((turned,), bases=(jnp.eye(2), jnp.eye(2))).round(3).tolist()
        [0.36]
    """
    layers, frames = _frames(weights, start, bases)
    return jnp.stack(
        [
            _diagonal_share(matmul(matmul(u.T, w), v))
            for w, (u, v) in zip(layers, frames, strict=True)
        ]
    )


def balancedness(weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, " d-1"]:
    """How far neighbouring layers are from balanced.

        ||W_{i+1}^T W_{i+1} - W_i W_i^T||_F

    Gradient flow conserves each difference; gradient descent drifts at order ``learning_rate^2``.

    Args:
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        Shape ``(d-1,)``, in squared units of the weights; 0 for balanced layers.

    Raises:
        TypeError, ValueError: if ``weights`` are no real matrices that chain.

    Source: Ji & Telgarsky 2019, eq. 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import balancedness
        >>> balancedness((jnp.array([[2.0]]), jnp.array([[3.0]]))).tolist()
        [5.0]
    """
    layers = as_weights(weights)
    values = []
    for before, after in pairwise(layers):
        gap = matmul(after.T, after) - matmul(before, before.T)
        # Taken out before squaring: weights of 1e100 have a finite gap, whose square has not.
        values.append(jnp.abs(gap).max() * _norm(_unit(gap)))
    return _stack(values, layers[0].dtype)


def spectral_ratio(weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, " d"]:
    """The spectral over the Frobenius norm of each layer, ``||W_i||_2 / ||W_i||_F``.

    It lies between ``min(k_i, k_{i-1}) ** -0.5`` and 1, and is 1 exactly for rank 1. A zero layer
    gets 1: no rank-1 part is missing from it.

    Args:
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        Shape ``(d,)``.

    Raises:
        TypeError, ValueError: if ``weights`` are no real matrices that chain.

    Source: Ji & Telgarsky 2019, Figure 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.metrics import spectral_ratio
        >>> spectral_ratio((jnp.diag(jnp.array([3.0, 4.0])), jnp.zeros((2, 2)))).round(3).tolist()
        [0.8, 1.0]
    """
    layers = [_unit(w) for w in as_weights(weights)]
    ratios = []
    for w in layers:
        spectral, total = jnp.linalg.norm(w, 2), _norm(w)
        ratios.append(_ratio(spectral, total, otherwise=1.0))
    return jnp.minimum(jnp.stack(ratios), 1.0)


def log_risk(problem: Problem, weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, ""]:
    """The natural logarithm of the risk, exact also where the losses underflow.

        log (1/n) sum_i l(W x_i, y_i) = logsumexp_i log l(W x_i, y_i) - log n

    for a problem that keeps its samples, from the loss's own logarithm; the logarithm of the risk
    for other problems.

    Args:
        problem: any problem.
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        A scalar; ``-inf`` where the risk is exactly zero.

    Raises:
        TypeError, ValueError: if ``weights`` do not fit ``problem``.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.metrics import log_risk
        >>> problem = aj.classification(jnp.array([[1.0]]), jnp.array([1.0]), loss="exponential")
        >>> log_risk(problem, (jnp.array([[1e4]]),)).item()
        -10000.0
    """
    layers = check_weights(problem, weights)
    if not isinstance(problem, SampleProblem):
        return jnp.log(risk(problem, layers))
    logs = problem.loss.log_values(_outputs(problem, layers), problem.targets)
    return jax.nn.logsumexp(logs) - jnp.log(logs.shape[0])


def margin(problem: Problem, weights: Sequence[Float[Array, "k_i k_j"]]) -> Float[Array, ""]:
    """The normalized margin of the end-to-end matrix ``W = W_d ... W_1``.

        min_i y_i <w, x_i> / ||w||                          labels -1 or +1, w = W as a vector
        min_i (z_y - max_{j != y} z_j) / ||W||_F, z = W x_i  class ids

    Args:
        problem: a classification problem.
        weights: layers ``(W_1, ..., W_d)``.

    Returns:
        A scalar in units of the inputs, negative where a sample is misclassified; 0 for ``W = 0``.

    Raises:
        TypeError: if ``problem`` has no labels of that kind.
        ValueError: if ``weights`` do not fit ``problem``.

    Source: Ji & Telgarsky 2019, section 2.2.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.metrics import margin
        >>> X, labels = jnp.array([[1.0, 0.0], [0.0, -2.0]]), jnp.array([1.0, -1.0])
        >>> problem = aj.classification(X, labels)
        >>> margin(problem, (jnp.array([[3.0, 4.0]]),)).round(3).item()
        0.6
    """
    kind = problem.loss.targets if isinstance(problem, SampleProblem) else "values"
    if not isinstance(problem, SampleProblem) or kind == "values":
        raise TypeError(
            "margin needs a classification problem with labels -1/+1 or class ids, got "
            f"{type(problem).__name__}"
            + (f" with loss {problem.loss.name!r}" if isinstance(problem, SampleProblem) else "")
        )
    layers = check_weights(problem, weights)
    z, y = _outputs(problem, layers), problem.targets
    if kind == "signs":
        margins = y.reshape(-1) * z[:, 0]
    else:
        own = jnp.arange(z.shape[1]) == y[:, None]
        margins = jnp.where(own, z, 0.0).sum(1) - jnp.where(own, -jnp.inf, z).max(1)
    return _ratio(margins.min(), _norm(end_to_end(layers)), otherwise=0.0)


def sharpness(
    problem: Problem,
    weights: Sequence[Float[Array, "k_i k_j"]],
    *,
    key: Array | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 1000,
) -> Float[Array, ""]:
    """The largest (algebraic) eigenvalue of the risk's Hessian in all weights together.

        max_v <v, H v> / <v, v>,  H v = d/de gradient(weights + e v)

    Gradient descent near a minimum is stable for ``learning_rate * sharpness < 2``. Two power
    iterations find it: one on ``H`` for its spectral radius ``rho``, one on ``H + rho I``, which
    has no negative eigenvalue, so that neither a larger negative eigenvalue nor a pair ``+-rho``
    (as two layers have at zero) misleads it. It can be differentiated where the eigenvalue is
    simple.

    Args:
        problem: any problem.
        weights: layers ``(W_1, ..., W_d)``.
        key: for the random first vector; None means ``jax.random.key(0)``.
        tolerance: each iteration stops when its estimate changes by less than this fraction of
            ``rho``, or than ten times the dtype's epsilon if that is more. The error is then about
            ``tolerance * rho`` over twice the relative gap to the next eigenvalue.
        max_iterations: the most products with the Hessian in either iteration.

    Returns:
        A scalar, in units of the risk over squared units of the weights; a lower bound of the
        exact value up to roundoff.

    Raises:
        TypeError, ValueError: if an argument does not fit, named in the message.

    Example:
        >>> import alignjax as aj, jax.numpy as jnp
        >>> from alignjax.metrics import sharpness
        >>> problem = aj.regression(jnp.eye(2), jnp.eye(2))
        >>> round(sharpness(problem, (jnp.eye(2), jnp.eye(2))).item(), 6)
        1.0
    """
    layers = check_weights(problem, weights)
    max_iterations = as_count(max_iterations, "max_iterations", minimum=1)
    key = jax.random.key(0) if key is None else as_key(key)
    dtype = layers[0].dtype
    allowed = jnp.maximum(as_real(tolerance, "tolerance", ndim=0), 10 * jnp.finfo(dtype).eps)

    def product(problem: Problem, layers: tuple[Array, ...], vector: tuple[Array, ...]) -> tuple:
        return jax.jvp(lambda w: gradient(problem, w), (layers,), (vector,))[1]

    frozen = jax.lax.stop_gradient((problem, layers))
    keys = jax.random.split(key, len(layers))
    first = tuple(jax.random.normal(k, w.shape, dtype) for k, w in zip(keys, layers, strict=True))
    vector = jax.lax.stop_gradient(
        _top_vector(lambda v: product(*frozen, v), first, allowed.astype(dtype), max_iterations)
    )
    # The eigenvector's own derivative drops out of the quotient's, so it is held constant.
    return _inner(vector, product(problem, layers, vector))


def _outputs(problem: SampleProblem, layers: tuple[Array, ...]) -> Array:
    """What the network gives for each sample, shape ``(n, k_d)``."""
    core, inside = to_span(problem, layers)
    assert isinstance(core, SampleProblem)  # to_span keeps the kind of problem
    return core.outputs(*split_products(inside))


def _top_vector(
    product: Callable[[tuple], tuple], first: tuple, tolerance: Array, max_iterations: int
) -> tuple:
    """A unit vector that maximizes ``<v, product(v)>``, by two power iterations."""
    first = _normalize(first)

    def iterate(vector: tuple, shift: Array, scale: Array | None) -> tuple[tuple, Array]:
        def unfinished(state: tuple) -> Array:
            _, value, before, count = state
            reference = value if scale is None else scale
            moving = jnp.abs(value - before) > tolerance * reference
            return (count < max_iterations) & ((count < 2) | moving)

        def step(state: tuple) -> tuple:
            vector, value, _, count = state
            image = jax.tree.map(lambda h, v: h + shift * v, product(vector), vector)
            # The length of H v tends to the spectral radius also where +rho and -rho both occur.
            return _normalize(image, otherwise=vector), _length(image), value, count + 1

        zero = jnp.zeros_like(shift)
        return jax.lax.while_loop(unfinished, step, (vector, zero, zero, 0))[:2]

    dominant, radius = iterate(first, jnp.zeros((), tolerance.dtype), None)
    rising = _inner(dominant, product(dominant)) > 0
    # A dominant vector of a negative eigenvalue has lost what points upwards: begin anew.
    again = jax.tree.map(lambda d, f: jnp.where(rising, d, f), dominant, first)
    return iterate(again, radius, radius)[0]


def _inner(a: tuple, b: tuple) -> Array:
    parts = [jnp.vdot(x, y, precision="highest") for x, y in zip(a, b, strict=True)]
    return jnp.stack(parts).sum()


def _length(vector: tuple) -> Array:
    return jnp.sqrt(_inner(vector, vector))


def _normalize(vector: tuple, otherwise: tuple | None = None) -> tuple:
    """``vector`` at unit length, or ``otherwise`` where it is zero."""
    length = _length(vector)
    safe = jnp.where(length > 0, length, 1.0)
    fallback = vector if otherwise is None else otherwise
    return jax.tree.map(lambda v, f: jnp.where(length > 0, v / safe, f), vector, fallback)


def _stack(values: list[Array], dtype: jnp.dtype) -> Array:
    """A vector, also of no values: a single layer has no pair."""
    return jnp.stack(values) if values else jnp.zeros((0,), dtype)


def _norm(matrix: Array) -> Array:
    """The Frobenius norm, with a finite derivative at zero."""
    energy = (matrix**2).sum()
    return jnp.where(energy > 0, jnp.sqrt(jnp.where(energy > 0, energy, 1.0)), 0.0)


def _ratio(part: Array, total: Array, *, otherwise: float) -> Array:
    """``part / total``, or ``otherwise`` where the total is zero."""
    return jnp.where(total > 0, part / jnp.where(total > 0, total, 1.0), otherwise)


def _unit(matrix: Array) -> Array:
    """``matrix`` with a largest entry of 1, so that no power of it over- or underflows."""
    return _ratio(matrix, jax.lax.stop_gradient(jnp.abs(matrix).max()), otherwise=0.0)


def _to_unit_norm(matrix: Array) -> Array:
    matrix = _unit(matrix)
    return _ratio(matrix, _norm(matrix), otherwise=0.0)


def _commutator_norm(m: Array, n: Array) -> Array:
    """``||[M, N]||_F`` of symmetric matrices, from one product."""
    product = matmul(m, n)
    return _norm(product - product.T)


def _pair_alignment(before: Array, after: Array) -> Array:
    m, n = matmul(after.T, after), matmul(before, before.T)
    defect = _ratio(_commutator_norm(m, n), _norm(m) * _norm(n), otherwise=0.0)
    return jnp.clip(1.0 - 2**0.5 * defect, 0.0, 1.0)


def _running_products(layers: list[Array], vertex: int) -> tuple[list[Array], list[Array]]:
    """All ``A_j A_j^T`` below a vertex and all ``B_k^T B_k`` above it (see chain_alignment)."""
    before, after = [], []
    product = jnp.eye(layers[vertex].shape[1], dtype=layers[0].dtype)
    for w in reversed(layers[:vertex]):
        product = matmul(product, w)
        before.append(matmul(product, product.T))
    product = jnp.eye(layers[vertex].shape[1], dtype=layers[0].dtype)
    for w in layers[vertex:]:
        product = matmul(w, product)
        after.append(matmul(product.T, product))
    return before, after


def _diagonal_share(matrix: Array) -> Array:
    """The diagonal's share of the energy, as 1 minus the rest's: exact near 1."""
    rows, columns = matrix.shape
    diagonal = jnp.arange(rows)[:, None] == jnp.arange(columns)
    rest = jnp.where(diagonal, 0.0, matrix**2).sum()
    return 1.0 - _ratio(rest, rest + jnp.where(diagonal, matrix**2, 0.0).sum(), otherwise=0.0)


def _frames(
    weights: Sequence[Array], start: Sequence[Array] | None, bases: Sequence[Array] | None
) -> tuple[list[Array], list[tuple[Array, Array]]]:
    """Layers of unit scale, and for each the left and right basis ``(U_i, V_i)`` of the start."""
    layers = as_weights(weights)
    if (start is None) == (bases is None):
        raise TypeError(
            "exactly one of start and bases is expected, got "
            + ("neither" if start is None else "both")
        )
    if start is not None:
        before = as_weights(start, name="start")
        shapes, expected = [w.shape for w in before], [w.shape for w in layers]
        if shapes != expected:
            raise ValueError(f"start must have the shapes of weights, {expected}, got {shapes}")
        frames = []
        for w in before:
            u, _, vt = jnp.linalg.svd(_unit(w), full_matrices=True)
            frames.append((u, vt.T))
        return [_unit(w) for w in layers], frames
    if not isinstance(bases, Sequence):
        raise TypeError(f"bases must be a tuple (P_0, ..., P_d), got {describe(bases)}")
    matrices = [as_real(p, f"bases[{i}]", ndim=2) for i, p in enumerate(bases)]
    widths = [layers[0].shape[1], *(w.shape[0] for w in layers)]
    if [p.shape for p in matrices] != [(k, k) for k in widths]:
        raise ValueError(
            f"bases must be (P_0, ..., P_d) of shapes {[(k, k) for k in widths]}, got "
            f"{[p.shape for p in matrices]}"
        )
    return [_unit(w) for w in layers], list(zip(matrices[1:], matrices[:-1], strict=True))
