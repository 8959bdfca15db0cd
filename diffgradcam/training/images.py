"""From images of any size to batches: prepared once, kept in memory, turned and mirrored together with their maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..data import SaliencyItem
from ..heatmaps import resize
from .protocol import Augmentation

_TURN, _SCALE, _SHIFT = 10.0, 0.1, 0.05  # degrees, and shares of the side


@dataclass(frozen=True)
class Prepare:
    """Bring image and map to one size, and the image to a model's range. A transform for ``SaliencyDataset``.

    Attributes:
        size: Height and width, in pixels; the shape of the image is not kept.
        mean: Subtracted from pixels in [0, 1]: one number for a model of grey images, or three.
        std: Divided by, after that.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)

    def __call__(self, image: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
        """Prepare one image ``(3, H, W)`` in [0, 1] and its map ``(H, W)``."""
        if len(self.mean) == 1:
            image = image.mean(0, keepdim=True)
        # Averaged where it shrinks: a thin mark cannot fall between two pixels.
        image = F.interpolate(image[None], self.size, mode="bilinear", antialias=True)[0]
        coarse = [min(old, new) for old, new in zip(saliency.shape, self.size, strict=True)]
        saliency = resize(F.interpolate(saliency[None, None], coarse, mode="area")[0], self.size)[0]
        return (image - image.new_tensor(self.mean)[:, None, None]) / image.new_tensor(self.std)[
            :, None, None
        ], saliency


class InMemory(Dataset[SaliencyItem]):
    """Images of one size, as tensors.

    Args:
        images: ``(N, C, H, W)``.
        labels: ``(N,)``, int64.
        saliency: ``(N, H, W)``, zeros where there is none; none has one when absent.
        has_saliency: ``(N,)``, bool.
        groups: Group of each image.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        saliency: Tensor | None = None,
        has_saliency: Tensor | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        self.images, self.labels = images, labels
        self.saliency = images.new_zeros(len(images), *images.shape[2:]) if saliency is None else saliency
        none = torch.zeros(len(images), dtype=torch.bool)
        self.has_saliency = (none if saliency is None else ~none) if has_saliency is None else has_saliency
        self.groups = [""] * len(images) if groups is None else list(groups)

    @classmethod
    def of(cls, dataset: Dataset[SaliencyItem]) -> InMemory:
        """Read a data set once.

        Args:
            dataset: Whose images have one size.

        Returns:
            Its items.
        """
        return cls.of_items([dataset[index] for index in range(len(dataset))])  # type: ignore[arg-type]

    @classmethod
    def of_items(cls, items: Sequence[SaliencyItem]) -> InMemory:
        """Put items together.

        Args:
            items: At least one, of one size.

        Returns:
            A data set of them.
        """
        images, labels, saliency, has_saliency, groups = zip(*items, strict=True)
        return cls(
            torch.stack(images), torch.stack(labels), torch.stack(saliency), torch.stack(has_saliency), list(groups)
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> SaliencyItem:
        """One image."""
        return SaliencyItem(
            self.images[index], self.labels[index], self.saliency[index], self.has_saliency[index], self.groups[index]
        )


def augmented(images: Tensor, saliency: Tensor, how: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change images and their maps together, each image another way.

    Args:
        images: ``(B, C, H, W)``.
        saliency: ``(B, H, W)``.
        how: As in :class:`~diffgradcam.training.Settings`.
        generator: What is drawn comes from here; on the CPU.

    Returns:
        ``(images, saliency)``. What moves in from outside is 0, the mean of a normalised image.
    """
    if how == "none":
        return images, saliency
    count = len(images)
    mirrored = torch.rand(count, generator=generator) < 0.5
    if how == "flip":
        where = mirrored.to(images.device)
        return (
            torch.where(where[:, None, None, None], images.flip(3), images),
            torch.where(where[:, None, None], saliency.flip(2), saliency),
        )
    turn, scale, *shift = (2 * torch.rand(4, count, generator=generator) - 1).unbind(0)
    angle, scale = turn * math.radians(_TURN), 1 + scale * _SCALE
    sign = 1 - 2 * mirrored.float()
    height, width = images.shape[2:]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([sign * cos, -sin * height / width, 2 * _SHIFT * shift[0]], 1),
        torch.stack([sign * sin * width / height, cos, 2 * _SHIFT * shift[1]], 1),
    ]
    affine = torch.stack(rows, 1).to(images)
    grid = F.affine_grid(affine, [count, 1, height, width], align_corners=False)
    return (
        F.grid_sample(images, grid, align_corners=False),
        F.grid_sample(saliency[:, None].to(images.dtype), grid, align_corners=False)[:, 0],
    )
