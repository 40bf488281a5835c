"""Correlation of images with kernels, and its derivatives in both, in memory linear in pixels.

Two bilinear operations, closed under differentiation:

- ``correlate(w, x)``: ``y[m] = sum_s w[s] x[m + s]``, all shifts of a kernel inside a larger image;
- ``correlate_taps(x, g)``: ``t[s] = sum_m g[m] x[m + s]``, summed over samples too.

They are primitives of their own, since JAX's transposes of a convolution are slow on CPUs: the
gradient in the kernel is a convolution with a window as large as the image, and a kernel for each
lane of a ``vmap`` is a grouped convolution. Measured on two CPU cores in float64, steps of three
3x3 layers under ``vmap`` over 8 to 64 kernels took 2 to 200 times as long that way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from alignjax._meshes import on_automatic_axes, tied

__all__ = ["correlate", "correlate_taps"]

# Up to here CPUs convolve faster than they sum shifted images, and that sum is one fused loop
# elsewhere; beyond, convolving is slower by the number of taps, and unrolling compiles too long.
FEW_TAPS = 64


def correlate(w: Float[Array, "a b"], x: Float[Array, "n P Q"]) -> Float[Array, "n A B"]:
    """``y[i, m] = sum_s w[s] x[i, m + s]``.

    Args:
        w: the kernel, shape ``(a, b)``.
        x: ``n`` images, shape ``(n, A + a - 1, B + b - 1)``, of the same dtype.

    Returns:
        ``y``, shape ``(n, A, B)``.
    """
    w, x = tied((w, x), (w, x))
    return _correlate_p.bind(w[None], x[None])[0]


def correlate_taps(x: Float[Array, "n P Q"], g: Float[Array, "n A B"]) -> Float[Array, "a b"]:
    """``t[s] = sum_{i, m} g[i, m] x[i, m + s]``: :func:`correlate`'s transpose in the kernel.

    Args:
        x: ``n`` images, shape ``(n, A + a - 1, B + b - 1)``.
        g: ``n`` images, shape ``(n, A, B)``, of the same dtype.

    Returns:
        ``t``, shape ``(a, b)``.
    """
    x, g = tied((x, g), (x, g))
    return _taps_p.bind(x[None], g[None])[0]


# The primitives have one axis more, of L lanes: w (L, a, b), x (L, n, P, Q).


def _sum_over_taps(w: Array, x: Array) -> Array:
    lanes, a, b = w.shape
    rows, columns = x.shape[2] - a + 1, x.shape[3] - b + 1
    scale = w.reshape(lanes, a, b, 1, 1, 1)

    def row_of_taps(i: Any, out: Array | None) -> Array:
        band = lax.dynamic_slice_in_dim(x, i, rows, 2)
        row = lax.dynamic_index_in_dim(scale, i, 1, keepdims=False)
        for j in range(b):
            term = row[:, j] * band[..., j : j + columns]
            out = term if out is None else out + term
        assert out is not None  # b is at least 1
        return out

    if a * b <= FEW_TAPS:
        out = None
        for i in range(a):
            out = row_of_taps(i, out)
        assert out is not None
        return out
    start = tied(jnp.zeros((*x.shape[:2], rows, columns), x.dtype), (w, x))
    return lax.fori_loop(0, a, row_of_taps, start)


@on_automatic_axes
def _convolve_each_lane(w: Array, x: Array) -> Array:
    if w.shape[1] * w.shape[2] > FEW_TAPS:
        return _sum_over_taps(w, x)

    def one(lane: tuple[Array, Array]) -> Array:
        kernel, images = lane
        out = lax.conv_general_dilated(
            images[:, None], kernel[None, None], (1, 1), "VALID", precision="highest"
        )
        return out[:, 0]

    # One after the other: a grouped convolution of all lanes is many times slower on CPUs.
    return lax.map(one, (w, x))


def _sum_over_pixels(x: Array, g: Array) -> Array:
    a, b = x.shape[2] - g.shape[2] + 1, x.shape[3] - g.shape[3] + 1

    def tap(index: Array) -> Array:
        first = jnp.zeros_like(index)
        band = lax.dynamic_slice(x, (first, first, index // b, index % b), g.shape)
        return (band * g).sum((1, 2, 3))

    # One tap after the other: all at once would hold a copy of the images for each of them.
    return lax.map(tap, jnp.arange(a * b, dtype=jnp.int32)).T.reshape(-1, a, b)


def _pull_to_image(w: Array, g: Array) -> Array:
    """``correlate``'s transpose in the image: correlation of the padded ``g``, kernel turned."""
    rows, columns = w.shape[1] - 1, w.shape[2] - 1
    padded = jnp.pad(g, ((0, 0), (0, 0), (rows, rows), (columns, columns)))
    return _correlate_p.bind(w[:, ::-1, ::-1], padded)


def _lanes_first(args: Any, axes: Any) -> tuple[int, tuple[Array | None, ...]]:
    """The number of new lanes, and the arrays with them in front; None for those without."""
    size = next(x.shape[i] for x, i in zip(args, axes, strict=True) if i is not None)
    moved = (None if i is None else jnp.moveaxis(x, i, 0) for x, i in zip(args, axes, strict=True))
    return size, tuple(moved)


def _join_lanes(x: Array, moved: Array | None, size: int) -> Array:
    if moved is None:
        moved = jnp.broadcast_to(x, (size, *x.shape))
    return moved.reshape(-1, *moved.shape[2:])


def _batch_correlate(args: Any, axes: Any) -> tuple[Array, int]:
    size, (w, x) = _lanes_first(args, axes)
    if w is None:
        assert x is not None
        # Images of several lanes under one kernel are more samples.
        lanes, samples = x.shape[1:3]
        joined = jnp.moveaxis(x, 0, 1).reshape(lanes, -1, *x.shape[3:])
        out = _correlate_p.bind(args[0], joined)
        return out.reshape(lanes, size, samples, *out.shape[2:]), 1
    out = _correlate_p.bind(_join_lanes(args[0], w, size), _join_lanes(args[1], x, size))
    return out.reshape(size, -1, *out.shape[1:]), 0


def _batch_taps(args: Any, axes: Any) -> tuple[Array, int]:
    size, (x, g) = _lanes_first(args, axes)
    out = _taps_p.bind(_join_lanes(args[0], x, size), _join_lanes(args[1], g, size))
    return out.reshape(size, -1, *out.shape[1:]), 0


def _primitive(name: str, compute: Callable[[Array, Array], Array], batch: Any) -> Primitive:
    primitive = Primitive(f"alignjax_{name}")

    def type_of(*operands: Any) -> jax.core.ShapedArray:
        out = jax.eval_shape(compute, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands))
        # On the operands' mesh, and inside `shard_map` varying as they do, both alike.
        like = next((a for a in operands if not a.sharding.mesh.empty), operands[0])
        whole = NamedSharding(like.sharding.mesh, PartitionSpec(*[None] * len(out.shape)))
        return like.update(shape=out.shape, dtype=out.dtype, sharding=whole, weak_type=False)

    jitted = jax.jit(primitive.bind)

    def compiled(*operands: Array) -> Array:
        # A primitive has no other way to run, and `bind` would come back here.
        with jax.disable_jit(False):
            return jitted(*operands)

    primitive.def_abstract_eval(type_of)
    primitive.def_impl(compiled)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    return primitive


_correlate_p = _primitive("correlate", _sum_over_taps, _batch_correlate)
_taps_p = _primitive("correlate_taps", _sum_over_pixels, _batch_taps)
mlir.register_lowering(
    _correlate_p, mlir.lower_fun(_convolve_each_lane, multiple_results=False), platform="cpu"
)

ad.defbilinear(
    _correlate_p,
    lambda slope, w, x: _taps_p.bind(x, slope),
    lambda slope, w, x: _pull_to_image(w, slope),
)
ad.defbilinear(
    _taps_p,
    lambda slope, x, g: _pull_to_image(slope, g),
    lambda slope, x, g: _correlate_p.bind(slope, x),
)
