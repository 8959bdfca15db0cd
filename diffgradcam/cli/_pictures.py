"""The pictures of the commands: overlays, methods side by side, and the thumbnails of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..heatmaps import minmax, resize
from ..robustness import AuditReport
from ..visualize import grid, overlay
from ..visualize.arrays import Array, as_bytes, colours
from ..visualize.report import Heat, Thumbnail
from ._subject import Item, Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VIEW = 448  # side of a picture, in pixels
_THUMBNAIL = 224
_HEAT = 64  # side of a map in a report; browsers smooth it
_RANKS = ("most likely class", "second class", "third class")


def write_overlay(subject: Subject, item: Item, values: Tensor, file: Path) -> None:
    """Write one map over what the model sees of an image.

    Args:
        subject: The model.
        item: The image.
        values: ``(h, w)``, at least 0.
        file: A PNG.
    """
    Image.fromarray(overlay(view_picture(subject, item, _VIEW), _scaled(values))).save(file, "PNG")


def side_by_side(subject: Subject, item: Item, title: str, maps: Mapping[str, Tensor]) -> Figure:
    """An image and its maps by several methods.

    Args:
        subject: The model.
        item: The image.
        title: Of the image.
        maps: By method, ``(h, w)`` each, at least 0.

    Returns:
        A figure.
    """
    view = view_picture(subject, item, _VIEW)
    return grid([[view, *(overlay(view, _scaled(values)) for values in maps.values())]], [[title, *maps]])


def explained_thumbnail(
    subject: Subject, item: Item, explanations: Sequence[Mapping[str, Any]], maps: Sequence[Tensor], *, ranked: bool
) -> Thumbnail:
    """An image of a report, with a map for each explanation.

    Args:
        subject: The model.
        item: The image.
        explanations: Their method, class, label and probability; of each method in the same order of classes.
        maps: ``(h, w)`` each.
        ranked: Whether the classes are the most likely ones, which differ from image to image, so that the class switch
            offers their rank.

    Returns:
        The thumbnail.
    """
    heats: list[Heat] = []
    for explanation, values in zip(explanations, maps, strict=True):
        rank = sum(heat.method == explanation["method"] for heat in heats)
        choice = (_RANKS[rank] if rank < len(_RANKS) else f"class of rank {rank + 1}") if ranked else None
        caption = f"{explanation['label']}, {explanation['probability']:.1%}"
        picture = heat_picture(values)
        heats.append(Heat(explanation["method"], choice or explanation["label"], picture, caption))
    return Thumbnail(item.path.name, view_picture(subject, item, _THUMBNAIL), heats, item.picture.notes)


def audited_thumbnail(subject: Subject, item: Item, report: AuditReport, row: int) -> Thumbnail:
    """An image of an audit, with its GradCAM and the two maps that it is the sum of.

    Args:
        subject: The model.
        item: The image.
        report: Of its batch.
        row: Its place there.

    Returns:
        The thumbnail.
    """
    visible, invisible = report.visible[row].cpu().float(), report.invisible[row].cpu().float()
    limit = float(torch.stack([visible, invisible]).abs().max())
    caption = f"{subject.label(int(report.classes[row]))}; common mode {float(report.common_mode_share[row]):.2g}"
    pictures = {
        "GradCAM": heat_picture((visible + invisible).relu()),
        "what the decision depends on": signed_picture(visible, limit),
        "common mode": signed_picture(invisible, limit),
    }
    heats = [Heat(name, "decision", picture, caption) for name, picture in pictures.items()]
    return Thumbnail(item.path.name, view_picture(subject, item, _THUMBNAIL), heats, item.picture.notes)


def view_picture(subject: Subject, item: Item, size: int) -> Array:
    """What the model sees of an image, ``(size, size, 3)``, uint8, RGB."""
    return np.asarray(subject.preparation.view(item.picture.image, size))


def heat_picture(values: Tensor) -> Array:
    """A map ``(h, w)``, at least 0, in the colours of its own range; browsers smooth it."""
    return _heat(_scaled(values), "viridis")


def signed_picture(values: Tensor, limit: float) -> Array:
    """A signed map ``(h, w)`` in red and blue, which are darkest at ``limit`` and at minus ``limit``."""
    return _heat((values.cpu().float() / (limit or 1.0) + 1) / 2, "RdBu_r")


def _scaled(values: Tensor) -> Tensor:
    return minmax(values.unsqueeze(0).cpu().float())[0]


def _heat(values: Tensor, colormap: str) -> Array:
    smooth = resize(values.unsqueeze(0), (_HEAT, _HEAT))[0].clamp(0, 1).numpy()
    return as_bytes(colours(smooth, colormap))
