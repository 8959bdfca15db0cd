"""Maps without people: where training images differ, by principal components or by Fisher's discriminant.

Our own construction after the idea of per-image PCA ("Eigenface") and LDA ("Fisherface") maps for saliency-guided
training (arXiv 2606.13528, whose abstract is all of it that we had). They are made *from training images, for training
images*: a function gets those and nothing else, so no test image can enter. They make sense where images are aligned
(faces, X-rays), since both methods compare pixels at the same place.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..heatmaps import resize


def pca_saliency(images: Tensor, *, components: int = 16, grid: int = 24) -> Tensor:
    """Where an image departs from the mean image along the directions in which the images differ most.

    The absolute value of each image's reconstruction from the leading principal components, without the mean. It
    needs no labels.

    Args:
        images: Training images of one size, ``(N, C, H, W)``. They are compared in grey, on a coarse grid.
        components: How many principal components.
        grid: Longer side of that grid.

    Returns:
        Maps in [0, 1], ``(N, H, W)``, scaled so that the highest value on that grid is 1 (0 everywhere for an image
            like the mean): use them wherever human maps are.

    Raises:
        ValueError: If the shape is another one, there are fewer than two images, or an option is below 1.

    Reference:
        Our construction, after Turk and Pentland, "Eigenfaces for Recognition", 1991, and arXiv 2606.13528.
    """
    pixels, shape = _pixels(images, components, grid)
    centred = pixels - pixels.mean(0)
    basis = _basis(centred, components)
    return _maps((centred @ basis @ basis.T).abs(), shape, images)


def lda_saliency(
    images: Tensor, labels: Tensor, *, components: int = 64, shrinkage: float = 0.1, grid: int = 24
) -> Tensor:
    """Which pixels of an image speak for its class, by Fisher's linear discriminant.

    For each class the direction ``S_w^-1 (mean of the class - mean of all)``, within the leading principal components;
    the map is the positive part of that direction times the image without the mean, for the image's own class.

    Args:
        images: Training images of one size, ``(N, C, H, W)``. They are compared in grey, on a coarse grid.
        labels: Their classes, ``(N,)``, int64.
        components: Principal components in which the discriminant is looked for.
        shrinkage: Share of its mean variance that the within-class covariance ``S_w`` is drawn to, above 0, up to
            1, so that it can be inverted.
        grid: Longer side of that grid.

    Returns:
        Maps in [0, 1], ``(N, H, W)``, scaled so that the highest value on that grid is 1 (0 everywhere where nothing
            speaks for the class): use them wherever human maps are.

    Raises:
        ValueError: If shapes do not match, labels are not integers, there is one class only, or an option is out of its
            range.

    Reference:
        Our construction, after Belhumeur, Hespanha and Kriegman, "Eigenfaces vs. Fisherfaces", 1997, and arXiv
        2606.13528.
    """
    pixels, shape = _pixels(images, components, grid)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels have shape {tuple(labels.shape)} for {len(images)} images: expected one each, (N,)")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype}: expected class indices; convert them with labels.long()")
    labels = labels.long()
    classes: Tensor = torch.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"all labels are {classes.tolist()}: expected at least two classes to tell apart")
    if not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}: expected a share above 0, up to 1")
    centred = pixels - pixels.mean(0)
    basis = _basis(centred, components)
    inner = centred @ basis
    means = torch.stack([inner[labels == label].mean(0) for label in classes])
    position = torch.searchsorted(classes, labels)
    within = inner - means[position]
    covariance = within.T @ within / len(within)
    variance = covariance.diagonal().mean().clamp_min(torch.finfo(covariance.dtype).tiny)
    covariance = (1 - shrinkage) * covariance + shrinkage * variance * torch.eye(len(covariance)).to(covariance)
    directions = torch.linalg.solve(covariance, means.T).T @ basis.T
    return _maps((directions[position] * centred).relu(), shape, images)


def _pixels(images: Tensor, components: int, grid: int) -> tuple[Tensor, tuple[int, int]]:
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(f"images have shape {tuple(images.shape)}: expected (N, C, H, W) with at least two images")
    if components < 1 or grid < 1:
        raise ValueError(f"components is {components} and grid {grid}: expected at least 1 each")
    height, width = images.shape[2:]
    scale = min(1.0, grid / max(height, width))
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    grey = images.double().mean(1, keepdim=True)
    pixels: Tensor = F.interpolate(grey, shape, mode="area").flatten(1)
    if not (pixels - pixels.mean(0)).isfinite().all():
        raise ValueError("images hold NaN, infinite or too large values, or no channel: expected finite values")
    return pixels, shape


def _basis(centred: Tensor, components: int) -> Tensor:
    """Leading directions as columns, ``(D, k)``, without those in which nothing varies."""
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    varying = int((sizes > 1e-9 * sizes[:1]).sum())
    leading: Tensor = directions[: min(components, varying)].T
    return leading


def _maps(values: Tensor, shape: tuple[int, int], images: Tensor) -> Tensor:
    peaks = values.amax(1, keepdim=True)
    values = values / torch.where(peaks > 0, peaks, 1)
    maps: Tensor = resize(values.view(-1, *shape), images.shape[2:]).clamp(0, 1)
    return maps.to(images.dtype)
