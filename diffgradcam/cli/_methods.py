"""The methods that the commands offer, by name: those of the list of methods that need only a model and a layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from .._core.base import BaseCAM, TrainableCAM
from .._core.class_names import GivenClassNames
from .._core.layers import LayerSpec
from ..methods import registered_methods

SIDE_BY_SIDE = ("GradCAM", "DiffGradCAM", "LayerCAM", "HiResCAM", "EigenCAM", "RandomCAM")  # where none is named


def method_names(*, trainable: bool = False) -> list[str]:
    """The names of the methods.

    Args:
        trainable: Only of those whose maps can be trained.

    Returns:
        Names, in the order of the list of methods.
    """
    return [
        name for name, method in registered_methods().items() if method.command and (method.trainable or not trainable)
    ]


def contrastive_names() -> list[str]:
    """The names of the methods that have a baseline."""
    methods = registered_methods()
    return [name for name in method_names() if "baseline" in methods[name].options]


def trainable_method(name: str) -> type[TrainableCAM]:
    """A method whose maps can be trained.

    Args:
        name: Of the method.

    Returns:
        Its class.

    Raises:
        ValueError: If its maps cannot be trained.
    """
    method = registered_methods()[name].make
    if not issubclass(method, TrainableCAM):
        raise ValueError(f"the maps of {name} cannot be trained; expected one of {method_names(trainable=True)}")
    return method


def make_cam(
    name: str,
    model: nn.Module,
    layers: list[LayerSpec],
    reshape_transform: Any,
    baseline: str | int = "logsumexp",
    class_names: GivenClassNames | None = None,
) -> BaseCAM:
    """A method, ready to explain.

    Args:
        name: Of the method.
        model: The model.
        layers: Its target layers.
        reshape_transform: As :class:`~diffgradcam.BaseCAM` takes it.
        baseline: Of the contrastive methods; the others have none.
        class_names: As :class:`~diffgradcam.BaseCAM` takes them.

    Returns:
        The CAM.
    """
    options: dict[str, Any] = {"baseline": baseline} if name in contrastive_names() else {}
    return registered_methods()[name].make(model, layers, reshape_transform, class_names=class_names, **options)
