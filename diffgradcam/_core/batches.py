"""Images and labels from the batches of a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_IMAGES_AT_ONCE = 32


def read_batch(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images and, where there are any, labels of one batch.

    Args:
        batch: Images ``(B, ...)``, or a sequence that starts with images and labels, as a ``DataLoader`` gives it.

    Returns:
        Images and labels ``(B,)`` or None.

    Raises:
        TypeError: If the batch is something else.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor):
        labels = batch[1] if len(batch) > 1 else None
        return batch[0], labels if isinstance(labels, Tensor) else None
    raise TypeError(f"a batch is {type(batch).__name__}; expected a tensor of images, or (images, labels)")


def image_batches(images: Tensor | Iterable[Any]) -> Iterator[Tensor]:
    """The images of a tensor, a few at a time, or of each batch of an iterable.

    Args:
        images: ``(N, ...)``, or an iterable of batches.

    Yields:
        Images, ``(B, ...)``.

    Raises:
        TypeError: If a batch is something else than :func:`read_batch` takes.
        ValueError: If the tensor has too few dimensions.
    """
    if isinstance(images, Tensor):
        if images.ndim < 3:
            raise ValueError(f"images have shape {tuple(images.shape)}; expected (N, C, *S)")
        yield from torch.split(images, _IMAGES_AT_ONCE)
    else:
        for batch in images:
            yield read_batch(batch)[0]


def check_images(images: Tensor) -> None:
    """Refuse anything but a batch of images.

    Args:
        images: Should be ``(B, C, *S)``, of floating-point numbers.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it is another tensor, or empty.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images is {type(images).__name__}; expected a tensor (B, C, H, W)")
    if images.ndim < 3 or not len(images) or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; expected at least one image of floating-point "
            "numbers, (B, C, H, W) (or with one or three spatial dimensions), as the model takes them"
        )
