"""Does a step of a convolutional autoencoder cost time and memory linear in pixels?"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import alignjax as aj
from benchmarks.timing import Contender, Row, compiled, differences, not_measured, race

__all__ = ["run"]

DEPTH = 3
KERNEL = 3
RATE = 1e-2
# steps in a call by the image's side: enough that what happens once a call does not count
STEPS = {28: 400, 64: 400, 128: 200, 256: 100}
OURS = "alignjax: Conv2d"
PLAIN = "plain JAX: grad over lax.conv_general_dilated"
TORCH = "PyTorch: Conv2d and autograd"


def run(*, repeats: int, steps: Mapping[int, int] = STEPS) -> list[Row]:
    """Descent on the raw taps of three 3x3 convolutions, one random image, mean over pixels.

    The notes hold the compiled step's scratch memory, where the compiler tells, and at the largest
    size the exponents of time and memory in pixels, from least squares over all sizes (and of time
    from the last two, since a fixed cost a step flattens the first).

    Args:
        repeats: timed calls of each contender.
        steps: side of the images to descent steps in a call, from small to large.
    """
    rows: list[Row] = []
    memory: dict[tuple[str, int], int] = {}
    for size, count in steps.items():
        rows += _case(size, count, repeats, memory)
    return _with_exponents(rows, tuple(steps), memory)


def _case(size: int, steps: int, repeats: int, memory: dict[tuple[str, int], int]) -> list[Row]:
    pixels = size * size
    case = f"{size} x {size}, d = {DEPTH}"
    random = np.random.default_rng(size)
    image = random.standard_normal((1, pixels), np.float32)
    # near the identity, where a step at this rate is stable
    taps = 0.1 * random.standard_normal((DEPTH, KERNEL * KERNEL), np.float32)
    taps[:, KERNEL * KERNEL // 2] += 1
    start = tuple(map(jnp.asarray, taps))
    rate = jnp.float32(RATE / pixels)
    structure = aj.structures.Conv2d(size, KERNEL, coordinates="raw")
    problem = aj.autoencoding(jnp.asarray(image))

    def ours(problem: Any, start: Any, rate: Any) -> Any:
        return aj.gradient_descent(problem, start, rate, steps=steps, structure=structure).weights

    def plain(image: Any, start: Any, rate: Any) -> Any:
        return _plain(image.reshape(1, 1, size, size), start, rate, steps)

    note = "checks every step for divergence"
    contenders = [
        compiled(OURS, ours, problem, start, rate, steps=steps, note=note),
        compiled(PLAIN, plain, jnp.asarray(image), start, rate, steps=steps, note="no check"),
    ]
    memory[OURS, size] = scratch(ours, problem, start, rate)
    memory[PLAIN, size] = scratch(plain, jnp.asarray(image), start, rate)
    absent: list[Row] = []
    if importlib.util.find_spec("torch"):
        contenders.append(_torch(image, taps, float(rate), size, steps))
    else:
        why = "not measured: PyTorch is not installed"
        absent.append(not_measured("structures", case, TORCH, runs=1, why=why))
    measured = race(
        "structures",
        case,
        contenders,
        runs=1,
        repeats=repeats,
        differences=differences(contenders, tolerance=1e-3, layers=_as_layers),
    )
    return measured + absent


def scratch(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes that the compiled function needs beside its arguments and results."""
    analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def _as_layers(taps: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(c).reshape(KERNEL, KERNEL) for c in taps]


def _plain(image: Any, start: Any, rate: Any, steps: int) -> Any:
    def risk(taps: Any) -> Any:
        outputs = image
        for c in taps:
            kernel = c.reshape(1, 1, KERNEL, KERNEL)
            outputs = lax.conv_general_dilated(outputs, kernel, (1, 1), "SAME")
        return 0.5 * jnp.sum((outputs - image) ** 2)

    def step(taps: Any, _: None) -> Any:
        return jax.tree.map(lambda c, g: c - rate * g, taps, jax.grad(risk)(taps)), None

    return lax.scan(step, start, length=steps)[0]


def _torch(image: np.ndarray, taps: np.ndarray, rate: float, size: int, steps: int) -> Contender:
    """The same steps in eager PyTorch, on its CPU build's default number of threads."""
    import torch

    x = torch.tensor(image.reshape(1, 1, size, size))

    def call() -> list[Any]:
        layers = []
        for c in taps:
            layer = torch.nn.Conv2d(1, 1, KERNEL, padding=KERNEL // 2, bias=False)
            with torch.no_grad():
                layer.weight.copy_(torch.tensor(c.reshape(1, 1, KERNEL, KERNEL)))
            layers.append(layer)
        network = torch.nn.Sequential(*layers)
        for _ in range(steps):
            network.zero_grad()
            (0.5 * ((network(x) - x) ** 2).sum()).backward()
            with torch.no_grad():
                for weight in network.parameters():
                    weight.sub_(rate * weight.grad)
        return [weight.detach().numpy() for weight in network.parameters()]

    note = f"no check; {torch.get_num_threads()} threads; memory not measured"
    return Contender(TORCH, call, steps, note=note)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of ``log(value)`` over ``log(pixels)``, by least squares."""
    return float(np.polyfit(2 * np.log(sizes), np.log(values), 1)[0])


def _with_exponents(
    rows: list[Row], sizes: Sequence[int], memory: dict[tuple[str, int], int]
) -> list[Row]:
    """The same rows with memory in the notes, and the exponents on the last row of each peer."""
    out: list[Row] = []
    for row in rows:
        size = int(row.case.split()[0])
        notes = [row.note]
        if (row.contender, size) in memory:
            notes.append(f"{memory[row.contender, size]:,} bytes of scratch")
        if size == sizes[-1] and len(sizes) > 1 and row.step_microseconds is not None:
            times = [r.step_microseconds for r in rows if r.contender == row.contender]
            notes.append(
                f"time ~ pixels^{exponent(sizes, times):.2f}, "
                f"pixels^{exponent(sizes[-2:], times[-2:]):.2f} from the last two sizes"
            )
            if (row.contender, size) in memory:
                held = [memory[row.contender, s] for s in sizes]
                notes.append(f"memory ~ pixels^{exponent(sizes, held):.2f}")
        out.append(replace(row, note="; ".join(notes)))
    return out
