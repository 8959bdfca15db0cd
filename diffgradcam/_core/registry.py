"""The list of methods. Tables, tests, the command and the documentation read it; a new method adds itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from .base import BaseCAM, CAMOptions, ScoredCAM, ScoredOptions, TrainableCAM

_C = TypeVar("_C", bound=type[BaseCAM])


@dataclass(frozen=True)
class Method:
    """A published method.

    Attributes:
        make: Its class.
        command: Whether the command offers it: it can be made of a model and a layer alone, and shows evidence for a
            class at a reasonable price.
    """

    make: type[BaseCAM]
    command: bool = True

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.make.__name__

    @property
    def summary(self) -> str:
        """The first sentence of its documentation, without its name."""
        first = (inspect.getdoc(self.make) or "").split("\n\n")[0].replace("\n", " ")
        _, _, rest = first.partition(": ")
        sentence = (rest or first).split(". ")[0].rstrip(".")
        return sentence[:1].upper() + sentence[1:]

    @property
    def reference(self) -> str:
        """Where it comes from."""
        _, _, rest = (inspect.getdoc(self.make) or "").partition("Reference:\n")
        return " ".join(rest.split("\n\n")[0].split())

    @property
    def has_score(self) -> bool:
        """Whether it explains a score, so that ``score=`` makes it contrastive."""
        return issubclass(self.make, ScoredCAM)

    @property
    def trainable(self) -> bool:
        """Whether it has differentiable maps to train with."""
        return issubclass(self.make, TrainableCAM)

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that this method has and others have not."""
        common = {
            *inspect.signature(TrainableCAM).parameters,
            *CAMOptions.__annotations__,
            *ScoredOptions.__annotations__,
            "options",
        }
        return tuple(name for name in inspect.signature(self.make).parameters if name not in common)


_METHODS: dict[str, Method] = {}


def register(*, command: bool = True) -> Callable[[_C], _C]:
    """Add a class to the list of methods.

    Args:
        command: See :class:`Method`.

    Returns:
        A decorator that returns the class as it is.

    Example:
        >>> from diffgradcam.methods import registered_methods
        >>> registered_methods()["LayerCAM"].summary
        'Each position of each channel weighted by its own positive gradient'
    """

    def add(method: _C) -> _C:
        _METHODS[method.__name__] = Method(method, command)
        return method

    return add


def unregister(name: str) -> None:
    """Take a method off the list again.

    Args:
        name: Of its class.

    Raises:
        KeyError: If it is not there.
    """
    del _METHODS[name]


def registered_methods() -> dict[str, Method]:
    """All methods by name, in the order in which they were added.

    Returns:
        A new dictionary.
    """
    return dict(_METHODS)
