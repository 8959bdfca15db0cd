"""The methods that the commands offer: those of the library's list that need only a model and a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from torch import nn

from .._core.base import BaseCAM, TrainableCAM
from .._core.layers import LayerSpec
from ..methods import Method, registered_methods

SIDE_BY_SIDE = ("GradCAM", "DiffGradCAM", "LayerCAM", "HiResCAM", "EigenCAM", "RandomCAM")  # where none is named


def offered() -> dict[str, Method]:
    """The methods of the command by name, contrastive ones first."""
    found = {name: method for name, method in registered_methods().items() if method.command}
    return dict(sorted(found.items(), key=lambda item: "baseline" not in item[1].options))


class MethodChoice(click.Choice[str]):
    """The name of a method. The list is read when it is asked for, so that it has methods added later.

    Args:
        trainable: Offer only methods with maps to train with.
    """

    def __init__(self, *, trainable: bool = False) -> None:
        self._trainable = trainable
        super().__init__([], case_sensitive=False)

    @property
    def choices(self) -> tuple[str, ...]:
        """The names."""
        return tuple(name for name, method in offered().items() if method.trainable or not self._trainable)

    @choices.setter
    def choices(self, _names: object) -> None:
        """Click sets it once; the list is the library's."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """The names as they are written, for the help."""
        return f"[{'|'.join(self.choices)}]"


def make_cam(
    name: str, model: nn.Module, layers: list[LayerSpec], reshape_transform: Any, baseline: str | int = "logsumexp"
) -> BaseCAM:
    """A method, ready to explain.

    Args:
        name: One of :func:`offered`.
        model: The model.
        layers: Its target layers.
        reshape_transform: As :class:`~diffgradcam.BaseCAM` takes it.
        baseline: Of the methods that have one.

    Returns:
        The CAM.
    """
    method = offered()[name]
    options: Mapping[str, Any] = {"baseline": baseline} if "baseline" in method.options else {}
    return method.make(model, layers, reshape_transform, **options)


def trainable_class(name: str) -> type[TrainableCAM]:
    """The class of a method with maps to train with.

    Args:
        name: One of :func:`offered`.

    Returns:
        The class.

    Raises:
        ValueError: If it has no such maps.
    """
    make = offered()[name].make
    if not issubclass(make, TrainableCAM):
        raise ValueError(f"{name} has no maps to train with; expected a method from gradients, such as GradCAM")
    return make
