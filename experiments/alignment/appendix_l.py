"""Appendix L: alignment is invariant for five classes of problems that meet its conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import alignjax as aj
from alignjax import initializers
from alignjax.datasets import Images, digits, flatten, mnist_or_digits, separable_pair
from alignjax.theory.alignment import certify, one_dimensional_start
from experiments.alignment.theorem_1 import FLOOR, Seen, Weights, defect, observe_alignment
from experiments.context import Context
from experiments.registry import experiment
from experiments.style import COLORS

SOURCE = "Radhakrishnan et al. 2020, Appendix L"
CLASSES = ("autoencoding", "factorization", "inversion", "sensing")
LOSSES = ("squared", "logistic", "exponential", "log cosh")


@dataclass(frozen=True)
class Case:
    """A problem with an aligned start; ``strong`` where the outer bases must stay too."""

    problem: Any
    start: Weights
    rate: float
    strong: bool = True


def _load_images(context: Context) -> Images:
    """MNIST, or at quick scale scikit-learn's digits."""
    return digits("train") if context.scale == "quick" else mnist_or_digits("train")


def _shrink(images: Images, factor: int) -> np.ndarray:
    """Means over blocks of ``factor x factor`` pixels, one row an image, in [0, 1]."""
    rows = flatten(images, mean=0.0, std=1.0)
    _, height, width = images.images.shape
    blocks = rows.reshape(-1, height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(2, 4)).reshape(len(rows), -1)


def _aligned_case(
    key: Array, problem: Any, inner: int, rate: float, *, low: float = 0.4, high: float = 1.0
) -> Case:
    """Three layers with two hidden widths ``inner``, aligned with the problem."""
    certificate = certify(problem)
    widths = (problem.input_width, inner, inner, problem.output_width)
    values_key, start_key = jax.random.split(key)
    values = jax.random.uniform(values_key, (3, min(widths)), minval=low, maxval=high)
    if certificate.verdict != "yes":
        raise RuntimeError(f"the data condition fails: residual {certificate.residual:.3g}")
    return Case(problem, initializers.aligned(start_key, certificate, widths, values), rate)


def _autoencoding(key: Array, rows: np.ndarray, inner: int) -> Case:
    # In units in which the largest eigenvalue of the input moment is 1.
    rows = rows / (np.linalg.norm(rows, 2) / len(rows) ** 0.5)
    return _aligned_case(key, aj.autoencoding(jnp.asarray(rows)), inner, 0.1)


def _factorization(key: Array) -> Case:
    target, start = jax.random.split(key)
    return _aligned_case(start, aj.factorization(jax.random.normal(target, (6, 8))), 7, 0.05)


def _inversion(key: Array) -> Case:
    """Inversion of a Gaussian matrix whose condition number is brought to about 4."""
    target, start = jax.random.split(key)
    u, _, vt = jnp.linalg.svd(jax.random.normal(target, (6, 6)))
    matrix = (u * jnp.linspace(2.0, 0.5, 6)) @ vt
    return _aligned_case(start, aj.inversion(matrix), 6, 0.05)


def _sensing(key: Array) -> Case:
    """Four measurements that share singular vectors, of a matrix with six modes."""
    left, right, diagonals, values, start = jax.random.split(key, 5)
    draw = jax.nn.initializers.orthogonal()
    u, v = draw(left, (6, 6)), draw(right, (6, 6))
    matrices = jnp.einsum("ia,na,ja->nij", u, jax.random.normal(diagonals, (4, 6)), v)
    return _aligned_case(start, aj.sensing(matrices, jax.random.normal(values, (4,))), 6, 0.02)


def _log_cosh(outputs: Array, label: Array) -> Array:
    """A loss of a user's own: log cosh of the difference."""
    gap = outputs[0] - label
    return jnp.logaddexp(gap, -gap) - jnp.log(2.0)


def _one_output(key: Array, loss: str) -> Case:
    """Separable classes and one output; data of any kind keep this start aligned."""
    data_key, start_key = jax.random.split(key)
    data = separable_pair(data_key, 30, 6, margin=0.5)
    problem = aj.classification(
        data.inputs, data.labels, loss=_log_cosh if loss == "log cosh" else loss
    )
    start = one_dimensional_start(start_key, (6, 5, 4, 1), 0.5)
    return Case(problem, start, 0.02, strong=False)


def _cases(context: Context, images: Images) -> dict[str, Case]:
    # Quick: 8x8 digits; standard: MNIST as 14x14 pixels; full: all of MNIST's 28x28.
    # The fallback for MNIST is 8x8 already.
    small = images.images.shape[1] < 28
    factor = 1 if small else context.pick(quick=1, standard=2, full=1)
    samples = context.pick(quick=400, standard=4000, full=60000)
    keys = iter(jax.random.split(context.key, len(CLASSES) + len(LOSSES)))
    inner = context.pick(quick=16, standard=32, full=64)
    cases = {
        "autoencoding": _autoencoding(next(keys), _shrink(images[:samples], factor), inner),
        "factorization": _factorization(next(keys)),
        "inversion": _inversion(next(keys)),
        "sensing": _sensing(next(keys)),
    }
    return cases | {loss: _one_output(next(keys), loss) for loss in LOSSES}


def _descend(case: Case, steps: int, save_at: tuple[int, ...]) -> Seen:
    run = aj.gradient_descent(
        case.problem,
        case.start,
        case.rate,
        steps=steps,
        save_at=save_at,
        observe=observe_alignment(case.problem, case.start),
    )
    return {name: np.asarray(value) for name, value in run.observations.items()}


@experiment(
    "alignment/appendix_l",
    title="Alignment is invariant: autoencoding, factorization, inversion, sensing, one output",
    source=SOURCE,
)
def appendix_l(context: Context) -> None:
    """Train full matrices from aligned starts in every class, and watch alignment."""
    images = _load_images(context)
    if context.scale == "quick" or images.images.shape[1] < 28:
        context.note(f"Autoencoding is of {images.name}, not of MNIST.")
    cases = _cases(context, images)
    steps = context.pick(quick=1000, standard=10000, full=10000)
    runs: dict[str, Seen] = {}
    save_at = aj.log_steps(steps, context.pick(quick=12, standard=40, full=40))
    for name, case in context.track(cases.items(), "classes of problems"):
        runs[name] = _descend(case, steps, save_at)
    _draw(context, save_at, runs, cases)
    context.table(
        "appendix_l",
        {
            "problem": np.repeat(list(runs), len(save_at)),
            "step": np.tile(save_at, len(runs)),
            **{
                name: np.concatenate([seen[name] for seen in runs.values()])
                for name in ("alignment", "invariance", "strong invariance", "risk")
            },
        },
        "Least alignment and invariance over the layers, and the risk, at every save point.",
    )
    for name, case in cases.items():
        _claim(context, name, case, runs[name])


def _claim(context: Context, name: str, case: Case, seen: Seen) -> None:
    id = name.replace(" ", "_")
    what = name if name in CLASSES else f"one output, {name} loss"
    kept = "alignment and strong invariance" if case.strong else "alignment and invariance"
    context.claim_above(
        f"{id}_kept",
        SOURCE,
        f"For {what}, {kept} stay 1 to roundoff: least value at any save point.",
        bound=1 - 1e-9,
        measured=1 - defect(seen, strong=case.strong).max(),
    )
    context.claim_below(
        f"{id}_risk",
        SOURCE,
        f"For {what}, the risk falls: the last over the first.",
        bound=0.5,
        measured=seen["risk"][-1] / seen["risk"][0],
    )
    if not case.strong:
        context.claim_above(
            f"{id}_turns",
            SOURCE,
            f"For {what}, the first layer's input vector turns: 1 - strong invariance at the end.",
            bound=1e-3,
            measured=1 - seen["strong invariance"][-1],
        )


def _draw(
    context: Context, save_at: tuple[int, ...], runs: dict[str, Seen], cases: dict[str, Case]
) -> None:
    caption = (
        "Gradient descent on full matrices from aligned starts. Blue: risk over its value at the "
        "start. Orange: defect of alignment or invariance, whichever is larger (strong invariance "
        "in the upper row); exact zeros are drawn at 1e-17. Green, below: how far the first "
        "layer's input vector has turned, as 1 - strong invariance."
    )
    with context.figure(
        "appendix_l",
        caption,
        rows=2,
        columns=4,
        width="double",
        height=3.6,
        sharex=True,
        sharey=True,
    ) as (figure, axes):
        for panel, (name, seen) in zip(axes.flat, runs.items(), strict=True):
            case = cases[name]
            gap = np.maximum(defect(seen, strong=case.strong), FLOOR)
            panel.plot(save_at, seen["risk"] / seen["risk"][0], color=COLORS[0], label="risk")
            panel.plot(save_at, gap, color=COLORS[1], label="defect of alignment")
            if not case.strong:
                turned = np.maximum(1 - seen["strong invariance"], FLOOR)
                panel.plot(save_at, turned, color=COLORS[2], label="turn of the input vector")
            panel.set(title=name if case.strong else f"1 output, {name}", yscale="log")
            panel.set_xscale("symlog", linthresh=1)
            panel.set(xlim=(0, save_at[-1]), ylim=(FLOOR / 2, 10))
            panel.set_xticks([0, 1, 10, 100, 1000])
            if not case.strong:
                panel.set_xlabel("step")
        figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
