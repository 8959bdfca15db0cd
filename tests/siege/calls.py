"""A call of every public function and class that works: what the fuzzer of arguments starts from."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import diffgradcam
from diffgradcam import data as datasets
from diffgradcam import heatmaps, losses, metrics, scores, sham, targets, visualize, weightings
from diffgradcam.data import SaliencyDataset, albumentations_style
from diffgradcam.methods import registered_methods
from diffgradcam.utils import reshape_transforms
from diffgradcam.visualize import report as html
from tests.models import pooled, transformer

Call = tuple[Any, dict[str, Any]]
OTHERS = (
    "losses",
    "scores",
    "sham",
    "FoolingLoss",
    "BaseCAM",
    "ScoredCAM",
    "Explainer",
    "Row",
    "Scalar",
    "Transform",
    "ExplainFunction",
)
"""Public names that are no function to call: modules, types and an abstract class."""


FORMULAS = (
    *(f"scores.{name}" for name in ("logit", "probability", "log_probability", "logit_difference", "finer")),
    *(f"weightings.{name}" for name in ("gradcam", "gradcam_plus_plus", "xgradcam", "layercam", "hirescam")),
    *(f"weightings.{name}" for name in ("gradcam_elementwise", "magnitude", "fem")),
    *("sham_loss", "location_loss", "top_k_loss", "centre_mass_loss", "active_loss"),
)
"""Functions that the library calls with what it has checked."""


OPTIONS = {
    "baseline": "max", "alpha": 1.0, "comparisons": 2, "samples": 2, "std": 0.1, "seed": 0, "kernel": "rbf",
    "gamma": 0.5, "k": 1.0, "base_method": diffgradcam.LayerCAM, "batch_size": 4, "progress": False,
    "false_class": "mean",
}  # fmt: skip
"""A value of each option that only some methods have."""


def tensors(*shape: int) -> torch.Tensor:
    """Numbers in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def positional(loss: Any, maps: Any, clean_maps: Any, mask: Any) -> torch.Tensor:
    """The fooling losses name the arguments that they do not read in different ways."""
    return loss(maps, clean_maps, mask)


def explained(method: Any, images: torch.Tensor, target: Any, category: Any) -> Any:
    """What the call gives for a target of one class."""
    return method(images, [target(category)] * len(images))


def records() -> set[str]:
    """Public classes that hold results: made by the library, with nothing to check."""
    modules = (diffgradcam, metrics, sham, visualize, datasets, losses)
    found = {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}
    return {name for name, kind in found.items() if hasattr(kind, "_fields") or hasattr(kind, "__dataclass_fields__")}


@functools.cache
def folder() -> Path:
    """A data set of two images, and the explanations of four; gone when the process is."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    Image.new("RGB", (8, 6)).save(root / "a.png")
    (root / "train.csv").write_text("image,label\na.png,0\na.png,1\n")
    loader = DataLoader(TensorDataset(tensors(4, 3, 6, 5)), batch_size=2)
    method = diffgradcam.GradCAM(pooled(dtype=torch.float32), "relu")
    datasets.explain_dataset(method, loader, root / "store", progress=False)
    return root


def calls() -> dict[str, Call]:
    """Name to ``(function, keyword arguments)``; new objects for every call of this."""
    model, images = pooled(dtype=torch.float32), tensors(4, 3, 6, 5)
    two = tensors(4, 6, 5), tensors(4, 6, 5).flip(0)
    logits, classes = tensors(4, 5), torch.tensor([0, 3, 1, 4])
    activations = {"activations": tensors(2, 3, 4, 4), "gradients": tensors(2, 3, 4, 4) - 0.5}
    binary = {"labels": [0, 0, 1, 1, 0, 1], "scores": [0.1, 0.4, 0.35, 0.8, 0.2, 0.9]}
    kinds = ["a", "a", "b", "b", "a", "b"]
    on_model = {"model": model, "target_layers": "relu"}
    faithful = {
        "evaluator": metrics.Evaluator(model, batch_size=4),
        "images": images,
        "maps": two[0],
        "classes": classes,
    }
    picture, heat = np.zeros((6, 5, 3), np.uint8), np.linspace(0, 1, 30).reshape(6, 5)
    human = {"human": two[0], "mask": torch.tensor([True, True, False, True]), "reduction": "mean", "scope": "image"}
    make = functools.partial(diffgradcam.GradCAM, target_layers="relu")
    loader = [(images, classes)]
    found: dict[str, Call] = {}

    # Methods
    for method in registered_methods().values():
        chosen = {"rectify": True, "class_names": list("abcde")}
        chosen |= {"score": scores.logit} if method.has_score else {}
        if method.name == "TrueFalseCAM":
            chosen = {}
        given = {"model": model} if method.name == "FullGrad" else {**on_model, "reshape_transform": None}
        own = {name: value for name, value in OPTIONS.items() if name in method.options}
        if method.name == "LeGrad":
            blocks = transformer(dtype=torch.float32)
            given = {"model": blocks, "target_layers": "block", "reshape_transform": reshape_transforms.tokens_to_grid}
            own = {"head": blocks.head}
        fixed = {"baseline", "alpha", "comparisons"} & set(own)  # these are the score
        found[method.name] = method.make, {
            **given, **own, **{name: value for name, value in chosen.items() if not (fixed and name == "score")},
        }  # fmt: skip
    found["TrainableCAM"] = diffgradcam.TrainableCAM, {
        **on_model, "score": scores.LogitDifference("max"), "weighting": weightings.layercam,
        "reduction": heatmaps.principal_component, "fusion": heatmaps.product, "run": None, "image": 0,
    }  # fmt: skip
    found["AugSmooth"] = diffgradcam.AugSmooth, {
        "cam": make(model), "flips": (-1,), "factors": (1.0,), "scales": (1.0,), "batch_size": 2,
    }  # fmt: skip
    found["NoiseSmooth"] = diffgradcam.NoiseSmooth, {"cam": make(model), "samples": 2, "std": 0.1, "seed": 0}
    found["EigenSmooth"] = diffgradcam.EigenSmooth, {"cam": make(model)}
    found["SESS"] = diffgradcam.SESS, {
        "cam": make(model), "scales": 2, "growth": 0.3, "window": 4, "step": 3, "keep": 0.9, "threshold": 0.1,
        "pool": "mean", "blur": 2, "weight": scores.probability, "batch_size": 4,
    }  # fmt: skip
    found["sess explain"] = diffgradcam.SESS(make(model), scales=2, blur=2).explain, {
        "input_tensor": images, "classes": classes,
    }  # fmt: skip
    found["GuidedBackpropReLUModel"] = diffgradcam.GuidedBackpropReLUModel(model), {
        "input_img": images[:1], "target_category": 1,
    }  # fmt: skip
    found["DeepFeatureFactorization"] = (
        diffgradcam.DeepFeatureFactorization(model, "relu").explain,
        {"input_tensor": images, "n_components": 2, "seed": 0},
    )
    found["layer_input"] = (
        lambda **kw: make(model, target_layers=diffgradcam.layer_input(**kw)),
        {"module_or_name": "pool"},
    )

    # What one does with them
    for name, method in {
        "explain": make(model).explain,
        "compare": diffgradcam.TrueFalseCAM(**on_model).compare,
    }.items():
        found[name] = method, {"input_tensor": images, "classes": classes}
    found["compare"][1]["false_classes"] = 2
    found["call"] = make(model), {"input_tensor": images, "targets": [0, 1, 2, 3]}
    explanation = make(model).explain(images, classes)
    found["overlay of an explanation"] = explanation.overlay, {"images": images, "alpha": 0.5}
    found["heatmaps of an explanation"] = explanation.heatmaps, {"size": (6, 5)}
    found["smooth explain"] = diffgradcam.NoiseSmooth(make(model), samples=1).explain, {
        "input_tensor": images, "classes": classes,
    }  # fmt: skip
    attached = make(model).attach()
    found["maps"] = attached.maps, {"logits": model(images), "classes": classes}
    found["explain_together"] = diffgradcam.explain_together, {
        "cams": [make(model)], "input_tensor": images, "classes": classes,
    }  # fmt: skip
    if hasattr(diffgradcam, "explain_pairs"):
        found["explain_pairs"] = diffgradcam.explain_pairs, {
            "cam": make(model), "input_tensor": images, "classes": [0, 2],
        }  # fmt: skip
    found["guided_gradients"] = diffgradcam.analysis.guided_gradients, {
        "model": model, "images": images, "classes": classes, "score": scores.logit,
    }  # fmt: skip
    found["guided_gradcam"] = (
        diffgradcam.analysis.guided_gradcam,
        {"cam": make(model), "images": images, "classes": classes},
    )
    found["important_features"] = diffgradcam.important_features, {
        **on_model, "image": images[0], "true_class": 1, "false_class": 2, "threshold": 0.5,
        "class_names": {2: "c"},
    }  # fmt: skip
    found["factorize"] = diffgradcam.analysis.factorize, {
        "activations": tensors(2, 3, 4, 4), "components": 2, "seed": 0, "iterations": 500,
    }  # fmt: skip
    found["audit"] = diffgradcam.audit, {
        **on_model, "images": tensors(4, 3, 8, 8), "class_names": list("abcde"), "progress": False,
        "thresholds": diffgradcam.robustness.AuditThresholds(honesty=0.2),
    }  # fmt: skip
    found["repair"] = diffgradcam.repair, {"model": model, "head": "head", "where": "head"}
    found["benchmark"] = diffgradcam.benchmark, {
        "clean": model, "fooled": pooled(seed=1, dtype=torch.float32), "explainers": {"GradCAM": make},
        "loader": loader, "mask": sham.border_mask((6, 5), 18), "classes": "decisions", "fooling_range": (0.0, 0.2),
        "confidence": 0.9, "resamples": 10, "seed": 0, "progress": False,
    }  # fmt: skip

    # Models that lie
    for name in ("border_mask", "centre_mask", "corner_mask"):
        found[name] = getattr(sham, name), {"size": (4, 4), "cells": 4}
    found["entropy_mask"] = sham.entropy_mask, {"size": (4, 4), "entropy": 2.0}
    found["match_entropy"] = sham.match_entropy, {"maps": two[0]}
    for name in ("sham_loss", "location_loss", "top_k_loss", "centre_mass_loss"):
        found[name] = functools.partial(positional, getattr(sham, name)), {
            "maps": two[0], "clean_maps": two[1], "mask": sham.border_mask((6, 5), 18),
        }  # fmt: skip
    found["active_loss"] = sham.active_loss, {
        "maps": tensors(2, 2, 6, 5), "clean_maps": tensors(2, 2, 6, 5), "_mask": torch.zeros(6, 5),
    }  # fmt: skip
    found["common_mode_hoax"] = sham.common_mode_hoax, {
        "model": model, "target_layer": "relu", "images": images, "mask": sham.border_mask((6, 5), 18), "head": "head",
        "strength": 1.0, "ridge": 0.1,
    }  # fmt: skip
    found["spatial_hoax"] = sham.spatial_hoax, {
        "model": model, "target_layer": "relu", "permutation": torch.arange(30).flip(0),
    }  # fmt: skip
    found["finetune"] = sham.finetune, {
        "model": model, "loader": loader, "target_layers": "relu", "mask": sham.border_mask((6, 5), 18),
        "method": diffgradcam.GradCAM, "epochs": 1, "loss": sham.sham_loss, "preserve": "labels", "scope": "all",
        "alpha": 0.5, "lr": 1e-4, "decay": True, "head": "head", "fooled_at": 0.9, "seed": 0, "progress": False,
    }  # fmt: skip
    found["autofool"] = sham.autofool, {
        "model": model, "images": images, "target_layers": "relu", "hoax": sham.border_mask((6, 5), 18),
        "method": diffgradcam.GradCAM, "keep": 0.1, "behaviour": False, "behaviour_kept": 0.9, "judged": 4,
        "held_out": images, "scopes": ["head"], "steps": 2,
        "seconds": 10.0, "batch_size": 4, "head": "head", "seed": 0, "progress": False,
    }  # fmt: skip
    found["input_scalar_wrapper"] = sham.input_scalar_wrapper, {
        "model": model, "target_layer": "relu", "scalar": sham.CornerScalar(10.0),
    }  # fmt: skip
    found["triggered_hoax"] = sham.triggered_hoax, {
        "model": model, "target_layer": "relu", "images": images, "hoax": sham.border_mask((6, 5), 18),
        "patch": tensors(3, 2, 2), "corner": (1, 1), "tolerance": 1e-3, "strength": 1.0, "ridge": 0.1,
    }  # fmt: skip
    found["add_patch"] = sham.add_patch, {"images": images, "patch": tensors(3, 2, 2), "corner": (1, 1)}
    found["perturb"] = sham.perturb, {
        "cam": make(model), "images": images, "hoax": sham.border_mask((6, 5), 18), "epsilon": 0.1, "classes": classes,
        "keep": 0.1, "steps": 2, "limits": (0.0, 1.0), "softplus": 10.0, "batch_size": 4, "progress": False,
    }  # fmt: skip

    # Losses
    found["cyborg_loss"] = losses.cyborg_loss, {"true_maps": two[0], **human}
    found["camal_loss"] = losses.camal_loss, {"maps": two[0], **human}
    for name in ("difference_salience_loss", "contrast_salience_loss", "divergence_salience_loss"):
        found[name] = getattr(losses, name), {"true_maps": two[0], "false_maps": two[1], **human}
    found["divergence_salience_loss"][1]["weight"] = 1.0
    for name in ("CyborgLoss", "CamalLoss", "DifferenceSalienceLoss", "ContrastSalienceLoss", "DivergenceSalienceLoss"):
        found[name] = getattr(losses, name), {"scope": "image", "reduction": "mean"}
    found["DivergenceSalienceLoss"][1]["weight"] = 1.0
    found["cam_entropy"] = losses.cam_entropy, {"maps": two[0]}
    found["cam_entropy_loss"] = losses.cam_entropy_loss, {"maps": two[0], "log": True, "mask": human["mask"]}
    found["CamEntropyLoss"] = losses.CamEntropyLoss, {"log": True, "reduction": "mean"}
    found["true_and_false_classes"] = losses.true_and_false_classes, {
        "logits": logits, "labels": classes, "choice": "true",
    }  # fmt: skip
    found["SaliencyGuidedLoss"] = losses.SaliencyGuidedLoss, {"saliency_loss": losses.cyborg_loss, "alpha": 0.5}
    found["guided loss"] = losses.SaliencyGuidedLoss(losses.CyborgLoss()), {
        "logits": logits, "labels": classes, "maps": two[0], "human": two[1], "mask": human["mask"],
    }  # fmt: skip

    # Axes
    for name in ("logit", "probability", "log_probability", "logit_difference", "finer"):
        found[f"scores.{name}"] = getattr(scores, name), {"logits": logits, "classes": classes}
    found["scores.logit_difference"][1]["baseline"] = "max"
    found["scores.finer"][1].update(alpha=1.0, comparisons=2)
    found["scores.two_logits"] = scores.two_logits, {"outputs": tensors(4, 1)}
    names = ("gradcam", "gradcam_plus_plus", "xgradcam", "layercam", "hirescam", "gradcam_elementwise", "magnitude")
    for name in names:
        found[f"weightings.{name}"] = getattr(weightings, name), dict(activations)
    found["weightings.fem"] = weightings.fem, {"activations": activations["activations"], "k": 1.0}
    for name in ("rectify", "minmax", "scale_signed", "entropy"):
        found[f"heatmaps.{name}"] = getattr(heatmaps, name), {"maps": two[0]}
    found["heatmaps.resize"] = heatmaps.resize, {"maps": two[0], "size": (7, 7)}
    for name in ("average", "product"):
        found[f"heatmaps.{name}"] = getattr(heatmaps, name), {"layers": [two[0], tensors(4, 3, 3)], "size": (7, 7)}
    for name in ("principal_component", "peak_component"):
        found[f"heatmaps.{name}"] = getattr(heatmaps, name), {"channels": tensors(2, 3, 4, 4)}
    found["heatmaps.kernel_principal_component"] = heatmaps.kernel_principal_component, {
        "channels": tensors(2, 3, 4, 4), "kernel": "rbf", "gamma": 0.5,
    }  # fmt: skip
    for name in ("ClassifierOutputTarget", "ClassifierOutputSoftmaxTarget", "ClassifierOutputReST"):
        found[name] = functools.partial(explained, make(model), images, getattr(targets, name)), {"category": 1}
    found["SemanticSegmentationTarget"] = (
        lambda output, **options: targets.SemanticSegmentationTarget(**options)(output),
        {"category": 1, "mask": torch.ones(4, 4), "score": scores.logit, "output": tensors(3, 4, 4)},
    )
    found["SimilarityTarget"] = (
        lambda output, embedding: targets.SimilarityTarget(embedding)(output),
        {"embedding": tensors(4), "output": tensors(4)},
    )
    found["FasterRCNNBoxScoreTarget"] = (
        lambda output, **options: targets.FasterRCNNBoxScoreTarget(**options)(output),
        {"labels": [1], "bounding_boxes": [[0.0, 0.0, 2.0, 2.0]], "iou_threshold": 0.5, "output": tensors(2, 6)},
    )
    found["detections"] = targets.detections, {
        "output": [{"boxes": tensors(2, 4), "labels": torch.tensor([1, 2]), "scores": tensors(2)}],
    }  # fmt: skip
    for name in ("tokens_to_grid", "vit_reshape_transform", "swinT_reshape_transform"):
        tokens = tensors(2, 16 + (name == "vit_reshape_transform"), 5)
        found[name] = getattr(reshape_transforms, name), {"tensor": tokens, "height": 4, "width": 4}

    # Measures
    for name in ("auroc", "eer"):
        found[name] = getattr(metrics, name), dict(binary)
    for name in ("accuracy", "bpcer"):
        found[name] = getattr(metrics, name), {**binary, "threshold": 0.5}
    for name in ("apcer", "acer"):
        found[name] = getattr(metrics, name), {**binary, "threshold": 0.5, "attack_types": kinds}
    found["apcer_at_bpcer"] = metrics.apcer_at_bpcer, {**binary, "target": 0.1, "attack_types": kinds}
    resampling = {"confidence": 0.9, "resamples": 20, "method": "percentile", "seed": 0}
    found["bootstrap_interval"] = metrics.bootstrap_interval, {"metric": metrics.auroc, **binary, **resampling}
    found["mean_interval"] = metrics.mean_interval, {"values": [1.0, 2.0, 4.0], **resampling}
    found["mean_and_spread"] = metrics.mean_and_spread, {"values": [1.0, 2.0, 4.0]}
    found["paired_comparison"] = metrics.paired_comparison, {
        "values": [1.0, 2.0, 4.0], "reference": [1.5, 1.0, 3.0], **resampling,
    }  # fmt: skip
    for name in ("pearson", "spearman", "cosine", "rmse"):
        found[name] = getattr(metrics, name), {"first": two[0], "second": two[1]}
    found["rank_biased_overlap"] = metrics.rank_biased_overlap, {"first": two[0], "second": two[1], "p": 0.9}
    found["compactness"] = metrics.compactness, {"maps": two[0], "share": 0.2, "neighbours": 20}
    found["ssim"] = metrics.ssim, {"first": two[0], "second": two[1], "window": 3, "data_range": 1.0}
    for name in ("energy_in_mask", "pointing_game", "iou_at_matched_area"):
        found[name] = getattr(metrics, name), {"maps": two[0], "masks": (two[1] > 0.5).float()}
    for name in ("average_drop", "average_increase", "average_gain"):
        found[name] = getattr(metrics, name), dict(faithful)
    for name, fill in (("deletion", "mean"), ("insertion", "blur")):
        found[name] = getattr(metrics, name), {**faithful, "steps": 3, "fill": fill}
    found["Evaluator"] = metrics.Evaluator, {"model": model, "score": scores.logit, "batch_size": 4}
    found["road"] = metrics.road, {**faithful, "percentiles": (50,), "noise": 0.01, "seed": 0}
    found["infidelity"] = metrics.infidelity, {
        **faithful, "perturb": metrics.remove_box, "samples": 2, "normalize": True, "seed": 0,
    }  # fmt: skip
    found["max_sensitivity"] = metrics.max_sensitivity, {
        "cam": make(model), "images": images, "classes": classes, "radius": 0.02, "samples": 2, "seed": 0,
        "batch_size": 4,
    }  # fmt: skip
    found["arcc"] = metrics.arcc, {
        "evaluator": faithful["evaluator"], "cam": make(model), "images": images, "classes": classes,
        "confidence": scores.probability, "percentiles": (50,), "noise": 0.01, "seed": 0,
    }  # fmt: skip
    found["quantus_explainer"] = metrics.quantus_explainer, {"make_cam": make}
    found["class_sensitivity"] = metrics.class_sensitivity, {
        "cam": make(model), "images": images, "share": 0.1, "threshold": 0.5, "batch_size": 4,
    }  # fmt: skip
    found["noise_response"] = metrics.noise_response, {
        "cam": make(model), "images": images, "std": 0.2, "samples": 2, "similarity": metrics.pearson, "seed": 0,
        "batch_size": 4,
    }  # fmt: skip
    large = tensors(4, 3, 8, 8)
    evaluator = metrics.Evaluator(model, batch_size=4)
    for name in ("behaviour", "integrated_gradients", "occlusion_drops"):
        found[name] = getattr(metrics, name), {
            "evaluator": evaluator, "images": large, "classes": classes, "grid": 7, "progress": False,
        }  # fmt: skip
    for name in ("behaviour", "integrated_gradients"):
        found[name][1]["steps"] = 2
    relied_on = metrics.Behaviour(logits, classes, tensors(4, 7, 7), tensors(4, 7, 7))
    found["behaviour_kept"] = metrics.behaviour_kept, {"before": relied_on, "after": relied_on}
    found["honesty"] = metrics.honesty, {"maps": tensors(4, 8, 8), "relied_on": relied_on}
    found["decisions_kept"] = metrics.decisions_kept, {"before": logits, "after": logits.flip(0)}
    found["noisy_linear_imputation"] = metrics.noisy_linear_imputation, {
        "images": images, "missing": two[0] > 0.5, "noise": 0.01, "seed": 0,
    }  # fmt: skip
    found["remove_box"] = metrics.remove_box, {
        "images": images, "generator": torch.Generator().manual_seed(0), "share": 0.25,
    }  # fmt: skip
    found["model_randomization"] = metrics.model_randomization, {
        "make_cam": make, "model": model, "images": images, "classes": classes, "layers": ["head"],
        "mode": "cascading", "similarity": metrics.pearson, "seed": 0, "batch_size": 4,
    }  # fmt: skip
    found["label_randomization"] = metrics.label_randomization, {
        "make_cam": make, "model": model, "randomly_labelled": pooled(seed=1, dtype=torch.float32), "images": images,
        "classes": classes, "similarity": metrics.pearson, "batch_size": 4,
    }  # fmt: skip

    # Pictures
    found["as_image"] = visualize.as_image, {"image": picture}
    found["overlay"] = visualize.overlay, {"image": picture, "heatmap": heat, "colormap": "viridis", "alpha": 0.5}
    found["overlay_signed"] = visualize.overlay_signed, {
        "image": picture, "divergence": heat, "colormap": "RdBu_r", "alpha": 0.5, "limit": 1.0,
    }  # fmt: skip
    found["contours"] = visualize.contours, {
        "image": picture, "heatmap": heat, "levels": (0.5,), "quantiles": False, "colormap": "viridis", "thickness": 1,
    }  # fmt: skip
    found["masked"] = visualize.masked, {
        "image": picture, "heatmap": heat, "level": 0.5, "quantile": False, "rest": "dark",
    }  # fmt: skip
    found["gradient_map"] = visualize.gradient_map, {"gradients": tensors(3, 6, 5)}
    found["deprocess_image"] = visualize.deprocess_image, {"img": np.linspace(0, 1, 90).reshape(6, 5, 3)}
    found["show_cam_on_image"] = visualize.show_cam_on_image, {
        "img": np.full((6, 5, 3), 0.5, np.float32), "mask": heat, "use_rgb": True, "image_weight": 0.5,
    }  # fmt: skip
    found["show_divergence_on_image"] = visualize.show_divergence_on_image, {
        "img": np.full((6, 5, 3), 0.5, np.float32), "divergence": heat, "use_rgb": True, "image_weight": 0.5,
    }  # fmt: skip
    found["draw_regions"] = visualize.draw_regions, {
        "img": np.full((6, 5, 3), 0.5, np.float32),
        "regions": diffgradcam.important_features(model, images[0], "relu"), "use_rgb": True,
    }  # fmt: skip
    found["preprocess_image"] = visualize.preprocess_image, {
        "img": picture, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    }  # fmt: skip
    found["grid"] = visualize.grid, {"rows": [[picture]], "titles": [["a"]], "size": 1.0}
    found["animate"] = visualize.animate, {"frames": [picture, picture], "titles": ["a", "b"], "fps": 2}
    heats = [html.Heat("GradCAM", "cat", picture, "caption")]
    found["html_report"] = html.html_report, {
        "title": "a", "thumbnails": [html.Thumbnail("b", picture, heats)], "facts": {"a": "b"}, "failed": {"c": "d"},
    }  # fmt: skip

    # Data
    root = folder()
    found["SaliencyDataset"] = SaliencyDataset, {
        "root": root, "csv": root / "train.csv", "classes": [0, 1], "transform": None,
    }  # fmt: skip
    found["albumentations_style"] = (
        albumentations_style,
        {"transform": lambda image, mask: {"image": image, "mask": mask}},
    )
    for name in ("pca_saliency", "lda_saliency"):
        found[name] = getattr(datasets, name), {"images": tensors(4, 3, 6, 5), "components": 2, "grid": 4}
    found["lda_saliency"][1].update(labels=torch.tensor([0, 1, 1, 0]), shrinkage=0.1)
    found["explain_dataset"] = datasets.explain_dataset, {
        "cam": make(model), "loader": DataLoader(TensorDataset(images), batch_size=2),
        "out": tempfile.mkdtemp(dir=root),
        "classes": 1, "ids": ["a", "b", "c", "d"], "common_mode": True, "on_error": "stop", "shard_size": 2,
        "progress": False,
    }  # fmt: skip
    for name in ("Explanations", "open_explanations"):
        found[name] = getattr(datasets, name), {("path" if name == "Explanations" else "out"): root / "store"}
    return found
