"""How well maps point at the region that people marked. Batched, one number per image.

Maps are ``(B, *S)`` at the resolution of the masks (``diffgradcam.heatmaps.resize`` brings them there). A mask is
bool, or non-negative numbers that are inside where they are not 0: threshold soft human saliency first
(``human > 0.5``). Leave images without a mask out: with an empty mask every metric is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffgradcam._core.outputs import check_finite
from diffgradcam.heatmaps import rectify


def energy_in_mask(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the map's positive values that lies inside the mask (the energy-based pointing game).

    Args:
        maps: Maps, ``(B, *S)``. Negative values are evidence against the class and count as 0.
        masks: Masks, ``(B, *S)``.

    Returns:
        Shares in [0, 1], ``(B,)``; 0 for a map without positive values. A constant map gets the area of the mask.

    Raises:
        ValueError: If the shapes differ, a map is not finite, or a mask holds negative or non-finite values.

    Reference:
        Wang et al., "Score-CAM", CVPR Workshops 2020.

    Example:
        >>> energy_in_mask(torch.tensor([[3.0, 1.0, -5.0]]), torch.tensor([[True, False, False]]))
        tensor([0.7500])
    """
    values, inside = _flat_pair(maps, masks)
    values = rectify(values)
    # Scaled by the peak, the sum can neither overflow nor fall below the smallest normal number.
    peak = values.amax(1, keepdim=True)
    values = values / torch.where(peak > 0, peak, 1)
    total = values.sum(1)
    return torch.where(inside, values, 0).sum(1) / torch.where(total > 0, total, 1)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Does the highest value of the map lie inside the mask?

    No tolerance around the mask (the original allows 15 pixels): dilate the mask for one.

    Args:
        maps: Maps, ``(B, *S)``.
        masks: Masks, ``(B, *S)``.

    Returns:
        1 for a hit, 0 for a miss, ``(B,)``. Where several positions share the highest value, the share of them that
        lies inside: the chance of a hit when one is drawn. So a constant map gets the area of the mask.

    Raises:
        ValueError: If the shapes differ, a map is not finite, or a mask holds negative or non-finite values.

    Reference:
        Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016.

    Example:
        >>> pointing_game(torch.tensor([[3.0, 1.0], [2.0, 2.0]]), torch.tensor([[True, False], [True, False]]))
        tensor([1.0000, 0.5000])
    """
    values, inside = _flat_pair(maps, masks)
    peaks = values == values.amax(1, keepdim=True)
    return (peaks & inside).sum(1) / peaks.sum(1).clamp_min(1).to(values.dtype)


def iou_at_matched_area(maps: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of the mask and as many of the map's highest positions as the mask has.

    No threshold to choose, and no gain from a map that is merely larger or smaller. For two maps, threshold one.

    Args:
        maps: Maps, ``(B, *S)``.
        masks: Masks, ``(B, *S)``.

    Returns:
        IoU in [0, 1], ``(B,)``; 0 for an empty mask. Where the threshold cuts through equal values (the zeros of a
        rectified map, say), each of them counts with the chance of being drawn, so that no order of positions matters.

    Raises:
        ValueError: If the shapes differ, a map is not finite, or a mask holds negative or non-finite values.

    Example:
        >>> iou_at_matched_area(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), torch.tensor([[True, True, False, False]]))
        tensor([0.3333])
    """
    values, inside = _flat_pair(maps, masks)
    area = inside.sum(1, keepdim=True)
    ranked = values.sort(1, descending=True).values
    threshold = ranked.gather(1, (area - 1).clamp_min(0))
    above, level = values > threshold, values == threshold
    drawn = (area - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True).clamp_min(1).to(values.dtype)
    overlap = (inside & above).sum(1) + drawn.squeeze(1) * (inside & level).sum(1)
    return overlap / (2 * area.squeeze(1) - overlap).clamp_min(1)


def _flat_pair(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    if maps.shape != masks.shape or maps.ndim < 2:
        raise ValueError(
            f"maps have shape {tuple(maps.shape)} and masks {tuple(masks.shape)}; expected (B, *S) for both; "
            "bring the maps to the masks with diffgradcam.heatmaps.resize(maps, masks.shape[1:])"
        )
    if not bool(((masks >= 0) & masks.isfinite()).all()):
        raise ValueError("masks hold NaN, infinite or negative values; expected bool, or numbers that are 0 outside")
    check_finite("the map", maps)
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return maps.flatten(1), (masks > 0).flatten(1)
