"""From whatever an image or a map comes as to an array in a known range, or an error that says what was given."""

from __future__ import annotations

import difflib
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.colors import Colormap
from PIL import Image
from torch import Tensor

from ..heatmaps import resize

Array = np.ndarray[Any, Any]
ImageLike = Array | Tensor | Image.Image
MapLike = Array | Tensor
ColormapLike = int | str | Colormap

_EIGHT_BIT = ("1", "L", "P", "RGB")
_UNDO = "divide 8-bit images by 255, and undo a normalisation (image * std + mean)"


def as_image(image: ImageLike) -> Array:
    """An image as an array, in the channel order that it has.

    Args:
        image: ``(H, W, 3)`` or ``(3, H, W)``, an array or a tensor on any device, uint8 or float in [0, 1]; a PIL image
            (RGB, palette or grey); grey images also as ``(H, W)``, ``(H, W, 1)`` or ``(1, H, W)``. Where both ends
            of the shape could be the channels, a tensor is ``(3, H, W)`` and an array ``(H, W, 3)``.

    Returns:
        ``(H, W, 3)``, float32, in [0, 1].

    Raises:
        TypeError: If it is something else, or of another dtype.
        ValueError: If its shape or its values are not those of an image.
    """
    if isinstance(image, Image.Image):
        if image.mode not in _EIGHT_BIT:
            raise ValueError(
                f"got a PIL image of mode {image.mode!r}; expected one of {', '.join(_EIGHT_BIT)}; convert it with "
                ".convert('RGB') if its values are 8 bits wide, or give an array scaled to [0, 1]"
            )
        image = np.asarray(image.convert("RGB"))
    pixels = _channels_last(_numpy(image, "the image"), prefer_first=isinstance(image, Tensor))
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32, order="C") / 255  # OpenCV draws on no other layout
    if pixels.dtype.kind != "f":
        raise TypeError(f"the image is {pixels.dtype}; expected uint8, or float in [0, 1]")
    _check_range("image", pixels, 0, 1, _UNDO)
    return pixels.astype(np.float32, order="C")


def as_map(values: MapLike, image: Array, low: float, high: float, *, fix: str = "", must_fit: bool = False) -> Array:
    """A map as an array, resized to the image.

    Args:
        values: ``(h, w)``, an array or a tensor on any device.
        image: ``(H, W, 3)``.
        low: Smallest value allowed.
        high: Largest value allowed.
        fix: What to do where a value is outside; by default how to scale the map.
        must_fit: Refuse a map of another size than the image instead of resizing it.

    Returns:
        ``(H, W)``, float32 or float64, in [low, high].

    Raises:
        TypeError: If it is neither an array nor a tensor, or its values are not real.
        ValueError: If its shape or its values are not those of such a map.
    """
    numbers = _numpy(values, "the map")
    if numbers.ndim != 2 or not numbers.size or (must_fit and numbers.shape != image.shape[:2]):
        wanted = "(H, W, 3) and (H, W)" if must_fit else "(H, W, 3) and one map (h, w), such as maps[0]"
        raise ValueError(f"got an image of shape {image.shape} and a map of shape {numbers.shape}; expected {wanted}")
    if numbers.dtype.kind not in "fiub":
        raise TypeError(f"the map is {numbers.dtype}; expected real numbers")
    if numbers.dtype.kind != "f" or numbers.dtype == np.float16:
        numbers = numbers.astype(np.float32)
    _check_range("map", numbers, low, high, fix or "scale it with diffgradcam.heatmaps.minmax or scale_signed")
    resized: Array = resize(torch.from_numpy(np.ascontiguousarray(numbers)).unsqueeze(0), image.shape[:2])[0].numpy()
    return np.clip(resized, low, high)  # interpolation may leave the range by a rounding error


def as_bytes(image: Array) -> Array:
    """``(H, W, 3)`` in [0, 1] as uint8, rounded to the nearest value."""
    picture: Array = np.rint(255 * image).astype(np.uint8)
    return picture


def grey(image: Array) -> Array:
    """The luminance of an RGB image ``(H, W, 3)`` in all three channels."""
    luminance: Array = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.repeat(luminance[..., None], 3, axis=2)


def colours(values: Array, colormap: ColormapLike) -> Array:
    """The colours of values in [0, 1].

    Args:
        values: ``(H, W)``, in [0, 1].
        colormap: An OpenCV constant (an int), the name of a matplotlib colour map, or a matplotlib ``Colormap``.

    Returns:
        ``(H, W, 3)``, RGB, float32, in [0, 1].

    Raises:
        TypeError: If the colour map is something else.
        ValueError: If there is no such colour map.
    """
    if isinstance(colormap, int) and not isinstance(colormap, bool):
        # Checked first: OpenCV prints to the error stream before it raises.
        if not 0 <= colormap <= cv2.COLORMAP_DEEPGREEN:
            raise ValueError(
                f"colour map {colormap} is not one of OpenCV's, 0 to {cv2.COLORMAP_DEEPGREEN}; take a constant such as "
                "cv2.COLORMAP_JET, or the name of one of matplotlib's, such as 'viridis'"
            )
        # Truncated, as pytorch-grad-cam does it.
        coloured = cv2.applyColorMap(np.asarray(255 * values, dtype=np.uint8), colormap)
        return np.ascontiguousarray(coloured[..., ::-1]).astype(np.float32) / 255
    if isinstance(colormap, str):
        if colormap not in matplotlib.colormaps:
            near = difflib.get_close_matches(colormap, matplotlib.colormaps, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "take one of matplotlib.colormaps, such as 'viridis'"
            raise ValueError(f"{colormap!r} is not a colour map of matplotlib; {hint}")
        colormap = matplotlib.colormaps[colormap]
    if not isinstance(colormap, Colormap):
        raise TypeError(
            f"colormap is {colormap!r}; expected an OpenCV constant, the name of a matplotlib colour map, or a Colormap"
        )
    return colormap(values)[..., :3].astype(np.float32)


def _numpy(values: Array | Tensor, what: str) -> Array:
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if not isinstance(values, np.ndarray):
        raise TypeError(f"{what} is {type(values).__name__}; expected a NumPy array or a tensor")
    return values


def _channels_last(pixels: Array, *, prefer_first: bool) -> Array:
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and shape[0] in (1, 3) and (prefer_first or shape[2] not in (1, 3)):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        hint = ""
        if pixels.ndim == 4:
            hint = "; it is a batch, so take images[0]"
        elif pixels.ndim == 3 and pixels.shape[2] in (2, 4):
            hint = "; it has transparency, so take image[..., :3]"
        raise ValueError(f"got an image of shape {shape}; expected (H, W, 3) or (3, H, W){hint}")
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _check_range(name: str, values: Array, low: float, high: float, fix: str) -> None:
    finite = values[np.isfinite(values)]
    if finite.size == values.size and finite.min() >= low and finite.max() <= high:
        return
    span = f"{finite.min():g} to {finite.max():g}" if finite.size else "nothing finite"
    more = "" if finite.size == values.size else " and NaN or infinity"
    raise ValueError(f"the {name} has values from {span}{more}; expected [{low:g}, {high:g}]; {fix}")
