"""What ``explain`` and ``compare`` say about an image: its classes, the decision, numbers of a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..losses import cam_entropy
from ._subject import Item, Subject

MAP_SCALE = "each is scaled to its own range: yellow is its largest value, violet its smallest"


def choose_classes(logits: Tensor, given: Sequence[int], top: int) -> Tensor:
    """The classes to explain.

    Args:
        logits: ``(B, K)``.
        given: Numbers of classes, for every image.
        top: How many of the most likely classes, where none is given.

    Returns:
        ``(B, N)``.
    """
    if given:
        return torch.tensor([given], device=logits.device).expand(len(logits), -1)
    return logits.topk(min(top, logits.shape[1]), 1).indices


def decision(subject: Subject, logits: Tensor, index: int) -> dict[str, Any]:
    """A class of an image, and what the model says about it.

    Args:
        subject: The model.
        logits: Of the image, ``(K,)``.
        index: The class.

    Returns:
        Its number, name, label, probability and logit.

    Raises:
        ValueError: If the model has no such class.
    """
    if not 0 <= index < len(logits):
        raise ValueError(f"class {index} is out of range; the model has classes 0 to {len(logits) - 1}")
    return {
        "class": index,
        "name": subject.class_name(index),
        "label": subject.label(index),
        "probability": float(logits.softmax(0)[index]),
        "logit": float(logits[index]),
    }


def map_entropy(heat: Tensor) -> float:
    """Entropy of a map ``(h, w)``, in nats."""
    return float(cam_entropy(heat.unsqueeze(0)))


def about_image(item: Item) -> dict[str, Any]:
    """Path, size in pixels and notes of an image."""
    width, height = item.picture.image.size
    return {"image": str(item.path), "width": width, "height": height, "notes": item.picture.notes}
