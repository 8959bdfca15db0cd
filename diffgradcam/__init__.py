"""Class activation maps that cannot be fooled silently, that train with you, and whose robustness is measured."""

from . import losses, scores
from .cam import (
    DiffGradCAM,
    DiffGradCAMPlusPlus,
    FinerCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from .engine import BaseCAM, Explanation
from .layers import layer_input
from .regions import Region, important_features
from .truefalse import TrueFalseCAM, TrueFalseMaps

__version__ = "0.1.0"

__all__ = [
    "BaseCAM",
    "DiffGradCAM",
    "DiffGradCAMPlusPlus",
    "Explanation",
    "FinerCAM",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "Region",
    "TrueFalseCAM",
    "TrueFalseMaps",
    "XGradCAM",
    "important_features",
    "layer_input",
    "losses",
    "scores",
]
