"""Class activation maps that cannot be fooled silently, that train with you, and whose robustness is measured."""

from . import losses, scores, sham
from .activation_cam import FEM, KPCACAM, EigenCAM, RandomCAM
from .cam import (
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
from .common_mode import AuditReport, audit, repair
from .engine import BaseCAM
from .factorization import DeepFeatureFactorization, factorize
from .fullgrad import FullGrad
from .fusion import RefineCAM
from .guided_backprop import GuidedBackpropReLUModel, guided_gradcam, guided_gradients
from .layers import layer_input
from .passes import Explanation
from .perturbation import ISCAM, SSCAM, AblationCAM, ScoreCAM
from .regions import Region, important_features
from .robustness import BenchmarkResult, benchmark
from .smoothing import AugSmooth, EigenSmooth, NoiseSmooth
from .together import explain_pairs, explain_together
from .truefalse import TrueFalseCAM, TrueFalseMaps

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
