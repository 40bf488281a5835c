"""The XLA engine beside what one would write without this package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import alignjax as aj
from benchmarks.timing import Contender, Row, compiled, differences, not_measured, race

__all__ = ["run"]

DEPTH = 3
STEPS = {4: 400, 9: 150, 16: 60, 32: 24, 64: 10}
PLAIN = "plain JAX: jit(vmap(scan(grad)))"
TORCH = "PyTorch: bmm loop, gradient by hand"
GPU = "alignjax: XLA engine on a GPU"


def run(*, repeats: int, steps: Mapping[int, int] = STEPS, batch: int = 1024) -> list[Row]:
    """Whitened random regression, one problem, a batch of starts and learning rates.

    Args:
        repeats: timed calls of each contender.
        steps: width k to steps in a call.
        batch: trainings at once.
    """
    rows: list[Row] = []
    for width, count in steps.items():
        rows += _case(width, count, batch, repeats)
    return rows


def _whitened(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs with ``X^T X / n = I`` and random targets."""
    random = np.random.default_rng(width)
    samples = 4 * width
    X = np.linalg.qr(random.standard_normal((samples, width)))[0] * np.sqrt(samples)
    teacher = random.standard_normal((width, width)) / np.sqrt(width)
    Y = X @ teacher.T + 0.1 * random.standard_normal((samples, width))
    return X.astype(np.float32), Y.astype(np.float32)


def _case(width: int, steps: int, batch: int, repeats: int) -> list[Row]:
    X, Y = _whitened(width)
    problem = aj.regression(X, Y)
    target = jnp.asarray(Y.T @ X / len(X))
    widths = (width,) * (DEPTH + 1)
    keys = jax.random.split(jax.random.key(width), batch)
    starts = jax.vmap(
        lambda key: aj.initializers.gaussian(key, widths, 0.5 / np.sqrt(width), dtype=jnp.float32)
    )(keys)
    rates = jnp.linspace(0.005, 0.05, batch, dtype=jnp.float32)

    def engine(problem: Any, starts: Any, rates: Any) -> Any:
        return jax.vmap(
            lambda weights, rate: aj.engines.advance(
                problem, weights, rate, steps, max_steps=steps, engine="xla"
            )[0]
        )(starts, rates)

    def plain(target: Any, starts: Any, rates: Any) -> Any:
        return jax.vmap(lambda weights, rate: _plain(target, weights, rate, steps))(starts, rates)

    contenders = [
        compiled(
            "alignjax: XLA engine",
            engine,
            problem,
            starts,
            rates,
            steps=steps,
            note="any input moment; checks every step for divergence",
        ),
        compiled(
            PLAIN,
            plain,
            target,
            starts,
            rates,
            steps=steps,
            note="knows that the inputs are white; no check",
        ),
    ]
    absent: list[Row] = []
    case = f"k = {width}, d = {DEPTH}"
    if importlib.util.find_spec("torch"):
        contenders.append(_torch(target, starts, rates, steps))
    else:
        why = "not measured: PyTorch is not installed"
        absent.append(not_measured("engine", case, TORCH, runs=batch, why=why))
    if jax.default_backend() == "cpu":
        absent.append(
            not_measured("engine", case, GPU, runs=batch, why="not measured: no GPU here")
        )
    measured = race(
        "engine",
        case,
        contenders,
        runs=batch,
        repeats=repeats,
        differences=differences(contenders, tolerance=1e-3),
    )
    return measured + absent


def _plain(target: Any, weights: Any, rate: Any, steps: int) -> Any:
    """Autodiff of ``1/2 ||W_3 W_2 W_1 - target||^2``, the risk of white inputs up to a constant."""

    def risk(weights: Any) -> Any:
        first, second, third = weights
        return 0.5 * jnp.sum((third @ (second @ first) - target) ** 2)

    def step(weights: Any, _: None) -> Any:
        return jax.tree.map(lambda w, g: w - rate * g, weights, jax.grad(risk)(weights)), None

    return lax.scan(step, weights, length=steps)[0]


def _torch(target: Any, starts: Any, rates: Any, steps: int) -> Contender:
    """The same steps in eager PyTorch, on its CPU build's default number of threads."""
    import torch

    wanted = torch.tensor(np.array(target))
    rate = torch.tensor(np.array(rates))[:, None, None]
    given = [torch.tensor(np.array(w)) for w in starts]

    def call() -> list[Any]:
        first, second, third = (w.clone() for w in given)
        with torch.no_grad():
            for _ in range(steps):
                inner = torch.bmm(second, first)
                error = torch.bmm(third, inner) - wanted
                back = torch.bmm(third.mT, error)
                slopes = (
                    torch.bmm(second.mT, back),
                    torch.bmm(back, first.mT),
                    torch.bmm(error, inner.mT),
                )
                for w, slope in zip((first, second, third), slopes, strict=True):
                    w.sub_(rate * slope)
        return [w.numpy() for w in (first, second, third)]

    note = f"knows that the inputs are white; no check; {torch.get_num_threads()} threads"
    return Contender(TORCH, call, steps, note=note)
