"""PyTorch on its CPU build: ``bmm`` in a Python loop, eager or with a compiled step."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from benchmarks.peers.job import Job, NotMeasured
from benchmarks.timing import Contender, uncompiled

__all__ = ["TORCH", "TORCH_COMPILED", "train_in_compiled_torch", "train_in_torch"]

TORCH = "PyTorch: bmm loop"
TORCH_COMPILED = "PyTorch: torch.compile"


def train_in_torch(job: Job, steps: int) -> Contender:
    """The descent in eager PyTorch, weights updated in place."""
    torch = _torch()
    return _contender(torch, TORCH, _step(torch), job, steps, note=_threads(torch))


def train_in_compiled_torch(job: Job, steps: int, *, backend: str = "inductor") -> Contender:
    """The same step through ``torch.compile``, whose first call compiles."""
    torch = _torch()
    torch.compiler.reset()  # else the second shape is compiled with symbolic sizes
    step = torch.compile(_step(torch), backend=backend)
    note = f"{_threads(torch)}; the first call compiles"
    try:
        return _contender(torch, TORCH_COMPILED, step, job, steps, note=note)
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().partition("\n")[0]
        raise NotMeasured(f"torch.compile failed: {reason}") from error


def _torch() -> Any:
    if importlib.util.find_spec("torch") is None:
        raise NotMeasured("PyTorch is not installed")
    import torch

    return torch


def _threads(torch: Any) -> str:
    return f"{torch.get_num_threads()} threads"


def _step(torch: Any) -> Callable[..., None]:
    """One step by the gradient written by hand, which is what makes ``bmm`` fast."""

    def step(first: Any, second: Any, third: Any, target: Any, rate: Any) -> None:
        inner = torch.bmm(second, first)
        error = torch.bmm(third, inner) - target
        back = torch.bmm(third.mT, error)
        slopes = (
            torch.bmm(second.mT, back),
            torch.bmm(back, first.mT),
            torch.bmm(error, inner.mT),
        )
        for w, slope in zip((first, second, third), slopes, strict=True):
            w.sub_(rate * slope)

    return step


def _contender(
    torch: Any, name: str, step: Callable[..., None], job: Job, steps: int, note: str
) -> Contender:
    target = torch.tensor(job.target)
    rate = torch.tensor(job.rates)[:, None, None]
    given = [torch.tensor(w) for w in job.starts]

    def call() -> list[Any]:
        weights = [w.clone() for w in given]
        with torch.no_grad():
            for _ in range(steps):
                step(*weights, target, rate)
        return [w.numpy() for w in weights]

    return uncompiled(name, call, steps=steps, note=note)
