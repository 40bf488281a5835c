"""The small handwritten digits that scikit-learn carries: real images without a network."""

from typing import Literal

import numpy as np

from alignjax.datasets.files import DataUnavailableError
from alignjax.datasets.images import Images

# A fixed cut, four fifths to one fifth; the collection itself has none.
_TRAINING_IMAGES = 1437


def digits(split: Literal["train", "test", "all"] = "all") -> Images:
    """The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn (extra `data`).

    Their 17 grey levels 0..16 become round(255·level/16), so that a pixel means here what it means
    in MNIST. Host-only.

    Args:
        split: "train" (the first 1,437), "test" (the other 360) or "all".

    Returns:
        The images, in scikit-learn's order.

    Raises:
        DataUnavailableError: scikit-learn is not installed.
        ValueError: `split` is something else.
    """
    parts = {
        "train": slice(_TRAINING_IMAGES),
        "test": slice(_TRAINING_IMAGES, None),
        "all": slice(None),
    }
    if split not in parts:
        raise ValueError(f"split: expected 'train', 'test' or 'all', got {split!r}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataUnavailableError(
            "the digits need scikit-learn: pip install 'alignjax[data]'"
        ) from error
    bunch = load_digits()
    everything = Images(
        images=np.rint(bunch.images * (255 / 16)).astype(np.uint8),
        labels=bunch.target.astype(np.uint8),
        name="digits (8x8, scikit-learn)",
        source="scikit-learn",
    )
    return everything[parts[split]]
