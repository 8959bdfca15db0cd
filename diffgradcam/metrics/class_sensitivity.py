"""Class sensitivity: does a method show different maps for different classes of one image?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffgradcam._core.batches import check_images
from diffgradcam._core.checks import check_count, check_share
from diffgradcam._core.explanation import ModelExplainer
from diffgradcam._core.optional import import_optional

from .evaluator import evaluated_cam, pixel_ranks


class ClassSensitivity(NamedTuple):
    """How much the maps of the two most likely classes agree.

    Attributes:
        agreement: Share of the most relevant pixels that both maps have in common, ``(B,)``, in [0, 1].
        p_value: Of the one-sided signed-rank test of Wilcoxon that the median agreement is *below* the threshold; small
            for a method that is sensitive to the class. 1 where every agreement is the threshold itself.
    """

    agreement: Tensor
    p_value: float


def class_sensitivity(
    cam: ModelExplainer,
    images: Tensor,
    *,
    share: float = 0.05,
    threshold: float = 0.5,
    batch_size: int = 64,
) -> ClassSensitivity:
    """The class-sensitivity test of CASE: do the maps of the two most likely classes mark the same pixels?

    Maps are compared at the size of the images. A method without a class, such as :class:`~diffgradcam.EigenCAM`, has
    agreement 1. A low agreement says that a method tells classes apart, and not that it is right about them.

    Args:
        cam: A CAM that explains several classes of an image.
        images: ``(B, C, *S)`` of a model with at least two classes.
        share: Which share of the pixels is compared, above 0 and up to 1; at least one pixel.
        threshold: The agreement to be below, in [0, 1]. It is 0.5 in a summary of the paper, and 0.7 where its
            repository shows how to call its script.
        batch_size: How many images are explained at once.

    Returns:
        See :class:`ClassSensitivity`.

    Raises:
        ValueError: If an option is out of range, there is one class only, or as :meth:`~diffgradcam.BaseCAM.explain`.
        TypeError: If ``cam`` is not a CAM, or images are not a tensor.
        ImportError: If SciPy is not installed.

    Reference:
        Williamson, Dwyer, Ji, "CASE: Contrastive Activation for Saliency Estimation", 2025 (arXiv 2506.07327), read in
        its public code.

    Example:
        >>> from torch import nn
        >>> from diffgradcam import EigenCAM
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> class_sensitivity(EigenCAM(model, "0"), torch.rand(2, 3, 8, 8)).agreement
        tensor([1., 1.])
    """
    check_images(images)
    check_count("batch_size", batch_size)
    check_share("threshold", threshold)
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected a share of the pixels, above 0 and up to 1")
    cam = evaluated_cam(cam)
    pixels = images.shape[2:].numel()
    count = max(1, int(share * pixels))
    agreements = []
    for chunk in torch.split(images, batch_size):
        maps = cam.explain(chunk, "top2").maps
        first, second = (pixel_ranks(maps[:, number], chunk) < count for number in (0, 1))
        agreements.append((first & second).flatten(1).sum(1).to(maps) / count)
    agreement = torch.cat(agreements)
    differences = agreement.cpu().double().numpy() - threshold
    test = import_optional("scipy.stats", "this metric").wilcoxon
    return ClassSensitivity(
        agreement, float(test(differences, alternative="less").pvalue) if differences.any() else 1.0
    )
