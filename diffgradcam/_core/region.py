"""A part of an image in which two maps diverge."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .display import size_text


class Region(NamedTuple):
    """A connected part of an image in which the two maps diverge.

    Attributes:
        share: Share of the whole divergence (the sum of its magnitude over the image) that lies here, in [0, 1].
        sign: 1 where the region speaks for the true class, -1 where it speaks for the false class.
        box: Top, left, bottom, right, in pixels; the last two are exclusive, so that ``image[top:bottom, left:right]``
            is the box.
        centroid: Row and column of the centre of the divergence in the region, in pixels.
        mask: Which pixels belong to it, ``(H, W)``, bool.
    """

    share: float
    sign: int
    box: tuple[int, int, int, int]
    centroid: tuple[float, float]
    mask: Tensor

    def __repr__(self) -> str:
        """Without the mask."""
        row, column = self.centroid
        where = f"box={self.box}, centroid=({row:.1f}, {column:.1f})"
        return f"Region(share={self.share:.3f}, sign={self.sign:+d}, {where}, mask of {size_text(self.mask.shape)})"
