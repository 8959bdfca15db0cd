"""Image files that may be hostile: which formats are opened, and how large an image may be before it is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

# No format that is a program (EPS runs Ghostscript) or that hands over to another one.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 100_000_000  # three bytes each: what a phone of 100 megapixels makes, and no more


class ImageSizeError(ValueError):
    """An image with too many pixels, or none."""


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file without decoding it; what it contains counts, not its name.

    Args:
        path: The file.

    Yields:
        The image, of one of :data:`FORMATS`.

    Raises:
        ImageSizeError: If it has more than :data:`MOST_PIXELS`, or none.
        PIL.UnidentifiedImageError: If it has none of the formats. Pillow may raise anything for a broken file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("RGB", (8, 6)).save(path)
        >>> with open_image(path) as image:
        ...     image.format, image.size
        ('PNG', (8, 6))
    """
    try:
        file = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow has a limit of its own, which may be lower or higher
        raise ImageSizeError(f"too large: {error}") from error
    with file:
        width, height = file.size
        if width * height > MOST_PIXELS:
            raise ImageSizeError(
                f"too large: {width} x {height} pixels, and expected at most {MOST_PIXELS:,}; make it smaller first"
            )
        if width < 1 or height < 1:
            raise ImageSizeError(f"it has no pixels: {width} x {height}")
        yield file
