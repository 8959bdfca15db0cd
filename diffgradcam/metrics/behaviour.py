"""What a model relies on, measured on the model alone: no map, no layer and no method has a part in it.

Two references, both on a grid of cells over the image. *Occlusion*: how far the score falls when the cells are covered.
*Integrated gradients*: what each pixel adds to the score on a straight way from the image's mean colour to the image. A
map that says what the model relies on is like them, and a model that relies on other things than before has others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from diffgradcam._core.batches import check_images
from diffgradcam._core.checks import check_count, check_scores
from diffgradcam._core.outputs import Classes, check_finite
from diffgradcam._core.tensors import normal, outside_inference_mode, widen

from .evaluator import Evaluator, check_evaluator
from .imputation import mean_colour
from .similarity import pearson

GRID = 7


@dataclass(frozen=True)
class Behaviour:
    """What a model relies on for one class of each image. See :func:`behaviour`.

    Attributes:
        logits: ``(B, K)``.
        classes: Whose score was read, ``(B,)``.
        occlusion: How far the score falls when a cell and its neighbours are covered, ``(B, grid, grid)``, in the unit
            of the score (nats for the log-odds).
        integrated_gradients: Mean over the pixels of each cell, ``(B, grid, grid)``, in the same unit.
    """

    logits: Tensor
    classes: Tensor
    occlusion: Tensor
    integrated_gradients: Tensor


@dataclass(frozen=True)
class Agreement:
    """Pearson's r with each of the two references, one value per image, in [-1, 1].

    Attributes:
        occlusion: With occlusion, ``(B,)``.
        integrated_gradients: With integrated gradients, ``(B,)``.
    """

    occlusion: Tensor
    integrated_gradients: Tensor

    @property
    def both(self) -> Tensor:
        """The mean of the two, ``(B,)``."""
        return (self.occlusion + self.integrated_gradients) / 2


@dataclass(frozen=True)
class DecisionsKept:
    """How much of its decisions a change of a model has left, one value per image.

    Attributes:
        agreement: Whether both models decide alike, ``(B,)`` bool.
        kl: Kullback-Leibler divergence of the probabilities after from those before, ``(B,)``, in nats.
    """

    agreement: Tensor
    kl: Tensor


def behaviour(
    evaluator: Evaluator,
    images: Tensor,
    classes: Classes = None,
    *,
    grid: int = GRID,
    steps: int = 16,
    progress: bool = True,
) -> Behaviour:
    """What a model relies on: both references, for the same class of each image.

    It costs ``grid ** 2 + 2`` forward passes and ``steps`` forward and backward passes an image. Nothing is random.

    Args:
        evaluator: The model and the score that is read; by default the log-odds.
        images: ``(B, C, H, W)``, at least ``grid`` x ``grid`` pixels.
        classes: None (the decision), one class for all images, or ``(B,)``.
        grid: Cells along each side.
        steps: Of integrated gradients.
        progress: Show a progress bar.

    Returns:
        See :class:`Behaviour`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If images are smaller than the grid, an option is out of range, or a logit is not finite.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> relied_on = behaviour(Evaluator(model), torch.rand(2, 1, 8, 8), progress=False)
        >>> relied_on.occlusion.shape, relied_on.integrated_gradients.shape
        (torch.Size([2, 7, 7]), torch.Size([2, 7, 7]))
    """
    check_evaluator(evaluator)
    _check_options(images, grid, steps)
    ready, index, before = evaluator.start(images, classes)
    return Behaviour(
        logits=ready.logits(images),
        classes=index,
        occlusion=drops_from(ready, images, index, before, grid, progress=progress),
        integrated_gradients=_cells(_pixels(ready, images, index, steps, progress), grid),
    )


def behaviour_kept(before: Behaviour, after: Behaviour) -> Agreement:
    """How much of a model's behaviour a change of the model has left: r of each reference after with that before.

    Args:
        before: Of the model before.
        after: Of the model after, for the same images and classes.

    Returns:
        Correlations, 1 where nothing moved and 0 where a reference is constant.

    Raises:
        ValueError: If they are of different images, classes or grids.

    Reference:
        Ours. That a map that has moved may be right, since the model may rely on other things now, is the point of
        "Beyond Fooling: Model Manipulation Under Explanation-aware Training", OpenReview RVKG35s2Dm, 2026.
    """
    same = before.classes.shape == after.classes.shape and bool((before.classes.cpu() == after.classes.cpu()).all())
    if not same or before.occlusion.shape != after.occlusion.shape:
        raise ValueError(
            f"the behaviours are of grids {tuple(before.occlusion.shape)} and {tuple(after.occlusion.shape)}, or of "
            "different classes; expected the same images and classes; give behaviour(...) of both models the classes "
            "of one"
        )
    return Agreement(
        pearson(after.occlusion.to(before.occlusion), before.occlusion),
        pearson(after.integrated_gradients.to(before.occlusion), before.integrated_gradients),
    )


def decisions_kept(before: Tensor, after: Tensor) -> DecisionsKept:
    """How much of its decisions a change of a model has left.

    Args:
        before: Logits of the model before, ``(B, K)``.
        after: Logits of the model after, for the same images, ``(B, K)``.

    Returns:
        On the CPU; the divergence is computed in float64.

    Raises:
        ValueError: If the shapes differ, or they are not floating-point numbers.

    Example:
        >>> decisions_kept(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 6.0]]))  # softmax sees no difference
        DecisionsKept(agreement=tensor([True]), kl=tensor([0.], dtype=torch.float64))
    """
    floating = before.is_floating_point() and after.is_floating_point()
    if before.ndim != 2 or before.shape != after.shape or not floating:
        raise ValueError(
            f"the logits are {before.dtype} of shape {tuple(before.shape)} and {after.dtype} of shape "
            f"{tuple(after.shape)}; expected floating-point numbers, (B, K) twice"
        )
    old, new = (logits.detach().cpu().double().log_softmax(1) for logits in (before, after))
    kl = F.kl_div(new, old, reduction="none", log_target=True).sum(1)
    return DecisionsKept(agreement=before.argmax(1).cpu() == after.argmax(1).cpu(), kl=kl)


def honesty(maps: Tensor, relied_on: Behaviour) -> Agreement:
    """How much maps say what the model relies on: Pearson's r with both references.

    The map is averaged over the same cells: for occlusion over each cell and its neighbours, which were covered
    together.

    Args:
        maps: ``(B, h, w)``, of the classes of ``relied_on``.
        relied_on: Of the *same* model.

    Returns:
        Correlations; 0 where a map is constant.

    Raises:
        ValueError: If there is not one map with two spatial dimensions for each image.

    Reference:
        Ours. Occlusion: Zeiler and Fergus, ECCV 2014. Integrated gradients: Sundararajan, Taly, Yan, ICML 2017.
    """
    count = len(relied_on.occlusion)
    if maps.ndim != 3 or len(maps) != count or not maps.numel() or not maps.is_floating_point():
        raise ValueError(
            f"maps are {maps.dtype} of shape {tuple(maps.shape)} for the behaviour on {count} images; expected one map "
            "(h, w) of floating-point numbers for each"
        )
    maps = widen(maps)
    grid = relied_on.occlusion.shape[-1]
    return Agreement(
        occlusion_agreement(maps, relied_on.occlusion, grid),
        pearson(_cells(maps, grid), relied_on.integrated_gradients.to(maps)),
    )


def occlusion_drops(
    evaluator: Evaluator,
    images: Tensor,
    classes: Classes = None,
    *,
    grid: int = GRID,
    progress: bool = True,
) -> Tensor:
    """How far the score falls when a cell of a grid and its neighbours are filled with the image's mean colour.

    Windows of 3 x 3 cells, one around each cell, smaller at the edge. It costs ``grid ** 2`` forward passes an image.

    Args:
        evaluator: The model and the score that is read; by default the log-odds.
        images: ``(B, C, H, W)``, at least ``grid`` x ``grid`` pixels.
        classes: None (the decision), one class for all images, or ``(B,)``.
        grid: Cells along each side.
        progress: Show a progress bar.

    Returns:
        Score of the image minus score of the covered image, ``(B, grid, grid)``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: As :func:`behaviour`.

    Reference:
        Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014. The overlap of the windows
        is ours.
    """
    check_evaluator(evaluator)
    _check_options(images, grid)
    ready, index, before = evaluator.start(images, classes)
    return drops_from(ready, images, index, before, grid, progress=progress)


def drops_from(
    evaluator: Evaluator,
    images: Tensor,
    classes: Tensor,
    before: Tensor,
    grid: int,
    *,
    every: int = 1,
    progress: bool,
) -> Tensor:
    """As :func:`occlusion_drops`, where the scores of the whole images are known and the images checked.

    Args:
        evaluator: The model, in evaluation mode, and the score that is read.
        images: ``(B, C, H, W)``.
        classes: ``(B,)``.
        before: Scores of the whole images, ``(B,)``.
        grid: Cells along each side.
        every: Cover only around every so many cells of each row and column: fewer forward passes.
        progress: Show a progress bar.

    Returns:
        ``(B, n, n)``, one for each cell that was covered around; ``n`` is ``grid`` if ``every`` is 1.
    """
    around = windows(images.shape[2], images.shape[3], grid)
    along = range(0, grid, every)
    drops = []
    chosen = [around[grid * row + column] for row, column in product(along, along)]
    together = max(evaluator.at_once(images) // len(images), 1)
    with tqdm(total=len(chosen), desc="occlusion", disable=not progress) as bar:
        for start in range(0, len(chosen), together):
            some = chosen[start : start + together]
            scores = evaluator.scores(torch.cat([covered(images, w) for w in some]), classes.repeat(len(some)))
            drops.append(before - scores.view(len(some), -1))
            bar.update(len(some))
    return torch.cat(drops).T.reshape(-1, len(along), len(along))


def integrated_gradients(
    evaluator: Evaluator,
    images: Tensor,
    classes: Classes = None,
    *,
    grid: int | None = GRID,
    steps: int = 16,
    progress: bool = True,
) -> Tensor:
    """Integrated gradients of the score from the image's mean colour to the image, summed over the channels.

    The gradient is taken in the middle of each of ``steps`` parts of the way. The sum over the pixels is the score of
    the image minus that of its mean colour (completeness), up to the error of the sum over the steps.

    Args:
        evaluator: The model and the score that is read; by default the log-odds. Any differentiable score will do.
        images: ``(B, C, *S)``.
        classes: None (the decision), one class for all images, or ``(B,)``.
        grid: Cells along each side, whose pixels are averaged; None for a value for each pixel.
        steps: Parts of the way; a forward and backward pass for each.
        progress: Show a progress bar.

    Returns:
        Signed, ``(B, grid, grid)`` or ``(B, *S)``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: As :func:`behaviour`.
        RuntimeError: If the score does not depend on the images through operations that can be differentiated.

    Reference:
        Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017 (arXiv 1703.01365). The baseline
        there is a black image; the image's mean colour, as for occlusion, is ours.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> image = torch.rand(1, 1, 4, 4)
        >>> evaluator = Evaluator(model)
        >>> pixels = integrated_gradients(evaluator, image, 1, grid=None, progress=False)
        >>> ends = evaluator.scores(torch.cat([image, image.mean().expand_as(image)]), torch.tensor([1, 1]))
        >>> torch.allclose(pixels.sum(), ends[0] - ends[1], atol=1e-5)
        True
    """
    check_evaluator(evaluator)
    _check_options(images, grid, steps)
    ready, index, _ = evaluator.start(images, classes)
    pixels = _pixels(ready, images, index, steps, progress)
    return pixels if grid is None else _cells(pixels, grid)


def windows(height: int, width: int, grid: int) -> list[tuple[slice, slice]]:
    """The rows and columns of pixels around each cell of a grid: three cells along each side, two at the edge.

    Args:
        height: Of the images.
        width: Of the images.
        grid: Cells along each side.

    Returns:
        ``grid ** 2`` windows, row by row.
    """
    return [(rows, columns) for rows in _spans(height, grid) for columns in _spans(width, grid)]


def covered(images: Tensor, window: tuple[slice, slice]) -> Tensor:
    """Copies of images with a window filled with each image's mean colour.

    Args:
        images: ``(B, C, H, W)``.
        window: One of :func:`windows`.

    Returns:
        ``(B, C, H, W)``.
    """
    occluded = images.clone()
    occluded[(..., *window)] = mean_colour(images)[(..., *window)]
    return occluded


def occlusion_agreement(maps: Tensor, drops: Tensor, grid: int, *, every: int = 1) -> Tensor:
    """Pearson's r of maps with the drops under occlusion.

    Args:
        maps: ``(B, h, w)``.
        drops: ``(B, n, n)``, of :func:`drops_from`.
        grid: With which they were measured.
        every: With which they were measured.

    Returns:
        ``(B,)``; 0 where one is constant.
    """
    cells = _cells(maps, grid).unsqueeze(1)
    # The mean over the window, not the sum: windows at the edge are smaller, and sums would favour the centre.
    means = F.avg_pool2d(cells, 3, stride=every, padding=1, count_include_pad=False)
    return pearson(means.squeeze(1), drops.to(maps))


def _pixels(ready: Evaluator, images: Tensor, classes: Tensor, steps: int, progress: bool) -> Tensor:
    chunks = [torch.split(tensor, ready.at_once(images)) for tensor in (images, classes)]
    total = steps * len(chunks[0])
    with outside_inference_mode(), tqdm(total=total, desc="integrated gradients", disable=not progress) as bar:
        parts = []
        for chunk, own in zip(*chunks, strict=True):
            parts.append(_integrated(ready, normal(chunk.detach()), normal(own), steps))
            bar.update(steps)
    pixels = torch.cat(parts).sum(1)
    check_finite("the integrated gradient", pixels)
    return pixels


def _integrated(ready: Evaluator, images: Tensor, classes: Tensor, steps: int) -> Tensor:
    start = mean_colour(images)
    total = torch.zeros_like(images)
    for step in range(steps):
        point = (start + (step + 0.5) / steps * (images - start)).requires_grad_()
        with torch.enable_grad():
            logits = widen(ready.output(ready.model(point.clone())))  # a copy: the first layer may work in place
            scores = ready.score(logits, classes)
            check_scores(scores, logits)
            if not scores.requires_grad:
                raise RuntimeError(
                    "the score does not depend on the images in a way that can be differentiated; expected a model and "
                    "a score made of differentiable operations"
                )
            (gradient,) = torch.autograd.grad(scores.sum(), point)
        total += gradient
    return (images - start) * total / steps


def _cells(maps: Tensor, grid: int) -> Tensor:
    pooled: Tensor = F.adaptive_avg_pool2d(maps.unsqueeze(1), grid)
    return pooled.squeeze(1)


def _spans(length: int, grid: int) -> list[slice]:
    edges = [round(i * length / grid) for i in range(grid + 1)]
    return [slice(edges[max(0, i - 1)], edges[min(grid, i + 2)]) for i in range(grid)]


def _check_options(images: Tensor, grid: int | None, steps: int = 1) -> None:
    check_images(images)
    check_count("steps", steps)
    if grid is None:
        return
    check_count("grid", grid)
    if images.ndim != 4 or min(images.shape[2:]) < grid:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; expected (B, C, H, W), at least {grid} x {grid} pixels, for a "
            f"grid of {grid} x {grid} cells"
        )
