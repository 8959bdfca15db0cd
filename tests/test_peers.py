"""The same maps as the libraries that people know, where those are right; each is optional."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

import diffgradcam
from diffgradcam import DiffGradCAM, FinerCAM, GradCAM, GradCAMPlusPlus, LayerCAM, TrueFalseCAM
from diffgradcam.maps import minmax, principal_component
from diffgradcam.utils.model_targets import ClassifierOutputTarget
from tests import models, oracles
from tests.methods import METHODS

HEADS = [models.pooled, models.flat, models.max_pooled, models.two_sizes]
CLASSES = [0, 3, 1]
heads = pytest.mark.parametrize("head", HEADS)


def images():
    return models.images(dtype=torch.float32)


def single(head, **options):
    return head(dtype=torch.float32, **options)


def class_targets(module):
    # pytorch-grad-cam's own classes, not ours: both libraries must take them.
    kind = importlib.import_module(f"{module.__name__}.utils.model_targets").ClassifierOutputTarget
    return [kind(c) for c in CLASSES]


def close(ours, theirs):
    assert theirs.max() > 0.99  # no comparison of one map of zeros with another
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


# --- captum


@heads
@pytest.mark.parametrize("layer", ["features", "relu"])
def test_grad_cam_equals_captum(captum_attr, head, layer):
    model, classes = head(), torch.tensor(CLASSES)
    theirs = captum_attr.LayerGradCam(model, model.get_submodule(layer)).attribute(models.images(), target=classes)
    ours = GradCAM(model, layer, rectify=False).explain(models.images(), classes).maps
    torch.testing.assert_close(ours, theirs.squeeze(1).detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [1, 3])
def test_grad_cam_of_signals_and_volumes_equals_captum(captum_attr, dims):
    model, inputs = models.flat(dims=dims), models.images(dims=dims)
    theirs = captum_attr.LayerGradCam(model, model.relu).attribute(inputs, target=2, relu_attributions=True)
    ours = GradCAM(model, "relu").explain(inputs, 2).maps
    torch.testing.assert_close(ours, theirs.squeeze(1).detach(), rtol=1e-10, atol=1e-10)


def test_grad_cam_before_an_in_place_relu_equals_captum(captum_attr):
    model = models.densenet()
    theirs = captum_attr.LayerGradCam(model, model.features).attribute(models.images(), target=2)
    ours = GradCAM(model, "features", rectify=False).explain(models.images(), 2).maps
    torch.testing.assert_close(ours, theirs.squeeze(1).detach(), rtol=1e-10, atol=1e-10)


# --- pytorch-grad-cam


@heads
@pytest.mark.parametrize("name", ["GradCAM", "XGradCAM", "LayerCAM", "HiResCAM", "GradCAMElementWise"])
def test_the_call_equals_pytorch_grad_cam(pytorch_grad_cam, name, head):
    model, targets = single(head), class_targets(pytorch_grad_cam)
    layer = model.relu  # after the ReLU, where every channel that XGrad-CAM divides by has a positive sum
    with getattr(pytorch_grad_cam, name)(model=model, target_layers=[layer]) as cam:
        theirs = cam(input_tensor=images(), targets=targets)
        decided = cam(input_tensor=images(), targets=None)
    with getattr(diffgradcam, name)(model=model, target_layers=[layer]) as cam:
        close(cam(input_tensor=images(), targets=targets), theirs)
        close(cam(input_tensor=images(), targets=None), decided)
        assert cam.outputs.shape == (3, 5)


@pytest.mark.parametrize("name", ["GradCAM", "XGradCAM", "LayerCAM", "HiResCAM", "GradCAMElementWise"])
def test_volumes_equal_pytorch_grad_cam_before_its_other_interpolation(pytorch_grad_cam, name):
    # Of volumes it resizes with a spline and swaps the axes; where layer and input agree in size, neither shows.
    model, inputs = single(models.flat, dims=3), models.images(dims=3, dtype=torch.float32)
    with getattr(pytorch_grad_cam, name)(model=model, target_layers=[model.relu]) as cam:
        raw = [np.maximum(one, 0) for one in cam_images(cam, inputs, class_targets(pytorch_grad_cam))]
    ours = getattr(diffgradcam, name)(model, "relu").explain(inputs, torch.tensor(CLASSES)).maps
    np.testing.assert_allclose(ours.numpy(), raw, rtol=0, atol=1e-5)


def cam_images(cam, inputs, targets):
    """Its maps before scaling and resizing."""
    recorded = cam.activations_and_grads
    outputs = recorded(inputs)
    sum(target(output) for target, output in zip(targets, outputs, strict=True)).backward()
    activations, gradients = recorded.activations[0].numpy(), recorded.gradients[0].numpy()
    return cam.get_cam_image(inputs, cam.target_layers[0], targets, activations, gradients, False)


def test_grad_cam_plus_plus_equals_pytorch_grad_cam_where_its_epsilon_is_negligible(pytorch_grad_cam):
    model = single(models.flat)
    model.head.weight.data *= 100
    with pytorch_grad_cam.GradCAMPlusPlus(model, [model.relu]) as cam:
        theirs = cam(images(), class_targets(pytorch_grad_cam))
    close(GradCAMPlusPlus(model, "relu")(images(), class_targets(pytorch_grad_cam)), theirs)


def test_grad_cam_plus_plus_of_small_scores_follows_its_formula_where_pytorch_grad_cam_leaves_it(pytorch_grad_cam):
    model, targets = single(models.flat), class_targets(pytorch_grad_cam)
    model.head.weight.data *= 1e-6
    exact = models.flat()
    exact.head.weight.data *= 1e-6
    index = torch.tensor(CLASSES).unsqueeze(1)
    maps = oracles.explain(exact, "relu", models.images(), index, oracles.logit, oracles.gradcam_plus_plus)
    expected = minmax(maps.squeeze(1)).float().numpy()
    with pytorch_grad_cam.GradCAMPlusPlus(model, [model.relu]) as cam:
        assert np.abs(cam(images(), targets) - expected).max() > 0.05
    close(GradCAMPlusPlus(model, "relu")(images(), targets), expected)


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "HiResCAM"])
def test_several_layers_equal_pytorch_grad_cam(pytorch_grad_cam, name):
    model, targets = single(models.two_sizes), class_targets(pytorch_grad_cam)
    layers = [model.relu, model.small]
    with getattr(pytorch_grad_cam, name)(model, layers) as cam:
        theirs = cam(images(), targets)
    close(getattr(diffgradcam, name)(model, layers)(images(), targets), theirs)


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "GradCAMElementWise"])
def test_augmentation_smoothing_equals_pytorch_grad_cam(pytorch_grad_cam, name):
    model, targets = single(models.two_sizes), class_targets(pytorch_grad_cam)
    with getattr(pytorch_grad_cam, name)(model, [model.small]) as cam:
        theirs = cam(images(), targets, aug_smooth=True)
        decided = cam(images(), None, aug_smooth=True)
    ours = getattr(diffgradcam, name)(model, "small")
    np.testing.assert_allclose(ours(images(), targets, aug_smooth=True), theirs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours(images(), aug_smooth=True), decided, rtol=0, atol=1e-5)
    assert theirs.max() > 0.5
    assert np.abs(theirs - ours(images(), targets)).max() > 0.05  # it does something


def test_the_principal_component_equals_pytorch_grad_cam_up_to_sign(pytorch_grad_cam):
    svd = importlib.import_module(f"{pytorch_grad_cam.__name__}.utils.svd_on_activations")
    channels = torch.randn(4, 5, 6, 3)
    theirs = svd.get_2d_projection(channels.numpy())
    for ours, other in zip(principal_component(channels).numpy(), theirs, strict=True):
        np.testing.assert_allclose(ours * np.sign((ours * other).sum()), other, rtol=0, atol=1e-5)


def test_eigen_smoothing_equals_pytorch_grad_cam_with_its_sign_corrected(pytorch_grad_cam, monkeypatch):
    base = importlib.import_module(f"{pytorch_grad_cam.__name__}.base_cam")
    arbitrary = base.get_2d_projection

    def corrected(channels):
        maps = arbitrary(channels)
        centred = (channels - channels.mean((2, 3), keepdims=True)).sum(1)
        return maps * np.where((maps * centred).sum((1, 2)) < 0, -1, 1)[:, None, None]

    monkeypatch.setattr(base, "get_2d_projection", corrected)
    model, targets = single(models.two_sizes), class_targets(pytorch_grad_cam)
    with pytorch_grad_cam.GradCAM(model, [model.small]) as cam:
        theirs = cam(images(), targets, eigen_smooth=True)
        both = cam(images(), targets, aug_smooth=True, eigen_smooth=True)
    ours = GradCAM(model, "small")
    close(ours(images(), targets, eigen_smooth=True), theirs)
    np.testing.assert_allclose(ours(images(), targets, aug_smooth=True, eigen_smooth=True), both, rtol=0, atol=1e-5)
    assert np.abs(theirs - ours(images(), targets)).max() > 0.05


@heads
@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_finer_cam_equals_pytorch_grad_cam(pytorch_grad_cam, head, alpha):
    model = single(head)
    with pytorch_grad_cam.FinerCAM(model, [model.relu]) as cam:
        theirs = cam(images(), alpha=alpha)
    close(FinerCAM(model, "relu", alpha=alpha)(images()), theirs)


@pytest.mark.parametrize("score", ["softmax", "raw"])
def test_its_other_targets_are_explained_alike(pytorch_grad_cam, score):
    theirs = importlib.import_module(f"{pytorch_grad_cam.__name__}.utils.model_targets")
    model = single(models.flat, classes=5 if score == "softmax" else 1)
    target = theirs.ClassifierOutputSoftmaxTarget(1) if score == "softmax" else theirs.RawScoresOutputTarget()
    with pytorch_grad_cam.GradCAM(model, [model.relu]) as cam:
        expected = cam(images(), [target] * 3)
    close(GradCAM(model, "relu")(images(), [target] * 3), expected)


def test_its_segmentation_target_is_explained_alike(pytorch_grad_cam):
    theirs = importlib.import_module(f"{pytorch_grad_cam.__name__}.utils.model_targets")
    model = models.seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3)), dtype=torch.float32
    )
    mask = np.zeros((4, 3), dtype=np.float32)
    mask[1:3, :2] = 1
    targets = [theirs.SemanticSegmentationTarget(c, mask) for c in (2, 0, 1)]
    with pytorch_grad_cam.GradCAM(model, [model[1]]) as cam:
        expected = cam(images(), targets)
    close(GradCAM(model, [model[1]])(images(), targets), expected)


def test_its_class_target_is_contrasted_by_diffgradcam(pytorch_grad_cam):
    model, targets = single(models.flat), class_targets(pytorch_grad_cam)
    ours = [ClassifierOutputTarget(c) for c in CLASSES]
    for method in (DiffGradCAM, TrueFalseCAM, FinerCAM, LayerCAM):
        cam = method(model, "relu")
        np.testing.assert_array_equal(cam(images(), targets), cam(images(), ours))
    assert (
        np.abs(DiffGradCAM(model, "relu")(images(), targets) - GradCAM(model, "relu")(images(), targets)).max() > 0.05
    )


@pytest.mark.parametrize("name", ["ClassifierOutputReST", "SoftmaxOutputTarget", "FinerWeightedTarget"])
def test_its_other_targets_are_refused_by_diffgradcam(pytorch_grad_cam, name):
    kind = getattr(importlib.import_module(f"{pytorch_grad_cam.__name__}.utils.model_targets"), name)
    target = {"ClassifierOutputReST": [1], "SoftmaxOutputTarget": [], "FinerWeightedTarget": [1, [2], 1.0]}[name]
    with pytest.raises(
        ValueError, match=rf"target {name} is a score of its own, but this DiffGradCAM explains another"
    ):
        DiffGradCAM(single(models.flat), "relu")(images(), [kind(*target)] * 3)


def test_where_pytorch_grad_cam_is_wrong_about_an_in_place_relu_ours_is_the_map_of_the_twin(pytorch_grad_cam):
    inplace, twin = single(models.densenet, inplace=True), single(models.densenet, inplace=False)
    targets = class_targets(pytorch_grad_cam)
    with pytorch_grad_cam.GradCAM(twin, [twin.features]) as cam:
        right = cam(images(), targets)
    with pytorch_grad_cam.GradCAM(inplace, [inplace.features]) as cam:
        wrong = cam(images(), targets)
    assert np.abs(wrong - right).max() > 0.05
    close(GradCAM(inplace, "features")(images(), targets), right)


def test_the_table_of_methods_covers_every_class_of_the_package():
    covered = {row[0] for row in METHODS.values()}
    offered = {getattr(diffgradcam, name) for name in diffgradcam.__all__ if name.endswith("CAM") or "PlusPlus" in name}
    assert {cam for cam in offered if issubclass(cam, diffgradcam.BaseCAM)} - covered == {
        diffgradcam.BaseCAM,
        TrueFalseCAM,
    }
