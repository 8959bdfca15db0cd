"""Names of options that are the same in the next process, for files and messages."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from ..scores import CustomScore


def option_name(value: object) -> str | float | list[Any] | None:
    """An option in the form that JSON has for it.

    Args:
        value: A string, a number, a list of options, a function, a class, a ``functools.partial``, a dataclass, or
            another callable object.

    Returns:
        Strings and numbers as they are, lists option by option, callables by :func:`callable_name`; None for anything
        else.
    """
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [option_name(each) for each in value]
    return callable_name(value) if callable(value) else None


def callable_name(function: object) -> str:
    """The name of a function or class, with the options of a partial or a dataclass. It never contains an address.

    Args:
        function: Anything callable.

    Returns:
        Such as ``"logit"``, ``"finer(alpha=0.5)"`` or ``"LogitDifference(baseline=max)"``; the name of its class for
        an object without a name.
    """
    if isinstance(function, partial):
        options = [str(option_name(value)) for value in function.args]
        options += [f"{name}={option_name(value)}" for name, value in sorted(function.keywords.items())]
        return f"{callable_name(function.func)}({', '.join(options)})"
    if isinstance(function, CustomScore):
        return callable_name(function.function)
    if is_dataclass(function) and not isinstance(function, type):
        options = [f"{each.name}={option_name(getattr(function, each.name))}" for each in fields(function)]
        return f"{type(function).__name__}({', '.join(options)})"
    return str(getattr(function, "__qualname__", type(function).__name__))


def one_line(text: str) -> str:
    """A text that is safe to print in one line: control characters, such as those of a hostile name, are escaped.

    Args:
        text: A name.

    Returns:
        The text.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
