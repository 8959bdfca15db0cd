"""Class activation maps whose explanation cannot be fooled silently, that you can train with, and that are measured.

The methods and what most scripts need are here; the rest is found by submodule, such as
``diffgradcam.losses``, ``diffgradcam.sham`` or ``diffgradcam.metrics``, which are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._core.base import BaseCAM, TrainableCAM
from ._core.display import draw_with
from ._core.explanation import Explanation
from ._core.layers import layer_input
from .analysis.comparisons import explain_pairs, explain_together
from .analysis.concepts import DeepFeatureFactorization
from .analysis.guided import GuidedBackpropReLUModel
from .analysis.regions import important_features
from .methods.activation import FEM, KPCACAM, EigenCAM, RandomCAM
from .methods.attention import LeGrad
from .methods.contrastive import DiffGradCAM, DiffGradCAMPlusPlus, FinerCAM, TrueFalseCAM
from .methods.fullgrad import FullGrad
from .methods.gradient import (
    CAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RefineCAM,
    SegEigenCAM,
    ShapleyCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
)
from .methods.perturbation import ISCAM, SSCAM, AblationCAM, ScoreCAM
from .methods.sess import SESS
from .methods.smoothing import AugSmooth, EigenSmooth, NoiseSmooth

if TYPE_CHECKING:
    from .robustness import audit, benchmark, repair

__version__ = "0.1.0"

__all__ = [
    "CAM",
    "FEM",
    "ISCAM",
    "KPCACAM",
    "SESS",
    "SSCAM",
    "AblationCAM",
    "AugSmooth",
    "BaseCAM",
    "DeepFeatureFactorization",
    "DiffGradCAM",
    "DiffGradCAMPlusPlus",
    "EigenCAM",
    "EigenGradCAM",
    "EigenSmooth",
    "Explanation",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackpropReLUModel",
    "HiResCAM",
    "LayerCAM",
    "LeGrad",
    "NoiseSmooth",
    "RandomCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "ShapleyCAM",
    "SmoothGradCAMPlusPlus",
    "TrainableCAM",
    "TrueFalseCAM",
    "XGradCAM",
    "audit",
    "benchmark",
    "explain_pairs",
    "explain_together",
    "important_features",
    "layer_input",
    "repair",
]

_SUBMODULES = (
    "analysis",
    "cli",
    "data",
    "export",
    "heatmaps",
    "integrations",
    "losses",
    "methods",
    "metrics",
    "robustness",
    "scores",
    "sham",
    "targets",
    "tokens",
    "training",
    "utils",
    "visualize",
    "weightings",
)
_OF_ROBUSTNESS = ("audit", "benchmark", "repair")  # with all that they need, a fifth of the time that the import takes

draw_with(lambda: importlib.import_module(f"{__name__}.visualize.sheets"))


def __getattr__(name: str) -> Any:
    """Import a submodule, or what takes long to import, when it is first used."""
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _OF_ROBUSTNESS:
        return getattr(importlib.import_module(f"{__name__}.robustness"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES, *_OF_ROBUSTNESS})
