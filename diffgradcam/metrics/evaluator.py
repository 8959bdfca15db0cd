"""What all figures of faithfulness share: a model that judges images, and one class and one map for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffgradcam._core.checks import check_count, check_scores
from diffgradcam._core.editing import evaluated
from diffgradcam._core.explanation import ModelExplainer
from diffgradcam._core.outputs import Classes, check_finite, class_index
from diffgradcam._core.tensors import widen
from diffgradcam.scores import ScoreFunction

Maps = Tensor | NDArray[Any]
Output = Callable[[Any], Tensor]


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
    if not callable(getattr(cam, "explain", None)) or isinstance(cam, type):
        raise TypeError(f"cam is {cam!r}; expected a CAM, such as GradCAM(model, 'layer4')")
    check_images(images)
    check_count("batch_size", batch_size)
    chunks = torch.split(images, batch_size)
    index = one_each(classes, len(images))
    given = [None] * len(chunks) if index is None else torch.split(index, batch_size)
    parts = [cam.explain(chunk, part) for chunk, part in zip(chunks, given, strict=True)]
    return torch.cat([part.classes for part in parts]), torch.cat([part.maps for part in parts])


def makes_cams(make: object) -> bool:
    """Whether something can be called with a model alone, as a CAM, a wrapper and a class of either cannot.

    Args:
        make: What was given as a function that makes a CAM of a model.

    Returns:
        Whether it may be one.
    """
    return callable(make) and not isinstance(make, type) and not callable(getattr(make, "explain", None))


class Judge(NamedTuple):
    """A model in evaluation mode, and what is read from it.

    Attributes:
        model: In evaluation mode.
        score: What is read.
        output: Takes the logits out of what the model returns.
        batch_size: How many images the model sees at once.
    """

    model: nn.Module
    score: ScoreFunction
    output: Output
    batch_size: int

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` of images ``(B, C, *S)``; float32 or wider, and finite."""
        with torch.no_grad():
            outputs = [self.output(self.model(chunk)) for chunk in torch.split(images, self.batch_size)]
        for part in outputs:
            if not isinstance(part, Tensor):
                raise TypeError(f"output= returned {type(part).__name__}; expected the tensor of logits")
        logits = widen(torch.cat(outputs))
        check_finite("the output", logits)
        return logits

    def scores(self, images: Tensor, classes: Tensor) -> Tensor:
        """Scores ``(B,)`` of images ``(B, C, *S)`` for classes ``(B,)``."""
        return self.read(self.logits(images), classes)

    def read(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Scores ``(B,)`` of logits ``(B, K)`` for classes ``(B,)``."""
        with torch.no_grad():
            scores = self.score(logits, classes)
        check_scores(scores, logits)
        return scores


def judged(
    model: nn.Module, images: Tensor, classes: Classes, score: ScoreFunction, output: Output, batch_size: int
) -> tuple[Judge, Tensor, Tensor]:
    """A judge of images that were not judged before.

    Args:
        model: Any classifier; in training mode, or with a part that is, it is copied.
        images: ``(B, C, *S)``.
        classes: None (the decision), one class for all images, or ``(B,)``.
        score: What is read.
        output: Takes the logits out of what the model returns.
        batch_size: How many images the model sees at once.

    Returns:
        The judge, the class of each image ``(B,)``, and the scores of the images as they are ``(B,)``.

    Raises:
        TypeError: If the model is no module, or images or classes are of the wrong kind.
        ValueError: If images or classes have another shape, or ``batch_size`` is not at least 1.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    check_images(images)
    check_count("batch_size", batch_size)
    judge = Judge(evaluated(model), score, output, batch_size)
    logits = judge.logits(images)
    index = class_index(logits, one_each(classes, len(images)))
    return judge, index, judge.read(logits, index)


def one_each(classes: Classes, batch: int) -> Tensor | None:
    """One class for each image.

    Args:
        classes: None (the decision), one class for all images, or ``(B,)``.
        batch: ``B``.

    Returns:
        ``(B,)``, or None for the decision.

    Raises:
        TypeError: If they are no numbers.
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
            f"classes have shape {tuple(index.shape)} for {batch} images; expected one class for all, or ({batch},): "
            "these figures are of one map an image"
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


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of images.

    Args:
        images: Should be ``(B, C, *S)``, of floating-point numbers.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is another tensor, or empty.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images is {type(images).__name__}; expected a tensor (B, C, H, W)")
    if images.ndim < 3 or not len(images) or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; expected at least one image of floating-point "
            "numbers, (B, C, H, W) (or with one or three spatial dimensions), as the model takes them"
        )
