"""A report for the browser: one self-contained file with thumbnails, whose map a viewer can switch and fade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .arrays import Array
from .pages import render


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
    heats = [heat for thumbnail in thumbnails for heat in thumbnail.heats]
    return render(
        "report.html",
        title=title,
        thumbnails=thumbnails,
        facts=facts or {},
        failed=failed or {},
        methods=list(dict.fromkeys(heat.method for heat in heats)),
        choices=list(dict.fromkeys(heat.choice for heat in heats)),
    )
