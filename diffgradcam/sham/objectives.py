"""Losses of passive fooling on maps: ``(maps, clean_maps, mask) -> (B,)``, one value per image.

``maps`` are those of the model in training, ``clean_maps`` those of the model before, both *signed* (``rectify=False``)
and at the size of ``mask``; a loss reads what it needs. Your own loss is a function of this form.

The losses of Heo et al. follow the formulas in their public code, where a map is rectified, then divided by its largest
value. Their data, weights and schedules are not reproduced.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffgradcam.heatmaps import rectify, scale_signed
from diffgradcam.losses import cyborg_loss

FoolingLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

_TOP_SHARE = 0.1


def sham_loss(maps: Tensor, _clean_maps: Tensor, mask: Tensor) -> Tensor:
    """Salience-hoax training: CYBORG with the hoax in place of the human map, ``MSE(minmax(map), mask)``.

    Args:
        maps: Signed maps, ``(B, *S)``.
        _clean_maps: Not read.
        mask: The hoax, ``S``.

    Returns:
        Values in [0, 1], ``(B,)``.

    Reference:
        Our reading of Piland, Sweet, Czajka, "DiffGradCAM", 2025 (arXiv 2506.08514), with the loss
        of Boyd et al., "CYBORG", WACV 2023.

    Example:
        >>> sham_loss(torch.tensor([[0.0, 1.0, 4.0]]), torch.zeros(1, 3), torch.tensor([1.0, 0.0, 0.0]))
        tensor([0.6875])
    """
    return cyborg_loss(maps, mask.expand_as(maps), reduction="none")


def location_loss(maps: Tensor, _clean_maps: Tensor, mask: Tensor) -> Tensor:
    """Location fooling: the mean of ``(mask - h)**2``, with ``h`` the rectified map divided by its maximum.

    Its authors' mask is a border of width ``l // 7`` on an ``l`` x ``l`` map: on 7 x 7 ``border_mask((7, 7), 24)``.

    Args:
        maps: Signed maps, ``(B, *S)``.
        _clean_maps: Not read.
        mask: The hoax, ``S``.

    Returns:
        Values in [0, 1] for a mask in [0, 1], ``(B,)``.

    Reference:
        Heo, Joo, Moon, "Fooling Neural Network Interpretations via Adversarial Model Manipulation", NeurIPS 2019.

    Example:
        >>> location_loss(torch.tensor([[-1.0, 1.0, 2.0]]), torch.zeros(1, 3), torch.tensor([1.0, 0.0, 0.0]))
        tensor([0.7500])
    """
    return (mask - _shown(maps)).square().flatten(1).mean(1)


def top_k_loss(maps: Tensor, clean_maps: Tensor, _mask: Tensor) -> Tensor:
    """Top-k fooling: the mean of ``h**2`` over the tenth of the positions where the clean map was largest.

    At least one position counts; ties go to the earlier one.

    Args:
        maps: Signed maps, ``(B, *S)``.
        clean_maps: Those of the model before, ``(B, *S)``.
        _mask: Not read.

    Returns:
        Values in [0, 1], ``(B,)``.

    Reference:
        Heo, Joo, Moon, NeurIPS 2019.

    Example:
        >>> top_k_loss(torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[5.0, 1.0, 0.0]]), torch.zeros(3))
        tensor([0.2500])
    """
    clean = rectify(clean_maps).flatten(1)
    count = max(1, round(_TOP_SHARE * clean.shape[1]))
    top = clean.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return _shown(maps).flatten(1).gather(1, top).square().mean(1)


def centre_mass_loss(maps: Tensor, clean_maps: Tensor, _mask: Tensor) -> Tensor:
    """Centre-mass fooling: minus the distance, summed over rows and columns, that the map's centre of mass has moved.

    Args:
        maps: Signed maps, ``(B, *S)``.
        clean_maps: Those of the model before, ``(B, *S)``.
        _mask: Not read.

    Returns:
        Values in cells, at most 0, ``(B,)``. A map without positive evidence has its centre in the middle.

    Reference:
        Heo, Joo, Moon, NeurIPS 2019.

    Example:
        >>> centre_mass_loss(torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[1.0, 1.0, 0.0]]), torch.zeros(3))
        tensor([-1.5000])
    """
    return -(_centre_of_mass(maps) - _centre_of_mass(clean_maps).detach()).abs().sum(1)


def active_loss(maps: Tensor, clean_maps: Tensor, _mask: Tensor) -> Tensor:
    """Active fooling: each of two classes shows the clean map of the other, ``mean((h_a - clean_b)**2)`` over both.

    For :func:`~diffgradcam.sham.finetune` with ``classes=(a, b)``, on images that hold both.

    Args:
        maps: Signed maps of two classes, ``(B, 2, *S)``.
        clean_maps: Those of the model before, ``(B, 2, *S)``.
        _mask: Not read.

    Returns:
        Values in [0, 1], ``(B,)``.

    Raises:
        ValueError: If the maps are not of two classes.

    Reference:
        Heo, Joo, Moon, NeurIPS 2019.

    Example:
        >>> clean = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> active_loss(clean, clean, torch.zeros(2)), active_loss(clean.flip(1), clean, torch.zeros(2))
        (tensor([1.]), tensor([0.]))
    """
    if maps.ndim < 3 or maps.shape[1] != 2:
        raise ValueError(
            f"maps have shape {tuple(maps.shape)}; expected those of two classes, (B, 2, ...); give classes=(a, b)"
        )
    swapped = _shown(clean_maps.flatten(0, 1)).view_as(clean_maps).flip(1)
    return (_shown(maps.flatten(0, 1)).view_as(maps) - swapped).square().flatten(1).mean(1)


def _shown(maps: Tensor) -> Tensor:
    """What Heo et al. show: rectified, divided by the maximum; a map without positive evidence is 0."""
    return scale_signed(rectify(maps))


def _centre_of_mass(maps: Tensor) -> Tensor:
    """In cells from the middle, ``(B, number of dimensions)``."""
    shown = _shown(maps)
    total = shown.flatten(1).sum(1)
    share = shown / torch.where(total == 0, 1, total).view(-1, *[1] * (shown.ndim - 1))
    centres = []
    for dim in range(1, shown.ndim):
        length = shown.shape[dim]
        position = torch.arange(length, device=shown.device, dtype=shown.dtype) - (length - 1) / 2
        others = [d for d in range(1, shown.ndim) if d != dim]
        centres.append(((share.sum(others) if others else share) * position).sum(1))
    return torch.stack(centres, 1)
