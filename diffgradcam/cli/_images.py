"""Read image files that may be broken or hostile. The size of an image is checked before it is decoded."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .._core.image_files import FORMATS, ImageSizeError, open_image

_SUFFIXES = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pgm": "PPM",
    ".png": "PNG",
    ".pnm": "PPM",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
_ORIENTATION = 0x0112  # the EXIF tag
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")


class BadImage(Exception):
    """A file that cannot be read as an image. The message says why in one line."""


class Picture(NamedTuple):
    """An image as people see it.

    Attributes:
        image: Mode RGB, upright.
        notes: What was changed when it was read, and may be unexpected.
    """

    image: Image.Image
    notes: list[str]


@dataclass(frozen=True)
class Preparation:
    """How a model wants its images prepared.

    Attributes:
        size: Side of the square that the model takes, in pixels.
        mean: Of each channel, for pixels in [0, 1]; one number for a model of grey images.
        std: Of each channel.
        crop: Side of the centred square that is cut out, as a share of the picture's shorter side.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float

    def view(self, image: Image.Image, size: int | None = None) -> Image.Image:
        """The part of a picture that the model sees.

        Args:
            image: Mode RGB.
            size: Side of the result, in pixels; by default the model's.

        Returns:
            A square, mode RGB.
        """
        size = size or self.size
        width, height = image.size
        side = max(1, round(min(width, height) * self.crop))
        left, top = (width - side) // 2, (height - side) // 2
        # Cut before resizing, or the filter would reach beyond the cut.
        cut = image.crop((left, top, left + side, top + side))
        return cut.resize((size, size), Image.Resampling.BICUBIC)

    def tensor(self, image: Image.Image) -> Tensor:
        """What the model takes of a picture, ``(C, size, size)``, float32."""
        view = self.view(image).convert("RGB" if len(self.mean) == 3 else "L")
        pixels = np.asarray(view, dtype=np.float32).reshape(self.size, self.size, -1) / 255
        normalised = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def find_images(path: Path) -> tuple[list[Path], int]:
    """The images that a path stands for.

    Args:
        path: A file, whatever its name, or a folder: then the files directly in it with the suffix of an image.

    Returns:
        ``(files in alphabetical order, how many other files the folder has)``.

    Raises:
        ValueError: If the folder has no image.
    """
    if not path.is_dir():
        return [path], 0
    entries = sorted(entry for entry in path.iterdir() if not entry.is_dir() and not entry.name.startswith("."))
    images = [entry for entry in entries if entry.suffix.lower() in _SUFFIXES]
    if not images:
        raise ValueError(
            f"no image in the folder {str(path)!r} ({len(entries)} other files); expected files that end in "
            f"{', '.join(sorted(_SUFFIXES))}, directly in it"
        )
    return images, len(entries) - len(images)


def read_image(path: Path) -> Picture:
    """Read an image of any of the formats.

    Handled and noted: a suffix that is not the format, animations (first frame), EXIF orientation, CMYK, 16 bits,
    transparency. Palettes and grey become RGB.

    Args:
        path: The file.

    Returns:
        The image upright, in RGB, and the notes.

    Raises:
        BadImage: If it is not a regular file, not an image, truncated or otherwise broken, or larger than 100 million
            pixels (which is checked before anything is decoded).
    """
    if not path.is_file():
        raise BadImage("not a regular file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on size and on metadata: the size is checked here
            with open_image(path) as file:
                return _upright_rgb(file, path)
    except BadImage:
        raise
    except ImageSizeError as error:
        raise BadImage(str(error)) from error
    except UnidentifiedImageError as error:
        what = "an empty file" if path.stat().st_size == 0 else f"not an image of a known format ({', '.join(FORMATS)})"
        raise BadImage(what) from error
    except MemoryError as error:
        raise BadImage("it does not fit into memory") from error
    except Exception as error:  # decoders raise all sorts
        raise BadImage(f"truncated or broken: {_one_line(error)}") from error


def _upright_rgb(file: Image.Image, path: Path) -> Picture:
    notes = list(_notes(file, path))
    file.load()
    image = file
    if _orientation(file) not in (None, 1):
        image = ImageOps.exif_transpose(file)
        notes.append("turned upright, as its EXIF data says")
    return Picture(_rgb(image, notes), notes)


def _notes(file: Image.Image, path: Path) -> Iterator[str]:
    named = _SUFFIXES.get(path.suffix.lower())
    made = "JPEG" if file.format == "MPO" else file.format  # what phones put into a .jpg
    if named is not None and made != named:
        yield f"a {made} file, although its name says otherwise"
    if file.format != "MPO" and getattr(file, "is_animated", False):
        yield "animated or of several pages: only the first is explained"


def _orientation(file: Image.Image) -> Any:
    try:
        return file.getexif().get(_ORIENTATION)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        return None  # broken metadata of a picture that can be seen all the same


def _rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode in _SIXTEEN_BIT or image.mode == "F":
        return _eight_bit(image, notes).convert("RGB")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        layered = image.convert("RGBA")
        lowest, _ = layered.getchannel("A").getextrema()
        if lowest == 255:
            return layered.convert("RGB")
        notes.append("transparent parts are laid on white")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    if image.mode == "CMYK":
        notes.append("CMYK, turned into RGB without its colour profile")
    return image.convert("RGB")


def _eight_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    largest = 1.0 if image.mode == "F" else 65535.0
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= largest):
        raise BadImage(
            f"its values go from {values.min():g} to {values.max():g}; expected 8 or 16 bits, or floating point in "
            "[0, 1]"
        )
    notes.append("floating point, rounded to 8 bits" if image.mode == "F" else "16 bits, rounded to 8")
    return Image.fromarray(np.rint(255 * values / largest).astype(np.uint8))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
