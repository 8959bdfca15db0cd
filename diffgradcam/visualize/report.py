"""A report for the browser: one self-contained file with thumbnails, whose map a viewer can switch and fade."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from PIL import Image

from .arrays import Array


class Heat(NamedTuple):
    """The picture of one map, laid over a thumbnail.

    Attributes:
        method: What the method switch calls it.
        choice: What the class switch calls it, such as ``"most likely class"``.
        picture: Colours, ``(h, w, 3)``, uint8, RGB; stretched over the thumbnail.
        caption: What is written below while it is shown.
    """

    method: str
    choice: str
    picture: Array
    caption: str


class Thumbnail(NamedTuple):
    """One image of a report.

    Attributes:
        name: Such as the name of its file; it may hold any character.
        picture: ``(H, W, 3)``, uint8, RGB.
        heats: Its maps.
        notes: What else is to be known about it.
    """

    name: str
    picture: Array
    heats: Sequence[Heat]
    notes: Sequence[str] = ()


def html_report(
    title: str,
    thumbnails: Sequence[Thumbnail],
    *,
    facts: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
) -> str:
    """Thumbnails with a switch for the method, one for the class, and a slider for the opacity, in one HTML page.

    The page loads nothing, and forbids itself to. Whatever is passed is escaped. The switches offer what occurs in the
    heats; where an image has no such map, it shows only itself.

    Args:
        title: Of the page.
        thumbnails: The images, in the order shown.
        facts: What holds for all of them: name and value, as a table above.
        failed: Images that are not shown, and why.

    Returns:
        The page. Characters that UTF-8 cannot write (file names of other encodings) are replaced.

    Raises:
        TypeError: If a picture is not uint8 of shape ``(H, W, 3)``.

    Example:
        >>> import numpy as np
        >>> heat = Heat("GradCAM", "most likely class", np.zeros((7, 7, 3), np.uint8), "cat, 90%")
        >>> page = html_report("Cats", [Thumbnail("<b>.jpg", np.zeros((32, 32, 3), np.uint8), [heat])])
        >>> "&lt;b&gt;.jpg" in page, "<b>" in page
        (True, False)
    """
    import jinja2  # PyTorch needs it too; only a report does here

    template = resources.files(__package__).joinpath("report.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"photo": _photo, "colours": _colours}
    heats = [heat for thumbnail in thumbnails for heat in thumbnail.heats]
    page = environment.from_string(template).render(
        title=title,
        thumbnails=thumbnails,
        facts=facts or {},
        failed=failed or {},
        methods=list(dict.fromkeys(heat.method for heat in heats)),
        choices=list(dict.fromkeys(heat.choice for heat in heats)),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _photo(picture: Array) -> str:
    return _data_uri(picture, "JPEG", quality=85)


def _colours(picture: Array) -> str:
    return _data_uri(picture, "PNG", optimize=True)


def _data_uri(picture: Array, kind: str, **options: int) -> str:
    if picture.dtype != "uint8" or picture.ndim != 3 or picture.shape[2] != 3:
        raise TypeError(f"a picture is {picture.dtype} of shape {picture.shape}; expected uint8, (H, W, 3)")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
