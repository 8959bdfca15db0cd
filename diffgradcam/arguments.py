"""Arguments of the right values, or a clear error."""

from __future__ import annotations

from torch import Tensor


def check_count(name: str, value: int) -> None:
    """Refuse a number of things that is not at least 1.

    Args:
        name: Of the argument, for the message.
        value: What was given.

    Raises:
        ValueError: If it is not an integer of at least 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
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
        ValueError: If it is negative.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected a whole number, 0 or more")


def described(value: object) -> str:
    """A tensor by its shape, anything else by its type: for messages on what a function of the user's returned.

    Args:
        value: What it returned.

    Returns:
        Such as ``"shape (3, 5)"``, or ``"NoneType"``.
    """
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
