"""ARCC: three criteria of a map in one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from diffgradcam._core.explanation import ModelExplainer
from diffgradcam._core.outputs import Classes
from diffgradcam.scores import ScoreFunction, probability

from .evaluator import Evaluator, check_evaluator, evaluated_cam, explained, heatmaps_at_input
from .faithfulness import road
from .similarity import pearson


class Arcc(NamedTuple):
    """Three criteria of each map and their harmonic mean.

    Attributes:
        coherency: Is the map of the image times its map the same map? ``(r + 1) / 2``, ``(B,)``; higher is better.
        complexity: Mean of the map in [0, 1], ``(B,)``; lower is better.
        road: Twice the combined change of ROAD, cut to [0, 1], ``(B,)``; higher is better.
        arcc: Harmonic mean of ``coherency``, ``1 - complexity`` and ``road``, ``(B,)``; 0 where one of them is.
    """

    coherency: Tensor
    complexity: Tensor
    road: Tensor
    arcc: Tensor


def arcc(
    evaluator: Evaluator,
    cam: ModelExplainer,
    images: Tensor,
    classes: Classes = None,
    *,
    confidence: ScoreFunction = probability,
    percentiles: Sequence[float] = (20, 40, 60, 80),
    noise: float = 0.01,
    seed: int = 0,
    progress: bool = True,
) -> Arcc:
    """ARCC: the harmonic mean of coherency, simplicity and ROAD of the maps of a CAM.

    Maps are scaled to [0, 1] at the size of the images. The coherency is Pearson's correlation of the map with the map
    that the CAM shows for the same class of the image times the map. A low complexity is not a virtue in itself: a map
    of one pixel has the lowest.

    pytorch-grad-cam calls the mean geometric in its docstring; its code, and this, is harmonic. It adds 1e-8 to each
    term, and its ROAD removes all pixels of equal value together, see :func:`~diffgradcam.metrics.road`.

    Args:
        evaluator: The model, and how many images it sees at once; its score is not read.
        cam: What explains that model.
        images: ``(B, C, H, W)``.
        classes: None (the decision), one class for all images, or ``(B,)``.
        confidence: The score whose change ROAD measures, in [0, 1].
        percentiles: As :func:`~diffgradcam.metrics.road`.
        noise: As :func:`~diffgradcam.metrics.road`.
        seed: As :func:`~diffgradcam.metrics.road`.
        progress: Show a progress bar.

    Returns:
        See :class:`Arcc`.

    Raises:
        ValueError: As :func:`~diffgradcam.metrics.road`.
        TypeError: As :func:`~diffgradcam.metrics.road`; if ``cam`` is not a CAM.
        ImportError: If SciPy is not installed.

    Reference:
        "How to Evaluate and Refine your CAM" (arXiv 2605.14641), read in the code of pytorch-grad-cam.

    Example:
        >>> from torch import nn
        >>> from diffgradcam import GradCAM
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> arcc(Evaluator(model), GradCAM(model, "1"), torch.rand(5, 3, 8, 8)).arcc.shape
        torch.Size([5])
    """
    check_evaluator(evaluator)
    ready, index, _ = replace(evaluator, score=confidence).start(images, classes)
    cam = evaluated_cam(cam)

    def heatmaps(inputs: Tensor) -> Tensor:
        return heatmaps_at_input(explained(cam, inputs, index, evaluator.at_once(images))[1], images)

    maps = heatmaps(images)
    coherency = (pearson(heatmaps(images * maps.unsqueeze(1).to(images)), maps) + 1) / 2
    complexity = maps.flatten(1).mean(1)
    removed = road(ready, images, maps, index, percentiles=percentiles, noise=noise, seed=seed, progress=progress)
    clipped = (2 * removed.combined).clamp(0, 1).to(coherency)
    mean = _harmonic_mean([coherency, 1 - complexity, clipped])
    return Arcc(coherency.to(images), complexity.to(images), clipped.to(images), mean.to(images))


def _harmonic_mean(parts: Sequence[Tensor]) -> Tensor:
    """Of numbers ``(B,)`` that are at least 0; 0 where one of them is."""
    stacked = torch.stack(list(parts))
    positive = stacked > 0
    return torch.where(positive.all(0), len(stacked) / torch.where(positive, stacked, 1).reciprocal().sum(0), 0)
