"""Arguments of the right values, or a clear error."""

from __future__ import annotations

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
        ValueError: If it is negative, or no whole number.
    """
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed is {seed!r}; expected a whole number, 0 or more")


def check_scores(scores: object, logits: Tensor) -> None:
    """Refuse what a score returned, if it is not one value per image.

    Args:
        scores: What it returned.
        logits: What it was given, ``(B, K)``.

    Raises:
        ValueError: If it is no tensor ``(B,)``.
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
