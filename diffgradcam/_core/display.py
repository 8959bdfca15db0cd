"""How results show themselves: as pictures, text and tables, described here and drawn by :mod:`diffgradcam.visualize`.

A result describes itself as a :class:`Sheet`, which is data. What draws sheets needs matplotlib, and is a layer above:
the package says where it is, and it is imported when a result is first shown.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
LINES = 5
"""So many lines are printed of a result."""

SHOWN = 6
"""So many maps of an image, or images of one map each, are shown."""

_ROWS = 4  # images of several maps


class Panel(NamedTuple):
    """One picture of a sheet.

    Attributes:
        caption: What it shows, in one or several lines.
        values: A map ``(*S)``, in [0, 1], or in [-1, 1] where it is signed; or a picture ``(H, W, 3)``, uint8, RGB.
        image: The image of the batch that the map is of.
        signed: Whether the map is signed.
    """

    caption: str
    values: Tensor | Array
    image: int = 0
    signed: bool = False


class Table(NamedTuple):
    """A table of a sheet.

    Attributes:
        header: The titles of the columns.
        rows: The cells.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Sheet(NamedTuple):
    """What a result shows of itself.

    Attributes:
        title: What it is, in one line.
        panels: Pictures, row by row.
        body: Lines of text, and tables, below the pictures.
        images: How many images the batch had.
    """

    title: str
    panels: Sequence[Sequence[Panel]] = ()
    body: Sequence[str | Table] = ()
    images: int = 0


class Renderer(Protocol):
    """What draws sheets: the module :mod:`diffgradcam.visualize.sheets`."""

    def html(self, sheet: Sheet) -> str:
        """A part of a page."""
        ...

    def figure(self, sheet: Sheet, images: Any = None) -> Figure:
        """A figure."""
        ...

    def png(self, figure: Figure) -> bytes:
        """A figure as a file."""
        ...

    def overlays(self, heatmaps: Callable[[Sequence[int]], Tensor], images: Any, signed: bool, **options: Any) -> Array:
        """Pictures with their maps laid over."""
        ...


_load_renderer: Callable[[], Renderer] | None = None


def draw_with(load: Callable[[], Renderer]) -> None:
    """Say where sheets are drawn.

    Args:
        load: Imports the renderer. Called when a result is first shown.
    """
    global _load_renderer
    _load_renderer = load


def renderer() -> Renderer:
    """What draws sheets.

    Returns:
        The renderer.
    """
    assert _load_renderer is not None  # the package says it
    return _load_renderer()


class Shown(ABC):
    """A result that shows itself in a notebook, in print and as a figure."""

    @abstractmethod
    def _sheet(self) -> Sheet:
        """What it shows."""

    def plot(self) -> Figure:
        """What a notebook shows of it, as a figure.

        Returns:
            A figure; write it with ``figure.savefig(path)``.
        """
        return renderer().figure(self._sheet())

    def _repr_html_(self) -> str:
        return renderer().html(self._sheet())

    def _repr_png_(self) -> bytes | None:
        return renderer().png(self.plot()) if self._sheet().panels else None  # of no image there is no picture


class ShownMaps(Shown):
    """A result of maps of a batch, which can be laid over its images."""

    def plot(self, images: Any = None) -> Figure:
        """The maps of the first images, as a figure.

        Args:
            images: The images as people see them (values in [0, 1], or uint8), any sequence of what
                :func:`diffgradcam.visualize.as_image` takes: the maps are laid over them. By default the maps alone.

        Returns:
            A figure; write it with ``figure.savefig(path)``.

        Raises:
            TypeError: If an image is of another type.
            ValueError: If there are not as many images as in the batch, or one is out of range.
        """
        return renderer().figure(self._sheet(), images)


def printed(title: str, lines: Sequence[str], what: str, count: int | None = None) -> str:
    """A title and lines below it, five lines in all.

    Args:
        title: The first line.
        lines: The others, or the first of them.
        what: Of which there may be more, in the plural.
        count: How many there are; by default as many as lines.

    Returns:
        The lines, of which those that are too many are counted.
    """
    room, count = LINES - 1, len(lines) if count is None else count
    if count > room:
        lines = [*lines[: room - 1], f"... and {count - room + 1} more {what}"]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def first_panels(panels: list[list[Panel]]) -> list[list[Panel]]:
    """As many images of a batch, and maps of each, as a sheet shows.

    Args:
        panels: All of them, a row for each image.

    Returns:
        The first; in one row where each image has one map.
    """
    if all(len(row) == 1 for row in panels) and panels:
        return [[panel for (panel,) in panels[:SHOWN]]]
    return [row[:SHOWN] for row in panels[:_ROWS]]


def size_text(size: Sequence[int]) -> str:
    """A size as people write it, such as ``7 x 7``."""
    return " x ".join(map(str, size))


def counted(count: int, what: str) -> str:
    """``1 image``, ``2 images``, ``2 classes``."""
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count} {what if count == 1 else plural}"
