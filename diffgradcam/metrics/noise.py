"""Noise: does a map hold still while the decision does, and move when the decision changes?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from diffgradcam._core.batches import check_images
from diffgradcam._core.checks import check_count, check_seed, check_std
from diffgradcam._core.explanation import ModelExplainer
from diffgradcam._core.versions import noises, pixel_range

from .evaluator import evaluated_cam, explained
from .similarity import MapSimilarity, compared, rank_biased_overlap


class NoiseResponse(NamedTuple):
    """What noise does to the maps of each image.

    Attributes:
        consistency: Mean similarity to the map without noise, over the noisy copies with the same decision, ``(B,)``;
            NaN where there is none. Higher is better.
        responsiveness: Mean of 1 minus the similarity, over the noisy copies with another decision, ``(B,)``; NaN where
            there is none. Higher is better.
        changed: Share of the noisy copies with another decision, ``(B,)``.
    """

    consistency: Tensor
    responsiveness: Tensor
    changed: Tensor

    @property
    def robustness(self) -> float:
        """Mean consistency times mean responsiveness, of the images that have them; NaN where none has one."""
        return float(self.consistency.nanmean() * self.responsiveness.nanmean())


def noise_response(
    cam: ModelExplainer,
    images: Tensor,
    *,
    std: float = 0.2,
    samples: int = 20,
    similarity: MapSimilarity = rank_biased_overlap,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> NoiseResponse:
    """Consistency and responsiveness of maps under noise, each copy explained for its own decision.

    A map that never moves is consistent and tells nothing; a good one moves with the decision. Both are needed, so
    their product counts. Where noise of this strength changes no decision, or all of them, one of the two is not
    defined: choose another.

    Args:
        cam: A CAM.
        images: ``(B, C, *S)``.
        std: Standard deviation of the noise, relative to the range of the image (largest minus smallest value).
        samples: How many noisy copies of each image.
        similarity: Of two batches of maps, one number for each image, 1 for the same map.
        seed: Of the noise, which is the same for every image.
        batch_size: How many images are explained at once.
        progress: Show a progress bar.

    Returns:
        See :class:`NoiseResponse`.

    Raises:
        ValueError: If an option is out of range, the similarity has another shape, or as
            :meth:`~diffgradcam.BaseCAM.explain`.
        TypeError: If ``cam`` is not a CAM, or images are not a tensor.

    Reference:
        Our reading of Sarkar et al., "Assessing the Noise Robustness of Class Activation Maps", Image and Vision
        Computing 2025 (arXiv 2508.18154): the two properties are in its abstract; that their product counts, and that
        similarity is the rank-biased overlap, is said in reviews of it. There segments of the image are ranked, here
        the positions of the map.

    Example:
        >>> from torch import nn
        >>> from diffgradcam import GradCAM
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> response = noise_response(GradCAM(model, "1"), torch.rand(3, 3, 8, 8), std=0.0)
        >>> response.consistency, response.changed
        (tensor([1., 1., 1.]), tensor([0., 0., 0.]))
    """
    check_images(images)
    check_count("samples", samples)
    check_std(std)
    check_seed(seed)
    cam = evaluated_cam(cam)
    decisions, reference = explained(cam, images, None, batch_size)
    spread = std * pixel_range(images)
    similarities, changes = [], []
    for noise in tqdm(noises(images.shape[1:], samples, seed), desc="noise", total=samples, disable=not progress):
        index, maps = explained(cam, images + spread * noise.to(images), None, batch_size)
        similarities.append(compared(similarity, maps, reference))
        changes.append(index != decisions)
    values, changed = torch.stack(similarities), torch.stack(changes)
    return NoiseResponse(
        values.masked_fill(changed, torch.nan).nanmean(0),
        (1 - values).masked_fill(~changed, torch.nan).nanmean(0),
        changed.to(values).mean(0),
    )
