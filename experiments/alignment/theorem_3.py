"""Theorem 3: when the dimension of the layers' structure rules alignment out, and when not."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.colors import LogNorm

from alignjax.theory.aligned_probe import aligned_interpolation
from alignjax.theory.subspaces import DimensionTest, dimension_test, least_depth
from experiments.alignment._aligned import PAPER
from experiments.alignment._subspace_networks import (
    SubspaceNetwork,
    anisotropy,
    defect,
    fit_error,
    gaussian_counterexample,
    layers_of,
    outputs,
    vertical_filters,
)
from experiments.context import Context
from experiments.registry import experiment

THEOREM = f"{PAPER}, Theorem 3"
CORRECTED = f"{THEOREM}, corrected"
OWN = f"this project, on {THEOREM}"
WIDTH, DIMENSION = 8, 5
# (k, d) of the maps over the dimension r of S and the number n of samples
MAPS = ((4, 2), (3, 3))
FLOOR = 1e-16
# Above this a least defect is no roundoff.
MISALIGNED = 1e-8


def draw_case(key: jax.Array, k: int, d: int) -> tuple[jax.Array, ...]:
    """A stack of ``k^2`` Gaussian matrices, coefficients of ``d`` layers, and inputs."""
    span_key, teacher_key, input_key = jax.random.split(key, 3)
    return (
        jax.random.normal(span_key, (k * k, k, k)),
        jax.random.normal(teacher_key, (d, k * k)),
        jax.random.normal(input_key, (k + 1, k)),
    )


@partial(jax.jit, static_argnames=("k", "d", "starts"))
def search(
    key: jax.Array, r: jax.Array, n: jax.Array, *, k: int, d: int, starts: int
) -> dict[str, jax.Array]:
    """Look for an aligned network in the span of ``r`` matrices, on ``n`` samples.

    The targets come from a random network of the same structure, so that a fit exists. What is
    left out is zero, not absent: all cells of a map share one compilation.
    """
    span, teacher, inputs = draw_case(key, k, d)
    span = jnp.where(jnp.arange(k * k)[:, None, None] < r, span, 0.0)
    X = jnp.where(jnp.arange(k + 1)[:, None] < n, inputs, 0.0)
    Y = outputs(layers_of(teacher, span), X)
    found = aligned_interpolation(
        jax.random.fold_in(key, 1), span, X, Y, depth=d, starts=starts, tolerance=1e-8
    )
    return {
        "defect": jnp.where(found.interpolates, found.best_defect, jnp.nan),
        "fit": found.best_fit,
        "condition": found.conditions[found.best],
    }


def search_map(context: Context, k: int, d: int, draws: int, starts: int) -> dict[str, np.ndarray]:
    """``search`` over all dimensions and sample counts: arrays ``(k^2, k+1, draws)``."""
    keys = jax.random.split(jax.random.fold_in(context.key, 10 * k + d), draws)
    cells = [(r, n) for r in range(1, k * k + 1) for n in range(1, k + 2)]
    run = jax.vmap(partial(search, k=k, d=d, starts=starts), in_axes=(0, None, None))
    found = [run(keys, jnp.array(r), jnp.array(n)) for r, n in context.track(cells, f"map k={k}")]
    shape = (k * k, k + 1, draws)
    return {name: np.stack([f[name] for f in found]).reshape(shape) for name in found[0]}


def sharpness(risk: Any, c: jax.Array) -> jax.Array:
    """The largest curvature of the risk, by power iteration."""

    def step(v: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        image = jax.jvp(jax.grad(risk), (c,), (v,))[1]
        return image / jnp.linalg.norm(image), jnp.linalg.norm(image)

    return jax.lax.scan(step, jnp.ones_like(c) / c.size**0.5, None, length=100)[1][-1]


@partial(jax.jit, static_argnames="steps")
def descend(
    c: jax.Array, basis: jax.Array, X: jax.Array, Y: jax.Array, *, steps: int
) -> tuple[jax.Array, jax.Array]:
    """Coefficients after gradient descent, and its rate, half of that of instability.

    In an orthonormal basis this is projected descent on the layers.
    """

    def risk(c: jax.Array) -> jax.Array:
        return ((outputs(layers_of(c, basis), X) - Y) ** 2).sum() / (2 * X.shape[0])

    rate = 1.0 / sharpness(risk, c)
    return jax.lax.fori_loop(0, steps, lambda _, c: c - rate * jax.grad(risk)(c), c), rate


@experiment(
    "alignment/theorem_3",
    title="Small subspaces rule alignment out, unless the outer layers are orthogonal",
    source=THEOREM,
)
def theorem_3(context: Context) -> None:
    """Build the networks that the printed theorem excludes, and map where it may hold."""
    seeds = context.pick(quick=3, standard=20, full=100)
    steps = context.pick(quick=200, standard=2000, full=20_000)
    draws = context.pick(quick=1, standard=2, full=10)
    starts = context.pick(quick=8, standard=16, full=128)
    chosen = context.pick(quick=MAPS[1:], standard=MAPS, full=MAPS)
    keys = jax.random.split(jax.random.fold_in(context.key, 0), seeds)
    networks = [gaussian_counterexample(key, WIDTH) for key in keys]
    rows = [_measure(network, steps) for network in context.track(networks, "counterexamples")]
    context.table(
        "counterexample",
        {name: [row[name] for row in rows] for name in rows[0]},
        f"Networks of {len(networks[0].coefficients)} layers in a {DIMENSION}-dimensional subspace "
        f"of {WIDTH} x {WIDTH} matrices, each on its own Gaussian data.",
    )
    _claim_counterexample(context, rows, steps)
    _claim_example(context)
    maps = {(k, d): search_map(context, k, d, draws, starts) for k, d in chosen}
    _tabulate(context, maps)
    _draw(context, maps)
    _claim_maps(context, maps)
    _claim_depth(context)


def _measure(network: SubspaceNetwork, steps: int) -> dict[str, float]:
    after, rate = descend(
        network.coefficients, network.basis, network.inputs, network.targets, steps=steps
    )
    shapes = anisotropy(network.weights)
    return {
        "condition number of the inputs": float(np.linalg.cond(network.inputs)),
        "relative error of fit": float(fit_error(network)),
        "defect of alignment": float(defect(network)),
        "anisotropy of W_1": float(shapes[0]),
        "anisotropy of W_d": float(shapes[-1]),
        "largest anisotropy of a layer": float(shapes.max()),
        "learning rate": float(rate),
        "relative error of fit after descent": float(fit_error(network, after)),
        "defect of alignment after descent": float(defect(network, after)),
    }


def _claim_counterexample(context: Context, rows: list[dict[str, float]], steps: int) -> None:
    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows])

    conditions = column("condition number of the inputs")
    source = f"{THEOREM}, as printed"
    depth = WIDTH * (2 * WIDTH - 1)
    errors = np.maximum(column("relative error of fit") / conditions, column("defect of alignment"))
    context.claim_above(
        "printed",
        source,
        f"With r = {DIMENSION} < k - 1 = {WIDTH - 1}, n = k and a layer that is no multiple of the "
        "identity, no aligned network fits generic data: error of fit over the condition number "
        f"of X, or defect, of a network of {depth} layers, least over {len(rows)} Gaussian data "
        "sets",
        bound=MISALIGNED,
        measured=errors.min(),
        expected="refuted",
    )
    context.claim_below(
        "counterexample_fit",
        CORRECTED,
        f"A network of layers in one {DIMENSION}-dimensional subspace of {WIDTH} x {WIDTH} "
        "matrices fits Gaussian data to roundoff: largest relative error over the condition number "
        "of X",
        bound=1e-12,
        measured=(column("relative error of fit") / conditions).max(),
    )
    context.claim_below(
        "counterexample_alignment",
        CORRECTED,
        "Its layers are diagonal in common bases: largest share of a layer off the diagonal",
        bound=1e-12,
        measured=column("defect of alignment").max(),
    )
    context.claim_below(
        "counterexample_outer",
        CORRECTED,
        "Its first and last layer are multiples of orthogonal matrices, as they must be: largest "
        "anisotropic share of their Gram matrices",
        bound=1e-12,
        measured=max(column("anisotropy of W_1").max(), column("anisotropy of W_d").max()),
    )
    context.claim_above(
        "counterexample_inner",
        CORRECTED,
        "Other layers are not: least over the data sets of the largest anisotropic share",
        bound=0.1,
        measured=column("largest anisotropy of a layer").min(),
    )
    context.claim_below(
        "counterexample_descent",
        CORRECTED,
        f"{steps:,} steps of descent in the coefficients keep it, at half the rate of instability: "
        "error of fit over the condition number of X, or defect",
        bound=1e-12,
        measured=np.maximum(
            column("relative error of fit after descent") / conditions,
            column("defect of alignment after descent"),
        ).max(),
    )


def _claim_example(context: Context) -> None:
    sizes = context.pick(quick=(4,), standard=(4, 6, 8), full=(4, 6, 8, 12))
    key = jax.random.fold_in(context.key, 1)
    found = [vertical_filters(jax.random.fold_in(key, m), m, m * m + 4) for m in sizes]
    shapes = ", ".join(map(str, sizes))
    context.claim_above(
        "example",
        f"{PAPER}, Example of section 5.2",
        "No linear autoencoder of 3 x 3 convolutions is aligned on generic images, unless all "
        f"layers are multiples of the identity: error of fit or defect, image sides {shapes}",
        bound=MISALIGNED,
        measured=min(max(float(fit_error(f)), float(defect(f))) for f in found),
        expected="refuted",
    )
    context.claim_above(
        "example_layers",
        f"{PAPER}, Example of section 5.2, corrected",
        "Vertical filters multiply to the identity, and none is a multiple of an orthogonal "
        "matrix: least anisotropic share of a layer's Gram matrix",
        bound=0.1,
        measured=min(float(anisotropy(f.weights).min()) for f in found),
    )


def _tests(k: int, d: int) -> list[list[DimensionTest]]:
    """The counts for each cell of a map."""
    return [
        [dimension_test(r, width=k, samples=n, depth=d) for n in range(1, k + 2)]
        for r in range(1, k * k + 1)
    ]


def _masks(k: int, d: int) -> dict[str, np.ndarray]:
    tests = _tests(k, d)

    def mask(of: Any) -> np.ndarray:
        return np.array([[bool(of(test)) for test in row] for row in tests])

    return {
        "printed": mask(lambda t: t.printed_excludes),
        "corrected": mask(lambda t: t.samples >= k and t.dimensions[0] < t.bound),
        "aligns": mask(lambda t: t.aligns_generically),
        "fits": mask(lambda t: t.interpolates_generic_data),
    }


def _claim_maps(context: Context, maps: dict[tuple[int, int], dict[str, np.ndarray]]) -> None:
    ruled_out, below, above, unfitted = [], [], [], 0
    for (k, d), found in maps.items():
        masks, least = _masks(k, d), found["defect"]
        ruled_out.append(least[masks["corrected"]].ravel())
        below.append(least[~masks["aligns"]].ravel())
        above.append(np.nan_to_num(least[masks["aligns"]], nan=1.0).ravel())
        unfitted += int(np.isnan(least).sum())
    excluded, under, over = (np.concatenate(part) for part in (ruled_out, below, above))
    context.claim_above(
        "ruled_out",
        f"{CORRECTED}, tried on data of a random network, which are not generic",
        "In random subspaces, which hold no multiple of an orthogonal matrix, r < k and n >= k "
        "rule alignment out, on data of a random network too: least defect at exact fit",
        bound=1e-2,
        measured=np.nanmin(excluded),
    )
    context.claim_above(
        "below_count",
        OWN,
        "Random subspaces with d(r-1) + 1 < k min(n,k) + (d-1)k(k-1)/2 hold no aligned network "
        f"that fits: least defect of {np.isfinite(under).sum()} searches "
        f"({unfitted} more found no fit)",
        bound=MISALIGNED,
        measured=np.nanmin(under),
    )
    context.claim_above(
        "above_count",
        OWN,
        "From that dimension on most do: share of the searches that end aligned to 1e-10",
        # a search that ends elsewhere may do so by chaos, so that nothing hangs on single ones
        bound=0.5,
        measured=(over < 1e-10).mean(),
    )


def _claim_depth(context: Context) -> None:
    deep = least_depth(DIMENSION, WIDTH, WIDTH)
    assert deep is not None  # the dimension is above 1
    key = jax.random.fold_in(context.key, 2)
    basis = jax.random.normal(key, (DIMENSION, WIDTH, WIDTH)) / WIDTH**0.5
    basis = basis.at[0].set(jnp.eye(WIDTH))

    def rank(d: int) -> int:
        # Layers near the identity, whose long products are well conditioned.
        c = jax.random.normal(jax.random.fold_in(key, d), (d, DIMENSION)).at[:, 0].set(3.0)
        slope = jax.jacobian(lambda c: outputs(layers_of(c, basis), jnp.eye(WIDTH)))(c)
        return int(np.linalg.matrix_rank(np.asarray(slope).reshape(WIDTH**2, -1)))

    context.claim_close(
        "depth",
        OWN,
        f"With r = {DIMENSION}, k = {WIDTH} fewer than {deep} layers fit no generic data, aligned "
        f"or not: rank of the map from coefficients to the end-to-end matrix, d = {deep - 1}",
        predicted=(deep - 1) * (DIMENSION - 1) + 1,
        measured=rank(deep - 1),
    )
    context.claim_close(
        "depth_enough",
        OWN,
        f"With {deep} layers it is onto: the same rank, d = {deep}",
        predicted=WIDTH**2,
        measured=rank(deep),
    )


def _tabulate(context: Context, maps: dict[tuple[int, int], dict[str, np.ndarray]]) -> None:
    columns: dict[str, list[Any]] = {}
    for (k, d), found in maps.items():
        masks = _masks(k, d)
        for (i, j, draw), least in np.ndenumerate(found["defect"]):
            row = {
                "k": k,
                "d": d,
                "r": i + 1,
                "n": j + 1,
                "subspace": draw,
                "least defect at exact fit": least,
                "relative error of fit": found["fit"][i, j, draw],
                "condition number of the layers": found["condition"][i, j, draw],
                "excluded by the printed theorem": int(masks["printed"][i, j]),
                "excluded unless outer layers are orthogonal": int(masks["corrected"][i, j]),
                "parameters suffice": int(masks["aligns"][i, j]),
            }
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    context.table(
        "map",
        columns,
        "Best defect found by the probe in random subspaces; NaN where no start fits.",
    )


def _draw(context: Context, maps: dict[tuple[int, int], dict[str, np.ndarray]]) -> None:
    caption = (
        "Least defect of alignment that the probe finds among networks which fit exactly, against "
        "the number n of samples and the dimension r of the subspace S that all layers share; "
        "median over random subspaces, on data of a random network of the same structure. Cells "
        "without a fit are white. Solid line: from here on the parameters suffice for fit and "
        "alignment. Dashed: for the fit alone, on generic data. Hatched: excluded by Theorem 3 as "
        "printed, r < k - 1; outlined: as corrected, r < k."
    )
    colormap = matplotlib.colormaps["cividis"].with_extremes(bad="white")
    with context.figure(
        "theorem_3", caption, columns=len(maps), width="double", height=3.6, squeeze=False
    ) as (figure, axes):
        for panel, ((k, d), found) in zip(axes[0], maps.items(), strict=True):
            with np.errstate(all="ignore"):
                shown = np.ma.masked_invalid(np.median(found["defect"], axis=2))
            edges = np.arange(k + 2) + 0.5, np.arange(k * k + 1) + 0.5
            image = panel.pcolormesh(
                *edges, np.maximum(shown, FLOOR), cmap=colormap, norm=LogNorm(FLOOR, 1)
            )
            _boundaries(panel, k, d)
            panel.set(xlabel="samples $n$", ylabel="dimension $r$ of $S$")
            panel.set(title=f"$k = {k}$, depth $d = {d}$", xticks=range(1, k + 2))
            panel.set_yticks(range(1, k * k + 1))
        bar = figure.colorbar(image, ax=list(axes[0]), shrink=0.9)
        bar.set_label("least defect of alignment at exact fit")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def _boundaries(panel: Any, k: int, d: int) -> None:
    masks = _masks(k, d)
    across = np.repeat(np.arange(k + 2) + 0.5, 2)[1:-1]
    for name, style, label in (
        ("aligns", "-", "count: fit and alignment"),
        ("fits", "--", "count: fit of generic data"),
    ):
        first = (~masks[name]).sum(axis=0) + 0.5
        panel.plot(across, np.repeat(first, 2), style, color="#D55E00", lw=1.6, label=label)
    for name, hatch, label in (
        ("printed", "////", "Theorem 3, printed"),
        ("corrected", "", "Theorem 3, corrected"),
    ):
        left = k - 0.5
        height = masks[name][:, k - 1].sum()
        panel.fill_between(
            [left, k + 1.5],
            0.5,
            height + 0.5,
            facecolor="none",
            edgecolor="#56B4E9",
            hatch=hatch,
            linewidth=1.4,
            label=label,
        )
