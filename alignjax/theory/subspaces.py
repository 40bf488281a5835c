"""Layers in a linear subspace: when counting dimensions rules alignment out.

A network of layers ``W_i`` in subspaces ``S_i`` of ``k x k`` matrices, ``r_i = dim S_i``, that
interpolates generic data and is aligned must satisfy more equations than it has parameters, unless
some of its layers are aligned with everything. The numerical counterpart of these counts is
:func:`alignjax.theory.aligned_probe.aligned_interpolation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignjax._roundoff import above, relative_roundoff, row_rank
from alignjax._validation import as_count, as_weights, is_concrete, require_concrete
from alignjax.metrics import alignment
from alignjax.structures import Structure
from alignjax.theory.aligned_probe import as_data, layer_bases

__all__ = [
    "Architecture",
    "DimensionTest",
    "architectures",
    "dimension_test",
    "element_bound",
    "least_depth",
    "outer_alignment",
    "printed_element_bound",
]

Verdict = Literal["impossible", "only with orthogonal outer layers", "not excluded", "silent"]


def outer_alignment(
    weights: Sequence[Float[Array, "k_i k_j"]],
    inputs: Float[Array, "n k_0"],
    targets: Float[Array, "n k_d"] | None = None,
) -> Float[Array, "2"]:
    """How nearly the outer layers align with the matrix that interpolates the data.

        alignment of the chain (W_1^T, M, W_d^T),   M = Y^T X (X^T X)^{-1}

    Both values are 1 if the network is aligned and interpolates, for then ``M = W_d ... W_1``.

    Args:
        weights: layers ``(W_1, ..., W_d)``.
        inputs: ``X``, shape ``(n, k_0)``, rows are samples.
        targets: ``Y``, shape ``(n, k_d)``; None for autoencoding.

    Returns:
        Shape ``(2,)``, in [0, 1]: of ``(W_1^T, M)``, then of ``(M, W_d^T)``.

    Raises:
        TypeError, ValueError: if shapes do not fit, or there are fewer samples than inputs, so that
            the data leave ``M`` open.

    Source: Radhakrishnan et al. 2020, Proposition 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignjax.theory.subspaces import outer_alignment
        >>> layers = jnp.diag(jnp.array([2.0, 1.0])), jnp.diag(jnp.array([1.0, 3.0]))
        >>> outer_alignment(layers, jnp.eye(2), jnp.diag(jnp.array([2.0, 3.0]))).tolist()
        [1.0, 1.0]
    """
    layers = as_weights(weights)
    X, Y = as_data(inputs, targets)
    if X.shape[1] != layers[0].shape[1] or Y.shape[1] != layers[-1].shape[0]:
        raise ValueError(
            f"inputs and targets must have {layers[0].shape[1]} and {layers[-1].shape[0]} columns, "
            f"as the layers do, got shapes {X.shape} and {Y.shape}"
        )
    if X.shape[0] < X.shape[1]:
        raise ValueError(
            f"inputs must have at least as many samples as columns, got shape {X.shape}"
        )
    if is_concrete(X):
        share = relative_roundoff(X.dtype, *X.shape)
        rank = int(np.linalg.matrix_rank(np.asarray(X, np.float64), rtol=share))
        if rank < X.shape[1]:
            raise ValueError(
                f"inputs must be of full rank, or they leave the map to the targets open: got rank "
                f"{rank} of {X.shape[1]}"
            )
    matrix = jnp.linalg.lstsq(X, Y)[0].T
    return alignment((layers[0].T, matrix, layers[-1].T))


def printed_element_bound(width: int, samples: int) -> int:
    """The bound on ``r`` in Proposition 4 and Theorem 3 as printed.

        r < k - 1 - (k-n choose 2)

    It is sufficient with the exclusion of :func:`element_bound`, and not with the printed one,
    which excludes multiples of the identity only.

    Args:
        width: ``k``.
        samples: ``n``; from ``k - 1`` on the binomial is zero.

    Raises:
        TypeError, ValueError: if an argument is no positive integer.

    Source: Radhakrishnan et al. 2020, Proposition 4, as printed; Theorem 3 is its case
    ``n >= k``.

    Example:
        >>> from alignjax.theory.subspaces import printed_element_bound
        >>> printed_element_bound(8, 8), printed_element_bound(8, 4)
        (7, 1)
    """
    width, samples = as_count(width, "width", minimum=1), as_count(samples, "samples", minimum=1)
    return width - 1 - comb(max(width - samples, 0), 2)


def element_bound(width: int, samples: int) -> int:
    """The least ``r`` at which some ``S`` has an element that aligns with generic matrices.

        r < min(n, k - 1) + 1

    implies that the ``k x n`` matrices which align with an element ``A`` of ``S``, multiples of
    orthogonal matrices excluded, have measure zero. Aligning with an ``A`` whose ``A^T A`` has
    eigenspaces of dimensions ``m_i``, of which the matrix uses ``n_i``, costs
    ``sum_{i<j} (n_i m_j + n_j m_i - n_i n_j)`` equations, at least ``min(n, k-1)`` unless
    ``A^T A`` is a multiple of the identity; the elements of ``S`` up to scale are a family of
    dimension ``r - 1``. The bound is sharp: with ``S = {e q^T}`` and ``q`` in any subspace of
    dimension ``min(n, k-1) + 1``, every matrix aligns with an element.

    Args:
        width: ``k``.
        samples: ``n``.

    Raises:
        TypeError, ValueError: if an argument is no positive integer.

    Source: Radhakrishnan et al. 2020, Proposition 4, corrected. The printed form
    (:func:`printed_element_bound`) excludes multiples of the identity, which is too little, and its
    bound is smaller than it need be, by one for ``n >= k - 1`` and more below.

    Example:
        >>> from alignjax.theory.subspaces import element_bound
        >>> element_bound(8, 8), element_bound(8, 4)
        (8, 5)
    """
    width, samples = as_count(width, "width", minimum=1), as_count(samples, "samples", minimum=1)
    return min(samples, width - 1) + 1


@dataclass(frozen=True)
class DimensionTest:
    """What counting dimensions says about aligned networks that interpolate.

    Attributes:
        dimensions: ``r_i`` of each layer; one entry if no depth is known.
        width: ``k``.
        samples: ``n``.
        depth: ``d``, or None.
        printed_bound: ``k - 1 - (k-n choose 2)``; the printed statement asks for ``r`` below it.
        printed_excludes: whether the printed Theorem 3 says that no such network is aligned:
            ``n >= k`` and every ``r_i < k - 1``. **It is false**, see :func:`dimension_test`.
        bound: the corrected one, ``min(n, k-1) + 1``.
        parameters: degrees of freedom of the end-to-end matrix, at most ``sum (r_i - 1) + 1``: the
            layers' scales count once. None without a depth.
        equations: of a fit of generic data, ``k min(n, k)``. Below as many parameters no network
            of these structures interpolates them, aligned or not.
        alignment_equations: that alignment adds for layers of distinct singular values,
            ``(d-1) k(k-1)/2``. With generic subspaces an aligned network that interpolates needs
            ``parameters >= equations + alignment_equations``: a count, not a proof. None without a
            depth.
        verdict: ``"impossible"``, ``"only with orthogonal outer layers"`` (multiples of orthogonal
            matrices are meant), ``"not excluded"``, or ``"silent"`` where the theorem's hypotheses
            fail.
        reason: the verdict in words.
    """

    dimensions: tuple[int, ...]
    width: int
    samples: int
    depth: int | None
    printed_bound: int
    printed_excludes: bool
    bound: int
    parameters: int | None
    equations: int
    alignment_equations: int | None
    verdict: Verdict
    reason: str

    @property
    def interpolates_generic_data(self) -> bool | None:
        """Whether there are parameters enough to fit generic data; None without a depth."""
        return None if self.parameters is None else self.parameters >= self.equations

    @property
    def aligns_generically(self) -> bool | None:
        """Whether generic subspaces have parameters enough for fit and alignment."""
        if self.parameters is None or self.alignment_equations is None:
            return None
        return self.parameters >= self.equations + self.alignment_equations


def dimension_test(
    structure: Any,
    inputs: Float[Array, "n k"] | None = None,
    targets: Float[Array, "n k"] | None = None,
    *,
    width: int | None = None,
    samples: int | None = None,
    depth: int | None = None,
) -> DimensionTest:
    r"""Whether the dimension of the layers' structure rules out aligned interpolation.

    Let ``X`` and ``Y`` be generic with ``n >= k``, ``Y = f(X)``, ``f = W_d ... W_1`` aligned. Then
    ``W_1^T`` and ``W_d^T`` align with the matrix ``M`` of the data (:func:`outer_alignment`), and

    - if ``r_1 < k``, ``W_1`` is a multiple of an orthogonal matrix; if ``r_d < k``, so is ``W_d``;
    - if ``min(sum_{i<=j} (r_i - 1), sum_{i>=j} (r_i - 1)) < k - 1`` for every layer ``j``, there is
      no such network, without exception: the first and the last layer that are no multiple of an
      orthogonal matrix align with ``M`` turned by the layers outside, a family of that dimension.
      With one structure this is ``ceil(d/2) (r - 1) < k - 1``, so for two layers ``r < k``.

    Where the ``S_i`` hold finitely many multiples of orthogonal matrices, up to scale, the first
    conclusion holds with any layer in place of ``W_1`` or ``W_d``. All this is of almost all data;
    what a network of the same structure produced is not generic.

    Args:
        structure: a dimension ``r`` (then ``width`` is needed), a structure or a stack of matrices
            ``(r, k, k)``, shared by all layers, or a sequence of these, one a layer.
        inputs: ``X``, shape ``(n, k)``, rows are samples; or None, for generic data.
        targets: ``Y``, shape ``(n, k)``; None for autoencoding (with ``inputs``).
        width: ``k``, for a structure given by its dimension.
        samples: ``n``, in place of ``inputs``.
        depth: ``d``; without it only what holds at any depth is used.

    Returns:
        A :class:`DimensionTest`. Data that are given are looked at: where ``X`` has rank below
        ``k``, no linear map takes ``X`` to ``Y``, or singular values of ``M`` repeat (autoencoding,
        ``M = I``), they are not generic and the verdict is ``"silent"``.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if a dimension exceeds ``k^2``, layers are not square, shapes do not fit, both
            or neither of ``inputs`` and ``samples`` are given, or a structure comes with ``width``.

    Source: Radhakrishnan et al. 2020, Theorem 3. The printed form concludes ``f`` not aligned from
    ``r < k - 1`` and one ``W_i`` that is no multiple of the identity. That is false: there is a
    5-dimensional ``S`` of ``8 x 8`` matrices whose networks of 120 layers fit Gaussian data exactly
    and are aligned; their outer layers are orthogonal. Its Example (3 x 3 convolutions as
    autoencoders of images of side 4 or more) is false as well: ``Y = X`` is not generic.

    Example:
        >>> from alignjax.theory.subspaces import dimension_test
        >>> test = dimension_test(5, width=8, samples=8, depth=2)
        >>> test.verdict, test.bound, test.printed_bound
        ('impossible', 8, 7)
        >>> dimension_test(5, width=8, samples=8, depth=120).verdict
        'only with orthogonal outer layers'
    """
    dimensions, k, d = _dimensions(structure, width, depth)
    if (inputs is None) == (samples is None):
        raise ValueError("inputs or samples must be given, and not both")
    if inputs is None and targets is not None:
        raise ValueError("targets need inputs")
    obstacle = None
    if inputs is None:
        n = as_count(samples, "samples", minimum=1)
    else:
        n, obstacle = _examine(inputs, targets, k)
    if obstacle is None and n < k:
        obstacle = f"{n} samples of {k} inputs leave the end-to-end matrix open"
    verdict, reason = _decide(dimensions, d, k)
    if obstacle is not None:
        verdict, reason = "silent", f"{obstacle}, so the theorem does not apply"
    return DimensionTest(
        dimensions=dimensions,
        width=k,
        samples=n,
        depth=d,
        printed_bound=printed_element_bound(k, n),
        printed_excludes=n >= k and max(dimensions) < k - 1,
        bound=element_bound(k, n),
        parameters=None if d is None else sum(dimensions) - d + 1,
        equations=k * min(n, k),
        alignment_equations=None if d is None else (d - 1) * comb(k, 2),
        verdict=verdict,
        reason=reason,
    )


def _decide(dimensions: tuple[int, ...], depth: int | None, k: int) -> tuple[Verdict, str]:
    """The verdict on generic data of at least ``k`` samples, and its reason."""
    first, last = dimensions[0], dimensions[-1]
    if depth == 1:
        return "silent", "a single layer is always aligned"
    if depth is not None:
        free = np.array(dimensions) - 1
        outside = np.minimum(np.cumsum(free), np.cumsum(free[::-1])[::-1])
        if (outside < k - 1).all():
            return "impossible", (
                f"the layers up to or from any one have at most {outside.max()} parameters, fewer "
                f"than the {k - 1} equations of aligning with generic data"
            )
    if first < k and last < k:
        return "only with orthogonal outer layers", (
            f"dimensions {first} and {last} are below {k}, so W_1 and W_d are multiples of "
            "orthogonal matrices or the network is not aligned"
        )
    return "not excluded", f"dimension {max(first, last)} of an outer layer is not below {k}"


def _dimensions(structure: Any, width: Any, depth: Any) -> tuple[tuple[int, ...], int, int | None]:
    """``r`` of each layer (once, where the depth is unknown), ``k`` and the depth."""
    one_each = isinstance(structure, Sequence)
    if isinstance(structure, (int, np.integer)) and not isinstance(structure, bool):
        if width is None:
            raise ValueError("width must be given with a structure that is only a dimension")
        k = as_count(width, "width", minimum=1)
        found = [as_count(structure, "structure", minimum=1)]
    else:
        if width is not None:
            raise ValueError("width is known from the structure's matrices: leave it out")
        require_concrete(structure, "structure", "dimension_test")
        layers = tuple(structure) if one_each else (structure,)
        if all(isinstance(layer, Structure) for layer in layers):
            shapes = [layer.shape for layer in layers]
            found = [layer.dim for layer in layers]
        else:
            bases = layer_bases(structure, None if one_each else 1)
            shapes = [basis.shape[1:] for basis in bases]
            found = [row_rank(np.reshape(b, (len(b), -1)), b.dtype) for b in bases]
        k = shapes[0][0]
        for shape in shapes:
            if shape != (k, k):
                raise ValueError(f"structure must hold square matrices of one size, got {shape}")
    if max(found) > k * k:
        raise ValueError(f"structure of {max(found)} dimensions exceeds all {k}x{k} matrices")
    if depth is None:
        return tuple(found), k, len(found) if one_each else None
    depth = as_count(depth, "depth", minimum=1)
    if one_each and len(found) != depth:
        raise ValueError(f"depth is {depth}, but structure has {len(found)} layers")
    return tuple(found if one_each else found * depth), k, depth


def _examine(inputs: Any, targets: Any, k: int) -> tuple[int, str | None]:
    """The number of samples, and what about given data is not generic."""
    require_concrete((inputs, targets), "inputs or targets", "dimension_test")
    given = as_data(inputs, targets)
    # A map's repeated singular values differ by the roundoff of the data.
    roundoff = float(jnp.finfo(given[0].dtype).eps) ** 0.6
    X, Y = (np.asarray(a, np.float64) for a in given)
    for name, array in (("inputs", X), ("targets", Y)):
        if array.shape[1] != k:
            raise ValueError(f"{name} must have {k} columns, as the layers do, got {array.shape}")
    n = X.shape[0]
    share = relative_roundoff(given[0].dtype, k, samples=n)
    rank = int(above(np.linalg.svd(X, compute_uv=False), share).sum())
    if rank < min(n, k):
        return n, f"inputs have rank {rank}, less than {min(n, k)}"
    matrix = np.linalg.lstsq(X, Y, rcond=None)[0].T
    scale = max(np.linalg.norm(Y), np.finfo(float).tiny)
    if np.linalg.norm(X @ matrix.T - Y) > max(1e-6, roundoff) * scale:
        return n, "no linear map takes the inputs to the targets"
    if n >= k:
        energies = np.linalg.svd(matrix, compute_uv=False) ** 2
        if k > 1 and np.abs(np.diff(energies)).min() <= roundoff * energies.max():
            return n, "singular values of the map from inputs to targets repeat"
    return n, None


def least_depth(dimension: int, width: int, samples: int) -> int | None:
    """How many layers of one structure a fit of generic data takes at least.

        d >= (k min(n, k) - 1) / (r - 1)

    With fewer there is nothing to be aligned: Theorem 3 says something only of networks at least as
    deep, ``d >= (k^2 - 1)/(k - 3)`` where ``r < k - 1``.

    Args:
        dimension: ``r``.
        width: ``k``.
        samples: ``n``.

    Returns:
        ``d``; None for ``r = 1`` and more than one equation, which no depth fits.

    Raises:
        TypeError, ValueError: if an argument is no positive integer.

    Source: not in the papers; the number of parameters, the layers' scales counted once.

    Example:
        >>> from alignjax.theory.subspaces import least_depth
        >>> least_depth(5, 8, 8), least_depth(9, 16, 16)
        (16, 32)
    """
    r = as_count(dimension, "dimension", minimum=1)
    k = as_count(width, "width", minimum=1)
    missing = k * min(as_count(samples, "samples", minimum=1), k) - 1
    if missing == 0:
        return 1
    return None if r == 1 else -(-missing // (r - 1))


@dataclass(frozen=True)
class Architecture:
    """The size of a layer structure on images.

    Attributes:
        width: ``k``, the pixels of an image.
        dimension: ``r``, the parameters of a layer.
        least_depth: of a network that fits ``k`` generic samples; see :func:`least_depth`.
        printed_applies: whether the printed Theorem 3 covers it, ``r < k - 1``.
        applies: whether the corrected one does, ``r < k``.
    """

    width: int
    dimension: int
    least_depth: int | None
    printed_applies: bool
    applies: bool


def architectures(image_size: int, *, kernel_size: int = 3) -> dict[str, Architecture]:
    """Parameters of common layer structures on images of ``m x m`` pixels, ``k = m^2``.

    An ``s x s`` convolution of one channel has ``s^2`` of them, a Toeplitz layer ``2k - 1``,
    circulant and diagonal ones ``k``, a tridiagonal one ``3k - 2`` and a dense one ``k^2``. So of
    these Theorem 3 covers convolutions only, of any ``s < m``: for ``s = 3`` images of ``m >= 4``.

    Args:
        image_size: ``m``.
        kernel_size: ``s``, at most ``m``.

    Returns:
        Name -> :class:`Architecture`.

    Raises:
        TypeError, ValueError: if an argument is no positive integer or the kernel exceeds the
            image.

    Source: Radhakrishnan et al. 2020, section 5.1, the Example of section 5.2, and section 6.

    Example:
        >>> from alignjax.theory.subspaces import architectures
        >>> architectures(28)["convolution"].dimension, architectures(28)["convolution"].width
        (9, 784)
    """
    m = as_count(image_size, "image_size", minimum=1)
    s = as_count(kernel_size, "kernel_size", minimum=1)
    if s > m:
        raise ValueError(f"kernel_size must be at most image_size, got {s} for images of {m}x{m}")
    k = m * m
    dimensions = {
        "convolution": s * s,
        "diagonal": k,
        "circulant": k,
        "Toeplitz": 2 * k - 1,
        "tridiagonal": 3 * k - 2,
        "dense": k * k,
    }
    return {
        name: Architecture(k, r, least_depth(r, k, k), r < k - 1, r < k)
        for name, r in dimensions.items()
    }
