"""Data to train on: images that are checked when read, and synthetic data with known answers.

Everything here runs on the host or from a key; nothing depends on the rest of the package.
"""

from alignjax.datasets.cifar10 import cifar10
from alignjax.datasets.digits import digits
from alignjax.datasets.files import DataCorruptedError, DataUnavailableError
from alignjax.datasets.imagenet64 import imagenet64
from alignjax.datasets.images import Images, SubstituteDataWarning
from alignjax.datasets.mnist import mnist, mnist_or_digits
from alignjax.datasets.preprocess import batches, flatten, one_hot
from alignjax.datasets.synthetic import (
    AlignedRegression,
    SeparablePair,
    aligned_regression,
    gaussian_regression,
    separable_pair,
)

__all__ = [
    "AlignedRegression",
    "DataCorruptedError",
    "DataUnavailableError",
    "Images",
    "SeparablePair",
    "SubstituteDataWarning",
    "aligned_regression",
    "batches",
    "cifar10",
    "digits",
    "flatten",
    "gaussian_regression",
    "imagenet64",
    "mnist",
    "mnist_or_digits",
    "one_hot",
    "separable_pair",
]
