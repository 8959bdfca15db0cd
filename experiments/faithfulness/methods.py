"""The methods that are compared, plain and contrastive, as functions that make a CAM of EfficientNet-Lite0.

``CAM`` is left out: on this model it is GradCAM. So are ``SSCAM`` and ``ISCAM``, which take tens of thousands of
forward passes a photograph here (1280 channels times 35 and 10), and the many possible fused and smoothed maps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from diffgradcam import (
    FEM,
    KPCACAM,
    AblationCAM,
    BaseCAM,
    DiffGradCAM,
    EigenCAM,
    EigenGradCAM,
    Explanation,
    FinerCAM,
    FullGrad,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RandomCAM,
    ScoreCAM,
    ShapleyCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
    layer_input,
)
from diffgradcam.scores import logit_difference

LAYER = layer_input("_avg_pooling")


class Explainer(Protocol):
    """What is asked of a CAM here."""

    def explain(self, images: Tensor, /) -> Explanation:
        """As :meth:`diffgradcam.BaseCAM.explain`."""
        ...


Make = Callable[[nn.Module], Explainer]


def _of_layer(method: Callable[..., BaseCAM]) -> Make:
    return lambda model: method(model, LAYER, rectify=False)


_SCORED: dict[str, Callable[..., BaseCAM]] = {
    "GradCAM": GradCAM,
    "GradCAM++": GradCAMPlusPlus,
    "XGradCAM": XGradCAM,
    "LayerCAM": LayerCAM,
    "HiResCAM": HiResCAM,
    "GradCAM, element-wise": GradCAMElementWise,
    "EigenGradCAM": EigenGradCAM,
    "ShapleyCAM": ShapleyCAM,
    "Smooth GradCAM++": SmoothGradCAMPlusPlus,
    "ScoreCAM": partial(ScoreCAM, progress=False),
}
_CONTRASTS: dict[str, Callable[..., BaseCAM]] = {
    "DiffGradCAM max": partial(DiffGradCAM, baseline="max"),
    "DiffGradCAM mean": partial(DiffGradCAM, baseline="mean"),
    "FinerCAM": FinerCAM,
}
_CLASSLESS: dict[str, Callable[..., BaseCAM]] = {
    "EigenCAM": EigenCAM,
    "KPCACAM": KPCACAM,
    "FEM": FEM,
    "RandomCAM": RandomCAM,
}
_ABLATION = partial(AblationCAM, progress=False)
PLAIN, CONTRAST, NEITHER = "a logit", "a contrast", "no class"

METHODS: dict[tuple[str, str], Make] = (
    {(name, PLAIN): _of_layer(method) for name, method in _SCORED.items()}
    | {(name, CONTRAST): _of_layer(partial(method, score=logit_difference)) for name, method in _SCORED.items()}
    | {(name, CONTRAST): _of_layer(method) for name, method in _CONTRASTS.items()}
    | {("AblationCAM", PLAIN): _of_layer(_ABLATION)}
    | {("AblationCAM", CONTRAST): _of_layer(partial(_ABLATION, score=logit_difference))}
    | {("FullGrad", PLAIN): FullGrad, ("FullGrad", CONTRAST): partial(FullGrad, score=logit_difference)}
    | {(name, NEITHER): _of_layer(method) for name, method in _CLASSLESS.items()}
)
