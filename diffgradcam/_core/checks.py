"""Checks of arguments that several modules share. Each passes, or raises an error that says how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral

from torch import Tensor


def check_count(name: str, value: int) -> None:
    """Refuse a number of things that is not at least 1.

    Args:
        name: Of the argument, for the message.
        value: What was given.

    Raises:
        ValueError: If it is not an integer of at least 1.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected an integer of at least 1")


def check_std(std: float) -> None:
    """Refuse a standard deviation that is negative or not finite.

    Args:
        std: What was given.

    Raises:
        ValueError: If it is negative, infinite or NaN.
    """
    if not 0 <= std < float("inf"):
        raise ValueError(f"std is {std!r}; expected a standard deviation, a finite number of at least 0")


def check_seed(seed: int) -> None:
    """Refuse a seed that random number generators refuse.

    Args:
        seed: What was given.

    Raises:
        ValueError: If it is negative, or not a whole number.
    """
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed is {seed!r}; expected a whole number, 0 or more")


def check_scores(scores: object, logits: Tensor) -> None:
    """Refuse what a score returned, if it is not one value per image.

    Args:
        scores: What it returned.
        logits: What it was given, ``(B, K)``.

    Raises:
        ValueError: If it is not a tensor ``(B,)``.
    """
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
        raise ValueError(
            f"the score returned {described(scores)} for logits of shape {tuple(logits.shape)}; expected one "
            f"value per image, {tuple(logits.shape[:1])}"
        )


def described(value: object) -> str:
    """A tensor by its shape, anything else by its type: for messages on what a function of the user's returned.

    Args:
        value: What it returned.

    Returns:
        Such as ``"shape (3, 5)"``, or ``"NoneType"``.
    """
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_choice(name: str, given: object, choices: Iterable[object]) -> None:
    """Refuse a word that is not one of those that an option has.

    Args:
        name: Of the argument, for the message.
        given: What was given.
        choices: What it may be.

    Raises:
        ValueError: If it is something else.
    """
    choices = list(choices)
    if given not in choices:
        raise ValueError(f"{name} is {given!r}; expected one of {', '.join(map(repr, choices))}")


def check_share(name: str, value: float) -> None:
    """Refuse a number outside [0, 1].

    Args:
        name: Of the argument, for the message.
        value: What was given.

    Raises:
        ValueError: If it is outside [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected a share, from 0 to 1")


def check_confidence(confidence: float) -> None:
    """Refuse a confidence level that is not between 0 and 1.

    Args:
        confidence: What was given.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a level between 0 and 1, such as 0.95")


def check_loader(loader: object) -> None:
    """Refuse a tensor of images where batches are expected: iterating it gives single images.

    Args:
        loader: What was given.

    Raises:
        TypeError: If it is a tensor.
    """
    if isinstance(loader, Tensor):
        raise TypeError("loader is a tensor; expected batches of images; give a DataLoader, or a list such as [images]")


def check_mask_varies(mask: Tensor) -> None:
    """Refuse a mask that shows nothing, because all its values are the same.

    Args:
        mask: The wanted map.

    Raises:
        ValueError: If it is constant, not finite, or has fewer than two positions.
    """
    if mask.numel() < 2 or not bool(mask.isfinite().all()) or bool((mask == mask.max()).all()):
        raise ValueError(
            f"the mask of size {tuple(mask.shape)} is constant or not finite; expected a map with different values; "
            "make one with border_mask(size, cells=...)"
        )


def check_mask_size(mask: Tensor, size: Sequence[int], what: str) -> None:
    """Refuse a mask of another size than the maps that it is compared with.

    Args:
        mask: The wanted map.
        size: Of the maps.
        what: Whose size it is, for the message.

    Raises:
        ValueError: If the sizes differ.
    """
    size = tuple(size)
    if tuple(mask.shape) != size:
        raise ValueError(
            f"the mask has size {tuple(mask.shape)}; expected {size}, that of {what}; give a mask such as "
            f"border_mask({size}, cells=...)"
        )
