"""THEN: what is done with a map once it is there. Pure functions on batches of maps, ``(B, *S) -> (B, *S)``.

``*S`` is any number of spatial dimensions: ``(B, L)``, ``(B, h, w)`` or ``(B, d, h, w)``. Every division is guarded,
so that a zero map and a constant map have a finite value and a finite gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def rectify(maps: Tensor) -> Tensor:
    """Keep the evidence for a class and drop the evidence against it: ReLU (Selvaraju et al., 2017).

    Args:
        maps: Signed maps of any shape.

    Returns:
        The maps with negative values set to 0.
    """
    return maps.relu()


def minmax(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1] by its own minimum and maximum.

    Args:
        maps: Maps, ``(B, *S)``.

    Returns:
        Maps of the same shape. A constant map has no contrast to show and becomes 0 everywhere.

    Example:
        >>> minmax(torch.tensor([[[1.0, 3.0], [2.0, 5.0]]]))
        tensor([[[0.0000, 0.5000],
                 [0.2500, 1.0000]]])
    """
    flat = _flat(maps)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return _divide(flat - low, high - low).view_as(maps)


def scale_signed(maps: Tensor) -> Tensor:
    """Scale each map to [-1, 1] by its largest magnitude, so that 0 stays 0 and signs stay signs.

    Args:
        maps: Signed maps, ``(B, *S)``.

    Returns:
        Maps of the same shape. A zero map stays zero.

    Example:
        >>> scale_signed(torch.tensor([[-4.0, 0.0, 2.0]]))
        tensor([[-1.0000,  0.0000,  0.5000]])
    """
    flat = _flat(maps)
    return _divide(flat, flat.abs().amax(1, keepdim=True)).view_as(maps)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize each map by (bi-, tri-)linear interpolation, pixel centres aligned as in OpenCV.

    Args:
        maps: Maps, ``(B, *S)`` with one to three spatial dimensions.
        size: The new spatial size, as many numbers as ``S`` has.

    Returns:
        Maps, ``(B, *size)``.

    Raises:
        ValueError: If ``size`` has another number of dimensions than the maps, or they have more than three.
    """
    size = tuple(size)
    spatial = tuple(maps.shape[1:])
    if len(size) != len(spatial) or len(size) not in _INTERPOLATION:
        raise ValueError(
            f"cannot resize maps with spatial size {spatial} to {size}: expected one to three spatial dimensions, "
            "as many as the maps have"
        )
    if size == spatial:
        return maps
    resized: Tensor = F.interpolate(maps.unsqueeze(1), size, mode=_INTERPOLATION[len(size)], align_corners=False)
    return resized.squeeze(1)


def entropy(maps: Tensor) -> Tensor:
    """Entropy of each map read as a distribution over positions: ``-sum q ln q`` with ``q = map / sum(map)``.

    Low entropy is a focused map. A map that is 1 on ``n`` positions and 0 elsewhere has entropy ``ln n``.

    Args:
        maps: Non-negative maps, ``(B, *S)``.

    Returns:
        Entropy in nats, ``(B,)``, between 0 and ``ln(number of positions)``; 0 for a map that is 0 everywhere.

    Reference:
        Piland, Czajka, Sweet, "Model Focus Improves Performance of Deep Learning-Based Synthetic Face Detectors",
        2023 (arXiv 2303.00818).

    Example:
        >>> entropy(torch.ones(1, 7, 4))  # ln 28
        tensor([3.3322])
    """
    flat = _flat(maps)
    q = _divide(flat, flat.sum(1, keepdim=True))
    return -(q * q.clamp_min(torch.finfo(q.dtype).tiny).log()).sum(1)


def principal_component(channels: Tensor) -> Tensor:
    """Collapse weighted channels to their first principal component over positions, instead of to their sum.

    The sign of a principal component is arbitrary; it is chosen to agree with the sum over the channels.

    Args:
        channels: Weighted activations, ``(B, C, *S)``.

    Returns:
        Maps, ``(B, *S)``.

    Reference:
        Muhammad and Yeasin, "Eigen-CAM", 2020 (arXiv 2008.00299), here on weighted activations ("eigen smoothing").
    """
    flat = channels.flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    _, _, directions = torch.linalg.svd(centred.transpose(1, 2), full_matrices=False)
    projection = (directions[:, :1] @ centred).squeeze(1)
    sign = torch.where((projection * centred.sum(1)).sum(1, keepdim=True) < 0, -1.0, 1.0).to(projection.dtype)
    return torch.mul(sign, projection).view(len(channels), *channels.shape[2:])


def _flat(maps: Tensor) -> Tensor:
    return maps.reshape(maps.shape[0], maps.shape[1:].numel())


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, 0 where the denominator is 0, with a finite gradient there too."""
    zero = denominator == 0
    return torch.where(zero, torch.zeros_like(numerator), numerator / torch.where(zero, 1, denominator))
