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
from alignjax.theory.margin.maximum_margin import MaximumMargin, NotSeparableError, max_margin

__all__ = [
    "MaximumMargin",
    "NotSeparableError",
    "alignment_bound",
    "balance_drift",
    "balancedness_constant",
    "first_layer_threshold",
    "max_margin",
    "neighbour_alignment",
    "norm_gap",
    "smoothness",
    "support_spread",
]
