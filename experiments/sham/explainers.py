"""The explainers that are compared: plain, and of a difference of logits."""

from __future__ import annotations

from functools import partial

from torch import nn

from diffgradcam import (
    BaseCAM,
    DiffGradCAM,
    DiffGradCAMPlusPlus,
    FinerCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from diffgradcam._core.layers import LayerSpec
from diffgradcam.robustness import MakeCAM
from diffgradcam.scores import logit_difference

PLAIN = {
    "GradCAM": GradCAM,
    "GradCAM++": GradCAMPlusPlus,
    "LayerCAM": LayerCAM,
    "HiResCAM": HiResCAM,
    "XGradCAM": XGradCAM,
}
CONTRASTIVE = {
    "DiffGradCAM logsumexp": DiffGradCAM,  # which is GradCAM with score=logit_difference
    "DiffGradCAM max": partial(DiffGradCAM, baseline="max"),
    "DiffGradCAM mean": partial(DiffGradCAM, baseline="mean"),
    "DiffGradCAM++": DiffGradCAMPlusPlus,  # GradCAM++ with score=logit_difference
    "LayerCAM, contrast": partial(LayerCAM, score=logit_difference),
    "HiResCAM, contrast": partial(HiResCAM, score=logit_difference),
    "XGradCAM, contrast": partial(XGradCAM, score=logit_difference),
    "FinerCAM": FinerCAM,
}


def explainers(layer: LayerSpec) -> dict[str, MakeCAM]:
    """By name, functions that make the CAM of a model, as :func:`diffgradcam.benchmark` takes them."""

    def make(model: nn.Module, method: type[BaseCAM]) -> BaseCAM:
        return method(model, layer)

    return {name: partial(make, method=method) for name, method in (PLAIN | CONTRASTIVE).items()}  # type: ignore[arg-type]
