"""What people do with maps: compare classes and methods, find regions and concepts, show edges."""

from .._core.region import Region
from .comparisons import PairExplanation, explain_pairs, explain_together
from .concepts import Concepts, DeepFeatureFactorization, Factorization, factorize
from .guided import GuidedBackpropReLUModel, guided_gradcam, guided_gradients
from .regions import Regions, important_features

__all__ = [
    "Concepts",
    "DeepFeatureFactorization",
    "Factorization",
    "GuidedBackpropReLUModel",
    "PairExplanation",
    "Region",
    "Regions",
    "explain_pairs",
    "explain_together",
    "factorize",
    "guided_gradcam",
    "guided_gradients",
    "important_features",
]
