"""Logits and class indices from what a model returns and what a caller asks for, or a clear error."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import NonFiniteValues
from .tracing import read

Classes = Tensor | Sequence[int] | int | str | None
Require = Callable[[Tensor, Callable[[], Exception | None]], None]

_LABELS_BY_INDEX = (
    "these look like one-hot or multi-hot labels: give class indices, such as labels.argmax(1) for one label an image, "
    'or "all" and choose the maps of the labels, maps[labels.bool()]'
)
_TOP = re.compile(r"top([1-9]\d*)")


def find_logits(output: Any) -> Tensor:
    """Find the logits in what a model returned: the tensor itself, or its ``logits`` (as of Hugging Face models).

    Args:
        output: What the model returned.

    Returns:
        The logits.

    Raises:
        TypeError: If there is no such tensor. The message says how to pass ``output=``.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    what = type(output).__name__
    how = "output=lambda o: o[0]"
    if isinstance(output, list | tuple) and output and isinstance(output[0], Mapping) and "boxes" in output[0]:
        raise TypeError(
            "the model returned detections; explain them with targets such as FasterRCNNBoxScoreTarget, and pass a "
            "function that makes one tensor of them, such as output=diffgradcam.targets.detections"
        )
    if isinstance(output, Mapping):
        what += f" with keys {sorted(map(str, output))}"
        how = f"output=lambda o: o[{next(iter(output), 'out')!r}]"
    raise TypeError(
        f"the model returned {what}, not a tensor of logits; pass a function that finds them, such as {how}"
    )


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity: a map of them would look like a map.

    Args:
        name: What the tensor is, for the message.
        tensor: ``(B, ...)``.

    Raises:
        NonFiniteValues: If an image has a value that is not finite. It is a ``ValueError``.
    """
    if not bool(tensor.sum().isfinite()):  # the cheap way; a sum can overflow where no value does
        error = not_finite(name, tensor)
        if error is not None:
            raise error


def not_finite(name: str, tensor: Tensor) -> NonFiniteValues | None:
    """The error for values that are not finite, or None after a closer look.

    Args:
        name: What the tensor is, for the message.
        tensor: ``(B, ...)``.

    Returns:
        The error; None if all values are finite.
    """
    if bool(tensor.isfinite().all()):
        return None
    rows = (~tensor.isfinite()).reshape(tensor.shape[0] if tensor.ndim else 1, -1)
    images = rows.any(1).nonzero().flatten().tolist()
    return NonFiniteValues(
        f"{name} of image {images[0]} is NaN or infinite ({len(images)} of {len(rows)} images); check the input "
        "and the weights, and use bfloat16 or float32 where float16 overflows"
    )


def check_rows(name: str, activations: Tensor, logits: Tensor) -> None:
    """Refuse activations that do not have one row for each image.

    Args:
        name: The layer, for the message.
        activations: ``(B, ...)``.
        logits: ``(B, ...)``.

    Raises:
        ValueError: If the number of images differs.
    """
    if activations.shape[:1] != logits.shape[:1]:
        raise ValueError(
            f"layer {name} has activations of shape {tuple(activations.shape)} for logits of shape "
            f"{tuple(logits.shape)}; expected as many images in both: give maps() the logits as the model returned "
            "them, and bring activations of parts of an image into the form (B, C, ...) with reshape_transform="
        )


def class_index(logits: Tensor, classes: Classes, require: Require | None = None) -> Tensor:
    """Read the classes that a caller asks for, in any of their forms.

    Args:
        logits: ``(B, K)``.
        classes: None (the class with the largest logit), one class for all images, one for each (``(B,)``), several for
            each (``(B, N)``), ``"all"``, or ``"top5"``, or any other number: those with the largest logits, the largest
            first.
        require: Takes a condition and its error, to look at later; by default it is looked at now.

    Returns:
        Class indices, ``(B,)`` or ``(B, N)``, on the device of the logits.

    Raises:
        TypeError: If classes are not integers, or not a rectangle of them.
        ValueError: If the logits are not ``(B, K)``, or the classes have another shape or are out of range.
    """
    if logits.ndim != 2:
        raise ValueError(
            f"classes need logits of shape (B, K), but the model's output has shape {tuple(logits.shape)}; pass "
            "output= a function that reduces it (diffgradcam.scores.two_logits for one sigmoid output, "
            "lambda o: o.reshape(-1, 1) for one number an image), or explain the output with a target such as "
            "RawScoresOutputTarget or SemanticSegmentationTarget"
        )
    batch, count = logits.shape
    if classes is None:
        return logits.argmax(1)
    if isinstance(classes, str):
        check_class_word(classes)
        if classes == "all":
            return torch.arange(count, device=logits.device).expand(batch, -1)
        top = int(classes.removeprefix("top"))
        if top > count:
            raise ValueError(f"classes={classes!r}, but the model has {count} classes")
        return logits.argsort(dim=1, descending=True, stable=True)[:, :top]
    try:
        index = torch.as_tensor(classes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"classes are {classes!r}; expected integers: one class for all images, ({batch},), or ({batch}, N) with "
            "as many for every image"
        ) from error
    if index.ndim == 0:
        index = index.expand(batch)
    if index.ndim > 2 or index.shape[0] != batch or index.shape[1:].numel() == 0:
        raise ValueError(
            f"classes have shape {tuple(index.shape)} for {batch} images; expected one class for all, ({batch},) or "
            f"({batch}, N)"
        )
    hot = index.ndim == 2 and index.shape[1] == count > 2
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        fix = _LABELS_BY_INDEX if hot else "expected integers (class indices, such as labels.long())"
        raise TypeError(f"classes are {index.dtype}; {fix}")
    if hot and index.numel():
        many_hot = index.amax() > 1  # of more than two classes, 0 and 1 alone are not a choice of classes
        _look(
            many_hot, lambda: ValueError(f"classes hold only 0 and 1 for {count} classes; {_LABELS_BY_INDEX}"), require
        )
    in_range = ((index >= 0) & (index < count)).all()

    def out_of_range() -> ValueError:
        wrong = index[(index < 0) | (index >= count)].flatten().tolist()
        return ValueError(f"class {wrong[0]} is out of range; the model has classes 0 to {count - 1}")

    if _look(in_range, out_of_range, require):
        index = index.clamp(0, count - 1)  # an index out of range would end the program on an accelerator
    # A copy: autograd refuses to save classes that were made under inference_mode.
    return index.to(logits.device, torch.long, copy=True)


def _look(holds: Tensor, failure: Callable[[], Exception], require: Require | None) -> bool:
    """Look at a condition now, or later where an accelerator would have to be waited for; whether it is later."""
    if require is not None and holds.device.type != "cpu":
        require(holds, failure)
        return True
    if not read(holds, traced=True):
        raise failure()
    return False


def asserted(holds: Tensor, failure: Callable[[], Exception | None]) -> None:
    """Refuse classes without a wait for the device where there is a way: CUDA asserts it, as in PyTorch's losses.

    Args:
        holds: Whether the classes are good: one bool, on an accelerator.
        failure: Makes the error.
    """
    if holds.is_cuda:
        torch._assert_async(holds, "maps(): the classes are not class indices of this model")
    elif (error := None if bool(holds) else failure()) is not None:
        raise error


def check_class_word(word: str) -> None:
    """Refuse a word that names no classes.

    Args:
        word: ``"all"``, or ``"top5"`` with any number from 1.

    Raises:
        ValueError: For any other word.
    """
    if word != "all" and not _TOP.fullmatch(word):
        raise ValueError(f"classes={word!r}; the words for classes are 'all' and 'top1', 'top2', 'top3' and so on")
