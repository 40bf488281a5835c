"""Synthetic data whose answers are known: spectra, common bases, or the maximum margin.

Keys come in, arrays of JAX go out; everything works under `jit` and under `vmap` over keys.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key
from numpy.typing import ArrayLike

from alignjax.datasets._numbers import as_numbers


class AlignedRegression(NamedTuple):
    """Samples that satisfy Theorem 1's data condition, and the bases in which they do.

    Attributes:
        inputs: X, `(n, k_0)`.
        targets: Y, `(n, k_d)`.
        output_basis: U, orthogonal `(k_d, k_d)`.
        input_basis: V, orthogonal `(k_0, k_0)`.
    """

    inputs: Float[Array, "n k_0"]
    targets: Float[Array, "n k_d"]
    output_basis: Float[Array, "k_d k_d"]
    input_basis: Float[Array, "k_0 k_0"]


class SeparablePair(NamedTuple):
    """Two linearly separable classes, and their maximum-margin classifier.

    Attributes:
        inputs: X, `(n, k_0)`.
        labels: `(n,)`, -1 or +1.
        direction: the maximum-margin direction, a unit vector `(k_0,)`.
        margin: the maximum margin, in the units of the inputs.
    """

    inputs: Float[Array, "n k_0"]
    labels: Integer[Array, " n"]
    direction: Float[Array, " k_0"]
    margin: Float[Array, ""]


def _check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def _check_non_negative(name: str, values: ArrayLike) -> None:
    """Refuse what is negative or not finite; a traced value cannot be looked at."""
    if isinstance(values, jax.core.Tracer):
        return
    concrete = np.asarray(as_numbers(name, values))
    if not (np.isfinite(concrete).all() and (concrete >= 0).all()):
        raise ValueError(f"{name}: expected finite numbers >= 0, got {concrete}")


def _spectrum(name: str, values: ArrayLike) -> Float[Array, " r"]:
    spectrum = jnp.asarray(as_numbers(name, values))
    if jnp.issubdtype(spectrum.dtype, jnp.integer):
        spectrum = spectrum.astype(float)
    if not jnp.issubdtype(spectrum.dtype, jnp.floating):
        raise TypeError(f"{name}: expected real numbers, got {spectrum.dtype}")
    if spectrum.ndim != 1 or spectrum.size == 0:
        raise ValueError(f"{name}: expected shape (r,) with r >= 1, got {spectrum.shape}")
    _check_non_negative(name, spectrum)
    return spectrum


def _orthonormal_columns(
    key: Key[Array, ""], rows: int, columns: int, dtype: jnp.dtype
) -> Float[Array, "rows columns"]:
    """Uniformly distributed orthonormal columns."""
    q, r = jnp.linalg.qr(jax.random.normal(key, (rows, columns), dtype))
    # Without the signs, QR's own convention would bias the distribution.
    return q * jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(dtype)[None]


def gaussian_regression(
    key: Key[Array, ""], n: int, k_0: int, k_d: int
) -> tuple[Float[Array, "n k_0"], Float[Array, "n k_d"]]:
    """Inputs and targets with independent standard normal entries.

    Such data violate Theorem 1's data condition with probability one, unless n = 1 or k_0 = 1.

    Args:
        key: a key of `jax.random`.
        n: the number of samples.
        k_0: the inputs' dimension.
        k_d: the targets' dimension.

    Returns:
        X `(n, k_0)` and Y `(n, k_d)`, in JAX's default float.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is below 1.

    Source:
        Radhakrishnan et al. 2020, section 6 (9x9 Gaussian data).

    Example:
        >>> import jax
        >>> X, Y = gaussian_regression(jax.random.key(0), 9, 9, 9)
        >>> X.shape, Y.shape
        ((9, 9), (9, 9))
    """
    for name, value in (("n", n), ("k_0", k_0), ("k_d", k_d)):
        _check_count(name, value, 1)
    input_key, target_key = jax.random.split(key)
    return jax.random.normal(input_key, (n, k_0)), jax.random.normal(target_key, (n, k_d))


def aligned_regression(
    key: Key[Array, ""],
    input_spectrum: ArrayLike,
    target_spectrum: ArrayLike,
    *,
    n: int | None = None,
    k_d: int | None = None,
    noise: float = 0.0,
) -> AlignedRegression:
    """Samples whose moments have prescribed spectra in common, random bases U and V.

    X = √n Q diag(λ)^½ Vᵀ and Y = √n Q_r diag(λ'/λ^½) U_rᵀ + noise (I - QQᵀ) G, where Q has
    orthonormal columns, G is Gaussian and `_r` keeps the first r columns, so that exactly

        XᵀX = n V diag(λ) Vᵀ    and    YᵀX = n U diag(λ') Vᵀ.

    The noise is orthogonal to the inputs: it adds to the risk of every network and changes no
    gradient.

    Args:
        key: a key of `jax.random`.
        input_spectrum: λ, `(k_0,)`, non-negative: the eigenvalues of XᵀX/n.
        target_spectrum: λ', `(r,)`, non-negative: the leading singular values of YᵀX/n, matched to
            λ in order; zero wherever λ is zero.
        n: the number of samples, at least k_0; by default 2 k_0.
        k_d: the targets' dimension, at least r; by default r.
        noise: the deviation of the targets' part that no linear map explains.

    Returns:
        X, Y, U and V, in the spectra's common float dtype (integers become JAX's default float).

    Raises:
        TypeError: a size is no integer, a spectrum is not real.
        ValueError: a spectrum is empty, negative, not finite or not one-dimensional; r exceeds k_0
            or k_d; λ' is positive where λ is zero; n is below k_0, or equal to it with noise.

    Source:
        Radhakrishnan et al. 2020, Theorem 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> data = aligned_regression(jax.random.key(0), [4.0, 1.0, 0.5], [2.0, 1.0], n=10)
        >>> moment = data.inputs.T @ data.inputs / 10
        >>> [f"{value:.4f}" for value in jnp.linalg.eigvalsh(moment)]
        ['0.5000', '1.0000', '4.0000']
    """
    input_values = _spectrum("input_spectrum", input_spectrum)
    target_values = _spectrum("target_spectrum", target_spectrum)
    dtype = jnp.promote_types(input_values.dtype, target_values.dtype)
    input_values, target_values = input_values.astype(dtype), target_values.astype(dtype)
    k_0, r = input_values.size, target_values.size
    n = 2 * k_0 if n is None else n
    k_d = r if k_d is None else k_d
    if r > k_0:
        raise ValueError(
            f"target_spectrum: expected at most as many values as input_spectrum, {k_0}, got {r}"
        )
    _check_count("k_d", k_d, r)
    _check_non_negative("noise", noise)
    # A traced noise may be positive.
    noisy = isinstance(noise, jax.core.Tracer) or noise > 0
    _check_count("n", n, k_0 + 1 if noisy else k_0)
    unexplained = (input_values[:r] == 0) & (target_values > 0)
    if not isinstance(unexplained, jax.core.Tracer) and unexplained.any():
        raise ValueError(
            "target_spectrum: expected zero where input_spectrum is zero, "
            f"got {target_values} against {input_values}"
        )

    return _aligned_samples(key, input_values, target_values, noise, n=n, k_d=k_d, noisy=noisy)


@functools.partial(jax.jit, static_argnames=("n", "k_d", "noisy"))
def _aligned_samples(
    key: Key[Array, ""],
    input_values: Float[Array, " k_0"],
    target_values: Float[Array, " r"],
    noise: float | Float[Array, ""],
    *,
    n: int,
    k_d: int,
    noisy: bool,
) -> AlignedRegression:
    dtype, k_0, r = input_values.dtype, input_values.size, target_values.size
    q_key, u_key, v_key, noise_key = jax.random.split(key, 4)
    q = _orthonormal_columns(q_key, n, k_0, dtype)
    u = _orthonormal_columns(u_key, k_d, k_d, dtype)
    v = _orthonormal_columns(v_key, k_0, k_0, dtype)
    # λ'/λ^½ where λ' > 0; the inner `where` keeps the derivative at λ = 0 finite.
    ratio = jnp.where(
        target_values > 0,
        target_values / jnp.sqrt(jnp.where(input_values > 0, input_values, 1))[:r],
        0,
    )
    with jax.default_matmul_precision("highest"):
        x = math.sqrt(n) * (q * jnp.sqrt(input_values)[None]) @ v.T
        y = math.sqrt(n) * (q[:, :r] * ratio[None]) @ u[:, :r].T
        if noisy:
            residual = jax.random.normal(noise_key, (n, k_d), dtype)
            y = y + noise * (residual - q @ (q.T @ residual))
    return AlignedRegression(x.astype(dtype), y.astype(dtype), u, v)


def separable_pair(key: Key[Array, ""], n: int, k_0: int, *, margin: float = 1.0) -> SeparablePair:
    """Two classes that a hyperplane through the origin separates, with a known maximum margin.

    y_i x_i = d_i u + z_i with u a random unit vector, z_i Gaussian and orthogonal to it, and
    d_i = margin for the first 2m points, d_i > margin for the others; m = max(1, min(k_0, n // 4)).
    The first 2m come in pairs (z, -z), one in each class, so that the sum of their y_i x_i is a
    multiple of u: by duality u is the maximum-margin direction and `margin` the maximum margin.

    Args:
        key: a key of `jax.random`.
        n: the number of samples, at least 2.
        k_0: the inputs' dimension.
        margin: the maximum margin; positive.

    Returns:
        X, the labels -1 or +1, the direction u and the margin, in JAX's default float.

    Raises:
        TypeError: a size is no integer.
        ValueError: n is below 2, k_0 below 1, or the margin not positive and finite.

    Source:
        The setting of Ji & Telgarsky 2019: linearly separable data, a classifier without offset.

    Example:
        >>> import jax
        >>> data = separable_pair(jax.random.key(0), 40, 3, margin=0.5)
        >>> scores = data.labels * (data.inputs @ data.direction)
        >>> f"{scores.min():.4f}"
        '0.5000'
    """
    _check_count("n", n, 2)
    _check_count("k_0", k_0, 1)
    if not isinstance(margin, jax.core.Tracer) and not (0 < margin < float("inf")):
        raise ValueError(f"margin: expected a positive finite number, got {margin}")
    return _separable_samples(key, jnp.asarray(margin, float), n=n, k_0=k_0)


@functools.partial(jax.jit, static_argnames=("n", "k_0"))
def _separable_samples(
    key: Key[Array, ""], margin: Float[Array, ""], *, n: int, k_0: int
) -> SeparablePair:
    pairs = max(1, min(k_0, n // 4))
    rest = n - 2 * pairs
    direction_key, pair_key, rest_key, distance_key, label_key = jax.random.split(key, 5)
    direction = _orthonormal_columns(direction_key, k_0, 1, margin.dtype)[:, 0]
    across = jax.random.normal(pair_key, (pairs, k_0))
    across = jnp.concatenate([across, -across, jax.random.normal(rest_key, (rest, k_0))])
    beyond = jnp.abs(jax.random.normal(distance_key, (rest,)))
    distances = margin + jnp.concatenate([jnp.zeros(2 * pairs), beyond])
    labels = jnp.concatenate(
        [
            jnp.ones(pairs, jnp.int32),
            -jnp.ones(pairs, jnp.int32),
            jax.random.rademacher(label_key, (rest,), jnp.int32),
        ]
    )
    with jax.default_matmul_precision("highest"):
        across = across - jnp.outer(across @ direction, direction)
    signed = distances[:, None] * direction[None] + across
    return SeparablePair(labels[:, None].astype(signed.dtype) * signed, labels, direction, margin)
