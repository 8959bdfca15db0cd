"""The model that the metrics of faithfulness evaluate maps with, and the checks that these metrics share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffgradcam._core.batches import check_images, images_at_once, in_batches
from diffgradcam._core.checks import check_count, check_scores
from diffgradcam._core.editing import evaluated, in_training
from diffgradcam._core.explainers import check_explains
from diffgradcam._core.explanation import ModelExplainer
from diffgradcam._core.outputs import Classes, check_finite, class_index, find_logits
from diffgradcam._core.tensors import widen
from diffgradcam.heatmaps import minmax, resize
from diffgradcam.scores import ScoreFunction, logit_difference

Maps = Tensor | NDArray[Any]
Output = Callable[[Any], Tensor]
_DECIMALS = 9  # of the min-max scaled map: what differs by less is rounding of the resizing


@dataclass(frozen=True)
class Evaluator:
    """A model, the score that is read from it, and how many images it sees at once.

    Every metric that changes images and looks at the score takes one. The model is left as it is: if any part of it is
    in training mode, a metric reads a copy in evaluation mode.

    Args:
        model: A classifier. Wrappers such as ``DataParallel`` may stay.
        score: What is read, ``(logits (B, K), classes (B,)) -> (B,)``. The default is the log-odds,
            :func:`diffgradcam.scores.logit_difference`: contrastive maps explain it, and it does not saturate as a
            probability does. Any other score works, such as :func:`diffgradcam.scores.probability`.
        output: Takes the logits out of what the model returns. By default the tensor itself, or its ``logits``.
        batch_size: How many images go through the model at once. By default it follows from their size: on a CPU 4 of
            224 x 224 pixels, on a GPU 222; and half as many whenever the device runs out of memory. It changes memory
            and speed, not results.

    Raises:
        TypeError: If the model is not a module, or score or output cannot be called.
        ValueError: If ``batch_size`` is not an integer of at least 1.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> evaluator = Evaluator(model, batch_size=16)
        >>> evaluator.scores(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1])).shape
        torch.Size([3])
    """

    model: nn.Module = field(repr=False)
    score: ScoreFunction = field(default=logit_difference, kw_only=True)
    output: Output = field(default=find_logits, kw_only=True)
    batch_size: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model is {type(self.model).__name__}; expected a torch.nn.Module")
        for name, function in (("score", self.score), ("output", self.output)):
            if not callable(function):
                raise TypeError(f"{name} is {function!r}; expected a function")
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)

    def at_once(self, images: Tensor) -> int:
        """How many of these images go through the model at once.

        Args:
            images: ``(B, C, *S)``.

        Returns:
            ``batch_size``, or what was found for images of this size.
        """
        return images_at_once(images) if self.batch_size is None else self.batch_size

    def logits(self, images: Tensor) -> Tensor:
        """Logits of images, in evaluation mode and without gradients.

        Args:
            images: ``(B, C, *S)``.

        Returns:
            ``(B, K)``, float32 or wider.

        Raises:
            TypeError: If ``output`` returns something else than a tensor.
            ValueError: If a logit is NaN or infinite.
        """
        model = evaluated(self.model)
        with torch.no_grad():
            run = in_batches(len(images), self.at_once(images), lambda rows: self.output(model(images[rows])))
            outputs = list(run) or [self.output(model(images))]
        for part in outputs:
            if not isinstance(part, Tensor):
                raise TypeError(f"output= returned {type(part).__name__}; expected the tensor of logits")
        logits = widen(torch.cat(outputs))
        check_finite("the output", logits)
        return logits

    def scores(self, images: Tensor, classes: Tensor) -> Tensor:
        """Scores of images, one class each.

        Args:
            images: ``(B, C, *S)``.
            classes: ``(B,)``.

        Returns:
            ``(B,)``.

        Raises:
            TypeError: As :meth:`logits`.
            ValueError: As :meth:`logits`, or if the score gives another shape.
        """
        return self._read(self.logits(images), classes)

    def start(self, images: Tensor, classes: Classes = None) -> tuple[Evaluator, Tensor, Tensor]:
        """What a metric does first: check the images, choose the classes, and read the scores of whole images.

        Args:
            images: ``(B, C, *S)``.
            classes: None (the decision), one class for all images, or ``(B,)``.

        Returns:
            An evaluator whose model is in evaluation mode, so that it is copied once at most; the class of each image,
            ``(B,)``; and the score of each image as it is, ``(B,)``.

        Raises:
            TypeError: If images or classes are of the wrong kind.
            ValueError: If images or classes have another shape, or as :meth:`scores`.
        """
        check_images(images)
        ready = replace(self, model=evaluated(self.model))
        logits = ready.logits(images)
        index = class_index(logits, one_each(classes, len(images)))
        return ready, index, ready._read(logits, index)

    def _read(self, logits: Tensor, classes: Tensor) -> Tensor:
        with torch.no_grad():
            scores = self.score(logits, classes)
        check_scores(scores, logits)
        return scores


def check_evaluator(evaluator: object) -> None:
    """Refuse what is not an evaluator, a plain model for instance.

    Args:
        evaluator: What a metric was given.

    Raises:
        TypeError: If it is something else.
    """
    if not isinstance(evaluator, Evaluator):
        given = f"the model {type(evaluator).__name__}" if isinstance(evaluator, nn.Module) else repr(evaluator)
        raise TypeError(f"evaluator is {given}; expected an Evaluator; give Evaluator(model)")


def explained(cam: ModelExplainer, images: Tensor, classes: Classes, batch_size: int) -> tuple[Tensor, Tensor]:
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
    check_explains(cam)
    check_images(images)
    check_count("batch_size", batch_size)
    chunks = torch.split(images, batch_size)
    index = one_each(classes, len(images))
    given = [None] * len(chunks) if index is None else torch.split(index, batch_size)
    parts = [cam.explain(chunk, part) for chunk, part in zip(chunks, given, strict=True)]
    return torch.cat([part.classes for part in parts]), torch.cat([part.maps for part in parts])


def evaluated_cam(cam: ModelExplainer) -> ModelExplainer:
    """A CAM whose model is in evaluation mode: the one given, or a copy of it.

    Args:
        cam: A CAM.

    Returns:
        It, or a copy if any part of its model is in training mode.

    Raises:
        TypeError: If it is not a CAM.
    """
    check_explains(cam)
    if not in_training(cam.model):
        return cam
    other = copy.deepcopy(cam)
    other.model.eval()
    return other


def pixel_ranks(maps: Maps, images: Tensor) -> Tensor:
    """Place of each pixel of the images in the order of relevance.

    Args:
        maps: ``(B, *s)``, a tensor or an array of any resolution.
        images: ``(B, C, *S)``.

    Returns:
        0 for the most relevant pixel, ``(B, *S)``. Pixels that the map does not tell apart go row by row.

    Raises:
        ValueError: As :func:`checked_maps`.
        TypeError: As :func:`checked_maps`.
    """
    # Scaled first: a constant map is then 0 everywhere, and rounding acts alike on maps of any unit.
    resized = resize(minmax(checked_maps(maps, images)), images.shape[2:])
    order = resized.flatten(1).round(decimals=_DECIMALS).argsort(dim=1, descending=True, stable=True)
    ranks: Tensor = order.argsort(1).view_as(resized)
    return ranks.to(images.device)


def heatmaps_at_input(maps: Maps, images: Tensor) -> Tensor:
    """Maps as the call of a CAM shows them: scaled to [0, 1], at the size of the images.

    Args:
        maps: ``(B, *s)``, a tensor or an array of any resolution.
        images: ``(B, C, *S)``.

    Returns:
        ``(B, *S)``, float64 on the CPU.

    Raises:
        ValueError: As :func:`checked_maps`.
        TypeError: As :func:`checked_maps`.
    """
    # Scaled before it is resized too: the rounding of a resized constant map would be scaled to a pattern.
    return minmax(resize(minmax(checked_maps(maps, images)), images.shape[2:]))


def one_each(classes: Classes, batch: int) -> Tensor | None:
    """One class for each image.

    Args:
        classes: None (the decision), one class for all images, or ``(B,)``.
        batch: ``B``.

    Returns:
        ``(B,)``, or None for the decision.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If they have another shape.
    """
    if classes is None:
        return None
    try:
        index = torch.as_tensor(classes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"classes are {classes!r}; expected None, one class for all images, or ({batch},)") from error
    if index.shape not in ((), (batch,)):
        raise ValueError(
            f"classes have shape {tuple(index.shape)} for {batch} images; expected one class for all, or ({batch},); "
            "these metrics take one map for each image"
        )
    return index.expand(batch)


def checked_maps(maps: Maps, images: Tensor) -> Tensor:
    """Maps as float64 on the CPU, where sums and the order of pixels are the same whatever the model runs on.

    Args:
        maps: ``(B, *s)``, a tensor or an array.
        images: ``(B, C, *S)``.

    Returns:
        ``(B, *s)``.

    Raises:
        ValueError: If there is not one finite map for each image, with as many spatial dimensions.
        TypeError: If they are not numbers.
    """
    try:
        maps = torch.as_tensor(maps).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"maps are {type(maps).__name__}; expected a tensor or an array of numbers (B, ...)") from error
    if maps.ndim != images.ndim - 1 or len(maps) != len(images):
        raise ValueError(
            f"maps have shape {tuple(maps.shape)} for images of shape {tuple(images.shape)}; expected one map for each "
            f"image with {images.ndim - 2} spatial dimensions, of any size"
        )
    check_finite("the map", maps)
    return maps
