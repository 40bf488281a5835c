"""``alignjax certify``: the data condition of alignment on files, and safe learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import alignjax as aj
from alignjax.cli import errors
from alignjax.cli.console import number, show, show_json, show_pairs, show_table
from alignjax.cli.errors import USAGE, CommandError
from alignjax.cli.files import check_output, read_weights, write_arrays
from alignjax.cli.problem import FILES, problem_of, read_argument
from alignjax.theory import alignment

CODES = {"yes": errors.YES, "no": errors.NO, "cannot tell": errors.CANNOT_TELL}
SHOWN_MODES = 8
MOST_NUMBERS = 2**27
"""In the Hessian's blocks of modes that a bottleneck drops: a GiB."""


@dataclass(frozen=True)
class Request:
    """What was asked: see ``alignjax certify --help``."""

    files: tuple[str, ...]
    kind: str | None
    depths: tuple[int, ...]
    scale: float
    rank: int | None
    weights: Path | None
    tolerance_yes: float | None
    tolerance_no: float | None
    dtype: str | None
    out: Path | None


def certify_files(request: Request, *, as_json: bool) -> int:
    """Certify the data in files, show the verdict, and return its exit code."""
    if request.out is not None:
        check_output(request.out, (".npz",))
    if not math.isfinite(request.scale):
        raise CommandError(f"--scale: expected a finite number, got {request.scale}", USAGE)
    problem, kind = _problem(request)
    certificate = alignment.certify(
        problem, tolerance_yes=request.tolerance_yes, tolerance_no=request.tolerance_no
    )
    rates, note = _rates(problem, certificate, request)
    if request.out is not None:
        names = ("U", "V", "target_spectrum", "input_spectrum")
        write_arrays(request.out, {name: getattr(certificate, name) for name in names})
    if as_json:
        show_json(_summary(problem, kind, certificate, rates, note))
    else:
        _show(problem, kind, certificate, rates, note, request)
    return CODES[certificate.verdict]


def _problem(request: Request) -> tuple[Any, str]:
    kind = request.kind or ("autoencoding" if len(request.files) == 1 else "regression")
    arguments = FILES[kind]
    if len(request.files) != len(arguments):
        raise CommandError(
            f"{kind} takes {len(arguments)} file(s), {' and '.join(arguments)}, got "
            f"{len(request.files)}",
            USAGE,
        )
    arrays = {
        argument: read_argument(argument, file)
        for argument, file in zip(arguments, request.files, strict=True)
    }
    return problem_of(kind, arrays, request.dtype), kind


def _rates(problem: Any, certificate: Any, request: Request) -> tuple[list[dict[str, Any]], str]:
    """Learning rates by depth; none, and why, where there are no formulas."""
    if certificate.verdict == "no":
        return [], "the modes do not decouple, so there is no learning rate to tell"
    if certificate.input_spectrum.ndim != 1:
        return [], "measurements couple the modes, and no formula tells the learning rate"
    if request.weights is not None:
        layers = [jnp.asarray(w, problem.dtype) for w in read_weights(str(request.weights))]
        try:
            start = aj.reduce(problem, layers)
        except aj.NotAlignedError as error:
            return [], f"{request.weights} is not aligned with the data: {error}"
        return [_rate(start, start.singular_values)], f"from the start {request.weights}"
    modes = certificate.target_spectrum.shape[0]
    rank = min(request.rank or modes, modes)
    found = []
    for depth in request.depths:
        _refuse_many_blocks(problem, modes - rank, depth)
        values = jnp.full((depth, rank), request.scale, certificate.target_spectrum.dtype)
        found.append(_rate(certificate, values))
    return found, (
        f"from an aligned start whose layers have all singular values {request.scale:g}"
        + (f", at most {rank} wide" if rank < modes else "")
    )


def _refuse_many_blocks(problem: Any, dropped: int, depth: int) -> None:
    """Refuse depths at which the Hessian of what a bottleneck drops is too large to look at."""
    blocks = dropped * max(problem.input_width, problem.output_width)
    if blocks * (2 * depth) ** 2 > MOST_NUMBERS:
        raise CommandError(
            f"--depth {depth}: with --rank, the stability threshold takes the eigenvalues of "
            f"{blocks:,} matrices of {2 * depth:,} rows, which do not fit in memory: give fewer "
            f"layers, or leave --rank out",
            USAGE,
        )


def _rate(spectra: Any, values: Any) -> dict[str, Any]:
    """The learning rates that theory gives for a start of shape ``(d, r)``."""
    bound = alignment.learning_rate_bound(spectra, values)
    minimum = alignment.minimum_singular_values(spectra, values)
    threshold = alignment.stability_threshold(spectra, singular_values=minimum)
    return {
        "depth": int(values.shape[0]),
        "safe_learning_rate": float(alignment.safe_learning_rate(spectra, values)),
        "convergence_bound": float(bound),
        "stability_threshold": float(threshold),
    }


def _summary(
    problem: Any, kind: str, certificate: Any, rates: Sequence[dict[str, Any]], note: str
) -> dict[str, Any]:
    return {
        "verdict": certificate.verdict,
        "holds": certificate.holds,
        "residual": certificate.residual,
        "commutator": certificate.commutator,
        "problem": kind,
        "samples": problem.sample_count,
        "k_0": problem.input_width,
        "k_d": problem.output_width,
        "dtype": str(problem.dtype),
        "learning_rates": list(rates),
        "learning_rates_note": note,
        "target_spectrum": certificate.target_spectrum,
        "input_spectrum": certificate.input_spectrum,
        "U": certificate.U,
        "V": certificate.V,
    }


def _show(
    problem: Any,
    kind: str,
    certificate: Any,
    rates: Sequence[dict[str, Any]],
    note: str,
    request: Request,
) -> None:
    verdicts = {
        "yes": "yes: alignment with these data stays invariant under training",
        "no": "no: these data have no common bases, so no start is aligned with them",
        "cannot tell": "cannot tell: the residual lies between the tolerances",
    }
    if kind == "sensing" and certificate.verdict == "no":
        verdicts["no"] = "no: no pair of bases makes all measurements diagonal"
    samples = f"{problem.sample_count:,} samples, " if problem.sample_count else ""
    u, v = certificate.U.shape[0], certificate.V.shape[0]
    pairs = {
        "verdict": verdicts[certificate.verdict],
        "problem": f"{kind}, {samples}k_0 = {v}, k_d = {u}, {problem.dtype}",
        "residual": f"{certificate.residual:.3g} of the moments is off the diagonals of U and V",
        "commutator": f"{certificate.commutator:.3g}",
        "U, V": f"orthogonal ({u}, {u}) and ({v}, {v}), "
        + (f"written to {request.out}" if request.out else "written by --out, shown by --json"),
    }
    show_pairs(pairs)
    if certificate.verdict == "no" and kind != "sensing" and u == 1:
        show(
            "With one output, layers of rank 1 stay aligned with each other on any data, while the "
            "vector that the first one reads turns: see theory.alignment.one_dimensional_start."
        )
    if certificate.verdict != "no" and certificate.input_spectrum.ndim == 1:
        _show_modes(certificate)
    if not rates:
        show(note)
        return
    show_table(
        ("depth", "safe learning rate", "convergence bound", "stability threshold"),
        [[str(rate["depth"]), *(number(rate[name]) for name in list(rate)[1:])] for rate in rates],
        title="Learning rates",
    )
    show(
        f"{note}.\nBelow the bound every mode goes where the gradient flow goes; above the "
        f"threshold rounding errors grow at the minimum. The safe rate is below both, and below "
        f"the threshold of the largest singular values on the way."
    )


def _show_modes(certificate: Any) -> None:
    target = np.asarray(certificate.target_spectrum)
    inputs = np.asarray(certificate.input_spectrum)[: len(target)]
    ends = np.divide(target, inputs, out=np.full_like(target, np.nan), where=inputs > 0)
    rows = [
        [str(i + 1), number(t), number(s), "-" if np.isnan(e) else number(e)]
        for i, (t, s, e) in enumerate(zip(target, inputs, ends, strict=True))
    ]
    count = len(rows)
    title = "Modes" if count <= SHOWN_MODES else f"Modes (the first {SHOWN_MODES} of {count})"
    show_table(("mode", "target λ'/n", "input λ/n", "learned λ'/λ"), rows[:SHOWN_MODES], title)
