"""Targets in the style of pytorch-grad-cam: callables that take one image's output to the number that is explained."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .gradients import widen

OutputTarget = Callable[[Tensor], Tensor]


class ClassifierOutputTarget:
    """A class, to be explained by whatever score the CAM has chosen; called, it is the logit of the class.

    Args:
        category: Class index.
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        """The logit of the class, from ``(..., K)``."""
        return model_output[..., self.category]


class ClassifierOutputSoftmaxTarget:
    """The softmax probability of a class.

    Args:
        category: Class index.
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        """The probability of the class, from logits ``(..., K)``."""
        return model_output.softmax(-1)[..., self.category]


class BinaryClassifierOutputTarget:
    """One sigmoid output, read for class 1 as it is and for class 0 with its sign changed.

    Args:
        category: 0 or 1.
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        """The output or its negative."""
        return model_output if self.category == 1 else -model_output


class RawScoresOutputTarget:
    """The output as it is, for models with a single output."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """The output."""
        return model_output


class SemanticSegmentationTarget:
    """The sum of a category's scores over a mask of pixels.

    Args:
        category: Class index.
        mask: Which pixels count, ``(H, W)``.
    """

    def __init__(self, category: int, mask: np.ndarray[Any, Any] | Tensor) -> None:
        self.category = category
        self.mask = torch.as_tensor(mask)

    def __call__(self, model_output: Tensor) -> Tensor:
        """The sum, from per-pixel scores ``(K, H, W)``."""
        mask = self.mask.clone()  # autograd refuses to save a mask that was made under inference_mode
        return (model_output[self.category] * mask.to(model_output.device)).sum()


def read_targets(
    targets: Sequence[OutputTarget | int] | None, batch: int
) -> tuple[list[int] | None, list[OutputTarget] | None]:
    """Tell targets that name a class from targets that are scores of their own.

    A ``ClassifierOutputTarget`` is a class whichever library it comes from: it is known by its name.

    Args:
        targets: One target or class index for each image, or None.
        batch: Number of images.

    Returns:
        ``(classes, None)`` or ``(None, targets)``; ``(None, None)`` for None.

    Raises:
        ValueError: For another number of targets than images.
        TypeError: For a target that is neither callable nor an integer, or for one that is not in a list.
    """
    if targets is None:
        return None, None
    if callable(targets) or not isinstance(targets, Iterable):
        raise TypeError(
            f"targets is a single {type(targets).__name__}; expected a list with one target for each of {batch} "
            f"images, such as [target] * {batch}"
        )
    targets = list(targets)
    if len(targets) != batch:
        raise ValueError(f"got {len(targets)} targets for {batch} images; give one target for each image")
    categories = [_category(target) for target in targets]
    classes = [category for category in categories if category is not None]
    if len(classes) == batch:
        return classes or None, None  # no classes for no images
    return None, [target if callable(target) else ClassifierOutputTarget(operator.index(target)) for target in targets]


def target_gradients(targets: Sequence[OutputTarget], output: Tensor) -> Tensor:
    """Gradient of each image's target with respect to the image's output.

    Args:
        targets: One callable for each image.
        output: What the model put out, ``(B, *O)``.

    Returns:
        Cotangents, ``(B, 1, *O)``.

    Raises:
        ValueError: If a target does not return a single number, or does not depend on the output.
    """
    with torch.enable_grad():
        source = widen(output.detach()).requires_grad_()
        values = [target(row) for target, row in zip(targets, source, strict=True)]
        for target, value in zip(targets, values, strict=True):
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"target {type(target).__name__} returned {got} for an output of shape {tuple(output.shape[1:])}; "
                    "expected a single number that depends on it"
                )
        (gradients,) = torch.autograd.grad(torch.stack([value.reshape(()) for value in values]).sum(), source)
    return gradients.unsqueeze(1)


def _category(target: OutputTarget | int) -> int | None:
    category: Any = target
    if any(kind.__name__ == "ClassifierOutputTarget" for kind in type(target).__mro__):
        category = vars(target)["category"]
    elif callable(target):
        return None
    try:
        return operator.index(category)  # an int, a NumPy integer, an element of a tensor of labels
    except TypeError as error:
        raise TypeError(
            f"target {category!r} is neither a class nor a callable such as ClassifierOutputTarget(3)"
        ) from error
