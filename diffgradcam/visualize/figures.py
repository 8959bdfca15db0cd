"""Several pictures: side by side in a figure, or one after the other in an animation."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from .arrays import Array, ColormapLike, ImageLike, as_bytes, as_image, colours

# Inches: what surrounds a picture, a line of text, a colour bar without its numbers.
_GAP, _LINE, _BAR = 0.08, 0.16, 0.12


class Bar(NamedTuple):
    """A colour bar under a picture of a grid.

    Attributes:
        colormap: As :func:`diffgradcam.visualize.overlay` takes it.
        low: The value at the left end.
        high: The value at the right end.
        label: What the values are.
    """

    colormap: ColormapLike = "viridis"
    low: float = 0
    high: float = 1
    label: str = ""


class _Cell(NamedTuple):
    """What :func:`grid` shows at one place."""

    picture: Array
    title: str
    bar: Bar | None


def grid(
    rows: Sequence[Sequence[ImageLike]],
    titles: Sequence[Sequence[str]],
    size: float = 2.4,
    bars: Sequence[Sequence[Bar | None]] | None = None,
) -> Figure:
    """Pictures side by side, each with a title and, where wanted, a colour bar under it.

    Where all pictures of a column have the same colours, one bar under the last row is enough.

    Args:
        rows: Pictures in any form, RGB, row by row; rows may differ in length, pictures in shape.
        titles: A title for each picture; a title that is too long for a line continues on the next.
        size: Width of a picture, in inches.
        bars: A colour bar, or None, for each picture.

    Returns:
        A figure just large enough for all of it; write it with ``figure.savefig(path)``.

    Raises:
        ValueError: If there is no picture, or there are not as many titles or bars as pictures.
        TypeError: If a picture is of another type.
    """
    if not 0 < size < math.inf:
        raise ValueError(f"size is {size}; expected the width of a picture in inches, above 0")
    lengths = [len(row) for row in rows]
    bars = [[None] * length for length in lengths] if bars is None else bars
    for what, given in (("titles", [len(line) for line in titles]), ("bars", [len(line) for line in bars])):
        if given != lengths:
            raise ValueError(f"{given} {what} for {lengths} pictures, by row; give one each")
    if not lengths or not min(lengths):
        raise ValueError(f"{lengths} pictures, by row; give at least one row, and at least one picture in each")
    cells = [
        [_Cell(as_image(picture), _wrapped(title, size), bar) for picture, title, bar in zip(*row, strict=True)]
        for row in zip(rows, titles, bars, strict=True)
    ]
    above = [_GAP + _LINE * max(cell.title.count("\n") + 1 if cell.title else 0 for cell in row) for row in cells]
    depths = [max(size * _aspect(cell.picture) + _below(cell.bar) for cell in row) for row in cells]
    figure = Figure(figsize=(max(lengths) * (size + _GAP) + _GAP, sum(above + depths) + _GAP))
    top = figure.get_figheight()
    for row, title_height, depth in zip(cells, above, depths, strict=True):
        for column, cell in enumerate(row):
            tall = size * _aspect(cell.picture)
            axes = _axes(figure, column, size, top - title_height - tall, tall)
            axes.imshow(cell.picture)
            axes.axis("off")
            axes.set_title(cell.title, fontsize=9, pad=3, parse_math=False)  # a name may have a $
            if cell.bar is not None:
                _draw_bar(_axes(figure, column, size, top - title_height - tall - _GAP / 2 - _BAR, _BAR), cell.bar)
        top -= title_height + depth
    return figure


def animate(
    frames: Sequence[ImageLike],
    titles: Sequence[str] | None = None,
    path: str | PathLike[str] | None = None,
    fps: float = 2,
) -> bytes:
    """Pictures one after the other, as an animated GIF that never ends: the map of each class, or of each layer.

    A GIF has 256 colours a frame. Equal pictures in a row become one frame, which is shown as long as all of them.

    Args:
        frames: Pictures in any form, RGB, all of one size.
        titles: A title for each, in a strip above it.
        path: Where to write it, if anywhere.
        fps: Frames per second, above 0 and at most 50, which is what viewers can show.

    Returns:
        The GIF.

    Raises:
        ValueError: If there are no frames, their sizes differ, there are not as many titles, or ``fps`` is out of
            range.
        TypeError: If a picture is of another type.
    """
    pictures = [as_bytes(as_image(frame)) for frame in frames]
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) != 1:
        raise ValueError(f"the frames have sizes {sizes} (H, W); expected at least one frame, and one size for all")
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"{len(titles)} titles for {len(pictures)} frames; give one each")
    if not 0 < fps <= 50:
        raise ValueError(f"fps is {fps}; expected frames per second, above 0 and at most 50")
    if titles is not None:
        pictures = [
            np.concatenate([strip, picture])
            for strip, picture in zip(_strips(titles, *sizes[0]), pictures, strict=True)
        ]
    first, *others = [_palette(Image.fromarray(picture)) for picture in pictures]
    stream = io.BytesIO()
    first.save(stream, "GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    if path is not None:
        Path(path).write_bytes(stream.getvalue())
    return stream.getvalue()


def _axes(figure: Figure, column: int, size: float, bottom: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    width, total = figure.get_size_inches()
    return figure.add_axes(((_GAP + column * (size + _GAP)) / width, bottom / total, size / width, height / total))


def _wrapped(title: str, size: float) -> str:
    characters = max(int(13 * size), 1)  # what fits at 9 points
    return "\n".join(textwrap.fill(line, characters) for line in title.split("\n"))


def _aspect(picture: Array) -> float:
    height, width, _ = picture.shape
    return float(height / width)


def _below(bar: Bar | None) -> float:
    return 0 if bar is None else _GAP / 2 + _BAR + _LINE * (2 if bar.label else 1)


def _draw_bar(axes: Axes, bar: Bar) -> None:
    axes.imshow(colours(np.linspace(0, 1, 256)[None], bar.colormap), aspect="auto", extent=(bar.low, bar.high, 0, 1))
    axes.set_yticks([])
    ticks = [bar.low, (bar.low + bar.high) / 2, bar.high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    first, _, last = axes.get_xticklabels()  # the numbers stay within the width of the bar
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    axes.tick_params(labelsize=8, length=2, pad=1.5)
    axes.set_xlabel(bar.label, fontsize=8, labelpad=1)


def _palette(picture: Image.Image) -> Image.Image:
    """The picture in its own best 256 colours, dithered: Pillow dithers only to a palette that is there already."""
    return picture.quantize(palette=picture.quantize(), dither=Image.Dither.FLOYDSTEINBERG)


def _strips(titles: Sequence[str], height: int, width: int) -> list[Array]:
    """White strips with titles, for pictures of a size; a title that does not fit continues on the next line."""
    points = min(max(height // 12, 9), 24)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), points)
    texts = [_fitted(title, font, width - 4) for title in titles]
    tall = int(1.25 * points) * max(text.count("\n") + 1 for text in texts) + 6
    strips = [Image.new("RGB", (width, tall), "white") for _ in texts]
    for strip, text in zip(strips, texts, strict=True):
        draw = ImageDraw.Draw(strip)
        draw.text((width / 2, tall / 2), text, "black", font, anchor="mm", align="center", spacing=points // 8)
    return [np.asarray(strip) for strip in strips]


def _fitted(title: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The title in as few lines as it needs to be at most ``width`` pixels."""
    text = title
    for characters in range(len(title), 0, -1):
        text = "\n".join(textwrap.fill(line, characters) for line in title.split("\n"))
        if max(map(font.getlength, text.split("\n"))) <= width:
            break
    return text
