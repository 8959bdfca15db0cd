"""Class activation maps that cannot be fooled silently, that train with you, and whose robustness is measured."""

from . import losses, scores, sham
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
from .common_mode import AuditReport, audit, repair
from .engine import BaseCAM, Explanation, explain_together
from .layers import layer_input
from .regions import Region, important_features
from .robustness import BenchmarkResult, benchmark
from .truefalse import TrueFalseCAM, TrueFalseMaps

__version__ = "0.1.0"

__all__ = [
    "AuditReport",
    "BaseCAM",
    "BenchmarkResult",
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
    "audit",
    "benchmark",
    "explain_together",
    "important_features",
    "layer_input",
    "losses",
    "repair",
    "scores",
    "sham",
]
