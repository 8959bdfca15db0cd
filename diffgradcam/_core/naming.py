"""The name of a function or a value, for messages, reprs and records of what was run."""

from __future__ import annotations

import functools

from ..scores import CustomScore


def name_of(value: object) -> str:
    """What to call it.

    Args:
        value: A function, a ``functools.partial`` of one, or a value with a repr of its own.

    Returns:
        Such as ``"gradcam"``, ``"fem(k=1.0)"`` or ``"LogitDifference(baseline='max')"``.
    """
    if isinstance(value, CustomScore):
        return name_of(value.function)
    if isinstance(value, functools.partial):
        given = [*map(repr, value.args), *(f"{name}={option!r}" for name, option in sorted(value.keywords.items()))]
        return f"{name_of(value.func)}({', '.join(given)})"
    return getattr(value, "__name__", None) or repr(value)
