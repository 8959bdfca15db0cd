"""The same maps as the libraries that people know, where those are right; each is optional."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

import diffgradcam
from diffgradcam import (
    CAM,
    FEM,
    KPCACAM,
    DiffGradCAM,
    EigenCAM,
    EigenGradCAM,
    FinerCAM,
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    RandomCAM,
    RefineCAM,
    SegEigenCAM,
    ShapleyCAM,
    SmoothGradCAMPlusPlus,
    TrueFalseCAM,
)
from diffgradcam.analysis.concepts import DeepFeatureFactorization
from diffgradcam.heatmaps import minmax, principal_component, resize
from diffgradcam.methods import registered_methods
from diffgradcam.methods.fullgrad import FullGrad
from diffgradcam.scores import log_probability, logit, probability
from diffgradcam.utils.model_targets import ClassifierOutputTarget
from tests import models, oracles
from tests.conftest import import_peer
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
    ours = getattr(diffgradcam, name)(model, "small")
    np.testing.assert_allclose(ours(images(), targets, aug_smooth=True), theirs, rtol=0, atol=1e-5)
    # Without targets it decides on each version anew, and may average the maps of different classes; ours decides once.
    once = model(images()).argmax(1).tolist()
    np.testing.assert_array_equal(ours(images(), aug_smooth=True), ours(images(), once, aug_smooth=True))
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


def sign_corrected(monkeypatch, module, name):
    """Let pytorch-grad-cam turn a component as we do: its own sign is what its linear algebra happens to return."""
    arbitrary = getattr(module, name)

    def corrected(channels, *options):
        maps = arbitrary(channels, *options)
        centred = (channels - channels.mean((2, 3), keepdims=True)).sum(1)
        return maps * np.where((maps * centred).sum((1, 2)) < 0, -1, 1)[:, None, None]

    monkeypatch.setattr(module, name, corrected)


@heads
@pytest.mark.parametrize(
    ("theirs", "ours", "projection"),
    [
        ("EigenCAM", EigenCAM, "get_2d_projection"),
        ("EigenGradCAM", EigenGradCAM, "get_2d_projection"),
        ("KPCA_CAM", KPCACAM, "get_2d_projection_kernel"),
    ],
)
def test_components_equal_pytorch_grad_cam_with_its_sign_corrected(
    pytorch_grad_cam, monkeypatch, head, theirs, ours, projection
):
    names = {"EigenCAM": "eigen_cam", "EigenGradCAM": "eigen_grad_cam", "KPCA_CAM": "kpca_cam"}
    module = importlib.import_module(f"{pytorch_grad_cam.__name__}.{names[theirs]}")
    sign_corrected(monkeypatch, module, projection)
    model, targets = single(head), class_targets(pytorch_grad_cam)
    with getattr(module, theirs)(model, [model.relu]) as cam:
        expected = cam(images(), targets)
    close(ours(model, "relu")(images(), targets), expected)


@pytest.mark.parametrize("kernel", ["rbf", "poly", "linear", "cosine"])
def test_kernels_equal_pytorch_grad_cam_with_its_sign_corrected(pytorch_grad_cam, monkeypatch, kernel):
    module = importlib.import_module(f"{pytorch_grad_cam.__name__}.kpca_cam")
    sign_corrected(monkeypatch, module, "get_2d_projection_kernel")
    model, gamma = single(models.flat), 0.05
    with module.KPCA_CAM(model, [model.relu], kernel=kernel, gamma=gamma) as cam:
        expected = cam(images(), class_targets(pytorch_grad_cam))
    close(KPCACAM(model, "relu", kernel=kernel, gamma=gamma)(images()), expected)


@heads
def test_seg_eigen_cam_equals_pytorch_grad_cam(pytorch_grad_cam, head):
    # It chooses the sign itself, so nothing needs to be corrected.
    model, targets = single(head), class_targets(pytorch_grad_cam)
    with pytorch_grad_cam.SegEigenCAM(model, [model.relu]) as cam:
        theirs = cam(images(), targets)
    close(SegEigenCAM(model, "relu")(images(), targets), theirs)


@heads
def test_fem_equals_pytorch_grad_cam(pytorch_grad_cam, head):
    model = single(head)
    theirs = importlib.import_module(f"{pytorch_grad_cam.__name__}.fem").FEM
    for k in (1.0, 1.5):
        with theirs(model, [model.relu], k=k) as cam:
            close(FEM(model, "relu", k=k)(images()), cam(images(), class_targets(pytorch_grad_cam)))


def test_random_cam_equals_pytorch_grad_cam_with_the_same_draw(pytorch_grad_cam, monkeypatch):
    model = single(models.flat)
    ours = RandomCAM(model, "relu", seed=3)
    drawn = ours.weighting(torch.ones(3, models.CHANNELS, 1))[..., 0]
    drawn = drawn.expand(3, -1).numpy()
    monkeypatch.setattr(np.random, "uniform", lambda low, high, **_size: drawn if (low, high) == (-1, 1) else None)
    with pytorch_grad_cam.RandomCAM(model, [model.relu]) as cam:
        close(ours(images()), cam(images(), class_targets(pytorch_grad_cam)))


@pytest.mark.parametrize("head", [models.pooled, models.flat, models.max_pooled, models.deep])
@pytest.mark.parametrize("score", ["logit", "softmax", "rest"])
def test_shapley_cam_equals_pytorch_grad_cam(pytorch_grad_cam, head, score):
    module = importlib.import_module(f"{pytorch_grad_cam.__name__}.utils.model_targets")
    kind, ours = {
        "logit": (module.ClassifierOutputTarget, logit),
        "softmax": (module.ClassifierOutputSoftmaxTarget, probability),
        "rest": (module.ClassifierOutputReST, lambda z, c: logit(z, c) + log_probability(z, c)),
    }[score]
    model = head(dtype=torch.float32, **({"activation": nn.Softplus} if head in (models.flat, models.deep) else {}))
    targets = [kind(c) for c in CLASSES]
    shapley = importlib.import_module(f"{pytorch_grad_cam.__name__}.shapley_cam").ShapleyCAM
    cam = shapley(model, [model.relu])
    cam.activations_and_grads.clear = lambda: None  # it fails for gradients that are views, when it is collected too
    theirs = cam(images(), targets)
    close(ShapleyCAM(model, "relu")(images(), targets), theirs)
    close(ShapleyCAM(model, "relu", score=ours)(images(), CLASSES), theirs)


@pytest.mark.parametrize("name", ["GradCAMPlusPlus", "GradCAM", "LayerCAM"])
def test_refine_cam_equals_pytorch_grad_cam(pytorch_grad_cam, name):
    module = importlib.import_module(f"{pytorch_grad_cam.__name__}.refine_cam")
    model, targets = single(models.two_sizes), class_targets(pytorch_grad_cam)
    model.head.weight.data *= 100  # its epsilon in Grad-CAM++ is then negligible
    layers = [model.relu, model.last]
    theirs = module.RefineCAM(model, layers, base_method=getattr(pytorch_grad_cam, name))(images(), targets)
    close(RefineCAM(model, layers, base_method=getattr(diffgradcam, name))(images(), targets), theirs)


def test_fullgrad_equals_pytorch_grad_cam_with_the_scale_of_a_layer_instead_of_a_channel(pytorch_grad_cam, monkeypatch):
    module = importlib.import_module(f"{pytorch_grad_cam.__name__}.fullgrad_cam")

    def psi(channels, size):
        scaled = minmax(torch.from_numpy(channels))  # over channels and positions, as in the authors' code
        return resize(scaled.flatten(0, 1), size[::-1]).view(*scaled.shape[:2], *size[::-1]).numpy()

    monkeypatch.setattr(module, "scale_accross_batch_and_channels", psi)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 2, stride=2), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    model = models.seeded(lambda: nn.Sequential(*layers, *head), dtype=torch.float32)
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    with module.FullGrad(model, []) as cam:
        theirs = cam(images(), class_targets(pytorch_grad_cam))
    close(FullGrad(model)(images(), CLASSES), theirs)


def test_deep_feature_factorization_equals_pytorch_grad_cam(pytorch_grad_cam):
    module = importlib.import_module(f"{pytorch_grad_cam.__name__}.feature_factorization.deep_feature_factorization")
    model = single(models.two_sizes)
    activations = model[:7](images()).detach()
    assert activations.amin((0, 2, 3)).tolist() == [0.0] * models.CHANNELS  # so that its shift does nothing
    theirs = module.DeepFeatureFactorization(model, model.last, computation_on_concepts=model.head)(images(), 2)
    ours = DeepFeatureFactorization(model, model.last, computation_on_concepts=model.head)(images(), 2)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, np.array(other), rtol=0, atol=1e-4)


# --- torch-cam


@pytest.fixture
def torchcam():
    return import_peer("torchcam.methods")


def torchcam_maps(method, model, layers, *options, **named):
    with method(model, layers, *options, input_shape=(3, 6, 5), **named) as extractor:
        scores = model(images())
        return extractor(CLASSES, scores)


def test_cam_equals_torch_cam(torchcam):
    model = single(models.pooled)
    (theirs,) = torchcam_maps(torchcam.CAM, model, "relu", "head")
    # It does not rectify.
    ours = CAM(model, "relu", rectify=False).explain(images(), CLASSES).maps
    close(minmax(ours).numpy(), theirs.numpy())


def test_refine_cam_equals_torch_cam_where_no_layer_is_resized(torchcam):
    model = single(models.two_sizes)
    (theirs,) = torchcam_maps(torchcam.RefineCAM, model, ["act", "relu"], base_method=torchcam.LayerCAM)
    close(RefineCAM(model, ["act", "relu"], base_method=LayerCAM)(images(), CLASSES), theirs.numpy())


def test_smooth_grad_cam_plus_plus_equals_torch_cam_where_there_is_no_noise_and_gradients_are_constant(torchcam):
    # With noise it differs in what SmoothGradCAMPlusPlus names; where gradients differ from position to position it
    # takes sum(A G^3) for the paper's sum(A) G^3.
    model = single(models.pooled)
    model.head.weight.data *= 100  # its epsilon is then negligible
    (theirs,) = torchcam_maps(torchcam.SmoothGradCAMpp, model, "relu", num_samples=2, std=1e-30)
    close(SmoothGradCAMPlusPlus(model, "relu", std=0.0)(images(), CLASSES), theirs.numpy())
    close(
        SmoothGradCAMPlusPlus(model, "relu", std=0.0)(images(), CLASSES),
        GradCAMPlusPlus(model, "relu")(images(), CLASSES),
    )


# --- the table


def test_every_class_of_the_package_is_compared_with_loops():
    compared = {row[0].__name__ for row in METHODS.values()}
    elsewhere = {  # where their loops are
        "test_contrastive": {"TrueFalseCAM"},
        "test_methods": {"CAM", "RandomCAM", "RefineCAM", "ShapleyCAM", "SmoothGradCAMPlusPlus"},
        "test_attention": {"LeGrad"},
        "test_fullgrad": {"FullGrad"},
        "test_perturbation": {"AblationCAM", "ISCAM", "SSCAM", "ScoreCAM"},
    }
    assert set(registered_methods()) - compared <= set().union(*elsewhere.values())
