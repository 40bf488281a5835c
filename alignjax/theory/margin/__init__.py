"""Maximum margin: separability, and the constants and bounds of Ji & Telgarsky 2019."""

from alignjax.problems import smoothness
from alignjax.theory.margin.bounds import (
    alignment_bound,
    balance_drift,
    balancedness_constant,
    first_layer_threshold,
    neighbour_alignment,
    norm_gap,
    support_spread,
)
from alignjax.theory.margin.maximum_margin import (
    MaximumMargin,
    NotSeparableError,
    UndecidedError,
    max_margin,
)
from alignjax.theory.margin.rates import (
    LateTimes,
    first_layer_growth,
    late_times,
    predicted_angle,
    predicted_layer_norm,
    predicted_log_risk,
    predicted_norm,
    predicted_ratio_exponent,
)

__all__ = [
    "LateTimes",
    "MaximumMargin",
    "NotSeparableError",
    "UndecidedError",
    "alignment_bound",
    "balance_drift",
    "balancedness_constant",
    "first_layer_growth",
    "first_layer_threshold",
    "late_times",
    "max_margin",
    "neighbour_alignment",
    "norm_gap",
    "predicted_angle",
    "predicted_layer_norm",
    "predicted_log_risk",
    "predicted_norm",
    "predicted_ratio_exponent",
    "smoothness",
    "support_spread",
]
