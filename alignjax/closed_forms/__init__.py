"""Exact solutions of training, which full-matrix training is compared with.

The linear model and single modes at any time in one evaluation, two layers as matrices, and a mode
of gradient descent with its bounds. Nothing here integrates or trains.
"""

from alignjax.closed_forms.discrete import (
    layer_update,
    mode_descent,
    mode_descent_bounds,
    printed_mode_descent_bounds,
    printed_zero_target_bound,
    product_update,
    zero_target_bound,
)
from alignjax.closed_forms.linear import linear_descent, linear_flow
from alignjax.closed_forms.modes import deep_mode_time, mode_flow
from alignjax.closed_forms.two_layer import TwoLayerFlow, aligned_two_layer_flow, two_layer_flow

__all__ = [
    "TwoLayerFlow",
    "aligned_two_layer_flow",
    "deep_mode_time",
    "layer_update",
    "linear_descent",
    "linear_flow",
    "mode_descent",
    "mode_descent_bounds",
    "mode_flow",
    "printed_mode_descent_bounds",
    "printed_zero_target_bound",
    "product_update",
    "two_layer_flow",
    "zero_target_bound",
]
