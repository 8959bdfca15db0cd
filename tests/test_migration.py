"""The pages for users of other libraries: they name everything that is there, and their blocks give its values."""

import importlib
import pkgutil
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import diffgradcam
from tests.conftest import import_peer
from tests.test_docs import run_blocks

DOCS = Path(__file__).parent.parent / "docs"
PEERS = ("pytorch_grad_cam", "torch_cam", "captum")


def page(peer: str) -> Path:
    return DOCS / f"from_{peer}.md"


def rows(peer: str) -> list[list[str]]:
    """``[names, what, replacement]`` of the rows of the tables of names."""
    text = page(peer).read_text().split("## Every name")[-1]
    return [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| `")]


def named(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


def listed(peer: str) -> set[str]:
    return {part for cell, _, _ in rows(peer) for name in named(cell) for part in name.split(".")}


def cells(*kinds: str) -> list[Any]:
    found = [(peer, names, text) for peer in PEERS for names, what, text in rows(peer) if what.strip() in kinds]
    assert found
    return found


@pytest.mark.parametrize(("peer", "names", "_text"), cells("same", "better"))
def test_what_is_the_same_is_at_the_same_path(peer: str, names: str, _text: str) -> None:
    folder = ""
    for name in named(names):
        *parents, last = name.split(".")
        folder = ".".join(parents) or folder
        module = importlib.import_module(f"diffgradcam.{folder}") if folder else diffgradcam
        assert callable(getattr(module, last)), f"{name} of {peer}"


@pytest.mark.parametrize(("_peer", "_names", "replacement"), cells("renamed"))
def test_what_is_renamed_is_where_the_page_says(_peer: str, _names: str, replacement: str) -> None:
    for place in re.findall(r"`(diffgradcam\.[\w.]+)`", replacement):
        *parents, last = place.split(".")
        assert hasattr(importlib.import_module(".".join(parents)), last), place


def public_names(peer: str) -> list[tuple[str, str]]:
    """``(path below the package, name)`` of all that a library defines and does not mark private."""
    package = import_peer(peer)
    found = []
    for info in pkgutil.walk_packages(package.__path__, f"{peer}."):
        path = info.name.removeprefix(f"{peer}.")
        if any(part.startswith("_") for part in path.split(".")):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            if not name.startswith("_") and getattr(value, "__module__", None) == info.name:
                found.append((path, name))
    return found


def importable(path: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(f"diffgradcam.{path}"), name)
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(("package", "least"), [("pytorch_grad_cam", 60), ("torchcam", 15)])
def test_every_public_name_is_here_or_on_the_page(package: str, least: int) -> None:
    offered = public_names(package)
    assert len(offered) > least
    names = listed(package.replace("torchcam", "torch_cam"))
    assert [each for each in offered if not importable(*each) and each[1] not in names] == []


def test_every_name_of_captum_that_makes_maps_is_on_the_page() -> None:
    offered = [
        n for n in import_peer("captum.attr").__all__ if n.startswith("Layer") or "Cam" in n or n == "NoiseTunnel"
    ]
    assert {"LayerGradCam", "GuidedGradCam", "LayerAttribution"} <= set(offered)
    assert set(offered) - listed("captum") == set()


def test_no_page_lists_what_the_library_has_not() -> None:
    offered = {part for path, name in public_names("pytorch_grad_cam") for part in (*path.split("."), name)}
    methods = {"forward", "get_cam_weights", "get_cam_image", "aggregate_multi_layers"}
    assert listed("pytorch_grad_cam") - offered - methods == {"utils", "metrics"} - offered
    offered = {part for path, name in public_names("torchcam") for part in (*path.split("."), name)}
    assert listed("torch_cam") - offered == {"OutputTarget"}  # a type
    captum = {*import_peer("captum.attr").__all__, *dir(import_peer("captum.metrics"))}
    assert listed("captum") - captum == set()


# --- the values


def same(ours: Any, theirs: Any, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=atol)


def test_the_blocks_for_pytorch_grad_cam_give_its_values() -> None:
    peer = import_peer("pytorch_grad_cam")
    theirs = {name: import_peer(f"pytorch_grad_cam.metrics.{name}") for name in ("cam_mult_image", "road")}
    kinds = import_peer("pytorch_grad_cam.utils.model_targets")
    names = run_blocks(page("pytorch_grad_cam"))
    model, images = names["model"], names["images"]
    targets = [kinds.ClassifierOutputTarget(1)] * 4
    with peer.GradCAM(model, [model.layer4]) as cam:
        same(names["heatmaps"], cam(images, targets))
    with peer.SESS(model, [model.layer4], base_method=peer.LayerCAM, num_scales=2) as cam:
        same(names["sess"], cam(images, targets), atol=1e-3)
    confident = [kinds.ClassifierOutputSoftmaxTarget(1)] * 4
    before = model(images).softmax(1)[:, 1].detach()
    heat = names["heatmaps"]
    dropped = theirs["cam_mult_image"].DropInConfidence()(images, heat[:, None], confident, model)
    same(names["drop"] * before, dropped)
    same(names["increase"], theirs["cam_mult_image"].IncreaseInConfidence()(images, heat[:, None], confident, model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it hands tensors to NumPy in a way that goes away
        combined = theirs["road"].ROADCombined([20, 40, 60, 80])(images, heat, confident, model)
    same(names["road"].combined, combined, atol=2e-2)  # it removes the pixels of equal value together, and has noise
    assert names["kpca"].shape == (4, 32, 32)
    assert names["concepts"].shape == (4, 3, 8, 8)
    assert names["arcc"].shape == (4,)


def test_the_blocks_for_torch_cam_give_its_values() -> None:
    methods, measures = import_peer("torchcam.methods"), import_peer("torchcam.metrics")
    names = run_blocks(page("torch_cam"))
    model, images = names["model"], names["images"]
    with methods.LayerCAM(model, "layer4") as extractor:
        scores = model(images)
        same(names["first"], extractor(scores.argmax(1).tolist(), scores)[0], atol=1e-4)  # it adds an epsilon
        same(names["chosen"], extractor([0, 1, 0, 1], model(images))[0], atol=1e-4)
        same(names["own"], extractor(scores=model(images), targets=lambda z: z[0] - z[1], normalized=False)[0])
        first, every = names["every"].unbind(1)
        same(first, extractor(0, model(images), normalized=False)[0])
        same(every, extractor(1, model(images), normalized=False)[0])
    decisions = scores.argmax(1).tolist()
    with methods.GradCAM(model, ["conv1", "layer4"]) as extractor:
        found = extractor(decisions, model(images), normalized=False)
        for ours, theirs in zip(names["listed"], found, strict=True):
            same(ours, theirs)
        same(names["fused"], extractor.fuse_cams(extractor(decisions, model(images))), atol=1e-3)
    with methods.LayerCAM(model, "layer4") as extractor:
        classification = measures.ClassificationMetric(extractor, lambda z: z.softmax(1))
        classification.update(images)
        summary = classification.summary()
        assert names["drop"] == pytest.approx(summary["avg_drop"], rel=0.1)  # it does not scale again after resizing
        assert names["increase"] == summary["conf_increase"]
        curves = measures.DeletionInsertionMetric(extractor, lambda z: z.softmax(1), steps=16)
        curves.update(images)
        summary = curves.summary()
    same([names["deletion"], names["insertion"]], list(summary.values())[:2], atol=1e-3)  # ties up to rounding
    assert names["picture"].shape == (32, 32, 3)


def test_the_blocks_for_captum_give_its_values() -> None:
    attr = import_peer("captum.attr")
    names = run_blocks(page("captum"))
    model, images, labels = names["model"], names["images"], names["labels"]
    layer = attr.LayerGradCam(model, model.layer4)
    same(names["signed"], layer.attribute(images, labels).detach()[:, 0])
    positive = layer.attribute(images, labels, relu_attributions=True).detach()
    same(names["positive"], positive[:, 0])
    same(names["entering"], layer.attribute(images, labels, attribute_to_layer_input=True).detach()[:, 0])
    bilinear = attr.LayerAttribution.interpolate(positive, (32, 32), interpolate_mode="bilinear")
    same(names["upsampled"], bilinear[:, 0])
    nearest = attr.LayerAttribution.interpolate(positive, (32, 32))
    same(F.interpolate(names["positive"].unsqueeze(1), (32, 32)), nearest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it puts hooks on modules
        guided = attr.GuidedGradCam(model, model.layer4)
        same(names["guided"], guided.attribute(images, labels, interpolate_mode="bilinear").detach())
        same(names["gradients"], attr.GuidedBackprop(model).attribute(images.requires_grad_(), labels).detach())
    product = attr.LayerGradientXActivation(model, model.layer4).attribute(images, labels)
    same(names["product"], product.detach().sum(1))
    assert names["heat"].shape == (4, 32, 32)
    assert torch.stack([names["infidelity"], names["sensitivity"]]).isfinite().all()
