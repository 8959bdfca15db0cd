"""Draws what results show of themselves: as a part of a page, for notebooks, and as a figure."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .._core.display import Panel, Sheet, Table
from ..heatmaps import resize
from .arrays import Array, as_bytes, as_image, colours
from .figures import grid
from .overlays import overlay, overlay_signed
from .pages import render

_SIDE = 128  # of a picture in a notebook, in pixels
_DPI = 80
_LINE = 8  # height of a map of one dimension, as a share of its length


def html(sheet: Sheet) -> str:
    """A sheet as a part of a page. Whatever it says is escaped; the pictures are in it, and nothing is loaded.

    Args:
        sheet: What to show.

    Returns:
        HTML that needs no style and no script.
    """
    rows = [_row(row, numbered=sheet.images > 1) for row in sheet.panels]
    # Told apart here: to a template, a table is a tuple like any other.
    body = [("table", part) if isinstance(part, Table) else ("text", part) for part in sheet.body]
    return render("sheet.html", title=sheet.title, rows=rows, body=body)


def figure(sheet: Sheet, images: Any = None) -> Figure:
    """The pictures of a sheet as a figure.

    Args:
        sheet: What to show.
        images: The images of the batch, as :func:`.visualize.as_image` takes them, to lay the maps over.

    Returns:
        The figure.

    Raises:
        TypeError: If an image is of another type.
        ValueError: If there are not as many images as in the batch, or one is out of range.
    """
    given = None if images is None else _given(images, sheet.images)
    pictures = [[_picture(panel) if given is None else _over(panel, given) for panel in row] for row in sheet.panels]
    return grid(pictures, [[panel.caption for panel in row] for row in sheet.panels])


def png(figure: Figure) -> bytes:
    """A figure as a PNG.

    Args:
        figure: Any.

    Returns:
        The file.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # of a name; it is right in the HTML
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def pixels(figure: Figure) -> Array:
    """A figure as a picture.

    Args:
        figure: Any.

    Returns:
        ``(H, W, 3)``, uint8, RGB.
    """
    return np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"))


def overlays(heatmaps: Callable[[Sequence[int]], Tensor], images: Any, signed: bool, **options: Any) -> Array:
    """The maps of a batch over its images, see :meth:`diffgradcam.Explanation.overlay`.

    Args:
        heatmaps: From a size to the maps ``(B, *size)`` or ``(B, ..., *size)``, scaled.
        images: The images, all of one size.
        signed: Whether the maps are signed.
        **options: As :func:`overlay` or :func:`overlay_signed` takes them.

    Returns:
        ``(B, H, W, 3)`` or ``(B, ..., H, W, 3)``, uint8, RGB.

    Raises:
        TypeError: If an image is of another type.
        ValueError: If there are not as many images as in the batch, their sizes differ, or one is out of range.
    """
    pictures = [as_image(image) for image in _given(images)]
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) != 1:
        raise ValueError(
            f"the images have sizes {sizes} (H, W); expected one size for all; resize them, or lay each map over its "
            "image with diffgradcam.visualize.overlay"
        )
    maps = heatmaps(sizes[0])
    _given(pictures, len(maps))
    draw = overlay_signed if signed else overlay
    several = maps.reshape(len(maps), -1, *sizes[0])
    drawn = [draw(image, each, **options) for image, own in zip(pictures, several, strict=True) for each in own]
    return np.stack(drawn).reshape(*maps.shape, 3)


def _given(images: Any, count: int | None = None) -> list[Any]:
    """The images of a batch, so many as there must be."""
    several = isinstance(images, Sequence) and not isinstance(images, str)
    if not several and not (isinstance(images, Tensor | np.ndarray) and images.ndim):
        raise TypeError(
            f"images is {type(images).__name__}; expected the images of the batch as people see them, (B, 3, H, W) or "
            "a list with one for each"
        )
    if count is not None and len(images) != count:
        raise ValueError(f"got {len(images)} images for the maps of {count}; expected one image for each, in order")
    return list(images)


def _row(panels: Sequence[Panel], *, numbered: bool) -> dict[str, Any]:
    """A row for the template. The number of its image stands in front of it, or, where it has several, at each."""
    numbers = [f"image {panel.image}" if numbered else "" for panel in panels]
    head = numbers[0] if len(set(numbers)) == 1 else ""
    lines = [
        [*([number] if number and not head else []), *panel.caption.split("\n")]
        for number, panel in zip(numbers, panels, strict=True)
    ]
    pictures = map(_picture, panels)
    return {"head": head, "panels": [{"lines": own, "picture": p} for own, p in zip(lines, pictures, strict=True)]}


def _picture(panel: Panel) -> Array:
    """A panel by itself."""
    if not isinstance(panel.values, Tensor):
        return panel.values
    values = _flat(panel.values.detach().cpu().float())
    scale = _SIDE / max(values.shape)
    size = [max(round(scale * side), 1) for side in values.shape]
    smooth = resize(values.unsqueeze(0), size)[0].clamp(-1, 1).numpy()
    return as_bytes(colours((smooth + 1) / 2, "RdBu_r") if panel.signed else colours(smooth.clip(0), "viridis"))


def _over(panel: Panel, images: list[Any]) -> Array:
    """A panel laid over the image that it is of."""
    if not isinstance(panel.values, Tensor):
        return panel.values
    draw = overlay_signed if panel.signed else overlay
    return draw(images[panel.image], panel.values.detach().cpu().float())


def _flat(values: Tensor) -> Tensor:
    """A map of any number of dimensions as ``(h, w)``: of a volume the slice with the largest magnitude."""
    if values.ndim == 1:
        return values.expand(max(len(values) // _LINE, 1), -1)
    slices = values.reshape(-1, *values.shape[-2:])
    return slices[int(torch.argmax(slices.abs().amax((1, 2))))]
