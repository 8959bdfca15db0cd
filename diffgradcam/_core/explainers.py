"""CAMs, and functions that make them, as arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .explanation import ModelExplainer

MakeCAM = Callable[[nn.Module], ModelExplainer]
"""A function that makes a CAM of the model it is given, such as ``lambda model: GradCAM(model, "layer4")``."""


def check_makes_cams(name: str, make: object) -> None:
    """Refuse what cannot be called with a model alone to make a CAM, such as a CAM, a wrapper or a class of either.

    Args:
        name: Of the argument, for the message.
        make: What was given.

    Raises:
        TypeError: If it is not such a function.
    """
    if not callable(make) or isinstance(make, type) or callable(getattr(make, "explain", None)):
        what = f"the class {make.__name__}" if isinstance(make, type) else f"a {type(make).__name__}"
        raise TypeError(
            f"{name} is {what}; expected a function that makes a CAM of the model that it is given; give one such as "
            'lambda model: GradCAM(model, "layer4")'
        )


def check_explains(cam: Any) -> None:
    """Refuse what has no ``explain``, and a class that has it.

    Args:
        cam: What was given.

    Raises:
        TypeError: If it is not a CAM, a wrapper, or an object like them.
    """
    if not callable(getattr(cam, "explain", None)) or isinstance(cam, type):
        given = f"the class {cam.__name__}" if isinstance(cam, type) else type(cam).__name__
        raise TypeError(
            f"cam is {given}; expected a CAM or an object with explain(); give one such as GradCAM(model, 'layer4')"
        )
