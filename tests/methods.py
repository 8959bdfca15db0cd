"""Every published method beside its score and its weighting as loops."""

from functools import partial

import torch
from torch import nn

from diffgradcam import (
    FEM,
    KPCACAM,
    DiffGradCAM,
    DiffGradCAMPlusPlus,
    EigenCAM,
    EigenGradCAM,
    FinerCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    SegEigenCAM,
    XGradCAM,
)
from diffgradcam.scores import logit_difference
from tests import models, oracles


def lowest(others):
    """A baseline of a user's own."""
    return others.amin(1)


SCORELESS = ("Eigen", "KPCA", "FEM")  # no gradient, no score, nothing to train with
# name: (class, its options, the score as a loop, the weighting as a loop)
METHODS = {
    "GradCAM": (GradCAM, {}, oracles.logit, oracles.gradcam),
    "GradCAM++": (GradCAMPlusPlus, {}, oracles.logit, oracles.gradcam_plus_plus),
    "XGradCAM": (XGradCAM, {}, oracles.logit, oracles.xgradcam),
    "LayerCAM": (LayerCAM, {}, oracles.logit, oracles.layercam),
    "HiResCAM": (HiResCAM, {}, oracles.logit, oracles.hirescam),
    "ElementWise": (GradCAMElementWise, {}, oracles.logit, oracles.gradcam_elementwise),
    "Diff": (DiffGradCAM, {}, oracles.difference(oracles.logsumexp), oracles.gradcam),
    "Diff max": (DiffGradCAM, {"baseline": "max"}, oracles.difference(oracles.largest), oracles.gradcam),
    "Diff mean": (DiffGradCAM, {"baseline": "mean"}, oracles.difference(oracles.mean), oracles.gradcam),
    "Diff class": (DiffGradCAM, {"baseline": 4}, oracles.against(4), oracles.gradcam),
    "Diff callable": (
        DiffGradCAM,
        {"baseline": lowest},
        oracles.difference(lambda others: -oracles.largest([-z for z in others])),
        oracles.gradcam,
    ),
    "Diff++": (DiffGradCAMPlusPlus, {}, oracles.difference(oracles.logsumexp), oracles.gradcam_plus_plus),
    "Diff++ mean": (
        DiffGradCAMPlusPlus,
        {"baseline": "mean"},
        oracles.difference(oracles.mean),
        oracles.gradcam_plus_plus,
    ),
    "Finer": (FinerCAM, {}, oracles.finer(), oracles.gradcam),
    "Finer 0.6 of 2": (FinerCAM, {"alpha": 0.6, "comparisons": 2}, oracles.finer(0.6, 2), oracles.gradcam),
    "Layer of Diff": (
        LayerCAM,
        {"score": logit_difference},
        oracles.difference(oracles.logsumexp),
        oracles.layercam,
    ),
    "HiRes of Diff": (
        HiResCAM,
        {"score": logit_difference},
        oracles.difference(oracles.logsumexp),
        oracles.hirescam,
    ),
    "EigenGrad": (EigenGradCAM, {}, oracles.logit, oracles.eigen_gradcam),
    "EigenGrad of Diff": (
        EigenGradCAM,
        {"score": logit_difference},
        oracles.difference(oracles.logsumexp),
        oracles.eigen_gradcam,
    ),
    "SegEigen": (SegEigenCAM, {}, oracles.logit, oracles.seg_eigencam),
    "SegEigen of Diff": (
        SegEigenCAM,
        {"score": logit_difference},
        oracles.difference(oracles.logsumexp),
        oracles.seg_eigencam,
    ),
    "Eigen": (EigenCAM, {}, oracles.logit, oracles.eigencam),
    "KPCA": (KPCACAM, {}, oracles.logit, oracles.kpcacam()),
    "FEM": (FEM, {"k": 1.0}, oracles.logit, oracles.fem(1.0)),
}
CONTRASTS = [name for name in METHODS if "Diff" in name or name == "Finer"]
HEADS = {
    "pooled": models.pooled,
    "flat": models.flat,
    "deep": partial(models.deep, activation=nn.ReLU),
    "max_pooled": models.max_pooled,
    "mean_of_squares": models.mean_of_squares,
    "custom_function": models.custom_function,
}
WORDS = [None, 2, torch.tensor([0, 3, 1]), torch.tensor([[0, 1], [2, 3], [3, 3]]), "all"]


def exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def expected_maps(model, images, classes, name, layer="relu", **options):
    """Signed maps of the oracle, in the shape of the classes."""
    _, _, score, weighting = METHODS[name]
    index = classes.unsqueeze(1) if classes.ndim == 1 else classes
    maps = oracles.explain(model, layer, images, index, score, weighting, **options)
    return maps.squeeze(1) if classes.ndim == 1 else maps
