"""Lay a map over an image: as colours, signed colours, lines, a mask or regions. Every picture is uint8."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
import torch
from contourpy import contour_generator
from PIL import Image
from torch import Tensor

from .._core.checks import check_share
from .._core.region import Region
from .arrays import Array, ColormapLike, ImageLike, MapLike, as_bytes, as_image, as_map, colours, grey

_REST = {"dark": lambda image: 0.25 * image, "grey": grey}


def overlay(
    image: ImageLike, heatmap: MapLike, colormap: ColormapLike = "viridis", alpha: float | MapLike = 0.5
) -> Array:
    """Lay a heat map over an image, in a colour map in which equal steps look equal.

    Args:
        image: An image in any form, RGB, see :func:`diffgradcam.visualize.as_image`.
        heatmap: ``(h, w)``, in [0, 1]; resized to the image.
        colormap: The name of a matplotlib colour map, a ``Colormap``, or an OpenCV constant.
        alpha: Share of the colours in the overlay, in [0, 1]; a map of shares, such as the heat map itself, leaves the
            image alone where it is 0.

    Returns:
        ``(1 - alpha) * image + alpha * colours``, ``(H, W, 3)``, RGB, uint8.

    Raises:
        TypeError: If one of them is of another type.
        ValueError: If values are out of range or not finite, a shape is wrong, or there is no such colour map.

    Example:
        >>> overlay(np.zeros((4, 6, 3)), torch.ones(2, 3), "gray", alpha=0.5)[0, 0]
        array([128, 128, 128], dtype=uint8)
    """
    picture = as_image(image)
    coloured = colours(as_map(heatmap, picture, 0, 1), colormap)
    if isinstance(alpha, np.ndarray | Tensor) and alpha.ndim:
        opacity = as_map(alpha, picture, 0, 1)[..., None]
    else:
        check_share("alpha", float(alpha))
        opacity = np.full((1, 1, 1), alpha, dtype=np.float32)
    return as_bytes((1 - opacity) * picture + opacity * coloured)


def overlay_signed(
    image: ImageLike,
    divergence: MapLike,
    colormap: ColormapLike = "RdBu_r",
    alpha: float = 0.8,
    limit: float = 1.0,
) -> Array:
    """Lay a signed map over an image in grey, in a diverging colour map with 0 at its centre, whatever the map's range.

    The further from 0, the more opaque: where the map is 0 there is only the image. With one ``limit`` for several
    maps (their largest magnitude) their colours mean the same.

    Args:
        image: An image in any form, RGB, see :func:`diffgradcam.visualize.as_image`.
        divergence: Signed map, ``(h, w)``, in [-limit, limit]; resized to the image.
        colormap: A diverging colour map: its first half is for negative values, its second for positive ones.
        alpha: Share of the colours where the map is ``limit`` or ``-limit``, in [0, 1].
        limit: The magnitude at both ends of the colour map.

    Returns:
        Overlay, ``(H, W, 3)``, RGB, uint8.

    Raises:
        TypeError: If one of them is of another type.
        ValueError: If values are out of range or not finite, a shape is wrong, or there is no such colour map.

    Example:
        >>> overlay_signed(np.full((4, 6, 3), 0.5), np.zeros((4, 6)))[0, 0]
        array([128, 128, 128], dtype=uint8)
    """
    check_share("alpha", alpha)
    if not (np.isfinite(limit) and limit > 0):
        raise ValueError(f"limit is {limit}; expected the largest magnitude to show, above 0")
    picture = as_image(image)
    fix = "scale it with diffgradcam.heatmaps.scale_signed, or give limit= the largest magnitude of your maps"
    signed = as_map(divergence, picture, -limit, limit, fix=fix) / limit
    opacity = alpha * np.abs(signed)[..., None]
    return as_bytes((1 - opacity) * grey(picture) + opacity * colours((signed + 1) / 2, colormap))


def contours(
    image: ImageLike,
    heatmap: MapLike,
    levels: Sequence[float] = (0.25, 0.5, 0.75),
    *,
    quantiles: bool = False,
    colormap: ColormapLike = "viridis",
    thickness: int = 2,
) -> Array:
    """Draw lines of equal heat on an image, each in the colour of its level.

    Args:
        image: An image in any form, RGB, see :func:`diffgradcam.visualize.as_image`.
        heatmap: ``(h, w)``, in [0, 1]; resized to the image.
        levels: Where to draw lines, in [0, 1]: values of the map, or with ``quantiles`` shares of the image that the
            line leaves below it (0.9 surrounds the hottest tenth).
        quantiles: Whether levels are quantiles. Lines are coloured by the given number in both cases.
        colormap: As :func:`overlay`.
        thickness: Width of a line, in pixels, not counting the soft edge that OpenCV gives it.

    Returns:
        Picture, ``(H, W, 3)``, RGB, uint8. A level that the map does not cross has no line.

    Raises:
        TypeError: If one of them is of another type.
        ValueError: If values or levels are out of range or not finite, a shape is wrong, the thickness is below 1, or
            there is no such colour map.
    """
    picture = as_image(image)
    values = as_map(heatmap, picture, 0, 1)
    if not isinstance(thickness, int) or thickness < 1:
        raise ValueError(f"thickness is {thickness!r}; expected a whole number of pixels, at least 1")
    canvas = as_bytes(picture)
    if min(values.shape) < 2:
        raise ValueError(f"got an image of shape {picture.shape}; contours need at least 2 x 2 pixels")
    lines = contour_generator(z=values)
    for level in levels:
        ink = as_bytes(colours(np.full((1, 1), level), colormap))[0, 0].tolist()
        at = _level(values, level, quantiles)
        # OpenCV takes fractions of a pixel in sixteenths.
        drawn = [np.rint(16 * np.asarray(line)).astype(np.int32) for line in lines.lines(at)]
        cv2.polylines(canvas, drawn, False, ink, thickness, cv2.LINE_AA, shift=4)
    return canvas


def masked(
    image: ImageLike, heatmap: MapLike, level: float = 0.5, *, quantile: bool = False, rest: str = "dark"
) -> Array:
    """Show an image only where the map is at least a level; the rest is darkened or grey.

    Args:
        image: An image in any form, RGB, see :func:`diffgradcam.visualize.as_image`.
        heatmap: ``(h, w)``, in [0, 1]; resized to the image.
        level: In [0, 1]: a value of the map, or with ``quantile`` the share of the image that is hidden.
        quantile: Whether the level is a quantile.
        rest: ``"dark"`` (a quarter of the brightness) or ``"grey"``.

    Returns:
        Picture, ``(H, W, 3)``, RGB, uint8.

    Raises:
        TypeError: If one of them is of another type.
        ValueError: If values or the level are out of range or not finite, a shape is wrong, or ``rest`` is unknown.
    """
    if rest not in _REST:
        raise ValueError(f"rest is {rest!r}; expected one of {sorted(_REST)}")
    picture = as_image(image)
    values = as_map(heatmap, picture, 0, 1)
    shown = values >= _level(values, level, quantile)
    return as_bytes(np.where(shown[..., None], picture, _REST[rest](picture)))


def gradient_map(gradients: MapLike) -> Array:
    """Input gradients as a heat map: the largest magnitude over the channels, bright at the strongest hundredth.

    For :func:`overlay`, with the map as its own opacity: ``overlay(image, edges, "inferno", alpha=edges)``.

    Args:
        gradients: Signed, ``(C, H, W)``, such as one image of :func:`diffgradcam.analysis.guided_gradients`.

    Returns:
        ``(H, W)``, in [0, 1]: divided by its 99% quantile (by its maximum where that is 0) and cut at 1. Zero gradients
        give zeros.

    Raises:
        ValueError: If they are not ``(C, H, W)`` or not finite.

    Example:
        >>> gradient_map(np.array([[[0.0, -2.0, 0.0]], [[2.0, 1.0, 1.0]]]))
        array([[1. , 1. , 0.5]])
    """
    values = _gradients(gradients)
    magnitude = np.abs(values).max(0)
    top = np.quantile(magnitude, 0.99) or magnitude.max() or 1
    cut: Array = np.minimum(magnitude / top, 1)
    return cut


def deprocess_image(img: MapLike) -> Array:
    """Input gradients as a picture around mid-grey: the function of pytorch-grad-cam.

    Args:
        img: Signed gradients, ``(H, W, C)``, or a tensor ``(C, H, W)``.

    Returns:
        Picture, ``(H, W, C)``, uint8: mean 0.5 and standard deviation 0.1 of the full range, cut at both ends.

    Raises:
        ValueError: If they are not of such a shape or not finite.
    """
    values = img if isinstance(img, Tensor) else np.asarray(img)
    if not isinstance(values, Tensor) and values.ndim == 3:
        values = values.transpose(2, 0, 1)
    values = _gradients(values).transpose(1, 2, 0)
    standard = (values - np.mean(values)) / (np.std(values) + 1e-5)
    picture: Array = 255 * np.clip(0.1 * standard + 0.5, 0, 1)
    return picture.astype(np.uint8)


def show_cam_on_image(
    img: ImageLike,
    mask: MapLike,
    use_rgb: bool = False,
    colormap: ColormapLike = cv2.COLORMAP_JET,
    image_weight: float = 0.5,
) -> Array:
    """Lay a heat map over an image: the function of pytorch-grad-cam, with its argument names and defaults.

    Args:
        img: Image, ``(H, W, 3)``, float in [0, 1], or any form that :func:`overlay` takes.
        mask: Heat map, ``(H, W)``, in [0, 1].
        use_rgb: Whether the image is RGB; else BGR, as OpenCV reads images. The overlay has the same order.
        colormap: An OpenCV colour map, or one of matplotlib.
        image_weight: Share of the image in the overlay, in [0, 1].

    Returns:
        Overlay, ``(H, W, 3)``, uint8, scaled so that its brightest value is 255.

    Raises:
        TypeError: If one of them is of another type.
        ValueError: If image, mask or weight are out of range or not finite, the sizes differ, or a PIL image is said to
            be BGR.
    """
    image = _ordered(img, use_rgb)
    heat = colours(as_map(mask, image, 0, 1, must_fit=True), colormap)
    check_share("image_weight", image_weight)
    mixed = (1 - image_weight) * (heat if use_rgb else heat[..., ::-1]) + image_weight * image
    return (255 * mixed / max(float(mixed.max()), float(np.finfo(np.float32).tiny))).astype(np.uint8)


def show_divergence_on_image(
    img: ImageLike, divergence: MapLike, use_rgb: bool = False, image_weight: float = 0.2
) -> Array:
    """Lay a signed map over an image in grey: red where it is positive, blue where it is negative, nothing at 0.

    Two flat colours; :func:`overlay_signed` takes any diverging colour map, and maps of any size.

    Args:
        img: Image, ``(H, W, 3)``, float in [0, 1], or any form that :func:`overlay_signed` takes.
        divergence: Signed map, ``(H, W)``, in [-1, 1], as :class:`~diffgradcam.TrueFalseCAM` returns it.
        use_rgb: Whether the image is RGB; else BGR. The overlay has the same order.
        image_weight: Share of the image where the map is 1 or -1, in [0, 1]; where it is 0 the image is all there is.

    Returns:
        Overlay, ``(H, W, 3)``, uint8.

    Raises:
        TypeError: If one of them is of another type.
        ValueError: If image, map or weight are out of range or not finite, the sizes differ, or a PIL image is said to
            be BGR.
    """
    image = _ordered(img, use_rgb)
    signed = as_map(divergence, image, -1, 1, must_fit=True).astype(np.float32)[..., None]
    check_share("image_weight", image_weight)
    red, blue = matplotlib.colormaps["RdBu_r"]([0.9, 0.1])[:, :3].astype(np.float32)
    colour = np.where(signed > 0, red, blue)
    opacity = (1 - image_weight) * np.abs(signed)
    luminance = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if use_rgb else cv2.COLOR_BGR2GRAY)[..., None]
    mixed: Array = (1 - opacity) * luminance + opacity * (colour if use_rgb else colour[..., ::-1])
    return (255 * mixed).astype(np.uint8)


def draw_regions(img: ImageLike, regions: Sequence[Region], use_rgb: bool = False) -> Array:
    """Draw regions on an image: their outline, their box and their share; red is for the true class, blue against it.

    Args:
        img: Image, ``(H, W, 3)``, float in [0, 1], or any form that :func:`overlay` takes.
        regions: As :func:`diffgradcam.important_features` returns them for an image of this size.
        use_rgb: Whether the image is RGB; else BGR. The picture has the same order.

    Returns:
        Picture, ``(H, W, 3)``, uint8.

    Raises:
        TypeError: If the image is of another type.
        ValueError: If the image is out of range or not finite, a region is of another size, or a PIL image is said to
            be BGR.
    """
    image = _ordered(img, use_rgb)
    picture = (255 * image).astype(np.uint8)
    for region in regions:
        mask = as_map(region.mask, image, 0, 1, must_fit=True)
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
    scaled = np.asarray(image, np.float32) / (255 if image.dtype == np.uint8 else 1)
    normalised = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1))).unsqueeze(0)


def _ordered(image: ImageLike, use_rgb: bool) -> Array:
    if isinstance(image, Image.Image) and not use_rgb:
        raise ValueError("a PIL image is RGB, but use_rgb is False; pass use_rgb=True")
    return as_image(image)


def _level(values: Array, level: float, quantile: bool) -> float:
    check_share("a level", level)
    return float(np.quantile(values, level)) if quantile else float(level)


def _gradients(gradients: MapLike) -> Array:
    values = gradients.detach().float().cpu().numpy() if isinstance(gradients, Tensor) else np.asarray(gradients)
    if values.ndim != 3 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"got gradients of shape {values.shape}{'' if np.isfinite(values).all() else ' with NaN or infinity'}; "
            "expected finite gradients of one image, (C, H, W), such as gradients[0]"
        )
    return values
