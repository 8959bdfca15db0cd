"""Class activation maps that cannot be fooled silently, that train with you, and whose robustness is measured."""

from . import losses, scores, sham
from ._core.base import BaseCAM
from ._core.forward import Explanation
from ._core.layers import layer_input
from .analysis.comparisons import explain_pairs, explain_together
from .analysis.concepts import DeepFeatureFactorization, factorize
from .analysis.guided import GuidedBackpropReLUModel, guided_gradcam, guided_gradients
from .analysis.regions import Region, important_features
from .methods.activation import FEM, KPCACAM, EigenCAM, RandomCAM
from .methods.contrastive import TrueFalseCAM, TrueFalseMaps
from .methods.fullgrad import FullGrad
from .methods.fusion import RefineCAM
from .methods.gradient import (
    CAM,
    DiffGradCAM,
    DiffGradCAMPlusPlus,
    EigenGradCAM,
    FinerCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ShapleyCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
)
from .methods.perturbation import ISCAM, SSCAM, AblationCAM, ScoreCAM
from .methods.smoothing import AugSmooth, EigenSmooth, NoiseSmooth
from .robustness import AuditReport, BenchmarkResult, audit, benchmark, repair

__version__ = "0.1.0"

__all__ = [
    "CAM",
    "FEM",
    "ISCAM",
    "KPCACAM",
    "SSCAM",
    "AblationCAM",
    "AuditReport",
    "AugSmooth",
    "BaseCAM",
    "BenchmarkResult",
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
    "NoiseSmooth",
    "RandomCAM",
    "RefineCAM",
    "Region",
    "ScoreCAM",
    "ShapleyCAM",
    "SmoothGradCAMPlusPlus",
    "TrueFalseCAM",
    "TrueFalseMaps",
    "XGradCAM",
    "audit",
    "benchmark",
    "explain_pairs",
    "explain_together",
    "factorize",
    "guided_gradcam",
    "guided_gradients",
    "important_features",
    "layer_input",
    "losses",
    "repair",
    "scores",
    "sham",
]
