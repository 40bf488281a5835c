"""Claims: what a source states, what was measured, and the verdict, which is a comparison."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, SupportsFloat, get_args

Verdict = Literal["confirmed", "refuted", "not measured"]
Comparison = Literal["close", "below", "above", "none"]

SYMBOLS: dict[str, str] = {"close": "", "below": "≤ ", "above": "≥ ", "none": ""}


@dataclass(frozen=True)
class Claim:
    """One statement of a source beside its measurement.

    Attributes:
        id: Short name, unique within an experiment.
        source: Paper and number.
        statement: The statement as the source prints it (or as this project corrects it, and then
            the source says so). The verdict is about this statement.
        comparison: ``"close"``, ``"below"``, ``"above"``, or ``"none"`` where nothing was measured.
        predicted: The value or bound that the statement gives.
        measured: The value found.
        tolerance: How far from ``predicted`` the measurement may lie.
        relative: Whether the tolerance is in units of ``|predicted|``.
        verdict: The outcome of the comparison.
        expected: The verdict that was known before; a run in which the two differ fails.
        reason: Why nothing was measured.
    """

    id: str
    source: str
    statement: str
    comparison: Comparison
    predicted: float | None
    measured: float | None
    tolerance: float | None
    relative: bool
    verdict: Verdict
    expected: Verdict
    reason: str = ""

    @property
    def surprising(self) -> bool:
        """Whether the verdict differs from the expected one."""
        return self.verdict != self.expected

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold; an infinite number becomes its name."""
        return {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Claim:
        """The claim that :meth:`to_json` wrote."""
        numbers = {
            key: None if record[key] is None else float(record[key])
            for key in ("predicted", "measured", "tolerance")
        }
        return cls(**{**record, **numbers})


def measured_claim(
    id: str,
    source: str,
    statement: str,
    *,
    comparison: Comparison,
    predicted: SupportsFloat,
    measured: SupportsFloat,
    tolerance: SupportsFloat = 0.0,
    relative: bool = False,
    expected: Verdict = "confirmed",
) -> Claim:
    """Compare a measurement with a prediction.

    With the margin τ = tolerance, or tolerance · |predicted| where ``relative``, the verdict is
    "confirmed" where

    - ``"close"``: |measured − predicted| ≤ τ,
    - ``"below"``: measured ≤ predicted + τ,
    - ``"above"``: measured ≥ predicted − τ,

    and "refuted" elsewhere.

    Args:
        id: Short name of the claim.
        source: Paper and number.
        statement: The statement that the verdict is about.
        comparison: One of the three above.
        predicted: Scalar value or bound; finite.
        measured: Scalar value; may be infinite (a run that diverged), never NaN.
        tolerance: Non-negative and finite.
        relative: Whether the tolerance is in units of ``|predicted|``.
        expected: The verdict known before.

    Raises:
        TypeError: A number is not a scalar.
        ValueError: A measurement is NaN, a prediction or tolerance is not finite, the tolerance is
            negative, or a name is unknown. NaN would read as "refuted" and so hide a failure.
    """
    predicted = _scalar("predicted", predicted)
    measured = _scalar("measured", measured)
    tolerance = _scalar("tolerance", tolerance)
    if not math.isfinite(predicted):
        raise ValueError(f"claim {id!r}: predicted must be finite, got {predicted}")
    if math.isnan(measured):
        raise ValueError(f"claim {id!r}: measured is NaN; say why with not_measured")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"claim {id!r}: tolerance must be at least 0, got {tolerance}")
    _check_verdict(id, expected)
    margin = tolerance * abs(predicted) if relative else tolerance
    if comparison == "close":
        holds = abs(measured - predicted) <= margin
    elif comparison == "below":
        holds = measured <= predicted + margin
    elif comparison == "above":
        holds = measured >= predicted - margin
    else:
        raise ValueError(
            f"claim {id!r}: comparison must be 'close', 'below' or 'above', got {comparison!r}"
        )
    verdict: Verdict = "confirmed" if holds else "refuted"
    return Claim(
        id,
        source,
        statement,
        comparison,
        predicted,
        measured,
        tolerance,
        relative,
        verdict,
        expected,
    )


def unmeasured_claim(
    id: str, source: str, statement: str, *, reason: str, expected: Verdict = "not measured"
) -> Claim:
    """A claim that was not measured, with the reason.

    Raises:
        ValueError: No reason is given, or the expected verdict is unknown.
    """
    if not reason.strip():
        raise ValueError(f"claim {id!r}: not measured needs a reason")
    _check_verdict(id, expected)
    return Claim(
        id, source, statement, "none", None, None, None, False, "not measured", expected, reason
    )


def _check_verdict(id: str, expected: str) -> None:
    if expected not in get_args(Verdict):
        raise ValueError(
            f"claim {id!r}: expected must be one of {get_args(Verdict)}, got {expected!r}"
        )


def _scalar(name: str, value: SupportsFloat) -> float:
    shape = getattr(value, "shape", ())
    if shape != ():
        raise TypeError(f"{name} must be a scalar, got an array of shape {shape}")
    return float(value)


def number(value: float | None) -> str:
    """A number for people: four significant digits, integers without a point."""
    if value is None:
        return "—"
    if not math.isfinite(value):
        return str(value).replace("inf", "∞").replace("nan", "NaN").replace("-", "−")
    if value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}".replace("-", "−")
    text = f"{value:.4g}"
    if "e" not in text:
        return text.replace("-", "−")
    mantissa, exponent = text.split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = "" if mantissa == "1" else f"{mantissa} × ".replace("-", "−")
    return f"{factor}10{raised}"


def describe(claim: Claim) -> dict[str, str]:
    """The cells of a claim's row, the same in the terminal and on the page."""
    # a bound without a tolerance is a plain bound
    tolerance = number(claim.tolerance or (0 if claim.comparison == "close" else None))
    return {
        "source": claim.source,
        "statement": claim.statement,
        "predicted": SYMBOLS[claim.comparison] + number(claim.predicted),
        "measured": _measured(claim),
        "tolerance": f"{tolerance} rel." if claim.relative and claim.tolerance else tolerance,
        "verdict": claim.verdict,
    }


def _measured(claim: Claim) -> str:
    """The measurement, as prediction and difference where four digits do not tell them apart."""
    text = number(claim.measured)
    if claim.measured is None or claim.predicted is None or text != number(claim.predicted):
        return text
    difference = claim.measured - claim.predicted
    if difference == 0:
        return text
    return f"{text} {'+' if difference > 0 else '−'} {number(float(f'{abs(difference):.0e}'))}"
