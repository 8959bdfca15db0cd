"""The methods by name: those that can be made of a model, a layer and nothing else, and show evidence for a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

import diffgradcam as methods

from .._core.base import BaseCAM
from .._core.layers import LayerSpec

METHODS: dict[str, Callable[..., BaseCAM]] = {
    method.__name__: method
    for method in (
        methods.DiffGradCAM,
        methods.DiffGradCAMPlusPlus,
        methods.GradCAM,
        methods.GradCAMPlusPlus,
        methods.XGradCAM,
        methods.LayerCAM,
        methods.HiResCAM,
        methods.GradCAMElementWise,
        methods.FinerCAM,
        methods.EigenGradCAM,
        methods.ShapleyCAM,
        methods.CAM,
        methods.SmoothGradCAMPlusPlus,
        methods.EigenCAM,
        methods.KPCACAM,
        methods.FEM,
        methods.RandomCAM,
        methods.ScoreCAM,
        methods.AblationCAM,
    )
}
CONTRASTIVE = ("DiffGradCAM", "DiffGradCAMPlusPlus")
SIDE_BY_SIDE = ("GradCAM", "DiffGradCAM", "LayerCAM", "HiResCAM", "EigenCAM", "RandomCAM")  # where none is named


def make_cam(
    name: str, model: nn.Module, layers: list[LayerSpec], reshape_transform: Any, baseline: str | int = "logsumexp"
) -> BaseCAM:
    """A method, ready to explain.

    Args:
        name: One of :data:`METHODS`.
        model: The model.
        layers: Its target layers.
        reshape_transform: As :class:`~diffgradcam.BaseCAM` takes it.
        baseline: Of the contrastive methods; the others have none.

    Returns:
        The CAM.
    """
    options: dict[str, Any] = {"baseline": baseline} if name in CONTRASTIVE else {}
    return METHODS[name](model, layers, reshape_transform, **options)
