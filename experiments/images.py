"""The digit images that experiments train on."""

from __future__ import annotations

import warnings

from alignjax import datasets
from alignjax.datasets import Images

__all__ = ["training_digits"]


def training_digits() -> Images:
    """MNIST's training images, or the digits that stand in for them, as ``name`` says.

    The substitute's warning is silent here: an experiment writes the name into its note, which
    every figure and table carries.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", datasets.SubstituteDataWarning)
        return datasets.mnist_or_digits("train")
