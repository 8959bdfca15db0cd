"""Images and labels from the batches of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_IMAGES_AT_ONCE = 32
# So many images at most, of so many numbers together. What a network keeps while it runs is some ten times as much: on
# a CPU it then stays near the cores, elsewhere within a few GiB.
_ON_CPU = 64, 3 * 448 * 448
_ELSEWHERE = 256, 2**25
# Of activations that a model goes on with: little is kept above them, and each run costs a GPU the same few launches.
_ACTIVATIONS_ELSEWHERE = 1024, 2**27


def images_at_once(image: Any) -> int:
    """How many images to run through a model at once, where the results do not depend on it.

    It follows from sizes alone, not from the time that something takes: the last bits of a result depend on it, and are
    the same in each run. ``benchmarks/perturbation.py`` compares it with other numbers on a CPU.

    Args:
        image: The images, ``(B, ...)``, or whatever is run.

    Returns:
        On a CPU 16 images of 3 x 112 x 112 numbers, 4 of 3 x 224 x 224; elsewhere 256 and 222.
    """
    return _at_once(image, *_ELSEWHERE)


def activations_at_once(activations: Tensor) -> int:
    """As :func:`images_at_once`, of the activations that a model goes on with.

    Args:
        activations: ``(B, ...)``.

    Returns:
        As :func:`images_at_once` on a CPU, more elsewhere.
    """
    return _at_once(activations, *_ACTIVATIONS_ELSEWHERE)


def _at_once(image: Any, most: int, numbers: int) -> int:
    if not isinstance(image, Tensor):
        return _IMAGES_AT_ONCE
    if image.device.type == "cpu":
        most, numbers = _ON_CPU
    return min(most, max(numbers // max(image.shape[1:].numel(), 1), 1))


def in_batches(count: int, size: int, run: Callable[[slice], Tensor]) -> Iterator[Tensor]:
    """Run something on so many rows at once, and on half as many whenever the device runs out of memory.

    Args:
        count: How many rows there are.
        size: How many to run at once.
        run: Is told which.

    Yields:
        What it returns.

    Raises:
        torch.OutOfMemoryError: If there is no memory for a single row.
    """
    start = 0
    while start < count:
        stop = min(start + size, count)
        try:
            result = run(slice(start, stop))
        except torch.OutOfMemoryError:
            if stop - start == 1:
                raise
            size = (stop - start) // 2
            continue
        yield result
        start = stop


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
