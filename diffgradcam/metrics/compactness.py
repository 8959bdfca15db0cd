"""Compactness: are the most relevant pixels in few, dense groups close together?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffgradcam._core.checks import check_count
from diffgradcam._core.optional import import_optional
from diffgradcam._core.outputs import check_finite

Points = NDArray[np.float64]
_NEEDED_BY = "compactness"


def compactness(maps: Tensor, *, share: float = 0.2, neighbours: int = 20) -> Tensor:
    """MST-C, minimum spanning tree compactness: are the most relevant pixels dense, and in a small area?

    ``100 d / sqrt(A) * n / L`` of the n pixels of largest magnitude, with A the area of their convex hull, L the length
    of their minimum spanning tree and d the diagonal of the map. Entropy does not know where pixels are; this does.

    The tree is that of the graph in which each pixel is joined to its nearest ``neighbours``. Where this graph falls
    apart into groups, the ways between them do not count, as in Quantus: only the hull tells that they are apart.

    Args:
        maps: ``(B, h, w)``, of any scale. Compare maps of one size only.
        share: Which share of the pixels is taken, above 0 and below 1. Pixels as large as the smallest of these are
            taken too, but never a 0: Quantus takes the whole map where less than this share is not 0.
        neighbours: To how many pixels each is joined; of equally far ones, to any.

    Returns:
        Higher is more compact, ``(B,)``; NaN where fewer than two pixels are left, which have neither area nor length.
        Where the pixels lie in a line, d stands in for the root of the area.

    Raises:
        ValueError: If maps have another shape or are not finite, or an option is out of range.
        ImportError: If SciPy is not installed.

    Reference:
        Mesgari et al., "Structural Compactness as a Complementary Criterion for Explanation Quality", 2026 (arXiv
        2603.29491); read in the code of Quantus.

    Example:
        >>> maps = torch.zeros(1, 5, 5)
        >>> maps[0, 1:4, 1:4] = 1.0  # 9 pixels, a hull of area 4, a tree of length 8
        >>> compactness(maps), 100 * 50**0.5 / 4**0.5 * 9 / 8
        (tensor([397.7476]), 397.747564417433)
    """
    if maps.ndim != 3 or not maps.shape[1:].numel():
        raise ValueError(f"maps have shape {tuple(maps.shape)}; expected (B, h, w) with at least one pixel")
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; expected a share of the pixels, above 0 and below 1")
    check_count("neighbours", neighbours)
    check_finite("the map", maps)
    values = [_compactness(one, share, neighbours) for one in maps.detach().cpu().double().abs().numpy()]
    return torch.tensor(values, dtype=torch.float64).to(torch.promote_types(maps.dtype, torch.float32)).to(maps.device)


def _compactness(magnitudes: Points, share: float, neighbours: int) -> float:
    chosen = (magnitudes >= np.percentile(magnitudes, 100 * (1 - share))) & (magnitudes > 0)
    points = np.argwhere(chosen).astype(np.float64)
    if len(points) < 2:
        return math.nan
    diagonal = math.hypot(*magnitudes.shape)
    extent = _root_of_hull(points) or diagonal
    return 100 * diagonal / extent * len(points) / _tree_length(points, neighbours)


def _root_of_hull(points: Points) -> float:
    """The root of the area of the convex hull of ``(n, 2)``; 0 where they lie in a line."""
    if np.linalg.matrix_rank(points - points[0]) < 2:
        return 0.0
    spatial = import_optional("scipy.spatial", _NEEDED_BY)
    return math.sqrt(spatial.ConvexHull(points).volume)  # the volume of two dimensions is the area


def _tree_length(points: Points, neighbours: int) -> float:
    """The length of the minimum spanning tree, or of as many as there are groups."""
    count = min(neighbours, len(points) - 1)
    tree: Any = import_optional("scipy.spatial", _NEEDED_BY).cKDTree(points)
    distances, nearest = tree.query(points, k=count + 1)  # the first is the point itself
    sparse = import_optional("scipy.sparse", _NEEDED_BY)
    starts = np.repeat(np.arange(len(points)), count)
    graph = sparse.csr_matrix((distances[:, 1:].ravel(), (starts, nearest[:, 1:].ravel())), shape=(len(points),) * 2)
    spanning = import_optional("scipy.sparse.csgraph", _NEEDED_BY).minimum_spanning_tree(graph.maximum(graph.T))
    return float(spanning.sum())
