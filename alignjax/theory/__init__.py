"""What theory says about training: conditions, bounds and predictions, as functions."""

from alignjax.theory import alignment, margin, sequential

__all__ = ["alignment", "margin", "sequential"]
