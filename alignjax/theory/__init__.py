"""What theory says about training: conditions, bounds and predictions, as functions."""

from alignjax.theory import alignment

__all__ = ["alignment"]
