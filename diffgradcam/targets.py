"""Targets as in pytorch-grad-cam: callables that compute the explained number from one image's output."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.utils.rnn import pad_sequence

from ._core.checks import described
from ._core.tensors import widen
from .scores import ScoreFunction, logit

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


class ClassifierOutputReST:
    """A logit plus the logarithm of its softmax probability: the score of ShapleyCAM's paper.

    Args:
        category: Class index.

    Reference:
        "ReST" in Cai, "CAMs as Shapley Value-based Explainers", 2025 (arXiv 2501.06261), read in pytorch-grad-cam.
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        """``z_c + log p_c``, from logits ``(..., K)``."""
        return (model_output + model_output.log_softmax(-1))[..., self.category]


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
    """The sum of a category's scores over a mask of pixels; with a contrast as score, against the other categories.

    The model's output has to be per-pixel logits ``(B, K, H, W)`` at the size of the mask. Many models put out fewer
    pixels than they take in; enlarge the logits in ``output=``, as their own post-processing does:
    ``output=lambda o: torch.nn.functional.interpolate(o.logits, images.shape[2:], mode="bilinear")``.

    Args:
        category: Class index.
        mask: Which pixels count, ``(H, W)``; or weights of the pixels.
        score: What is explained at each pixel, a score of :mod:`diffgradcam.scores`. By default the logit;
            ``logit_difference`` asks why these pixels are of this category rather than another.

    Example:
        >>> from functools import partial
        >>> from diffgradcam.scores import logit_difference
        >>> scores = torch.tensor([[[3.0, 1.0]], [[1.0, 5.0]]])  # two categories, a row of two pixels
        >>> SemanticSegmentationTarget(0, torch.tensor([[1, 1]]))(scores)
        tensor(4.)
        >>> SemanticSegmentationTarget(0, torch.tensor([[1, 0]]), score=logit_difference)(scores)
        tensor(2.)
    """

    def __init__(self, category: int, mask: np.ndarray[Any, Any] | Tensor, score: ScoreFunction = logit) -> None:
        self.category = category
        self.mask = torch.as_tensor(mask)
        self.score = score

    def __call__(self, model_output: Tensor) -> Tensor:
        """The sum, from per-pixel scores ``(K, H, W)``."""
        if model_output.ndim < 2 or model_output.shape[1:] != self.mask.shape:
            raise ValueError(
                f"the output for an image has shape {tuple(model_output.shape)} and the mask {tuple(self.mask.shape)}; "
                "expected per-pixel scores (K, H, W) and a mask (H, W); enlarge the scores to the size of the mask "
                "with output=lambda o: torch.nn.functional.interpolate(..., mode='bilinear')"
            )
        if not 0 <= self.category < len(model_output):
            raise ValueError(
                f"category {self.category} is out of range; the model has categories 0 to {len(model_output) - 1}"
            )
        pixels = model_output.flatten(1).T
        mask = self.mask.clone()  # autograd refuses to save a mask that was made under inference_mode
        classes = torch.full((len(pixels),), self.category, device=pixels.device)
        return (self.score(pixels, classes) * mask.to(pixels.device).flatten()).sum()


class SimilarityTarget:
    """How similar the image's embedding is to a given one: the cosine of the angle between them.

    For CLIP-like models: the embedding of a text, or of another image. Several of them at once are logits, with which
    every method and every contrast works: ``output=lambda o: normalize(o.image_embeds) @ normalize(texts).T``.

    Args:
        embedding: What to compare with, ``(D,)``.

    Example:
        >>> SimilarityTarget(torch.tensor([1.0, 0.0]))(torch.tensor([3.0, 4.0]))
        tensor(0.6000)
    """

    def __init__(self, embedding: Tensor) -> None:
        if embedding.ndim != 1:
            raise ValueError(
                f"embedding has shape {tuple(embedding.shape)}; expected the embedding of one text or image, (D,), and "
                "a target for each image"
            )
        self.embedding = embedding.detach()

    def __call__(self, model_output: Tensor) -> Tensor:
        """The similarity, in [-1, 1], of an embedding ``(D,)``."""
        if model_output.shape != self.embedding.shape:
            raise ValueError(
                f"the output for an image has shape {tuple(model_output.shape)}, the embedding to compare it with "
                f"{tuple(self.embedding.shape)}; expected the same, so pass output= a function that finds the image's "
                "embedding, such as output=lambda o: o.image_embeds"
            )
        return cosine_similarity(model_output, self.embedding.clone().to(model_output), dim=0)


class FasterRCNNBoxScoreTarget:
    """How well given boxes are still detected: the sum of their overlaps and scores, as in pytorch-grad-cam.

    For each given box, the detection that overlaps it most counts with its intersection over union plus its score, if
    that overlap is above the threshold and its label is the given one; otherwise the box counts 0.

    Args:
        labels: The label of each box, ``(N,)``.
        bounding_boxes: Boxes ``(N, 4)`` as ``(x1, y1, x2, y2)`` in pixels.
        iou_threshold: Smallest overlap, in [0, 1].

    Raises:
        ValueError: If labels and boxes are not as many, or boxes are not ``(N, 4)``.

    Example:
        >>> box, label, score = torch.tensor([[0.0, 0.0, 4.0, 2.0]]), torch.tensor([3]), torch.tensor([0.9])
        >>> target = FasterRCNNBoxScoreTarget([3], [[0, 0, 4, 4]], iou_threshold=0.4)
        >>> target({"boxes": box, "labels": label, "scores": score})  # 8 / 16 + 0.9
        tensor(1.4000)
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray[Any, Any] | Tensor,
        bounding_boxes: Sequence[Any] | np.ndarray[Any, Any] | Tensor,
        iou_threshold: float = 0.5,
    ) -> None:
        self.labels = torch.as_tensor(labels)
        boxes = bounding_boxes
        self.bounding_boxes = torch.as_tensor(np.asarray(boxes) if isinstance(boxes, Sequence) else boxes).detach()
        self.iou_threshold = iou_threshold
        if self.bounding_boxes.shape != (len(self.labels), 4):
            raise ValueError(
                f"{len(self.labels)} labels for bounding_boxes of shape {tuple(self.bounding_boxes.shape)}; expected "
                "a label for each box, and boxes (N, 4) as (x1, y1, x2, y2)"
            )

    def __call__(self, model_output: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The sum, from the detections of one image: a row of :func:`detections`, or torchvision's own dictionary."""
        boxes, labels, scores = _read_detections(model_output)
        total = boxes.new_zeros(())
        if not len(boxes):
            return total
        overlaps = _overlaps(self.bounding_boxes.to(boxes), boxes)
        for overlap, label in zip(overlaps, self.labels.tolist(), strict=True):
            best = int(overlap.argmax())
            if overlap[best] > self.iou_threshold and labels[best] == label:
                total = total + overlap[best] + scores[best]
        return total


def detections(output: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Detections of torchvision's detectors as one tensor, for ``output=``.

    Args:
        output: For each image its ``boxes (N, 4)``, ``labels (N,)`` and ``scores (N,)``.

    Returns:
        ``(B, N, 6)``: box, score and label of each detection, as many as the image with most has; the others are
        filled up with rows of -1.

    Raises:
        TypeError: If the output is something else.

    Example:
        >>> box, label, score = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([7]), torch.tensor([0.5])
        >>> detections([{"boxes": box, "labels": label, "scores": score}])
        tensor([[[1.0000, 2.0000, 3.0000, 4.0000, 0.5000, 7.0000]]])
    """
    if not isinstance(output, list | tuple) or not all(
        isinstance(found, Mapping) and {"boxes", "labels", "scores"} <= found.keys() for found in output
    ):
        raise TypeError(
            f"detections() got {type(output).__name__}; expected a list with a dictionary of boxes, labels and scores "
            "for each image, as torchvision's detectors return it in evaluation mode"
        )
    rows = [
        torch.cat([found["boxes"], found["scores"].unsqueeze(1), found["labels"].unsqueeze(1).to(found["boxes"])], 1)
        for found in output
    ]
    return pad_sequence(rows, batch_first=True, padding_value=-1.0) if rows else torch.zeros(0, 0, 6)


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


def target_gradients(targets: Sequence[OutputTarget], output: Tensor, *, create_graph: bool = False) -> Tensor:
    """Gradient of each image's target with respect to the image's output.

    Args:
        targets: One callable for each image.
        output: What the model put out, ``(B, *O)``.
        create_graph: Keep the graph, so that the result can be differentiated through the output.

    Returns:
        Cotangents, ``(B, 1, *O)``.

    Raises:
        ValueError: If a target does not return a single number, or does not depend on the output.
    """
    with torch.enable_grad():
        source = widen(output) if create_graph else widen(output.detach()).requires_grad_()
        values = [target(row) for target, row in zip(targets, source, strict=True)]
        for target, value in zip(targets, values, strict=True):
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                got = described(value)
                if isinstance(value, Tensor) and value.numel() == 1:
                    got = f"the constant {float(value):g} (nothing in the output matches it, or it detaches)"
                raise ValueError(
                    f"target {type(target).__name__} returned {got} for an output of shape {tuple(output.shape[1:])}; "
                    "expected a single number that depends on it"
                )
        (gradients,) = torch.autograd.grad(
            torch.stack([value.reshape(()) for value in values]).sum(), source, create_graph=create_graph
        )
    return gradients.unsqueeze(1)


def target_values(targets: Sequence[OutputTarget], output: Tensor) -> Tensor:
    """Each target of the output of its image, without gradients.

    Args:
        targets: One callable for each row.
        output: What the model put out, ``(M, *O)``.

    Returns:
        ``(M, 1)``.

    Raises:
        ValueError: If a target does not return a single number.
    """
    values = []
    for target, row in zip(targets, widen(output), strict=True):
        value = target(row)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(
                f"target {type(target).__name__} returned {described(value)} for an output of shape "
                f"{tuple(row.shape)}; expected a single number"
            )
        values.append(value.reshape(()))
    return torch.stack(values).unsqueeze(1) if values else output.new_zeros(0, 1)


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


def _read_detections(output: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``(N, 4)``, labels ``(N,)`` and scores ``(N,)`` of one image."""
    if isinstance(output, Mapping):
        return output["boxes"], output["labels"], output["scores"]
    if output.ndim != 2 or output.shape[1] != 6:
        raise ValueError(
            f"the output for an image has shape {tuple(output.shape)}; expected detections (N, 6), so explain a "
            "torchvision detector with output=diffgradcam.targets.detections"
        )
    return output[:, :4], output[:, 5], output[:, 4]


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes ``(N, 4)`` and others ``(M, 4)``: ``(N, M)``, in [0, 1]."""
    left_top = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    right_bottom = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (right_bottom - left_top).clamp_min(0).prod(2)
    areas, other_areas = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, others))
    union = areas[:, None] + other_areas[None] - shared
    return shared / torch.where(union > 0, union, 1)
