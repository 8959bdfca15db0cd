"""SHOW: colour maps, overlays and grids. Arrays in, pictures out; nothing wraps around silently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .regions import Region

Array = np.ndarray[Any, Any]


def show_cam_on_image(
    img: Array,
    mask: Array,
    use_rgb: bool = False,
    colormap: int = cv2.COLORMAP_JET,
    image_weight: float = 0.5,
) -> Array:
    """Lay a heat map over an image: the function of pytorch-grad-cam, with its argument names and defaults.

    Args:
        img: Image, ``(H, W, 3)``, float in [0, 1].
        mask: Heat map, ``(H, W)``, in [0, 1].
        use_rgb: Whether the image is RGB; else BGR, as OpenCV reads images. The overlay has the same order.
        colormap: An OpenCV colour map.
        image_weight: Share of the image in the overlay, in [0, 1].

    Returns:
        Overlay, ``(H, W, 3)``, uint8, scaled so that its brightest value is 255.

    Raises:
        ValueError: If image, mask or weight are out of range or not finite, or the sizes differ.
    """
    _check_map(img, mask, 0)
    coloured = cv2.applyColorMap(np.asarray(255 * np.asarray(mask), dtype=np.uint8), colormap)
    _check_weight(image_weight)
    heat = _float32(coloured[..., ::-1] if use_rgb else coloured) / 255
    overlay = (1 - image_weight) * heat + image_weight * _float32(img)
    return (255 * overlay / max(float(overlay.max()), float(np.finfo(np.float32).tiny))).astype(np.uint8)


def show_divergence_on_image(img: Array, divergence: Array, use_rgb: bool = False, image_weight: float = 0.2) -> Array:
    """Lay a signed map over an image in grey: red where it is positive, blue where it is negative, nothing at 0.

    Args:
        img: Image, ``(H, W, 3)``, float in [0, 1].
        divergence: Signed map, ``(H, W)``, in [-1, 1], as :class:`~diffgradcam.TrueFalseCAM` returns it.
        use_rgb: Whether the image is RGB; else BGR. The overlay has the same order.
        image_weight: Share of the image where the map is 1 or -1, in [0, 1]; where it is 0 the image is all there is.

    Returns:
        Overlay, ``(H, W, 3)``, uint8.

    Raises:
        ValueError: If image, map or weight are out of range or not finite, or the sizes differ.
    """
    _check_map(img, divergence, -1)
    _check_weight(image_weight)
    signed = _float32(divergence)[..., None]
    red, blue = (_float32(matplotlib.colormaps["RdBu_r"](end)[:3]) for end in (0.9, 0.1))
    colour = np.where(signed > 0, red, blue)
    opacity = (1 - image_weight) * np.abs(signed)
    grey = cv2.cvtColor(_float32(img), cv2.COLOR_RGB2GRAY if use_rgb else cv2.COLOR_BGR2GRAY)[..., None]
    overlay = (1 - opacity) * grey + opacity * (colour if use_rgb else colour[..., ::-1])
    return (255 * overlay).astype(np.uint8)


def draw_regions(img: Array, regions: Sequence[Region], use_rgb: bool = False) -> Array:
    """Draw regions on an image: their outline, their box and their share; red speaks for the true class, blue against.

    Args:
        img: Image, ``(H, W, 3)``, float in [0, 1].
        regions: As :func:`diffgradcam.important_features` returns them for an image of this size.
        use_rgb: Whether the image is RGB; else BGR. The picture has the same order.

    Returns:
        Picture, ``(H, W, 3)``, uint8.

    Raises:
        ValueError: If the image is out of range or not finite, or a region is of another size.
    """
    picture = (255 * _float32(img)).astype(np.uint8).copy()
    for region in regions:
        mask = region.mask.numpy()
        _check_map(img, mask.astype(np.float32), 0)
        red, blue = (214, 39, 40), (31, 119, 180)
        colour = red if region.sign > 0 else blue
        colour = colour if use_rgb else colour[::-1]
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, 2)
        top, left, bottom, right = region.box
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), colour, 1)
        where = (left + 3, max(top + 14, 14))
        for width, ink in ((3, (0, 0, 0)), (1, (255, 255, 255))):
            cv2.putText(picture, f"{region.share:.0%}", where, cv2.FONT_HERSHEY_SIMPLEX, 0.45, ink, width, cv2.LINE_AA)
    return picture


def preprocess_image(
    img: Array, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> Tensor:
    """Image to normalised tensor: the function of pytorch-grad-cam.

    Args:
        img: Image, ``(H, W, C)``; uint8 is divided by 255, float is taken as it is.
        mean: Mean of each channel.
        std: Standard deviation of each channel.

    Returns:
        ``(1, C, H, W)``, float32: ``(img - mean) / std``.

    Raises:
        ValueError: If the image is not ``(H, W, C)``, or mean and std have another number of channels.
    """
    image = np.asarray(img)
    if image.ndim != 3 or not len(mean) == len(std) == image.shape[2]:
        raise ValueError(
            f"got an image of shape {image.shape} with {len(mean)} means and {len(std)} standard deviations; expected "
            "(H, W, C) and one of each for each channel"
        )
    scaled = _float32(image) / 255 if image.dtype == np.uint8 else _float32(image)
    normalised = (scaled - _float32(mean)) / _float32(std)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1))).unsqueeze(0)


def grid(rows: Sequence[Sequence[Array]], titles: Sequence[Sequence[str]], size: float = 2.4) -> Figure:
    """Pictures side by side, each with a title.

    Args:
        rows: Pictures, uint8 RGB, row by row; rows may differ in length.
        titles: A title for each picture.
        size: Width and height of a picture, in inches.

    Returns:
        A figure; write it with ``figure.savefig(path)``.

    Raises:
        ValueError: If there are not as many titles as pictures.
    """
    if [len(row) for row in rows] != [len(row) for row in titles]:
        raise ValueError(
            f"{[len(row) for row in titles]} titles for {[len(row) for row in rows]} pictures, by row; give one each"
        )
    columns = max(map(len, rows))
    figure = Figure(figsize=(size * columns, (size + 0.5) * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, names, line in zip(rows, titles, axes, strict=True):
        for picture, name, axis in zip(row, names, line, strict=False):
            axis.imshow(picture)
            axis.set_title(name, fontsize=9)
    return figure


def _float32(values: Any) -> Array:
    return np.asarray(values, dtype=np.float32)


def _check_map(img: Array, values: Array, low: int) -> None:
    image, values = np.asarray(img), np.asarray(values)
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[:2] != values.shape:
        raise ValueError(
            f"got an image of shape {image.shape} and a map of shape {values.shape}; expected (H, W, 3) and (H, W)"
        )
    checks = (
        ("image", image, 0, "divide 8-bit images by 255"),
        ("map", values, low, "scale it with diffgradcam.maps.minmax or scale_signed"),
    )
    for name, array, lowest, fix in checks:
        if not np.isfinite(array).all() or array.min() < lowest or array.max() > 1:
            finite = array[np.isfinite(array)]
            span = f"{finite.min():g} to {finite.max():g}" if finite.size else "nothing finite"
            more = "" if np.isfinite(array).all() else " and NaN or infinity"
            raise ValueError(f"the {name} has values from {span}{more}; expected [{lowest}, 1]: {fix}")


def _check_weight(image_weight: float) -> None:
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight is {image_weight}; expected the share of the image, in [0, 1]")
