"""Does the map say what the model uses? Change the image where the map points, and see what becomes of the score.

Every metric here takes an :class:`~diffgradcam.metrics.Evaluator` (the model and what is read from it), images and
their maps, and gives one number for each image. So a metric comes with its interval
(:func:`~diffgradcam.metrics.mean_interval`), and two methods are compared image by image
(:func:`~diffgradcam.metrics.paired_comparison`, with images in the place of seeds).

Conventions:

- Images are ``(B, C, *S)`` on the device of the model. Maps are tensors or arrays ``(B, *s)`` of any resolution and are
  resized to the image. A rectified map ranks nothing where it is 0. Give signed maps (``rectify=False``) to rank the
  evidence against a class below no evidence.
- ``classes`` None is the model's decision on the whole image. It stays the same for every changed image.
- No global random number is drawn. The same random changes are made to every image, so its value does not depend on
  the rest of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from diffgradcam._core.outputs import Classes
from diffgradcam.scores import ScoreFunction, probability

from .evaluator import Evaluator, Maps, check_evaluator, heatmaps_at_input, pixel_ranks
from .imputation import Fill, filled_with, noisy_linear_imputation


class Curve(NamedTuple):
    """What becomes of the score as pixels are removed from the image, or inserted into it.

    Attributes:
        fractions: Share of the pixels that are removed or inserted, ``(S + 1,)``, from 0 to 1.
        values: The score at each of them, ``(B, S + 1)``, in the unit of the score.
        auc: Area under the curve by the trapezoidal rule, ``(B,)``: the mean score along it.
    """

    fractions: Tensor
    values: Tensor
    auc: Tensor


class Road(NamedTuple):
    """How much the score changes when pixels are removed and imputed, mean over the percentiles.

    Attributes:
        most_relevant: Change (after minus before) when the most relevant pixels go, ``(B,)``; lower is better.
        least_relevant: Change when the least relevant pixels go, ``(B,)``; higher is better.
        combined: ``(least_relevant - most_relevant) / 2``, ``(B,)``; higher is better, 0 for a map without a clue.
    """

    most_relevant: Tensor
    least_relevant: Tensor
    combined: Tensor


def deletion(
    evaluator: Evaluator,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    steps: int = 50,
    fill: Fill = "mean",
    progress: bool = True,
) -> Curve:
    """Remove pixels, the most relevant first, and follow the score: the faster it falls, the better the map.

    Pixels that the map does not tell apart are removed row by row from the top left.

    Args:
        evaluator: The model and the score that is followed.
        images: ``(B, C, *S)``.
        maps: ``(B, *s)``.
        classes: None (the decision), one class for all images, or ``(B,)``.
        steps: In how many steps of the same number of pixels; each costs a forward pass for each image.
        fill: What removed pixels become: ``"mean"`` of the image's channel, ``"blur"`` (11 x 11 pixels, standard
            deviation 5), a tensor that broadcasts to the images (``torch.zeros(())``, say), or a function of them.
        progress: Show a progress bar.

    Returns:
        The curve, see :class:`Curve`. Lower ``auc`` is better.

    Raises:
        ValueError: If shapes do not match, a map or a logit is not finite, there are more steps than pixels, or a class
            is out of range.
        TypeError: If images are not a tensor, classes are not integers, or the first argument is not an evaluator.

    Reference:
        Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018. There
        the score is the probability, pixels become 0, and a photo of 224 x 224 takes 224 steps.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> _ = model[1].weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]))
        >>> images, maps = torch.ones(1, 1, 2, 2), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> deletion(Evaluator(model), images, maps, 0, steps=4, fill=torch.tensor(0.0)).values
        tensor([[10.,  6.,  3.,  1.,  0.]])
    """
    return _curve(evaluator, images, maps, classes, steps, fill, progress, inserted=False)


def insertion(
    evaluator: Evaluator,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    steps: int = 50,
    fill: Fill = "blur",
    progress: bool = True,
) -> Curve:
    """Insert pixels into an image without any, the most relevant first: the faster the score rises, the better the map.

    Args:
        evaluator: As :func:`deletion`.
        images: As :func:`deletion`.
        maps: As :func:`deletion`.
        classes: As :func:`deletion`.
        steps: As :func:`deletion`.
        fill: What the image is before: as :func:`deletion`. The blur hides fine structure and makes no edges.
        progress: As :func:`deletion`.

    Returns:
        The curve, see :class:`Curve`. Higher ``auc`` is better.

    Raises:
        ValueError: As :func:`deletion`.
        TypeError: As :func:`deletion`.

    Reference:
        As :func:`deletion`.
    """
    return _curve(evaluator, images, maps, classes, steps, fill, progress, inserted=True)


def road(
    evaluator: Evaluator,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    percentiles: Sequence[float] = (20, 40, 60, 80),
    noise: float = 0.01,
    seed: int = 0,
    progress: bool = True,
) -> Road:
    """ROAD, Remove And Debias: remove pixels so that what is left does not tell where they were.

    Removed pixels are imputed, see :func:`noisy_linear_imputation`: a hole of one colour has a shape that the model
    sees. Pixels that the map does not tell apart are taken row by row, as many as the percentile says; pytorch-grad-cam
    removes all of them, which is the whole image where a rectified map is 0 up to the percentile. On maps without equal
    values both give the same.

    Args:
        evaluator: As :func:`deletion`.
        images: ``(B, C, H, W)``.
        maps: ``(B, h, w)``.
        classes: As :func:`deletion`.
        percentiles: How many per cent of the pixels are *kept*, each between 0 and 100, as in pytorch-grad-cam.
        noise: As :func:`noisy_linear_imputation`.
        seed: As :func:`noisy_linear_imputation`.
        progress: Show a progress bar. A photo of 224 x 224 takes about a second of one core.

    Returns:
        The changes of the score, see :class:`Road`.

    Raises:
        ValueError: As :func:`deletion`, if images are not ``(B, C, H, W)``, or a percentile is out of range.
        TypeError: As :func:`deletion`.
        ImportError: If SciPy is not installed.

    Reference:
        Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022. The signs and
        ``combined`` are those of ``pytorch_grad_cam.metrics.road``.
    """
    if not percentiles or not all(0 < percentile < 100 for percentile in percentiles):
        raise ValueError(f"percentiles are {tuple(percentiles)}; expected at least one, each between 0 and 100")
    check_evaluator(evaluator)
    ready, index, before = evaluator.start(images, classes)
    ranks = pixel_ranks(maps, images)
    pixels = ranks[0].numel()
    changes: dict[str, list[Tensor]] = {"most": [], "least": []}
    for percentile in tqdm(percentiles, desc="road", disable=not progress):
        # The rank of the percentile in a list without equal values, as NumPy counts it.
        kept = math.ceil(percentile * (pixels - 1) / 100)
        for which, missing in (("most", ranks < pixels - kept), ("least", ranks >= kept)):
            imputed = noisy_linear_imputation(images, missing, noise=noise, seed=seed)
            changes[which].append(ready.scores(imputed, index) - before)
    most, least = (torch.stack(changes[which]).mean(0) for which in ("most", "least"))
    return Road(most, least, (least - most) / 2)


def average_drop(
    evaluator: Evaluator,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    confidence: ScoreFunction = probability,
) -> Tensor:
    """Share of the confidence that is lost when the image is multiplied by its map; lower is better.

    ``max(0, Y - O) / Y`` with the confidence Y of the whole image and O of the image times the map, which is resized
    and min-max scaled. The mean over images is the published Average Drop (times 100 for per cent). Multiplying fades
    pixels to 0, the mean colour of most training data; a constant map leaves nothing.

    Args:
        evaluator: As :func:`deletion`.
        images: As :func:`deletion`.
        maps: As :func:`deletion`.
        classes: As :func:`deletion`.
        confidence: The score that is a confidence, in [0, 1]; read instead of the evaluator's score.

    Returns:
        Shares in [0, 1], ``(B,)``; 0 where the confidence was 0. ``DropInConfidence`` of pytorch-grad-cam is this times
        Y, since it does not divide.

    Raises:
        ValueError: As :func:`deletion`, or if a score is not in [0, 1].
        TypeError: As :func:`deletion`.

    Reference:
        Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations", WACV 2018.
    """
    whole, seen = _confidences(evaluator, images, maps, classes, confidence)
    return (whole - seen).clamp_min(0) / torch.where(whole > 0, whole, 1)


def average_increase(
    evaluator: Evaluator,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    confidence: ScoreFunction = probability,
) -> Tensor:
    """Is the model more confident when the image is multiplied by its map? Higher is better.

    The mean over images is the published Average Increase, or Increase in Confidence.

    Args:
        evaluator: As :func:`deletion`.
        images: As :func:`deletion`.
        maps: As :func:`deletion`.
        classes: As :func:`deletion`.
        confidence: As :func:`average_drop`.

    Returns:
        1 where it is and 0 where it is not, ``(B,)``.

    Raises:
        ValueError: As :func:`average_drop`.
        TypeError: As :func:`deletion`.

    Reference:
        As :func:`average_drop`.
    """
    whole, seen = _confidences(evaluator, images, maps, classes, confidence)
    return (seen > whole).to(whole.dtype)


def average_gain(
    evaluator: Evaluator,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    confidence: ScoreFunction = probability,
) -> Tensor:
    """Share of the missing confidence that is gained when the image is multiplied by its map; higher is better.

    ``max(0, O - Y) / (1 - Y)``, with the symbols of :func:`average_drop`, whose counterpart it is.

    Args:
        evaluator: As :func:`deletion`.
        images: As :func:`deletion`.
        maps: As :func:`deletion`.
        classes: As :func:`deletion`.
        confidence: As :func:`average_drop`.

    Returns:
        Shares in [0, 1], ``(B,)``; 0 where the confidence was 1.

    Raises:
        ValueError: As :func:`average_drop`.
        TypeError: As :func:`deletion`.

    Reference:
        Zhang et al., "Opti-CAM: Optimizing saliency maps for interpretability", 2023 (arXiv 2301.07002).
    """
    whole, seen = _confidences(evaluator, images, maps, classes, confidence)
    return (seen - whole).clamp_min(0) / torch.where(whole < 1, 1 - whole, 1)


def _curve(
    evaluator: Evaluator,
    images: Tensor,
    maps: Maps,
    classes: Classes,
    steps: int,
    fill: Fill,
    progress: bool,
    *,
    inserted: bool,
) -> Curve:
    check_evaluator(evaluator)
    ready, index, _ = evaluator.start(images, classes)
    batch_size = evaluator.at_once(images)
    ranks = pixel_ranks(maps, images)
    pixels = ranks[0].numel()
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps is {steps}; expected from 1 to the number of pixels, {pixels}")
    filled = filled_with(images, fill)
    before, after = (filled, images) if inserted else (images, filled)
    counts = torch.tensor([round(step * pixels / steps) for step in range(steps + 1)], device=images.device)
    rows = torch.arange(len(images), device=images.device).repeat_interleave(steps + 1)
    pairs = zip(torch.split(rows, batch_size), torch.split(counts.repeat(len(images)), batch_size), strict=True)
    name = "insertion" if inserted else "deletion"
    scores = []
    for row, count in tqdm(pairs, desc=name, total=math.ceil(len(rows) / batch_size), disable=not progress):
        changed = (ranks[row] < count.view(-1, *[1] * (ranks.ndim - 1))).unsqueeze(1)
        scores.append(ready.scores(torch.where(changed, after[row], before[row]), index[row]))
    values = torch.cat(scores).view(len(images), steps + 1)
    fractions = counts.to(values) / pixels
    return Curve(fractions, values, torch.trapezoid(values, fractions))


def _confidences(
    evaluator: Evaluator,
    images: Tensor,
    maps: Maps,
    classes: Classes,
    confidence: ScoreFunction,
) -> tuple[Tensor, Tensor]:
    check_evaluator(evaluator)
    ready, index, whole = replace(evaluator, score=confidence).start(images, classes)
    mask = heatmaps_at_input(maps, images).unsqueeze(1)
    seen = ready.scores(images * mask.to(images), index)
    for values in (whole, seen):
        if not bool(((values >= 0) & (values <= 1)).all()):
            wrong = values[(values < 0) | (values > 1)][0]
            raise ValueError(
                f"the score of an image is {wrong:.4g}; a share of the confidence needs a score in [0, 1], such as "
                "diffgradcam.scores.probability"
            )
    return whole, seen
