"""Hoaxes: the maps that a fooled model should show, of 0 and 1. Any tensor of the map's size works as well."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffgradcam.losses import cam_entropy

Cell = tuple[int, ...]


def border_mask(size: Sequence[int], cells: int) -> Tensor:
    """The ``cells`` nearest to the edge: ring by ring inward, and within a ring the corners first.

    On a 7 x 7 grid the outer ring has 24 cells; 28 cells are that ring and the four corners of the next one, whose
    entropy, ln 28 = 3.332 nats, is that of the SHAM. Which 28 cells the paper takes is our reading.

    Args:
        size: Size of the map, such as ``(7, 7)``; any number of dimensions.
        cells: How many cells are 1, from 1 to all of them.

    Returns:
        float32 of 0 and 1, of shape ``size``.

    Raises:
        ValueError: If ``size`` is not positive, or ``cells`` is out of range.

    Reference:
        Piland, Sweet, Czajka, "DiffGradCAM", 2025 (arXiv 2506.08514).

    Example:
        >>> border_mask((5, 5), cells=20)
        tensor([[1., 1., 1., 1., 1.],
                [1., 1., 0., 1., 1.],
                [1., 0., 0., 0., 1.],
                [1., 1., 0., 1., 1.],
                [1., 1., 1., 1., 1.]])
        >>> border_mask((7, 7), cells=28).sum().log()
        tensor(3.3322)
    """
    return _first_cells(size, cells, lambda cell: _edge_first(cell, size))


def entropy_mask(size: Sequence[int], entropy: float) -> Tensor:
    """The border mask whose entropy is nearest to a wanted one: ``round(exp(entropy))`` cells.

    Args:
        size: Size of the map, such as ``(7, 7)``.
        entropy: In nats, from 0 (one cell) to ln(number of cells).

    Returns:
        float32 of 0 and 1, of shape ``size``.

    Raises:
        ValueError: If no mask of this size has that entropy.

    Example:
        >>> entropy_mask((7, 7), 3.35).sum()  # salience-trained models were seen near 3.35 nats
        tensor(29.)
    """
    limit = math.log(max(math.prod(size), 1))
    if not 0 <= entropy <= limit + 1e-6:
        raise ValueError(
            f"entropy is {entropy} nats; expected 0 to ln({math.prod(size)}) = {limit:.4f} for size {tuple(size)}"
        )
    return border_mask(size, round(math.exp(entropy)))


def match_entropy(maps: Tensor) -> Tensor:
    """The border mask that is as focused as given maps, so that the entropy alone does not reveal the hoax.

    Args:
        maps: Maps of the clean model, ``(B, *S)``, as ``explain`` gives them. Their entropy is that of
            :func:`~diffgradcam.losses.cam_entropy`, averaged over the images.

    Returns:
        float32 of 0 and 1, of shape ``S``.

    Raises:
        ValueError: If there are no maps, or they are not finite.

    Example:
        >>> clean = torch.zeros(1, 4, 4)
        >>> clean[0, 1:3, 1:3] = 5.0
        >>> match_entropy(clean)
        tensor([[1., 0., 0., 1.],
                [0., 0., 0., 0.],
                [0., 0., 0., 0.],
                [1., 0., 0., 1.]])
    """
    entropy = cam_entropy(maps).mean()
    if not bool(entropy.isfinite()):
        raise ValueError(
            f"maps of shape {tuple(maps.shape)} have no finite mean entropy; expected at least one map, finite"
        )
    return entropy_mask(maps.shape[1:], float(entropy))


def centre_mask(size: Sequence[int], cells: int) -> Tensor:
    """The ``cells`` farthest from the edge: what :func:`border_mask` would fill last.

    Args:
        size: Size of the map, such as ``(7, 7)``.
        cells: How many cells are 1, from 1 to all of them.

    Returns:
        float32 of 0 and 1, of shape ``size``.

    Raises:
        ValueError: As :func:`border_mask`.

    Example:
        >>> centre_mask((4, 4), cells=4)
        tensor([[0., 0., 0., 0.],
                [0., 1., 1., 0.],
                [0., 1., 1., 0.],
                [0., 0., 0., 0.]])
    """
    return _first_cells(size, cells, lambda cell: [-key for key in _edge_first(cell, size)])


def corner_mask(size: Sequence[int], cells: int) -> Tensor:
    """The ``cells`` nearest to the first corner (top left), a growing square. For another corner, ``flip`` it.

    Args:
        size: Size of the map, such as ``(7, 7)``.
        cells: How many cells are 1, from 1 to all of them.

    Returns:
        float32 of 0 and 1, of shape ``size``.

    Raises:
        ValueError: As :func:`border_mask`.

    Example:
        >>> corner_mask((3, 3), cells=4)
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [0., 0., 0.]])
    """
    return _first_cells(size, cells, lambda cell: (max(cell), sum(cell)))


def _first_cells(size: Sequence[int], cells: int, order: Callable[[Cell], Any]) -> Tensor:
    count = math.prod(size)
    if not size or min(size) < 1:
        raise ValueError(f"size is {tuple(size)}; expected the size of a map, such as (7, 7)")
    if not 1 <= cells <= count:
        raise ValueError(f"cells is {cells}; expected 1 to {count}, the number of cells of a map of size {tuple(size)}")
    mask = torch.zeros(tuple(size))
    for cell in sorted(itertools.product(*map(range, size)), key=order)[:cells]:  # equal keys stay in row order
        mask[cell] = 1
    return mask


def _edge_first(cell: Cell, size: Sequence[int]) -> Sequence[int]:
    """Ring, counted from the edge, and nearness to a corner of that ring."""
    depths = [min(at, length - 1 - at) for at, length in zip(cell, size, strict=True)]
    return min(depths), sum(depths)
