"""Infidelity and max-sensitivity: does a map predict what changes do to the score, and is it stable?"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from diffgradcam._core.batches import check_images
from diffgradcam._core.checks import check_count
from diffgradcam._core.explanation import ModelExplainer
from diffgradcam._core.outputs import Classes
from diffgradcam.heatmaps import resize

from .evaluator import Evaluator, Maps, check_evaluator, checked_maps, evaluated_cam, explained
from .imputation import mean_colour

Perturb = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]


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
    check_images(images)
    box = torch.ones_like(images[:, :1])
    for dim, size in enumerate(images.shape[2:], 2):
        side = math.ceil(share * size)
        start = int(torch.randint(size - side + 1, (), generator=generator))
        inside = torch.zeros(size, device=images.device, dtype=images.dtype)
        inside[start : start + side] = 1
        box = box * inside.view(-1, *[1] * (images.ndim - 1 - dim))
    return box, torch.where(box > 0, mean_colour(images), images)


def infidelity(
    evaluator: Evaluator,
    images: Tensor,
    maps: Maps,
    classes: Classes = None,
    *,
    perturb: Perturb = remove_box,
    samples: int = 50,
    normalize: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """How badly the map predicts what a change of the image does to the score; lower is better.

    The mean over changes of ``(I . map - (f(x) - f(changed x)))^2``; ``I . map`` is the sum of the map over the change.

    Args:
        evaluator: As :func:`deletion`.
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
    check_count("samples", samples)
    check_evaluator(evaluator)
    ready, index, before = evaluator.start(images, classes)
    attributions = resize(checked_maps(maps, images), images.shape[2:]).unsqueeze(1)
    generator = torch.Generator().manual_seed(seed)
    predicted, measured = [], []
    for _ in tqdm(range(samples), desc="infidelity", disable=not progress):
        pair = perturb(images, generator)
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(each, Tensor) for each in pair):
            raise TypeError(f"perturb returned {type(pair).__name__}; expected the pair of tensors (I, changed images)")
        change, changed = pair
        if changed.shape != images.shape or change.shape not in (images.shape, images[:, :1].shape):
            raise ValueError(
                f"perturb returned shapes {tuple(change.shape)} and {tuple(changed.shape)} for images of shape "
                f"{tuple(images.shape)}; expected (I, changed images), both of that shape, I with all channels or one"
            )
        predicted.append((change.detach().cpu().double() * attributions).flatten(1).sum(1))
        measured.append((before - ready.scores(changed, index)).cpu().double())
    guess, truth = torch.stack(predicted), torch.stack(measured)
    if normalize:
        energy = guess.square().sum(0)
        guess = guess * (guess * truth).sum(0) / torch.where(energy > 0, energy, 1)
    return (guess - truth).square().mean(0).to(before)


def max_sensitivity(
    cam: ModelExplainer,
    images: Tensor,
    classes: Classes = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor:
    """How far a map moves when the image hardly does: the largest relative change over random neighbours.

    The maximum of ``|map(x + d) - map(x)| / |map(x)|`` (Euclidean norms) over noise d, uniform from ``-radius`` to
    ``radius``. A low value is good only where the map is faithful: a constant map has the lowest.

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
    check_images(images)
    check_count("samples", samples)
    if not radius >= 0:
        raise ValueError(f"radius is {radius}; expected the largest change of a pixel, at least 0")
    cam = evaluated_cam(cam)
    index, reference = explained(cam, images, classes, batch_size)
    norm = reference.flatten(1).norm(dim=1)
    generator = torch.Generator().manual_seed(seed)
    largest = torch.zeros_like(norm)
    for _ in tqdm(range(samples), desc="max-sensitivity", disable=not progress):
        noise = radius * (2 * torch.rand(images.shape[1:], generator=generator, dtype=torch.float64) - 1)
        _, maps = explained(cam, images + noise.to(images), index, batch_size)
        largest = torch.maximum(largest, (maps - reference).flatten(1).norm(dim=1))
    return largest / torch.where(norm > 0, norm, 1)
