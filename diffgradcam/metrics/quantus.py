"""Maps for the metrics of Quantus."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from diffgradcam._core.explainers import check_makes_cams
from diffgradcam._core.explanation import ModelExplainer
from diffgradcam.heatmaps import resize

ExplainFunction = Callable[..., NDArray[np.float32]]


def quantus_explainer(make_cam: Callable[..., ModelExplainer]) -> ExplainFunction:
    """The ``explain_func`` that the metrics of Quantus take, from any CAM.

    Quantus itself is not needed for it. Some metrics change the model, so a CAM is made of each model that comes, and
    layers go by dotted name.

    Args:
        make_cam: Makes a CAM of the model that it is given. Entries of ``explain_func_kwargs`` are its keyword
            arguments, but for ``device``.

    Returns:
        A function ``(model, inputs, targets, **kwargs)`` of inputs ``(B, C, *S)`` and a class for each, or None for the
        decisions, which returns maps as float32 ``(B, 1, *S)``: linearly resized to the inputs, not scaled, signed
        where the CAM is.

    Raises:
        TypeError: If ``make_cam`` is not a function that makes a CAM.

    Reference:
        Hedström et al., "Quantus: An Explainable AI Toolkit for Responsible Evaluation of Neural Network Explanations
        and Beyond", JMLR 2023 (arXiv 2202.06861).

    Example:
        >>> from diffgradcam import DiffGradCAM
        >>> explain = quantus_explainer(lambda model, **options: DiffGradCAM(model, "0", **options))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, np.zeros((2, 3, 8, 8)), np.array([0, 3]), baseline="max").shape
        (2, 1, 8, 8)
    """
    check_makes_cams("make_cam", make_cam)
    return partial(_explain, make_cam)


def _explain(
    make_cam: Callable[..., ModelExplainer],
    /,
    model: nn.Module,
    inputs: ArrayLike,
    targets: ArrayLike | None = None,
    device: torch.device | str | None = None,
    **kwargs: Any,
) -> NDArray[np.float32]:
    images = torch.as_tensor(inputs)
    weight = next((each for each in model.parameters() if each.is_floating_point()), None)
    images = images.to(images.dtype if weight is None else weight.dtype)
    images = images.to(device if device is not None or weight is None else weight.device)
    classes = None if targets is None else torch.as_tensor(targets).to(images.device)
    maps = make_cam(model, **kwargs).explain(images, classes).maps
    resized: NDArray[np.float32] = resize(maps.float(), images.shape[2:]).unsqueeze(1).cpu().numpy()
    return resized
