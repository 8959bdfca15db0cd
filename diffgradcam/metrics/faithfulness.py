"""Does the map say what the model uses? Change the image where the map points, and see what becomes of the score.

Everything is batched and gives one number for each image, so that a figure comes with its interval
(:func:`~diffgradcam.metrics.mean_interval`) and two methods are compared image by image
(:func:`~diffgradcam.metrics.paired_comparison`, with images in the place of seeds).

Conventions that hold everywhere here:

- Images are ``(B, C, *S)`` on the device of the model. Maps are tensors or arrays ``(B, *s)`` of any resolution and are
  resized to the image. A rectified map ranks nothing where it is 0: give signed maps (``rectify=False``) to rank the
  evidence against a class below no evidence.
- ``classes`` None is the model's decision on the whole image; it stays the same for every changed image.
- The default score is the log-odds, :func:`diffgradcam.scores.logit_difference`: what contrastive maps explain, and
  what does not saturate as a probability does. Any other score of the library goes, ``probability`` for instance.
- A model in training mode, or with a part that is, is evaluated as a copy in evaluation mode. No global random number
  is drawn; the same random changes are made to every image, so its figure does not depend on the rest of the batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from diffgradcam.gradients import widen
from diffgradcam.maps import minmax, resize
from diffgradcam.outputs import Classes, check_finite, class_index, find_logits
from diffgradcam.passes import Explanation
from diffgradcam.scores import Score, logit_difference, probability
from diffgradcam.surgery import copy_model

Maps = Tensor | NDArray[Any]
Fill = str | Tensor | Callable[[Tensor], Tensor]
Perturb = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
Output = Callable[[Any], Tensor]

_BLUR_RADIUS, _BLUR_SD = 5, 5.0  # pixels: the 11 x 11 window of RISE
_DECIMALS = 9  # of the min-max scaled map: what differs by less is rounding of the resizing
# Offsets and weights of the eight neighbours of a pixel, from Rong et al.
_NEIGHBOURS = [
    ((dy, dx), 1 / 12 if dy and dx else 1 / 6) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
]


class Explainer(Protocol):
    """Whatever explains images: every CAM of the library."""

    @property
    def model(self) -> nn.Module:
        """What it explains."""
        ...

    def explain(self, input_tensor: Any, classes: Classes = None) -> Explanation:
        """See :meth:`diffgradcam.BaseCAM.explain`."""
        ...


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
    model: nn.Module,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    score: Score = logit_difference,
    steps: int = 50,
    fill: Fill = "mean",
    batch_size: int = 64,
    output: Output = find_logits,
    progress: bool = False,
) -> Curve:
    """Remove pixels, the most relevant first, and follow the score: the faster it falls, the better the map.

    Pixels that the map does not tell apart are removed row by row from the top left.

    Args:
        model: The model. It is left as it is.
        images: ``(B, C, *S)``.
        maps: ``(B, *s)``.
        classes: None (the decision), one class for all images, or ``(B,)``.
        score: What is followed, ``(logits (B, K), classes (B,)) -> (B,)``.
        steps: In how many steps of the same number of pixels; each costs a forward pass for each image.
        fill: What removed pixels become: ``"mean"`` of the image's channel, ``"blur"`` (11 x 11 pixels, standard
            deviation 5), a tensor that broadcasts to the images (``torch.zeros(())``, say), or a function of them.
        batch_size: How many changed images go through the model at once.
        output: Takes the logits out of what the model returns.
        progress: Show a progress bar.

    Returns:
        The curve, see :class:`Curve`. Lower ``auc`` is better.

    Raises:
        ValueError: If shapes do not match, a map or a logit is not finite, there are more steps than pixels, or as
            :meth:`diffgradcam.BaseCAM.explain`.
        TypeError: If images are no tensor, the model is no module, or classes are no integers.

    Reference:
        Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018. There
        the score is the probability, pixels become 0, and a photo of 224 x 224 takes 224 steps.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> _ = model[1].weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]))
        >>> images, maps = torch.ones(1, 1, 2, 2), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> deletion(model, images, maps, 0, steps=4, fill=torch.tensor(0.0)).values
        tensor([[10.,  6.,  3.,  1.,  0.]])
    """
    return _curve(model, images, maps, classes, score, steps, fill, batch_size, output, progress, inserted=False)


def insertion(
    model: nn.Module,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    score: Score = logit_difference,
    steps: int = 50,
    fill: Fill = "blur",
    batch_size: int = 64,
    output: Output = find_logits,
    progress: bool = False,
) -> Curve:
    """Insert pixels into an image without any, the most relevant first: the faster the score rises, the better the map.

    Args:
        model: As :func:`deletion`.
        images: As :func:`deletion`.
        maps: As :func:`deletion`.
        classes: As :func:`deletion`.
        score: As :func:`deletion`.
        steps: As :func:`deletion`.
        fill: What the image is before: as :func:`deletion`. The blur hides fine structure and makes no edges.
        batch_size: As :func:`deletion`.
        output: As :func:`deletion`.
        progress: As :func:`deletion`.

    Returns:
        The curve, see :class:`Curve`. Higher ``auc`` is better.

    Raises:
        ValueError: As :func:`deletion`.
        TypeError: As :func:`deletion`.

    Reference:
        As :func:`deletion`.
    """
    return _curve(model, images, maps, classes, score, steps, fill, batch_size, output, progress, inserted=True)


def road(
    model: nn.Module,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    percentiles: Sequence[float] = (20, 40, 60, 80),
    score: Score = logit_difference,
    noise: float = 0.01,
    seed: int = 0,
    batch_size: int = 64,
    output: Output = find_logits,
    progress: bool = False,
) -> Road:
    """ROAD, Remove And Debias: remove pixels so that what is left does not tell where they were.

    Removed pixels are imputed, see :func:`noisy_linear_imputation`: a hole of one colour has a shape that the model
    sees. Pixels that the map does not tell apart are taken row by row, as many as the percentile says; pytorch-grad-cam
    removes all of them, which is the whole image where a rectified map is 0 up to the percentile. On maps without equal
    values both give the same.

    Args:
        model: The model. It is left as it is.
        images: ``(B, C, H, W)``.
        maps: ``(B, h, w)``.
        classes: As :func:`deletion`.
        percentiles: How many per cent of the pixels are *kept*, each between 0 and 100, as in pytorch-grad-cam.
        score: As :func:`deletion`.
        noise: As :func:`noisy_linear_imputation`.
        seed: As :func:`noisy_linear_imputation`.
        batch_size: As :func:`deletion`.
        output: As :func:`deletion`.
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
    judge, index, before = _judged(model, images, classes, score, output, batch_size)
    ranks = _ranks(maps, images)
    pixels = ranks[0].numel()
    changes: dict[str, list[Tensor]] = {"most": [], "least": []}
    for percentile in tqdm(percentiles, desc="road", disable=not progress):
        # The rank of the percentile in a list without equal values, as NumPy counts it.
        kept = math.ceil(percentile * (pixels - 1) / 100)
        for which, missing in (("most", ranks < pixels - kept), ("least", ranks >= kept)):
            imputed = noisy_linear_imputation(images, missing, noise=noise, seed=seed)
            changes[which].append(judge.scores(imputed, index) - before)
    most, least = (torch.stack(changes[which]).mean(0) for which in ("most", "least"))
    return Road(most, least, (least - most) / 2)


def noisy_linear_imputation(images: Tensor, missing: Tensor, *, noise: float = 0.01, seed: int = 0) -> Tensor:
    """Replace pixels by the weighted mean of their neighbours, plus noise: a linear system over all of the missing.

    Neighbours that share a side weigh 1/6, those that share a corner 1/12; those outside the image count for nothing.

    Args:
        images: ``(B, C, H, W)``.
        missing: Which pixels to replace, ``(B, H, W)``, bool; each image must keep at least one.
        noise: Standard deviation of the Gaussian noise, in the unit of the images. Without it, how smooth a region is
            would tell that it was imputed.
        seed: Seed of the noise, which is the same for every image.

    Returns:
        Images of the same shape. Pixels that are not missing are as they were.

    Raises:
        ValueError: If shapes do not match, an image keeps no pixel, or the noise is negative.
        ImportError: If SciPy is not installed.

    Reference:
        As :func:`road`.

    Example:
        >>> image = torch.tensor([[[[0.0, 9.0, 3.0]]]])
        >>> noisy_linear_imputation(image, torch.tensor([[[False, True, False]]]), noise=0.0)
        tensor([[[[0.0000, 1.5000, 3.0000]]]])
    """
    if images.ndim != 4 or missing.shape != (len(images), *images.shape[2:]) or missing.dtype != torch.bool:
        raise ValueError(
            f"images have shape {tuple(images.shape)} and missing is {missing.dtype} {tuple(missing.shape)}; expected "
            "(B, C, H, W) and bool (B, H, W)"
        )
    if not bool(missing.logical_not().flatten(1).any(1).all()):
        raise ValueError("an image has no pixel that is not missing; expected at least one to impute from")
    if noise < 0:
        raise ValueError(f"noise is {noise}; expected a standard deviation, at least 0")
    field = noise * torch.randn(images.shape[1:], generator=_generator(seed), dtype=torch.float64).numpy()
    arrays, holes = images.detach().cpu().double().numpy(), missing.cpu().numpy()
    imputed = arrays.copy()
    for new, image, hole in zip(imputed, arrays, holes, strict=True):
        if hole.any():
            new[:, hole] = _solve(image, hole) + field[:, hole]
    return torch.where(missing.unsqueeze(1), torch.from_numpy(imputed).to(images), images)


def average_drop(
    model: nn.Module,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    score: Score = probability,
    batch_size: int = 64,
    output: Output = find_logits,
) -> Tensor:
    """Share of the confidence that is lost when the image is multiplied by its map; lower is better.

    ``max(0, Y - O) / Y`` with the confidence Y of the whole image and O of the image times the map, which is resized
    and min-max scaled. The mean over images is the published Average Drop (times 100 for per cent). Multiplying fades
    pixels to 0, the mean colour of most training data; a constant map leaves nothing.

    Args:
        model: As :func:`deletion`.
        images: As :func:`deletion`.
        maps: As :func:`deletion`.
        classes: As :func:`deletion`.
        score: A score in [0, 1].
        batch_size: As :func:`deletion`.
        output: As :func:`deletion`.

    Returns:
        Shares in [0, 1], ``(B,)``; 0 where the confidence was 0. ``DropInConfidence`` of pytorch-grad-cam is this times
        Y, since it does not divide.

    Raises:
        ValueError: As :func:`deletion`, or if a score is not in [0, 1].
        TypeError: As :func:`deletion`.

    Reference:
        Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations", WACV 2018.
    """
    whole, seen = _confidences(model, images, maps, classes, score, batch_size, output)
    return (whole - seen).clamp_min(0) / torch.where(whole > 0, whole, 1)


def average_increase(
    model: nn.Module,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    score: Score = probability,
    batch_size: int = 64,
    output: Output = find_logits,
) -> Tensor:
    """Is the model more confident when the image is multiplied by its map? Higher is better.

    The mean over images is the published Average Increase, or Increase in Confidence.

    Args:
        model: As :func:`deletion`.
        images: As :func:`deletion`.
        maps: As :func:`deletion`.
        classes: As :func:`deletion`.
        score: As :func:`average_drop`.
        batch_size: As :func:`deletion`.
        output: As :func:`deletion`.

    Returns:
        1 where it is and 0 where it is not, ``(B,)``.

    Raises:
        ValueError: As :func:`average_drop`.
        TypeError: As :func:`deletion`.

    Reference:
        As :func:`average_drop`.
    """
    whole, seen = _confidences(model, images, maps, classes, score, batch_size, output)
    return (seen > whole).to(whole.dtype)


def average_gain(
    model: nn.Module,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    score: Score = probability,
    batch_size: int = 64,
    output: Output = find_logits,
) -> Tensor:
    """Share of the missing confidence that is gained when the image is multiplied by its map; higher is better.

    ``max(0, O - Y) / (1 - Y)``, with the symbols of :func:`average_drop`, whose counterpart it is.

    Args:
        model: As :func:`deletion`.
        images: As :func:`deletion`.
        maps: As :func:`deletion`.
        classes: As :func:`deletion`.
        score: As :func:`average_drop`.
        batch_size: As :func:`deletion`.
        output: As :func:`deletion`.

    Returns:
        Shares in [0, 1], ``(B,)``; 0 where the confidence was 1.

    Raises:
        ValueError: As :func:`average_drop`.
        TypeError: As :func:`deletion`.

    Reference:
        Zhang et al., "Opti-CAM: Optimizing saliency maps for interpretability", 2023 (arXiv 2301.07002).
    """
    whole, seen = _confidences(model, images, maps, classes, score, batch_size, output)
    return (seen - whole).clamp_min(0) / torch.where(whole < 1, 1 - whole, 1)


def remove_box(images: Tensor, generator: torch.Generator, *, share: float = 0.25) -> tuple[Tensor, Tensor]:
    """Fill a box at a random place, the same for all images, with the mean of each image's channel.

    Args:
        images: ``(B, C, *S)``.
        generator: Where the random place comes from.
        share: Side of the box as a share of the image's, in (0, 1].

    Returns:
        The box, 1 inside and 0 outside, ``(B, 1, *S)``, and the changed images.

    Raises:
        ValueError: If the share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected a share of the image's side, above 0 and up to 1")
    box = torch.ones_like(images[:, :1])
    for dim, size in enumerate(images.shape[2:], 2):
        side = math.ceil(share * size)
        start = int(torch.randint(size - side + 1, (), generator=generator))
        inside = torch.zeros(size, device=images.device, dtype=images.dtype)
        inside[start : start + side] = 1
        box = box * inside.view(-1, *[1] * (images.ndim - 1 - dim))
    return box, torch.where(box > 0, _fill_mean(images), images)


def infidelity(
    model: nn.Module,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    perturb: Perturb = remove_box,
    samples: int = 50,
    normalize: bool = True,
    seed: int = 0,
    score: Score = logit_difference,
    batch_size: int = 64,
    output: Output = find_logits,
    progress: bool = False,
) -> Tensor:
    """How badly the map predicts what a change of the image does to the score; lower is better.

    The mean over changes of ``(I . map - (f(x) - f(changed x)))^2``; ``I . map`` is the sum of the map over the change.

    Args:
        model: As :func:`deletion`.
        images: As :func:`deletion`.
        maps: As :func:`deletion`; not scaled, and shared by all channels.
        classes: As :func:`deletion`.
        perturb: ``(images, generator) -> (I, changed images)``, called once for each sample, with I of shape
            ``(B, C, *S)`` or ``(B, 1, *S)``. For maps of contributions, such as CAMs, I tells what was removed, as
            :func:`remove_box` does; for maps of sensitivities, such as gradients, it is ``images - changed images``.
        samples: Number of changes; each costs a forward pass for each image.
        normalize: Multiply each map by the number that predicts best, so that its unit does not count; without it a
            map must be in the unit of the score. The number may be negative, so a map and its opposite are equals
            here, and a map that predicts nothing is as bad as a map of zeros.
        seed: Seed of the generator that ``perturb`` gets.
        score: As :func:`deletion`.
        batch_size: As :func:`deletion`.
        output: As :func:`deletion`.
        progress: Show a progress bar.

    Returns:
        Mean squared errors, ``(B,)``, in the squared unit of the score.

    Raises:
        ValueError: As :func:`deletion`, if ``samples`` is less than 1, or ``perturb`` returns other shapes.
        TypeError: As :func:`deletion`.

    Reference:
        Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019; ``captum.metrics.infidelity``,
        whose default does not normalise.
    """
    _check_samples(samples)
    judge, index, before = _judged(model, images, classes, score, output, batch_size)
    attributions = resize(_checked_maps(maps, images), images.shape[2:]).unsqueeze(1)
    generator = _generator(seed)
    predicted, measured = [], []
    for _ in tqdm(range(samples), desc="infidelity", disable=not progress):
        change, changed = perturb(images, generator)
        if changed.shape != images.shape or change.shape not in (images.shape, images[:, :1].shape):
            raise ValueError(
                f"perturb returned shapes {tuple(change.shape)} and {tuple(changed.shape)} for images of shape "
                f"{tuple(images.shape)}; expected (I, changed images), both of that shape, I with all channels or one"
            )
        predicted.append((change.detach().cpu().double() * attributions).flatten(1).sum(1))
        measured.append((before - judge.scores(changed, index)).cpu().double())
    guess, truth = torch.stack(predicted), torch.stack(measured)
    if normalize:
        energy = guess.square().sum(0)
        guess = guess * (guess * truth).sum(0) / torch.where(energy > 0, energy, 1)
    return (guess - truth).square().mean(0).to(before)


def max_sensitivity(
    cam: Explainer,
    images: Tensor,
    classes: Classes = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """How far a map moves when the image hardly does: the largest relative change over random neighbours.

    The maximum of ``|map(x + d) - map(x)| / |map(x)|`` (Euclidean norms) over noise d, uniform from ``-radius`` to
    ``radius``. A low figure is a virtue only of a map that is faithful: a constant map has the lowest.

    Args:
        cam: A CAM; each neighbour is explained for the same class.
        images: ``(B, C, *S)``.
        classes: As :func:`deletion`.
        radius: In the unit of the images.
        samples: Number of neighbours; each costs an explanation of each image.
        seed: Seed of the noise, which is the same for every image.
        batch_size: How many images are explained at once.
        progress: Show a progress bar.

    Returns:
        ``(B,)``, at least 0. Where the map of the image itself is 0, the norm of the change.

    Raises:
        ValueError: If ``samples`` is less than 1, the radius is negative, or as :meth:`~diffgradcam.BaseCAM.explain`.
        TypeError: As :func:`deletion`.

    Reference:
        As :func:`infidelity`; ``captum.metrics.sensitivity_max``.
    """
    _check_images(images)
    _check_samples(samples)
    if not radius >= 0:
        raise ValueError(f"radius is {radius}; expected the largest change of a pixel, at least 0")
    if _in_training(cam.model):
        cam = copy.deepcopy(cam)
        cam.model.eval()
    index, reference = explained(cam, images, classes, batch_size)
    norm = reference.flatten(1).norm(dim=1)
    generator = _generator(seed)
    largest = torch.zeros_like(norm)
    for _ in tqdm(range(samples), desc="max-sensitivity", disable=not progress):
        noise = radius * (2 * torch.rand(images.shape[1:], generator=generator, dtype=torch.float64) - 1)
        _, maps = explained(cam, images + noise.to(images), index, batch_size)
        largest = torch.maximum(largest, (maps - reference).flatten(1).norm(dim=1))
    return largest / torch.where(norm > 0, norm, 1)


def explained(cam: Explainer, images: Tensor, classes: Classes, batch_size: int) -> tuple[Tensor, Tensor]:
    """Explain one class of each image, some images at a time.

    Args:
        cam: A CAM.
        images: ``(B, ...)``.
        classes: None (the decision), one class for all images, or ``(B,)``.
        batch_size: How many images are explained at once.

    Returns:
        Classes ``(B,)`` and maps ``(B, *s)``.

    Raises:
        ValueError: If ``batch_size`` is less than 1, or as :meth:`~diffgradcam.BaseCAM.explain`.
        TypeError: As :meth:`~diffgradcam.BaseCAM.explain`.
    """
    _check_batch_size(batch_size)
    chunks = torch.split(images, batch_size)
    index = _one_each(classes, len(images))
    given = [None] * len(chunks) if index is None else torch.split(index, batch_size)
    parts = [cam.explain(chunk, part) for chunk, part in zip(chunks, given, strict=True)]
    return torch.cat([part.classes for part in parts]), torch.cat([part.maps for part in parts])


class _Judge(NamedTuple):
    """A model in evaluation mode, and what is read from it."""

    model: nn.Module
    score: Score
    output: Output
    batch_size: int

    def logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            outputs = [self.output(self.model(chunk)) for chunk in torch.split(images, self.batch_size)]
        for part in outputs:
            if not isinstance(part, Tensor):
                raise TypeError(f"output= returned {type(part).__name__}; expected the tensor of logits")
        logits = widen(torch.cat(outputs))
        check_finite("the output", logits)
        return logits

    def scores(self, images: Tensor, classes: Tensor) -> Tensor:
        return self.read(self.logits(images), classes)

    def read(self, logits: Tensor, classes: Tensor) -> Tensor:
        with torch.no_grad():
            scores = self.score(logits, classes)
        if scores.shape != classes.shape:
            raise ValueError(
                f"the score returned shape {tuple(scores.shape)} for logits of shape {tuple(logits.shape)}; expected "
                f"one value per image, {tuple(classes.shape)}"
            )
        return scores


def _judged(
    model: nn.Module, images: Tensor, classes: Classes, score: Score, output: Output, batch_size: int
) -> tuple[_Judge, Tensor, Tensor]:
    """The judge, the class of each image ``(B,)``, and the scores of the images as they are ``(B,)``."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    _check_images(images)
    _check_batch_size(batch_size)
    judge = _Judge(copy_model(model).eval() if _in_training(model) else model, score, output, batch_size)
    logits = judge.logits(images)
    index = class_index(logits, _one_each(classes, len(images)))
    return judge, index, judge.read(logits, index)


def _curve(
    model: nn.Module,
    images: Tensor,
    maps: Maps,
    classes: Classes,
    score: Score,
    steps: int,
    fill: Fill,
    batch_size: int,
    output: Output,
    progress: bool,
    *,
    inserted: bool,
) -> Curve:
    judge, index, _ = _judged(model, images, classes, score, output, batch_size)
    ranks = _ranks(maps, images)
    pixels = ranks[0].numel()
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps is {steps}; expected from 1 to the number of pixels, {pixels}")
    filled = _filled(images, fill)
    before, after = (filled, images) if inserted else (images, filled)
    counts = torch.tensor([round(step * pixels / steps) for step in range(steps + 1)], device=images.device)
    rows = torch.arange(len(images), device=images.device).repeat_interleave(steps + 1)
    pairs = zip(torch.split(rows, batch_size), torch.split(counts.repeat(len(images)), batch_size), strict=True)
    name = "insertion" if inserted else "deletion"
    scores = []
    for row, count in tqdm(pairs, desc=name, total=math.ceil(len(rows) / batch_size), disable=not progress):
        changed = (ranks[row] < count.view(-1, *[1] * (ranks.ndim - 1))).unsqueeze(1)
        scores.append(judge.scores(torch.where(changed, after[row], before[row]), index[row]))
    values = torch.cat(scores).view(len(images), steps + 1)
    fractions = counts.to(values) / pixels
    return Curve(fractions, values, torch.trapezoid(values, fractions))


def _confidences(
    model: nn.Module,
    images: Tensor,
    maps: Maps,
    classes: Classes,
    score: Score,
    batch_size: int,
    output: Output,
) -> tuple[Tensor, Tensor]:
    judge, index, whole = _judged(model, images, classes, score, output, batch_size)
    # Scaled before it is resized too: the rounding of a resized constant map would be scaled to a pattern.
    mask = minmax(resize(minmax(_checked_maps(maps, images)), images.shape[2:])).unsqueeze(1)
    seen = judge.scores(images * mask.to(images), index)
    for values in (whole, seen):
        if not bool(((values >= 0) & (values <= 1)).all()):
            wrong = values[(values < 0) | (values > 1)][0]
            raise ValueError(
                f"the score of an image is {wrong:.4g}; a share of the confidence needs a score in [0, 1], such as "
                "diffgradcam.scores.probability"
            )
    return whole, seen


def _one_each(classes: Classes, batch: int) -> Tensor | None:
    if classes is None:
        return None
    try:
        index = torch.as_tensor(classes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"classes are {classes!r}; expected None, one class for all images, or ({batch},)") from error
    if index.shape not in ((), (batch,)):
        raise ValueError(
            f"classes have shape {tuple(index.shape)} for {batch} images; expected one class for all, or ({batch},): "
            "these figures are of one map an image"
        )
    return index.expand(batch)


def _checked_maps(maps: Maps, images: Tensor) -> Tensor:
    """Float64 on the CPU, where sums and the order of pixels are the same whatever the model runs on."""
    maps = torch.as_tensor(maps).detach().cpu().double()
    if maps.ndim != images.ndim - 1 or len(maps) != len(images):
        raise ValueError(
            f"maps have shape {tuple(maps.shape)} for images of shape {tuple(images.shape)}; expected one map for each "
            f"image with {images.ndim - 2} spatial dimensions, of any size"
        )
    check_finite("the map", maps)
    return maps


def _ranks(maps: Maps, images: Tensor) -> Tensor:
    """Place of each pixel in the order of relevance, 0 the most relevant, ``(B, *S)``."""
    # Scaled first: a constant map is then 0 everywhere, and rounding acts alike on maps of any unit.
    resized = resize(minmax(_checked_maps(maps, images)), images.shape[2:])
    order = resized.flatten(1).round(decimals=_DECIMALS).argsort(dim=1, descending=True, stable=True)
    ranks: Tensor = order.argsort(1).view_as(resized)
    return ranks.to(images.device)


def _filled(images: Tensor, fill: Fill) -> Tensor:
    if isinstance(fill, str):
        if fill not in _FILLS:
            raise ValueError(
                f"fill is {fill!r}; expected one of {sorted(_FILLS)}, a tensor, or a function of the images"
            )
        return _FILLS[fill](images)
    filled = fill if isinstance(fill, Tensor) else fill(images)
    try:
        return filled.to(images).expand_as(images)
    except RuntimeError as error:
        raise ValueError(
            f"fill has shape {tuple(filled.shape)}, which does not broadcast to the images, {tuple(images.shape)}; "
            "a colour is (C, 1, 1)"
        ) from error


def _fill_mean(images: Tensor) -> Tensor:
    return images.mean(tuple(range(2, images.ndim)), keepdim=True).expand_as(images)


def _fill_blur(images: Tensor) -> Tensor:
    """A Gaussian blur, one dimension after the other; beyond the edge, the edge is repeated."""
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device, dtype=images.dtype)
    kernel = (-(offsets**2) / (2 * _BLUR_SD**2)).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    for dim in range(2, images.ndim):
        lines = images.movedim(dim, -1)
        padded = F.pad(lines.flatten(0, -2).unsqueeze(1), (_BLUR_RADIUS, _BLUR_RADIUS), mode="replicate")
        images = F.conv1d(padded, kernel).view(lines.shape).movedim(-1, dim)
    return images


_FILLS: dict[str, Callable[[Tensor], Tensor]] = {"mean": _fill_mean, "blur": _fill_blur}


def _solve(image: NDArray[Any], hole: NDArray[Any]) -> NDArray[Any]:
    """The values ``(C, n)`` that make each of the n missing pixels the weighted mean of its neighbours."""
    count, (height, width) = int(hole.sum()), hole.shape
    here = np.arange(count)
    number = np.full((height + 2, width + 2), -2)  # beyond the edge
    number[1:-1, 1:-1] = -1  # known
    number[1:-1, 1:-1][hole] = here
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    total, known = np.zeros(count), np.zeros((count, len(image)))
    rows, columns, entries = [], [], []
    for (dy, dx), weight in _NEIGHBOURS:
        shifted = np.s_[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        neighbour = number[shifted][hole]
        total += weight * (neighbour != -2)
        known += weight * padded[(slice(None), *shifted)][:, hole].T * (neighbour == -1)[:, None]
        unknown = neighbour >= 0
        rows.append(here[unknown])
        columns.append(neighbour[unknown])
        entries.append(np.full(int(unknown.sum()), -weight))
    indices = np.concatenate([*rows, here]), np.concatenate([*columns, here])
    system = _scipy("sparse").coo_matrix((np.concatenate([*entries, total]), indices), shape=(count, count))
    solution: NDArray[Any] = _scipy("sparse.linalg").spsolve(system.tocsc(), known).reshape(count, len(image)).T
    return solution


def _scipy(module: str) -> Any:
    try:
        return import_module(f"scipy.{module}")
    except ImportError as error:
        raise ImportError(
            "noisy linear imputation needs SciPy, which is not installed: pip install diffgradcam[metrics]"
        ) from error


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _in_training(model: nn.Module) -> bool:
    return any(module.training for module in model.modules())


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images is {type(images).__name__}; expected a tensor (B, C, H, W)")
    if images.ndim < 3 or not len(images) or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; expected at least one image of floating-point "
            "numbers, (B, C, H, W) (or with one or three spatial dimensions), as the model takes them"
        )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1 image at once")


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples is {samples}; expected at least 1")
