"""Labelled images on the host."""

import dataclasses

import numpy as np
from jaxtyping import Integer, UInt8

from alignjax.datasets._numbers import as_numbers


class SubstituteDataWarning(UserWarning):
    """Other data stand in for the ones that were asked for."""


def check_pixels(images: np.ndarray) -> None:
    """Refuse what is not a stack of grey or of colour images.

    Raises:
        ValueError: the shape is neither `(n, height, width)` nor `(n, 3, height, width)`.
    """
    if images.ndim == 3 or (images.ndim == 4 and images.shape[1] == 3):
        return
    raise ValueError(
        "images: expected uint8 of shape (n, height, width), or (n, 3, height, width) in colour, "
        f"got {images.dtype} of shape {images.shape}"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Grey or colour images with their classes, as NumPy arrays that cannot be written to.

    A slice (`images[:256]`) is again an `Images`, of the same name and source.

    Attributes:
        images: `(n, height, width)`, or `(n, 3, height, width)` (red, green, blue); uint8: 0 is
            dark, 255 is bright.
        labels: `(n,)`, class numbers from 0; uint8, or uint16 where there are more classes.
        name: what the data are, fit for a figure's caption.
        source: where they were read: the path or address of the images, or a package.
    """

    images: UInt8[np.ndarray, "n *channels height width"]
    labels: Integer[np.ndarray, " n"]
    name: str
    source: str

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together; make them read-only."""
        for field in ("images", "labels"):
            as_numbers(field, getattr(self, field))
        check_pixels(self.images)
        if self.images.dtype != np.uint8:
            raise ValueError(f"images: expected uint8, got {self.images.dtype}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype not in (
            np.uint8,
            np.uint16,
        ):
            raise ValueError(
                f"labels: expected uint8 or uint16 of shape ({len(self.images)},), "
                f"got {self.labels.dtype} of shape {self.labels.shape}"
            )
        for field in ("images", "labels"):
            view = getattr(self, field).view()
            view.setflags(write=False)
            object.__setattr__(self, field, view)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __getitem__(self, index: slice | Integer[np.ndarray, " m"]) -> "Images":
        """The images that a slice or an array of positions selects."""
        return dataclasses.replace(self, images=self.images[index], labels=self.labels[index])
