"""Data sets: images with saliency maps to train with, and whole data sets explained into a folder."""

from .._core.explanation import Explainer
from .explain import explain_dataset
from .saliency import SaliencyDataset, SaliencyItem, Transform, albumentations_style
from .statistical import lda_saliency, pca_saliency
from .store import Explanations, Row, open_explanations

__all__ = [
    "Explainer",
    "Explanations",
    "Row",
    "SaliencyDataset",
    "SaliencyItem",
    "Transform",
    "albumentations_style",
    "explain_dataset",
    "lda_saliency",
    "open_explanations",
    "pca_saliency",
]
