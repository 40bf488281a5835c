"""Sequential learning: two-layer networks from small starts learn one mode after the other."""

from __future__ import annotations

from alignjax.theory.sequential.decomposition import (
    JointDecomposition,
    commutation_gap,
    isotropy_bound,
    isotropy_gap,
    joint_decomposition,
    unperturbed,
)
from alignjax.theory.sequential.regression import reduced_rank_regression
from alignjax.theory.sequential.timing import (
    SeparationMargins,
    learning_order,
    limit_of_mode,
    limiting_norm,
    printed_separates,
    regression_order,
    separates,
    separation_margins,
    transition_steps,
    transition_times,
)

__all__ = [
    "JointDecomposition",
    "SeparationMargins",
    "commutation_gap",
    "isotropy_bound",
    "isotropy_gap",
    "joint_decomposition",
    "learning_order",
    "limit_of_mode",
    "limiting_norm",
    "printed_separates",
    "reduced_rank_regression",
    "regression_order",
    "separates",
    "separation_margins",
    "transition_steps",
    "transition_times",
    "unperturbed",
]
