"""Maps and images as pictures: arrays, tensors or PIL images in, uint8 out. Values out of range are errors.

New functions take and return RGB; :func:`show_cam_on_image` and its relatives keep the BGR default of pytorch-grad-cam.
"""

from .arrays import as_image
from .figures import Bar, animate, grid
from .overlays import (
    contours,
    deprocess_image,
    draw_regions,
    gradient_map,
    masked,
    overlay,
    overlay_signed,
    preprocess_image,
    show_cam_on_image,
    show_divergence_on_image,
)

__all__ = [
    "Bar",
    "animate",
    "as_image",
    "contours",
    "deprocess_image",
    "draw_regions",
    "gradient_map",
    "grid",
    "masked",
    "overlay",
    "overlay_signed",
    "preprocess_image",
    "show_cam_on_image",
    "show_divergence_on_image",
]
