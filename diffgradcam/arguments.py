"""Options that are numbers, or a clear error."""

from __future__ import annotations


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
