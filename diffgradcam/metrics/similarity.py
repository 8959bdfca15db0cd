"""Similarity of two maps of the same image. Both are ``(B, *S)``; each function returns one number per image.

Which one: ``pearson`` for maps of any scale, ``spearman`` when only the order of positions counts,
``rank_biased_overlap`` when the order of the highest values counts most, ``cosine`` when 0 means "no evidence",
``rmse`` and ``ssim`` for maps that share a scale (``diffgradcam.heatmaps.minmax`` gives them one).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from diffgradcam._core.checks import described
from diffgradcam._core.outputs import check_finite
from diffgradcam.heatmaps import minmax, scale_signed

MapSimilarity = Callable[[Tensor, Tensor], Tensor]


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation over positions: blind to a shift and a positive scale of either map.

    Args:
        first: Maps, ``(B, *S)``.
        second: Maps, ``(B, *S)``.

    Returns:
        Correlations in [-1, 1], ``(B,)``; 0 where a map is constant.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> pearson(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 3.0, 2.0]]))
        tensor([0.5000])
    """
    # Min-max scaling changes no correlation; it makes constant maps exactly 0 and keeps squares from underflowing.
    x, y = (minmax(flat) for flat in _flat_pair(first, second))
    return _cosine(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True))


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation over positions: Pearson's of the ranks, equal values sharing their mean rank.

    Args:
        first: Maps, ``(B, *S)``.
        second: Maps, ``(B, *S)``.

    Returns:
        Correlations in [-1, 1], ``(B,)``; 0 where a map is constant. Ranks have no gradient.

    Raises:
        ValueError: If the shapes differ, or a map is not finite: NaN has no rank.

    Example:
        >>> spearman(torch.tensor([[1.0, 2.0, 30.0]]), torch.tensor([[1.0, 4.0, 9.0]]))
        tensor([1.])
    """
    x, y = _flat_pair(first, second)
    for flat in (x, y):
        check_finite("the map", flat)
    return pearson(_ranks(x), _ranks(y)).to(x)


def rank_biased_overlap(first: Tensor, second: Tensor, p: float = 0.9) -> Tensor:
    """Rank-biased overlap: how much the most relevant positions of two maps have in common, the first ones most of all.

    ``(1 - p) / (1 - p^n) sum_d p^(d - 1) |top_d & top_d| / d`` over all depths d up to the number n of positions; the
    factor makes it 1 for the same order. Positions of equal value go row by row.

    Args:
        first: Maps, ``(B, *S)``.
        second: Maps, ``(B, *S)``.
        p: How much the next depth counts relative to one, between 0 and 1. With 0.9 the first ten positions of many
            carry 86% of the weight.

    Returns:
        Overlaps in [0, 1], ``(B,)``. Ranks have no gradient.

    Raises:
        ValueError: If the shapes differ, a map is not finite, or ``p`` is out of range.

    Reference:
        Webber, Moffat, Zobel, "A Similarity Measure for Indefinite Rankings", ACM TOIS 2010, cut at n.

    Example:
        >>> rank_biased_overlap(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[2.0, 3.0, 1.0]]), p=0.5)  # 0, 1, 1
        tensor([0.4286])
    """
    if not 0 < p < 1:
        raise ValueError(f"p is {p}; expected a number between 0 and 1")
    x, y = _flat_pair(first, second)
    for flat in (x, y):
        check_finite("the map", flat)
    places = [flat.cpu().argsort(dim=1, descending=True, stable=True).argsort(1) for flat in (x, y)]
    depths = torch.arange(1, x.shape[1] + 1, dtype=torch.float64)
    both = torch.zeros(x.shape, dtype=torch.float64)  # how many positions are in both tops from this depth on
    both.scatter_add_(1, torch.maximum(*places), torch.ones_like(both))
    weights = p ** (depths - 1)
    overlap: Tensor = (weights * both.cumsum(1) / depths).sum(1) / weights.sum()
    return overlap.to(x)


def compared(similarity: MapSimilarity, maps: Tensor, reference: Tensor) -> Tensor:
    """The similarity of two batches of maps by a function of the user's, checked.

    Args:
        similarity: Of two batches of maps, one number for each image.
        maps: ``(B, *S)``.
        reference: ``(B, *S)``.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: If the function returns anything else.
    """
    values = similarity(maps, reference)
    if not isinstance(values, Tensor) or values.shape != maps.shape[:1]:
        raise ValueError(f"similarity returned {described(values)} for {len(maps)} maps; expected a value for each")
    return values


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarity over positions: blind to a positive scale of either map, but not to a shift.

    Args:
        first: Maps, ``(B, *S)``.
        second: Maps, ``(B, *S)``.

    Returns:
        Cosines in [-1, 1], ``(B,)``; 0 where a map is 0 everywhere.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([0.6000])
    """
    x, y = (scale_signed(flat) for flat in _flat_pair(first, second))
    return _cosine(x, y)


def rmse(first: Tensor, second: Tensor) -> Tensor:
    """Root of the mean squared difference over positions, in the unit of the maps, which are not scaled.

    Args:
        first: Maps, ``(B, *S)``.
        second: Maps, ``(B, *S)``.

    Returns:
        Errors, ``(B,)``; 0 for equal maps, at most 1 for maps in [0, 1].

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> rmse(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.6, 0.8]]))
        tensor([0.7071])
    """
    x, y = _flat_pair(first, second)
    # A norm, not the root of a mean: its gradient is 0, not NaN, where the maps are equal.
    norm: Tensor = torch.linalg.vector_norm(x - y, dim=1)
    return norm / math.sqrt(x.shape[1])


def ssim(first: Tensor, second: Tensor, window: int = 7, data_range: float = 1.0) -> Tensor:
    """Structural similarity, the mean over all positions of a uniform window inside the map.

    The form with sample covariances, K1 = 0.01 and K2 = 0.03: the default of ``skimage.metrics``. A map of the
    window's size, 7 x 7 say, has one position, and its value is the global SSIM.

    Args:
        first: Maps, ``(B, h, w)``.
        second: Maps, ``(B, h, w)``.
        window: Side of the window, odd, at least 3, no larger than the map.
        data_range: Largest minus smallest possible value: 1 for min-max scaled maps.

    Returns:
        Similarities in [-1, 1], ``(B,)``; 1 for equal maps.

    Raises:
        ValueError: If the shapes differ, the maps have other than two spatial dimensions, the window is even, less
            than 3 or larger than the map, or ``data_range`` is not positive.

    Reference:
        Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004.
    """
    if first.ndim != 3:
        raise ValueError(f"maps have shape {tuple(first.shape)}; expected (B, h, w); ssim slides a square window")
    x, y = (flat.view_as(first) for flat in _flat_pair(first, second))
    if window % 2 == 0 or not 3 <= window <= min(x.shape[1:]):
        raise ValueError(
            f"window is {window} for maps of {x.shape[1]} x {x.shape[2]}; expected an odd number from 3 to the "
            "smaller side; resize small maps first"
        )
    if not data_range > 0:
        raise ValueError(f"data_range is {data_range}; expected largest minus smallest possible value, such as 1")

    def local_mean(maps: Tensor) -> Tensor:
        pooled: Tensor = F.avg_pool2d(maps.unsqueeze(1), window, stride=1)
        return pooled

    mean_x, mean_y = local_mean(x), local_mean(y)
    sample = window**2 / (window**2 - 1)
    variance_x = sample * (local_mean(x * x) - mean_x**2)
    variance_y = sample * (local_mean(y * y) - mean_y**2)
    covariance = sample * (local_mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _flat_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape or first.ndim < 2:
        raise ValueError(
            f"maps have shapes {tuple(first.shape)} and {tuple(second.shape)}; expected the same (B, *S) twice; "
            "bring one to the other with diffgradcam.heatmaps.resize"
        )
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return first.to(dtype).flatten(1), second.to(dtype).flatten(1)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of rows that are of the order of 1, or exactly 0: torch's guard then never bends a value."""
    similarity: Tensor = F.cosine_similarity(x, y, dim=1)
    return similarity.clamp(-1, 1)


def _ranks(x: Tensor) -> Tensor:
    """Rank of each value in its row; equal values share the mean of their ranks. Exact in float64, on the CPU."""
    x = x.contiguous()
    ordered = x.sort(1).values
    below = torch.searchsorted(ordered, x)
    not_above = torch.searchsorted(ordered, x, right=True)
    return (below + not_above).cpu().double() / 2  # not every device has float64
