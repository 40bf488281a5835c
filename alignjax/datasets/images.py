"""Labelled images on the host."""

import dataclasses

import numpy as np
from jaxtyping import Integer, UInt8


class SubstituteDataWarning(UserWarning):
    """Other data stand in for the ones that were asked for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Grey images with their classes, as NumPy arrays that cannot be written to.

    A slice (`images[:256]`) is again an `Images`, of the same name and source.

    Attributes:
        images: `(n, height, width)`, uint8: 0 is black, 255 is white.
        labels: `(n,)`, uint8 class numbers.
        name: what the data are, fit for a figure's caption.
        source: where they were read: the path or address of the images, or a package.
    """

    images: UInt8[np.ndarray, "n height width"]
    labels: UInt8[np.ndarray, " n"]
    name: str
    source: str

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together; make them read-only."""
        if self.images.ndim != 3 or self.images.dtype != np.uint8:
            raise ValueError(
                "images: expected uint8 of shape (n, height, width), "
                f"got {self.images.dtype} of shape {self.images.shape}"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.uint8:
            raise ValueError(
                f"labels: expected uint8 of shape ({len(self.images)},), "
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
