"""The regions of one image in which the maps of the true and of the false class diverge, ranked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from .. import heatmaps
from .._core.layers import LayerSpec
from .._core.outputs import find_logits
from ..methods.contrastive import TrueFalseCAM


class Region(NamedTuple):
    """A connected part of an image in which the two maps diverge.

    Attributes:
        share: Share of the whole divergence (the sum of its magnitude over the image) that lies here, in [0, 1].
        sign: 1 where the region speaks for the true class, -1 where it speaks for the false class.
        box: Top, left, bottom, right, in pixels; the last two are exclusive, so that ``image[top:bottom, left:right]``
            is the box.
        centroid: Row and column of the centre of the divergence in the region, in pixels.
        mask: Which pixels belong to it, ``(H, W)``, bool.
    """

    share: float
    sign: int
    box: tuple[int, int, int, int]
    centroid: tuple[float, float]
    mask: Tensor


def important_features(
    model: nn.Module,
    image: Tensor,
    target_layers: LayerSpec | Sequence[LayerSpec],
    *,
    true_class: int | None = None,
    false_class: str | int = "runner_up",
    threshold: float = 0.5,
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
    output: Callable[[Any], Tensor] = find_logits,
) -> list[Region]:
    """Regions that tell the true class from the false class, from Difference Salience, the largest share first.

    Difference Salience is resized to the image; regions are the connected components (8 neighbours) of its positive and
    of its negative part whose magnitude is above ``threshold`` times the largest magnitude.

    Args:
        model: The model, see :class:`~diffgradcam.BaseCAM`.
        image: One image, ``(C, H, W)`` or ``(1, C, H, W)``, as the model takes it.
        target_layers: As :class:`~diffgradcam.BaseCAM`.
        true_class: The class to speak for; None is the decision.
        false_class: The class to tell it from: ``"runner_up"``, a class index, or ``"mean"`` of all the others.
        threshold: Share of the largest magnitude from which a pixel counts, in (0, 1).
        reshape_transform: As :class:`~diffgradcam.BaseCAM`.
        output: As :class:`~diffgradcam.BaseCAM`.

    Returns:
        The regions; none if the maps do not differ anywhere.

    Raises:
        ValueError: If it is not one image, the threshold is out of range, or as :meth:`~diffgradcam.BaseCAM.explain`.
        TypeError: If the image is no tensor, or as :meth:`~diffgradcam.BaseCAM.explain`.

    Reference:
        The post-hoc use of Difference Salience is our reading of Piland, Sweet, Czajka, "Divisive Decisions", 2025
        (arXiv 2507.17000); ranking connected components is ours.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> regions = important_features(model, torch.rand(3, 32, 32), "0")
        >>> all(0 < region.share <= 1 for region in regions)
        True
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"image is {type(image).__name__}; expected a tensor (C, H, W) or (1, C, H, W)")
    images = image.unsqueeze(0) if image.ndim == 3 else image
    if images.ndim != 4 or images.shape[0] != 1:
        raise ValueError(f"got shape {tuple(image.shape)}; expected one image, (C, H, W) or (1, C, H, W)")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; expected a share of the largest magnitude, between 0 and 1")
    cam = TrueFalseCAM(model, target_layers, reshape_transform, false_class=false_class, output=output)
    divergence = heatmaps.resize(cam.explain(images, true_class).maps, images.shape[2:])[0].cpu().double().numpy()
    magnitude = np.abs(divergence)
    strong = magnitude > threshold * magnitude.max()
    regions = [
        _region(component, divergence, sign)
        for sign in (1, -1)
        for component in _components(strong & (sign * divergence > 0))
    ]
    return sorted(regions, key=lambda region: region.share, reverse=True)


def _components(mask: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [labels == label for label in range(1, count)]


def _region(mask: np.ndarray[Any, Any], divergence: np.ndarray[Any, Any], sign: int) -> Region:
    rows, columns = np.nonzero(mask)
    weights = np.abs(divergence[rows, columns])
    return Region(
        share=float(weights.sum() / np.abs(divergence).sum()),
        sign=sign,
        box=(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1),
        centroid=(float(np.average(rows, weights=weights)), float(np.average(columns, weights=weights))),
        mask=torch.from_numpy(mask),
    )
